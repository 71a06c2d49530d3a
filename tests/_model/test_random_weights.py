"""Weights drawn anew: which, in what order, and that the model's own come back untouched."""

import copy

import pytest
import torch
from captum.attr import Saliency
from torch import nn

from captum_density._model.random_weights import RandomWeights
from captum_density.attr import FullGrad


class Scale(nn.Module):
    """Weights that no method draws anew."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.arange(1.0, 9))

    def forward(self, x):
        return x * self.scale


class Backwards(nn.Module):
    """Layers that run in another order than they are written in, the last by a function of its weights."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.scale = Scale()

    def forward(self, x):
        return self.head(self.scale(self.norm(self.body(x)).relu()))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Backwards()
    for _ in range(3):
        model(torch.randn(16, 4) + 1)  # moves batch norm's statistics
    return model.eval()


def changed(model, weights, top=None):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with weights.drawn_anew(top):
        return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_the_topmost_layers_are_the_last_to_run(model):
    weights = RandomWeights(model, torch.randn(2, 4), seed=0)
    assert len(weights) == 4
    head = {"head.weight", "head.bias"}
    assert changed(model, weights, 1) == head
    assert changed(model, weights, 2) == {*head, "scale.scale"}
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert changed(model, weights, 3) == {*head, "scale.scale", *statistics}  # weights of 1 and biases of 0 are initial
    assert changed(model, weights) == {*head, "scale.scale", *statistics, "body.weight", "body.bias"}


def test_what_no_module_draws_keeps_its_values(model):
    with RandomWeights(model, torch.randn(2, 4), seed=0).drawn_anew():
        scale = model.scale.scale.detach().clone()
    assert torch.equal(scale.sort()[0], torch.arange(1.0, 9)) and not torch.equal(scale, torch.arange(1.0, 9))


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_models_own_come_back_unwritten(model, error):
    x = torch.randn(2, 4)
    tensors = [*model.parameters(), *model.buffers()]
    values, versions = [t.detach().clone() for t in tensors], [t._version for t in tensors]
    loss, state = model(x).sum(), torch.get_rng_state()
    weights = RandomWeights(model, x, seed=0)
    if error is None:
        with weights.drawn_anew():
            assert not torch.equal(model(x).sum(), loss)
    else:
        with pytest.raises(error), weights.drawn_anew():
            raise error
    after = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(after, tensors, strict=True))
    assert all(map(torch.equal, after, values)) and [t._version for t in after] == versions
    assert torch.equal(torch.get_rng_state(), state)
    loss.backward()  # of a graph from before, which would refuse weights that were written to


def test_the_seed_decides(model):
    x = torch.randn(2, 4)
    outputs = []
    for seed in (0, 0, 1):
        with RandomWeights(model, x, seed).drawn_anew():
            outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_tied_weights_stay_tied():
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    model = nn.Sequential(one, other)
    with RandomWeights(model, torch.randn(2, 4), seed=0).drawn_anew():
        assert one.weight is other.weight
    with RandomWeights(model, torch.randn(2, 4), seed=0).drawn_anew(1):
        assert one.weight is not other.weight
    assert one.weight is other.weight


def test_modules_of_functions_attention_and_recurrent_ones():
    linear, lstm = nn.Linear(4, 3), nn.LSTM(4, 3)
    x = torch.randn(2, 4)
    with RandomWeights(lambda x: linear(x), x, seed=0).drawn_anew():
        assert not torch.equal(linear(x), torch.nn.functional.linear(x, *map(torch.zeros_like, linear.parameters())))
    before = lstm(x)[0]
    with RandomWeights(lstm, x, seed=0).drawn_anew():
        assert not torch.equal(lstm(x)[0], before)
    assert torch.equal(lstm(x)[0], before)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    weights = RandomWeights(block, torch.randn(2, 5, 8), seed=0)
    assert {name for name in changed(block, weights) if "self_attn" in name and "weight" in name} == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",  # whose module never runs by itself
    }
    assert len(RandomWeights(lambda x: x, x, seed=0)) == 0


class Reaching(nn.Module):
    """Its `reset_parameters` draws its parts anew as well."""

    def __init__(self):
        super().__init__()
        self.part, self.gain = nn.Linear(4, 4), nn.Parameter(torch.full((4,), 2.0))

    def reset_parameters(self):
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.part.weight)

    def forward(self, x):
        return self.part(x * self.gain)


def test_a_module_that_reaches_into_its_parts_writes_to_none_of_the_models_own():
    model = Reaching()
    before = model.part.weight.detach().clone()
    weights = RandomWeights(model, torch.randn(2, 4), seed=1)
    assert torch.equal(model.part.weight, before)
    assert changed(model, weights) == {"gain", "part.weight", "part.bias"}


@pytest.mark.parametrize("method", [Saliency, FullGrad])
def test_what_holds_on_to_the_model_explains_the_changed_one(model, method):
    x, attribution = torch.randn(2, 4), method(model)
    before = attribution.attribute(x, target=1)
    with RandomWeights(model, x, seed=0).drawn_anew():
        inside, twin = attribution.attribute(x, target=1), copy.deepcopy(model)
    assert torch.equal(inside, method(twin).attribute(x, target=1)) and not torch.equal(inside, before)
    assert torch.equal(attribution.attribute(x, target=1), before)
