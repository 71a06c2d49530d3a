"""What a function computes with makes it another one.

Of private parts on purpose: each of these functions would train models.
"""

import functools
import threading

import pytest
import torch
from torch import nn

from captum_density._cache.identity import described, name_of
from captum_density.retraining import FitConfig
from tests.retraining.modules import distinct, loader


@pytest.fixture
def load(tmp_path, monkeypatch):
    return loader(tmp_path, monkeypatch)


FUNCTIONS = {
    "function": ("", "", lambda net: net.fit),
    "code": ("rate * 2", "rate * 3", lambda net: net.fit),
    "default": ("rate=0.1", "rate=0.2", lambda net: net.fit),
    "keyword's default": ("other=1", "other=2", lambda net: net.fit),
    "another": ("", "", lambda net: net.wrapped),
    "partial": ("", "", lambda net: functools.partial(net.fit, rate=0.1)),
    "another partial": ("", "", lambda net: functools.partial(net.fit, rate=0.2)),
    "partial in place": ("", "", lambda net: functools.partial(net.fit, 0.1)),
    "closure": ("", "", lambda net: net.closing(1)),
    "another closure": ("", "", lambda net: net.closing(2)),
    "tensor": ("", "", lambda net: net.closing(torch.zeros(3))),
    "another tensor": ("", "", lambda net: net.closing(torch.ones(3))),
    "words": ("", "", lambda net: net.closing({"a", "b"})),
    "other words": ("", "", lambda net: net.closing({"a", "c"})),
    "settings": ("", "", lambda net: net.closing({"a": 1.0})),
    "other settings": ("", "", lambda net: net.closing({"a": 2.0})),
    "a configuration": ("", "", lambda net: net.closing(FitConfig())),
    "another configuration": ("", "", lambda net: net.closing(FitConfig(lr=1))),
    "a module": ("", "", lambda net: net.closing(nn.ReLU())),
    "another module": ("", "", lambda net: net.closing(nn.Tanh())),
    "function within": ("", "", lambda net: net.closing(net.fit)),
    "function within changed": ("rate * 2", "rate * 3", lambda net: net.closing(net.fit)),
    "decorated": ("", "", lambda net: net.decorated),
    "decorated otherwise": ("return function(*arguments)", "return 1", lambda net: net.decorated),
    "decorated another": ("rate * 2", "rate * 3", lambda net: net.decorated),
    "object": ("", "", lambda net: net.Fit()),
    "another object": ("", "", lambda net: net.Fit(lr=0.2)),
    "object's code": ("self.lr * 2", "self.lr * 3", lambda net: net.Fit()),
    "object that shows nothing": ("", "", lambda net: net.Silent()),
    "its code": ('"Silent()"', '"Silent( )"', lambda net: net.Silent()),
    "method": ("", "", lambda net: net.Fit().method),
    "another's method": ("", "", lambda net: net.Fit(lr=0.2).method),
    "left of a line": ("", "", lambda net: net.two[0]),
    "right of a line": ("", "", lambda net: net.two[1]),
    "without text": ("", "", lambda net: eval("lambda m, x, y, s: m(abs(x))")),
    "without text, another": ("", "", lambda net: eval("lambda m, x, y, s: m(max(x))")),
    "without text, a constant": ("", "", lambda net: eval("lambda m, x, y, s: (lambda: 1)")),
    "without text, another constant": ("", "", lambda net: eval("lambda m, x, y, s: (lambda: 2)")),
}


def test_a_function_is_known_by_what_it_computes_with(load):
    def key(name):
        old, new, of = FUNCTIONS[name]
        return name_of({"fit": described(of(load(old, new)))})

    names = {name: key(name) for name in FUNCTIONS}
    distinct(names)
    assert {name: key(name) for name in FUNCTIONS} == names


def test_functions_are_known_in_threads_too():
    """Where one that names itself is noticed, another thread's description of it is none of it."""
    words = {f"{i}": [i] for i in range(4000)}

    def fit(model, x, y, seed):
        return words

    names = []
    threads = [threading.Thread(target=lambda: names.append(name_of({"fit": described(fit)}))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 4 and len(set(names)) == 1
