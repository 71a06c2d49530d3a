"""Layer variants of paths, discrete gradients and fooled gradients, against Captum's and against the inputs'."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from captum.attr import (
    LayerActivation,
    LayerDeepLift,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    configure_interpretable_embedding_layer,
    remove_interpretable_embedding_layer,
)
from hypothesis import assume, given, settings
from torch import nn
from torch.testing import assert_close

from captum_density.attr import (
    CompleteDeepLift,
    LayerCompleteDeepLift,
    LayerFullGrad,
    LayerPathIntegratedGradients,
    LayerShiftFooledGradient,
    NeuronFullGrad,
    PathIntegratedGradients,
    PowerPath,
    ShiftFooledGradient,
)
from captum_density.testing import check_attribution, networks
from tests.attr.layered import CUTS, network


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def squares(z, *others):
    return z.flatten(1).pow(2).sum(1)


def through_identity():
    net = network("convolutional")
    return nn.Sequential(nn.Identity(), *net.model), net.inputs


# -- through an identity they are the input variants


@pytest.mark.parametrize("at_input", [False, True])
def test_through_an_identity_they_are_the_input_variants(at_input):
    model, x = through_identity()
    baselines = torch.rand_like(x[:1])
    for path in (None, PowerPath(2.0)):
        options = {"target": 1, "n_steps": 6, "return_convergence_delta": True}
        own = LayerPathIntegratedGradients(model, model[0], path=path)
        expected = PathIntegratedGradients(model, path).attribute(x, baselines, **options)
        assert_close(own.attribute(x, baselines, attribute_to_layer_input=at_input, **options), expected)
    own = LayerCompleteDeepLift(model, model[0]).attribute(x, baselines, 1, None, True, at_input)
    expected = CompleteDeepLift(model).attribute(x, baselines, 1, return_convergence_delta=True)
    assert_close(own, expected)
    own = LayerShiftFooledGradient(model, model[0], squares).attribute(x, 1, True, None, at_input)
    assert_close(own, ShiftFooledGradient(model, squares).attribute(x, 1))


# -- paths

# Captum puts a leaf in a layer's place, which an in-place operation may not overwrite.
IN_PLACE = ("convolutional", "1")


@pytest.mark.parametrize(
    ("name", "layer"),
    [cut for cut in CUTS if cut != IN_PLACE and cut[1] not in ("lstm", "positions", "two", "3.self_attn")],
)
def test_the_straight_path_is_captums(name, layer):
    net = network(name)
    options = {"target": 1, "n_steps": 5, "return_convergence_delta": True}
    attributions, delta = LayerPathIntegratedGradients(net.model, net.layer(layer)).attribute(net.inputs, **options)
    captums, captums_delta = LayerIntegratedGradients(net.model, net.layer(layer)).attribute(net.inputs, **options)
    # Captum takes step sizes in float32.
    assert_close(attributions, captums, rtol=1e-6, atol=1e-8)
    assert_close(delta, captums_delta, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:Multiple layers provided")
def test_layers_of_a_list_move_together_as_captums_do():
    net = network("residual")
    layers = [net.layer("second"), net.layer("skip")]
    options = {"target": 2, "n_steps": 5, "return_convergence_delta": True, "baselines": 0.3}
    attributions, delta = LayerPathIntegratedGradients(net.model, layers).attribute(net.inputs, **options)
    captums, captums_delta = LayerIntegratedGradients(net.model, layers).attribute(net.inputs, **options)
    assert isinstance(attributions, list)
    assert_close(attributions, captums, rtol=1e-6, atol=1e-8)
    assert_close(delta, captums_delta, rtol=1e-6, atol=1e-8)
    assert float(delta.abs().max()) < 1e-3  # nothing goes around both


def test_of_ids_baselines_are_ids():
    net = network("encoder")
    ids, padding = net.inputs, torch.zeros(1, 6, dtype=torch.long)
    attribution = LayerPathIntegratedGradients(net.model, net.layer("tokens"))
    whole = attribution.attribute(ids, padding, 1, net.args, n_steps=12)
    parts = attribution.attribute(ids, 0, 1, net.args, n_steps=12, internal_batch_size=4)
    assert_close(whole, parts)
    change = net.model(ids, net.args) - net.model(padding.expand_as(ids), net.args)
    assert_close(whole.sum((1, 2)), change[:, 1].detach(), rtol=1e-3, atol=1e-3)


# -- discrete gradients


@pytest.mark.parametrize(("name", "layer"), CUTS)
def test_multipliers_of_layer_and_what_goes_around_sum_to_the_change(name, layer):
    net = network(name)
    options = {"target": 1, "additional_forward_args": net.args, "return_convergence_delta": True}
    _, delta = LayerCompleteDeepLift(net.model, net.layer(layer)).attribute(net.inputs, **options)
    around = {"residual": {"head"}, "decoder": set(), "encoder": {"tokens", "encoder.layers.0"}}
    whole = name not in around or layer in around[name]
    if whole and layer not in ("3.linear1", "3.self_attn"):
        assert float(delta.abs().max()) < 1e-12
    else:
        assert float(delta.abs().max()) > 1e-6


@pytest.mark.filterwarnings("ignore:Setting (forward|backward)")
@settings(max_examples=25)
@given(networks(["piecewise_linear"]))
def test_where_captums_sum_is_met_its_deep_lift_is_the_same(problem):
    layers = [m for m in problem.model if isinstance(m, nn.Linear)]
    baselines = torch.zeros_like(problem.inputs)
    reference = LayerDeepLift(problem.model, layers[0])
    try:
        captums, delta = reference.attribute(problem.inputs, baselines, problem.target, return_convergence_delta=True)
    except (RuntimeError, AssertionError):  # a module that is used twice, for example
        assume(False)
    assume(float(delta.abs().max()) < 1e-9)
    own = LayerCompleteDeepLift(problem.model, layers[0])
    attributions, own_delta = own.attribute(problem.inputs, baselines, problem.target, return_convergence_delta=True)
    assert float(own_delta.abs().max()) < 1e-9
    assert_close(attributions, captums, rtol=1e-6, atol=1e-8)


def test_custom_attributions_are_of_the_layers_tensors():
    net = network("residual")
    layer, seen = net.layer("first"), []

    def custom(multipliers, zs, baselines):
        seen.append((zs, baselines))
        return tuple(2 * m * (z - b) for m, z, b in zip(multipliers, zs, baselines, strict=True))

    attribution = LayerCompleteDeepLift(net.model, layer)
    doubled = attribution.attribute(net.inputs, 0.5, 1, custom_attribution_func=custom)
    assert_close(doubled, 2 * attribution.attribute(net.inputs, 0.5, 1))
    ((zs, starts),) = seen
    assert_close(zs[0], layer(net.inputs).detach())
    assert_close(starts[0], layer(torch.full_like(net.inputs, 0.5)).detach())
    multipliers = LayerCompleteDeepLift(net.model, layer, multiply_by_inputs=False).attribute(net.inputs, 0.5, 1)
    assert_close(2 * multipliers * (zs[0] - starts[0]), doubled)


# -- fooled gradients


@pytest.mark.parametrize(("name", "layer"), [("residual", "second"), ("recurrent", "embedding"), ("decoder", "up")])
def test_the_gradient_moves_by_that_of_the_shift(name, layer):
    net = network(name)
    fooled = LayerShiftFooledGradient(net.model, net.layer(layer), squares)
    honest = LayerGradientXActivation(net.model, net.layer(layer), multiply_by_inputs=False)
    z = LayerActivation(net.model, net.layer(layer)).attribute(net.inputs, net.args)
    expected = honest.attribute(net.inputs, 1, net.args) + 2 * z
    assert_close(fooled.attribute(net.inputs, 1, False, net.args), expected)
    assert_close(fooled.attribute(net.inputs, 1, additional_forward_args=net.args), expected.abs())
    listed = LayerShiftFooledGradient(net.model, [net.layer(layer)], squares)
    assert_close(listed.attribute(net.inputs, 1, False, net.args), [expected])


# -- all of them

CONFORMING = {
    "full grad": (LayerFullGrad, {}),
    "complete full grad": (lambda model, layer: LayerFullGrad(model, layer, complete=True), {}),
    "path": (LayerPathIntegratedGradients, {"n_steps": 3}),
    "deep lift": (LayerCompleteDeepLift, {}),
    "fooled": (lambda model, layer: LayerShiftFooledGradient(model, layer, squares), {}),
    "neuron": (NeuronFullGrad, {}),
    "complete neuron": (lambda model, layer: NeuronFullGrad(model, layer, complete=True), {}),
}


@pytest.mark.parametrize("models", [("two_inputs",), pytest.param(None, marks=pytest.mark.slow)], ids=["one", "all"])
@pytest.mark.parametrize("name", CONFORMING)
def test_every_law_is_kept(name, models):
    make, options = CONFORMING[name]
    ran = check_attribution(make, models=models, attribute_kwargs=options)
    assert {"additional_forward_args", "hooks_after_raising_model", "batch_independence"} <= set(ran)
    assert ("convergence_delta_value" in ran) == (name in ("complete full grad", "path", "deep lift"))


def every_method(model, layer):
    return [
        LayerFullGrad(model, layer, complete=True),
        LayerPathIntegratedGradients(model, layer),
        LayerCompleteDeepLift(model, layer),
        LayerShiftFooledGradient(model, layer, squares),
    ]


def test_forms_are_the_layers():
    net = network("pair")
    for method in every_method(net.model, net.layer("two")):
        assert [a.shape for a in method.attribute(net.inputs, target=1)] == [(3, 4), (3, 4)]
        on_input = method.attribute(net.inputs, target=1, attribute_to_layer_input=True)
        assert on_input.shape == (3, 5)
    for method in every_method(net.model, net.layer("named")):
        assert method.attribute(net.inputs, target=1, attribute_to_layer_input=True).shape == (3, 4)


def test_inputs_made_in_inference_mode():
    net = network("recurrent")
    for method in every_method(net.model, net.layer("embedding")):
        with torch.inference_mode():
            attributions = method.attribute(net.inputs.clone(), target=1)
        assert_close(attributions, method.attribute(net.inputs, target=1))


class Positions(nn.Module):
    """Ids (N, L), and embeddings (L, E) of positions, the same for all examples."""

    def __init__(self):
        super().__init__()
        self.token, self.position, self.head = nn.Embedding(20, 8), nn.Embedding(9, 8), nn.Linear(8, 2)

    def forward(self, ids):
        x = torch.tanh(self.token(ids) + self.position(torch.arange(ids.size(1))))
        return self.head(x.prod(1) + x.mean(1))


@pytest.mark.parametrize("length", [4, 5])
def test_a_tensor_for_all_examples_is_not_taken_as_a_row_for_each(length):
    torch.manual_seed(0)
    model, ids = Positions().double().eval(), torch.randint(20, (4, length))
    for multiply in (False, True):
        for layer in (model.position, model.token):
            method = LayerPathIntegratedGradients(model, layer, None, multiply, path=PowerPath(2.0))
            together = method.attribute(ids, torch.zeros_like(ids), target=1)
            for i, own in enumerate(together):
                alone = method.attribute(ids[i : i + 1], torch.zeros_like(ids[:1]), target=1)
                assert_close(own, alone.view_as(own))
            assert together.shape == (4, length, 8)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_tensor_for_all_heads_is_not_taken_as_a_row_for_each(n):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.bias = nn.Parameter(torch.randn(2, 2)), nn.Identity()

        def forward(self, x):  # scores of two heads
            scores = x.unsqueeze(1) * torch.tensor([1.0, 2.0]).view(2, 1, 1) + self.bias(self.table)
            return torch.tanh(scores).mean((1, 2))

    model, x = Heads(), torch.randn(n, 2, 2)
    for method in every_method(model, model.bias):
        if n == 1 and not isinstance(method, LayerPathIntegratedGradients):
            assert method.attribute(x, target=1).shape == (2, 2)
            continue
        with pytest.raises(ValueError, match="one at a time to LayerFullGrad"):
            method.attribute(x, target=1)


def test_tensors_that_are_overwritten_with_others_are_refused():
    class Skip(nn.Module):
        def __init__(self, clone):
            super().__init__()
            self.first, self.relu, self.head = nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)
            self.same, self.clone = nn.Identity(), clone

        def forward(self, x):
            y = self.first(x)
            z = self.relu(self.same(y.clone() if self.clone else y))
            return self.head(z + y)

    for clone in (False, True):
        model, x = Skip(clone), torch.randn(4, 3)
        for method in every_method(model, model.same):
            if clone:
                method.attribute(x, target=1)
                continue
            with pytest.raises(ValueError, match="without inplace=True"):
                method.attribute(x, target=1)


def test_lengths_that_depend_on_the_longest_example():
    class Trimmed(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(torch.tanh(self.token(ids[:, : int((ids > 0).sum(1).max())])).sum(1))

    model, ids = Trimmed().double(), torch.tensor([[3, 0, 0, 0], [1, 5, 2, 0], [1, 2, 0, 0]])
    method = LayerPathIntegratedGradients(model, model.token)
    baselines = 8 * (ids > 0)
    attributions = method.attribute(ids, baselines, target=1)
    assert attributions.shape == (3, 3, 4)
    assert_close(attributions[1:2], method.attribute(ids[1:2], baselines[1:2], target=1))
    assert not attributions[0, 1:].any()


def test_tensors_that_go_unused_have_zero():
    model = nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 3, batch_first=True))
    ids = torch.tensor([[1, 5, 2], [7, 0, 3]])
    method = LayerPathIntegratedGradients(lambda ids: model(ids)[0][:, -1], model[1])
    outputs, last, cell = method.attribute(ids, target=1)
    assert outputs.abs().sum() > 0 and not last.any() and not cell.any()
    method = LayerPathIntegratedGradients(lambda ids: (model(ids), model[0](ids)[:, 0])[1], model[1])
    with pytest.raises(ValueError, match="pass a layer that it is"):
        method.attribute(ids, target=1)


@pytest.mark.parametrize("n", [2, 4])
def test_under_autocast_sums_are_not_rounded(n):
    torch.manual_seed(0)
    model, ids = Positions().eval(), torch.randint(20, (n, 4))
    layered = nn.Sequential(model.token, nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    first = lambda ids: layered(ids).mean(1)  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        for method in every_method(first, layered[1])[:3]:
            attributions, delta = method.attribute(ids, target=1, return_convergence_delta=True)
            assert attributions.shape == (n, 4, 8) and float(delta.abs().max()) < 0.01
        method = LayerFullGrad(first, layered[0], complete=True)
        sums = method.attribute(ids, target=1).sum((1, 2))
        assert_close(sums, method.decompose(ids, target=1).total().float(), atol=1e-6, rtol=1e-6)


def test_threads_have_tensors_of_their_own():
    net = network("recurrent")
    method = LayerFullGrad(net.model, net.layer("embedding"), complete=True)
    batches = [net.inputs, net.inputs[:1], net.inputs.flip(1)]
    expected = [method.attribute(ids, target=1) for ids in batches]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda ids: [method.attribute(ids, target=1) for _ in range(3)], batches))
    for own, right in zip(results, expected, strict=True):
        for attributions in own:
            assert_close(attributions, right)


def test_the_forward_function_is_read_at_the_call():
    net = network("recurrent")
    for method in every_method(net.model, net.layer("embedding")):
        expected = 2 * method.attribute(net.inputs, target=1)
        if isinstance(method, LayerShiftFooledGradient):
            continue
        method.forward_func = lambda ids: 2 * net.model(ids)
        assert_close(method.attribute(net.inputs, target=1), expected)


@pytest.mark.filterwarnings("ignore:In order to make embedding layers more interpretable")
def test_with_captums_interpretable_embeddings_it_is_the_same():
    net = network("recurrent")
    expected = [m.attribute(net.inputs, target=1) for m in every_method(net.model, net.layer("embedding"))]
    embedding = configure_interpretable_embedding_layer(net.model, "embedding")
    try:
        vectors = embedding.indices_to_embeddings(net.inputs).detach()
        for method, attributions in zip(every_method(net.model, embedding), expected, strict=True):
            if isinstance(method, LayerPathIntegratedGradients | LayerCompleteDeepLift):
                zero = embedding.indices_to_embeddings(torch.zeros_like(net.inputs)).detach()
                assert_close(method.attribute(vectors, zero, target=1), attributions)
            else:
                assert_close(method.attribute(vectors, target=1), attributions)
    finally:
        remove_interpretable_embedding_layer(net.model, embedding)


def test_a_mean_of_gradients_has_no_delta():
    model, x = through_identity()
    with pytest.raises(ValueError, match="multiply_by_inputs=True"):
        LayerPathIntegratedGradients(model, model[0], None, False).attribute(x, target=1, return_convergence_delta=True)
    means = LayerPathIntegratedGradients(model, model[0], None, False).attribute(x, target=1, n_steps=5)
    assert_close(means * x, LayerPathIntegratedGradients(model, model[0]).attribute(x, target=1, n_steps=5))


def test_layers_and_paths_that_are_none():
    model, x = through_identity()
    for make in (LayerPathIntegratedGradients, LayerCompleteDeepLift, LayerFullGrad):
        with pytest.raises(TypeError, match="pass a module"):
            make(model, 0)
    with pytest.raises(TypeError, match="must be made"):
        LayerPathIntegratedGradients(model, model[0], path=PowerPath)
    with pytest.raises(ValueError, match="leave it out"):
        LayerCompleteDeepLift(model, model[0]).attribute(x, target=1, grad_kwargs={"create_graph": True})
    with pytest.raises(ValueError, match="contain NaN"):
        infinite = nn.Sequential(nn.Threshold(1e3, torch.inf), nn.Tanh())
        LayerFullGrad(infinite, infinite[0]).attribute(torch.ones(1, 2), 0)


@pytest.mark.parametrize("kind", [LayerFullGrad, LayerCompleteDeepLift, LayerPathIntegratedGradients])
@pytest.mark.parametrize("n", [1, 3])
def test_one_number_for_all_examples_is_refused(kind, n):
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean()

    scale, linear = Mean(), nn.Linear(3, 2)
    with pytest.raises(ValueError, match="pass another layer"):
        kind(lambda x: linear(x) * scale(x), scale).attribute(torch.randn(n, 3), target=0)
