"""LayerFullGrad and NeuronFullGrad: gradient times activation, what comes after the layer and what goes around it."""

import pytest
import torch
from captum.attr import LayerGradientXActivation
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from captum_density.attr import FullGrad, LayerFullGrad, NeuronFullGrad
from captum_density.testing import assert_complete
from tests.attr.layered import CUTS, NETWORKS, Mean, Residual, network


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize(("name", "layer"), CUTS)
@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_layer_after_and_around_sum_to_the_output(name, layer, at_input):
    net = network(name)
    if at_input and not any(x.is_floating_point() for x in as_tuple(net.inputs)) and layer in ("tokens", "embedding"):
        pytest.skip("it takes ids")
    if at_input and layer == "positions":
        pytest.skip("it takes positions")
    attribution = LayerFullGrad(net.model, net.layer(layer), complete=True)
    terms = attribution.decompose(net.inputs, 1, net.args, at_input)
    output = net.model(*as_tuple(net.inputs), *([] if net.args is None else [net.args]))[:, 1].detach()
    assert_close(terms.output, output)
    assert float(terms.gap().max()) < 1e-12
    attributions, delta = attribution.attribute(net.inputs, 1, net.args, at_input, return_convergence_delta=True)
    parts = terms.parts()
    assert_close(sum(parts.values()), output, rtol=1e-12, atol=1e-12)
    assert_close(delta, -parts["around"], rtol=1e-10, atol=1e-12)
    examples = 2 if layer == "lstm" else 1  # h and c have the layers first
    if examples == 1 and name != "time first":
        assert_complete(as_tuple(attributions), output - parts["around"])
    assert_close(sum(a.sum() for a in as_tuple(attributions)), (output - parts["around"]).sum())


@pytest.mark.parametrize(
    ("name", "layer"), [cut for cut in CUTS if cut[1] not in ("lstm", "positions", "two", "3.self_attn")]
)
def test_the_layers_own_terms_are_gradient_times_activation(name, layer):
    net = network(name)
    terms = LayerFullGrad(net.model, net.layer(layer)).decompose(net.inputs, 2, net.args)
    expected = LayerGradientXActivation(net.model, net.layer(layer)).attribute(net.inputs, 2, net.args)
    assert_close(terms.layer, as_tuple(expected))


@pytest.mark.parametrize("complete", [False, True])
def test_through_an_identity_it_is_full_grad(complete):
    net = network("convolutional")
    model = nn.Sequential(nn.Identity(), *net.model)
    for at_input in (False, True):
        attributions = LayerFullGrad(model, model[0], complete=complete).attribute(net.inputs, 1, None, at_input)
        assert_close(attributions, FullGrad(model, complete=complete).attribute(net.inputs, 1), rtol=0, atol=0)


def test_what_goes_around_is_told_apart():
    net = network("residual")
    names = {layer: LayerFullGrad(net.model, net.layer(layer)).decompose(net.inputs, 1) for layer in net.layers}
    assert list(names["second"].around) == ["input 0", "skip:conv2d"]
    assert list(names["skip"].around) == ["input 0", "first:conv2d", "norm:batch_norm", "second:conv2d"]
    assert list(names["second"].after) == ["gelu", "head:linear"]
    # What goes around one branch is what the other carries, as nothing but the two is added up.
    around = names["skip"].parts()["around"]
    assert_close(around, names["second"].parts()["layer"])


def test_of_ids_what_they_look_up_goes_around():
    net = network("encoder")
    terms = LayerFullGrad(net.model, net.layer("encoder.layers.1.linear1")).decompose(net.inputs, 1, net.args)
    assert float(terms.around["input 0"].abs().min()) > 1e-3
    assert "encoder.layers.0.linear1:linear" in terms.around
    embedded = LayerFullGrad(net.model, net.layer("tokens")).decompose(net.inputs, 1, net.args)
    assert float(embedded.parts()["around"].abs().max()) == 0


def test_the_examples_of_a_batch_are_those_of_batches_of_one():
    for name, layer in (("time first", "lstm"), ("patches", "3.linear1"), ("encoder", "positions")):
        net = network(name)
        attribution = LayerFullGrad(net.model, net.layer(layer))
        whole = attribution.decompose(net.inputs, [0, 2], net.args)
        for i, target in enumerate([0, 2]):
            args = None if net.args is None else net.args[i : i + 1]
            alone = attribution.decompose(net.inputs[i : i + 1], target, args)
            assert_close([t[i : i + 1] for t in whole.layer], list(alone.layer))
            assert_close({k: t[i : i + 1] for k, t in whole.after.items()}, alone.after)


def test_where_batch_and_time_are_equally_long():
    net = network("time first")
    ids = torch.randint(11, (6, 6))
    outputs, h, c = LayerFullGrad(net.model, net.layer("lstm"), complete=True).attribute(ids, 1)
    assert_complete(tuple(a.transpose(0, 1) for a in (outputs, h, c)), net.model(ids)[:, 1])
    assert (h.shape, c.shape) == ((1, 6, 4), (1, 6, 4))


def test_a_list_of_layers_gives_a_list():
    net = network("residual")
    layers = [net.layer("first"), net.layer("second")]
    attributions, deltas = LayerFullGrad(net.model, layers, complete=True).attribute(
        net.inputs, 1, return_convergence_delta=True
    )
    for layer, a, d in zip(layers, attributions, deltas, strict=True):
        alone = LayerFullGrad(net.model, layer, complete=True)
        assert_close((a, d), alone.attribute(net.inputs, 1, return_convergence_delta=True))
    assert len(LayerFullGrad(net.model, layers).decompose(net.inputs, 1)) == 2


def test_results_are_differentiable():
    net = network("convolutional")
    x = net.inputs.clone().requires_grad_()
    attribution = LayerFullGrad(net.model, net.model[4], complete=True)
    a = attribution.attribute(x, 1, grad_kwargs={"create_graph": True})
    (gradient,) = torch.autograd.grad(a.pow(2).sum(), x)
    step, direction = 1e-6, torch.randn_like(x)
    ends = [attribution.attribute(net.inputs + s * step * direction, 1).pow(2).sum() for s in (1, -1)]
    assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-9)
    assert not attribution.attribute(x, 1).requires_grad


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 3)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))

    def forward(self, ids):
        return self.head(checkpoint(self.block, self.embedding(ids), use_reentrant=False).mean(1))


@pytest.mark.parametrize("layer", ["embedding", "block.0", "block.1", "head"])
@pytest.mark.parametrize("frozen", [False, True])
def test_layers_inside_and_outside_of_checkpoints(layer, frozen):
    model, ids = Checkpointed().double().requires_grad_(not frozen), torch.randint(9, (2, 4))
    terms = LayerFullGrad(model, model.get_submodule(layer)).decompose(ids, 1)
    assert float(terms.gap().max()) < 1e-12
    if not frozen:  # Captum's hooks are gone when the block runs again
        plain = LayerGradientXActivation(model, model.get_submodule(layer)).attribute(ids, 1)
        assert_close(terms.layer[0], plain)


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.rows, self.head = nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.Linear(4, 3)

    def forward(self, x):
        y = self.rows(self.linear(x))
        y[:, 0].mul_(2.0)
        y.add_(1.0)
        return self.head(torch.relu_(y[:, 1]) + y[:, 0])


@pytest.mark.parametrize("layer", ["linear", "rows"])
def test_what_overwrites_a_layers_tensor_comes_after_it(layer):
    model, x = Overwriting().double(), torch.randn(3, 6, dtype=torch.float64)
    attribution = LayerFullGrad(model, model.get_submodule(layer), complete=True)
    attributions, delta = attribution.attribute(x, 1, return_convergence_delta=True)
    assert_complete(attributions, model(x)[:, 1])
    assert float(delta.abs().max()) < 1e-12
    own = attribution.decompose(x, 1).layer[0]
    assert_close(own, LayerGradientXActivation(model, model.get_submodule(layer)).attribute(x, 1))


def test_ids_and_numbers_as_inputs_of_one_model():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.scale, self.head = nn.Embedding(9, 6), nn.Linear(2, 6), nn.Linear(6, 3)

        def forward(self, ids, x):
            return self.head(torch.tanh(self.embedding(ids).mean(1) * self.scale(x)))

    model, inputs = Scaled().double(), (torch.randint(9, (2, 4)), torch.randn(2, 2, dtype=torch.float64))
    terms = LayerFullGrad(model, model.scale).decompose(inputs, 1)
    assert float(terms.gap().max()) < 1e-12
    assert float(terms.around["input 0"].abs().min()) > 0  # what the ids look up
    assert float(terms.around["input 1"].abs().max()) == 0  # which passes through the layer alone


def test_a_layer_whose_examples_are_not_told_apart_is_refused():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x, lengths):
            return self.head(self.lstm(pack_padded_sequence(x, lengths, True, False))[1][0][-1])

    model, x, lengths = Packed(), torch.randn(2, 4, 6), torch.tensor([3, 4])
    with pytest.raises(ValueError, match="one at a time"):
        LayerFullGrad(model, model.lstm).attribute(x, 1, lengths)
    assert float(LayerFullGrad(model, model.head).decompose(x, 1, lengths).gap().max()) < 1e-5


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu, self.spare, self.linear = nn.ReLU(), nn.ReLU(), nn.Linear(3, 3)

    def forward(self, x):
        return self.relu(self.linear(self.relu(x)))


def test_what_goes_around_is_not_to_blame_for_terms_without_a_place():
    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.skip, self.norm = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.norm(torch.cat([self.first(x), self.skip(x)], 1)).sum((2, 3))

    model = Side().eval()
    nn.init.normal_(model.norm.bias)
    with pytest.raises(RuntimeError, match="lost at cat"):
        LayerFullGrad(model, model.first, complete=True, min_placed=0.99).attribute(torch.randn(2, 3, 4, 4), 3)


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [("relu", "module of its own"), ("spare", "module that the model calls")],
    ids=["several times", "never"],
)
def test_a_layer_has_to_run_once(layer, remedy):
    model, x = Twice(), torch.randn(2, 3)
    with pytest.raises(ValueError, match=remedy):
        LayerFullGrad(model, model.get_submodule(layer)).attribute(x, 0)
    with pytest.raises(ValueError, match=remedy):
        NeuronFullGrad(model, model.get_submodule(layer)).attribute(x, 0)
    assert not model.relu._forward_hooks


def test_bad_arguments():
    net = network("convolutional")
    with pytest.raises(TypeError, match=r"pass model\.get_submodule\('0'\)"):
        LayerFullGrad(net.model, "0")
    with pytest.raises(TypeError, match=r"pass a module"):
        NeuronFullGrad(net.model, [net.model[0]])
    with pytest.raises(ValueError, match="complete=True"):
        LayerFullGrad(net.model, net.model[0]).attribute(net.inputs, 1, return_convergence_delta=True)
    with pytest.raises(ValueError, match="leave it out"):
        LayerFullGrad(net.model, net.model[0]).attribute(net.inputs, 1, grad_kwargs={"is_grads_batched": True})
    with pytest.raises(ValueError, match="pass a layer that does"):
        ids = network("recurrent")
        LayerFullGrad(ids.model, ids.layer("embedding")).attribute(ids.inputs, 1, None, True)


def test_wrapped_models_are_unwrapped():
    net = network("convolutional")
    expected = LayerFullGrad(net.model, net.model[1]).attribute(net.inputs, 1)
    for model in (nn.DataParallel(net.model), torch.compile(net.model, backend="eager")):
        assert_close(LayerFullGrad(model, net.model[1], device_ids=[0]).attribute(net.inputs, 1), expected)
        assert_close(LayerFullGrad(model, model).attribute(net.inputs, 1).shape, (2, 3))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name in ("convolutional", "residual", "pair")])
def test_a_neuron_is_full_grad_of_its_value(name):
    net = network(name)
    layer = net.layer("two.a" if name == "pair" else net.layers[1])
    values = []
    handle = layer.register_forward_hook(lambda module, args, output: values.append(output.clone()))
    with torch.no_grad():
        net.model(net.inputs)
    handle.remove()
    picked = (1,) if values[0].ndim == 2 else (1, 2, slice(0, 3))
    attributions = NeuronFullGrad(net.model, layer, complete=True).attribute(net.inputs, picked)
    value = values[0][:, 1] if values[0].ndim == 2 else values[0][:, 1, 2, :3].sum(1)
    assert_complete(attributions, value)
    by_function = NeuronFullGrad(net.model, layer, complete=True).attribute(
        net.inputs, lambda y: y[(slice(None), *picked)].flatten(1).sum(1) if y.ndim > 2 else y[:, 1]
    )
    assert_close(by_function, attributions)


def test_dropout_is_explained_as_drawn():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    model = model.double().train()
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.manual_seed(1)
    expected = model(x)[:, 1]
    torch.manual_seed(1)
    terms = LayerFullGrad(model, model[2]).decompose(x, 1)
    assert_close(terms.output, expected)
    assert float(terms.gap().max()) < 1e-12


def test_shows_what_it_explains():
    model = Residual()
    assert repr(LayerFullGrad(model, model.first)) == "LayerFullGrad(Residual, Conv2d, complete=False)"
    assert repr(NeuronFullGrad(model, Mean(), complete=True)) == "NeuronFullGrad(Residual, Mean, complete=True)"
