"""A module of one's own, as text: what it holds is told from what it holds after an edit."""

import importlib.util
import sys


def loader(tmp_path, monkeypatch):
    """Loads a text as module "net", from a file, so that the text can be read: as long as it is the last one loaded."""

    def loaded(old="", new=""):
        assert old in NET
        path = tmp_path / f"{len(list(tmp_path.glob('*.py')))}.py"
        path.write_text(NET.replace(old, new) if old else NET, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("net", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "net", module)
        spec.loader.exec_module(module)
        return module

    return loaded


NET = """
import torch
from torch import nn
from torch.nn.functional import dropout

class Base(nn.Module):
    def forward(self, x):
        return self.head(dropout(x, 0.3, self.training))

class Net(Base):
    def __init__(self, p=0.3, activation=torch.relu, drop=0.1, attention_rate=0.1):
        super().__init__()
        self.p, self.activation = p, activation
        self.body, self.last, self.drop = nn.Linear(12, 12), nn.Linear(12, 3), nn.Dropout(drop)
        self.attention = nn.MultiheadAttention(4, 1, dropout=attention_rate, batch_first=True)

    def head(self, x):
        if self.training:
            x = x * 1.1
        x = self.activation(self.body(dropout(x, self.p, self.training)))
        x = x.view(-1, 3, 4)
        return self.last(self.drop(self.attention(x, x, x, need_weights=False)[0].flatten(1)))

class Factory:
    def __call__(self):
        return Net()

class Fit:
    def __init__(self, lr=0.1):
        self.lr = lr

    def __call__(self, model, x, y, seed):
        self.lr * 2

    def method(self, model, x, y, seed):
        pass

class Silent(Fit):
    def __repr__(self):
        return "Silent()"

def fit(model, x, y, seed, rate=0.1, *, other=1):
    rate * 2

def wrapped(function):
    import functools
    @functools.wraps(function)
    def call(*arguments):
        return function(*arguments)
    return call

decorated = wrapped(fit)

def closing(value):
    def inner(model, x, y, seed):
        value
    return inner

two = lambda m, x, y, s: m(x * 2), lambda m, x, y, s: m(x * 3)
"""


def distinct(found):
    keys = list(found.values())
    assert len(set(keys)) == len(keys), [name for name, key in found.items() if keys.count(key) > 1]
