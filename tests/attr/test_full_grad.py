"""FullGrad and its family: the reference's numbers, the paper's form, the form Captum asks for, and bad input."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_density.attr import FullGrad, SimpleFullGrad, SmoothFullGrad
from captum_density.testing import assert_complete, networks

REFERENCE = Path(__file__).parents[1] / "data" / "srinivas_fleuret_reference.npz"
FAMILY = [FullGrad, lambda m: FullGrad(m, complete=True), SimpleFullGrad, SmoothFullGrad]
IDS = ["saliency", "complete", "simple", "smooth"]


@pytest.fixture(scope="module")
def reference():
    """Numbers of the published code on one small network; how they were made is said in tests/data/README.md."""
    with np.load(REFERENCE) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(scope="module")
def network(reference):
    layers = [
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)),
    ]
    model = nn.Sequential(*layers).eval()
    prefix = "weights."
    model.load_state_dict({key[len(prefix) :]: value for key, value in reference.items() if key.startswith(prefix)})
    return model


def small_cnn(activation=nn.ReLU):
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), activation(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3)),
        *(activation(), nn.Flatten(), nn.Linear(24, 5)),
    ).eval()
    model[1].running_mean.uniform_(-1, 1)
    model[1].running_var.uniform_(0.5, 2)
    return model


class TestReference:
    def test_terms(self, network, reference):
        full = FullGrad(network).decompose(reference["inputs"], reference["target"])
        inputs = reference["fullgrad.input_gradient"] * reference["inputs"]
        torch.testing.assert_close(full.inputs[0], inputs, rtol=1e-5, atol=1e-7)
        assert list(full.biases) == ["0:conv2d", "1:batch_norm", "5:batch_norm", "8:conv2d", "11:linear"]
        for index, term in enumerate(full.biases.values()):
            torch.testing.assert_close(term, reference[f"fullgrad.bias_gradient.{index}"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(full.output, reference["logits"].gather(1, reference["target"][:, None]).squeeze(1))

    @pytest.mark.parametrize(("make", "key"), [(FullGrad, "fullgrad"), (SimpleFullGrad, "simple_fullgrad")])
    def test_map(self, network, reference, make, key):
        attributions = make(network, keep_floor=True).attribute(reference["inputs"], reference["target"])
        attributions = attributions.sum(1, keepdim=True)
        torch.testing.assert_close(attributions, reference[f"{key}.saliency"], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("batch", [None, 1, 3])
    def test_smooth_map(self, network, reference, monkeypatch, batch):
        monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: reference["standard_normal_noise"])
        attributions = SmoothFullGrad(network, keep_floor=True).attribute(
            *(reference["inputs"], reference["target"]),
            nt_samples=4,
            nt_samples_batch_size=batch,
            stdevs=float(reference["smooth_fullgrad.std"]),
        )
        expected = reference["smooth_fullgrad.saliency"]
        torch.testing.assert_close(attributions.sum(1, keepdim=True), expected, rtol=1e-5, atol=1e-5)


def parameter_form(model, x, target):
    """The paper's form for plain ReLU networks: <df/dx, x> + sum over parameters b of b * df/db, by autograd."""
    x = x.clone().requires_grad_()
    output = model(x)[0, target]
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    gradient, *bias_gradients = torch.autograd.grad(output, [x, *biases])
    return (gradient * x).sum(), [(b * g).sum() for b, g in zip(biases, bias_gradients, strict=True)], output


@pytest.mark.parametrize("layer", [nn.Linear, nn.Conv2d, nn.ConvTranspose2d])
def test_the_papers_form_on_relu_networks(layer):
    if layer is nn.Linear:
        model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), (1, 6)
    else:
        model, x = (
            nn.Sequential(layer(2, 4, 3), nn.ReLU(), layer(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)),
            (1, 2, 6, 6),
        )
    x = torch.randn(x, dtype=torch.float64)
    model = model.double()
    model(x)
    input_term, bias_terms, output = parameter_form(model, x, 1)
    full = FullGrad(model).decompose(x, 1)
    torch.testing.assert_close(full.inputs[0].sum(), input_term)
    assert len(full.biases) == len(bias_terms)
    for result, expected in zip(full.biases.values(), bias_terms, strict=True):
        torch.testing.assert_close(result.sum(), expected)
    torch.testing.assert_close(full.total(), output.view(1))


@settings(max_examples=100)
@given(networks(dtype=torch.float64))
def test_completeness_on_random_networks(problem):
    full = FullGrad(problem.model).decompose(problem.inputs, problem.target)
    assert_complete(full)
    assert float(full.gap().max()) < 1e-13
    torch.testing.assert_close(full.output, problem.output())
    parts = FullGrad(problem.model, complete=True).attribute(problem.inputs, problem.target)
    assert_complete(parts, problem.output())


@settings(max_examples=20)
@given(networks(dtype=torch.float64), st.data())
def test_any_batch_split_gives_the_same_maps(problem, data):
    n = len(problem.inputs)
    at = data.draw(st.integers(0, n - 1))
    target = problem.target
    one = target[at : at + 1] if isinstance(target, (list, torch.Tensor)) and not isinstance(target, int) else target
    for make in (FullGrad, lambda m: FullGrad(m, complete=True), SimpleFullGrad):
        together = make(problem.model).attribute(problem.inputs, target)[at : at + 1]
        alone = make(problem.model).attribute(problem.inputs[at : at + 1], one)
        torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-10)


LOG_PROBABILITIES = {
    "log_softmax": lambda z: z.log_softmax(1),
    "logsumexp": lambda z: z - z.logsumexp(1, keepdim=True),
    "cross_entropy": lambda z: F.cross_entropy(z, z.argmax(1), reduction="none")[:, None].expand_as(z),
    "far from zero": lambda z: (z + 1e4 * z.detach().mean() + 1e4).log_softmax(1),
    "denormal": lambda z: F.logsigmoid(30 * z.abs()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOG_PROBABILITIES)
def test_log_probability_of_a_sure_prediction(name, dtype):
    # 0 up to rounding, and a difference of large numbers: nothing relative to itself can be promised, nor is it needed.
    body = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).to(dtype)
    with torch.no_grad():
        body[2].weight *= 30
    x = torch.randn(50, 6, dtype=dtype)
    logits = body(x).detach()
    assert bool((logits.softmax(1).amax(1) > 0.999).any())
    full = FullGrad(lambda x: LOG_PROBABILITIES[name](body(x))).decompose(x, logits.argmax(1))
    size = 1e4 * float(logits.abs().max()) if name == "far from zero" else float(logits.abs().max())
    assert float((full.total() - full.output).abs().max()) < 20 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("mask", [False, True])
def test_log_probabilities_do_not_excuse_what_is_incomplete(mask):
    body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    body[1].register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0].clamp(min=0),))
    masked = torch.tensor([False, False, True, mask])
    x = torch.randn(3, 6)
    x[0] *= 1e4  # another example's large logits excuse nothing either
    with pytest.raises(RuntimeError, match="do not sum"):
        FullGrad(lambda x: body(x).masked_fill(masked, -1e9).log_softmax(1)).attribute(x, 1)


class TestSaliency:
    @pytest.mark.parametrize("make", [FullGrad, SimpleFullGrad, SmoothFullGrad])
    def test_the_floor_goes_and_the_ranking_stays(self, make):
        model, x = small_cnn(), torch.randn(2, 3, 8, 8)
        noise = {"generator": torch.Generator().manual_seed(0)} if make is SmoothFullGrad else {}
        maps = make(model).attribute(x, [1, 2], **noise)
        noise = {"generator": torch.Generator().manual_seed(0)} if make is SmoothFullGrad else {}
        papers = make(model, keep_floor=True).attribute(x, [1, 2], **noise)
        floor = papers.flatten(1).amin(1)
        assert (floor > 0).all()
        torch.testing.assert_close(maps, papers - floor.view(2, 1, 1, 1))
        assert maps.flatten(1).amin(1).tolist() == [0, 0]

    def test_several_inputs_have_one_floor(self):
        model = small_cnn()
        x = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
        of_both = [make.attribute(x, 1) for make in (FullGrad(lambda x, y: model(x * y)),
                   FullGrad(lambda x, y: model(x * y), keep_floor=True))]  # fmt: skip
        removed = [papers - maps for maps, papers in zip(*of_both, strict=True)]
        torch.testing.assert_close(removed[0], removed[1])
        assert torch.stack(of_both[0]).amin((0, 2, 3, 4)).tolist() == [0, 0]

    def test_is_psi_of_the_terms(self):
        # The paper's map written a second time, slowly: psi of every 4-D term, one by one.
        model, x = small_cnn().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
        full = FullGrad(model).decompose(x, [1, 2])

        def psi(term):
            size = term.abs()
            low = size.flatten(1).min(1).values.view(-1, 1, 1, 1)
            high = (size - low).flatten(1).max(1).values.view(-1, 1, 1, 1)
            return F.interpolate((size - low) / (high + 1e-6), size=(8, 8), mode="bilinear", align_corners=True)

        spatial = [term for term in full.biases.values() if term.ndim == 4]
        assert len(spatial) == 3
        expected = psi(full.inputs[0]).sum(1) + sum(psi(term).sum(1) for term in spatial)
        attributions = FullGrad(model, keep_floor=True).attribute(x, [1, 2])
        torch.testing.assert_close(attributions.sum(1), expected)

    @pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 2, 4, 4)], ids=["per_channel", "per_element"])
    def test_rescaling_subtracts_the_minimum(self, shape):
        # Gradients between 1 and 2, so that no term comes near zero by itself.
        weights, bias = 1 + torch.rand(1, 2, 4, 4), 1 + torch.rand(shape)
        layer = nn.Conv2d(1, 2, 1)
        layer.bias.data = bias[0, :, 0, 0].clone()

        def model(x):
            y = layer(x) if shape[-1] == 1 else x.expand(-1, 2, -1, -1) + bias
            return (y * weights).sum((1, 2, 3)).unsqueeze(1)

        term = (weights * bias).abs()
        expected = ((term - term.min()) / (term.max() - term.min() + 1e-6)).sum(1, keepdim=True)
        maps = FullGrad(model, keep_floor=True).attribute(torch.zeros(1, 1, 4, 4), 0)
        torch.testing.assert_close(maps, expected)

    def test_has_no_convergence_delta(self):
        attribution = FullGrad(small_cnn())
        assert not attribution.has_convergence_delta()
        with pytest.raises(ValueError, match=r"no convergence delta.*complete=True"):
            attribution.attribute(torch.randn(2, 3, 8, 8), 1, return_convergence_delta=True)
        with pytest.raises(ValueError, match="no convergence delta"):
            attribution.compute_convergence_delta(torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), 1)


class TestComplete:
    @pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
    def test_sums_to_the_output(self, activation):
        model, x = small_cnn(activation), torch.randn(3, 3, 8, 8)
        attribution = FullGrad(model, complete=True)
        assert attribution.has_convergence_delta()
        parts, delta = attribution.attribute(x, [0, 1, 2], return_convergence_delta=True)
        output = model(x)[[0, 1, 2], [0, 1, 2]]
        torch.testing.assert_close(parts.sum((1, 2, 3)), output, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(delta, parts.sum((1, 2, 3)) - output.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(attribution.compute_convergence_delta(parts, x, [0, 1, 2]), delta)

    def test_a_term_lies_where_it_belongs(self):
        # One bias at one place of a 2x2 map: its share covers that quarter of the input, and nothing else.
        class Model(nn.Module):
            def forward(self, x):
                bias = torch.zeros(1, 2, 2)
                bias[0, 0, 1] = 5.0
                return (F.avg_pool2d(x, 4).sum(1, keepdim=True) + bias).sum((2, 3))

        parts = FullGrad(Model(), complete=True).attribute(torch.zeros(1, 3, 8, 8), 0)
        expected = torch.zeros(1, 3, 8, 8)
        expected[..., :4, 4:] = 5.0 / (3 * 16)
        torch.testing.assert_close(parts, expected)

    def test_a_term_without_a_place_lies_everywhere(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        parts = FullGrad(model, complete=True).attribute(torch.zeros(1, 3, 2, 2), 1)
        torch.testing.assert_close(parts, (model[1].bias[1] / 12).expand(1, 3, 2, 2))

    def test_several_inputs_share_what_has_no_place(self):
        class Model(nn.Module):
            def forward(self, a, b):
                return a.sum(1, keepdim=True) + b.sum((1, 2, 3)).unsqueeze(1) + 10.0

        inputs = (torch.zeros(2, 4), torch.zeros(2, 1, 2, 3))
        parts = FullGrad(Model(), complete=True).attribute(inputs, 0)
        assert isinstance(parts, tuple)
        for part, x in zip(parts, inputs, strict=True):
            torch.testing.assert_close(part, torch.ones_like(x))


class TestForm:
    @pytest.mark.parametrize("make", FAMILY, ids=IDS)
    def test_runs_in_captums_tools(self, make):
        model, x = small_cnn(), torch.rand(2, 3, 8, 8)
        attribution = make(model)
        attributions = attribution.attribute(x, 1)
        assert attributions.shape == x.shape and attributions.is_contiguous() and not attributions.requires_grad
        smooth = NoiseTunnel(attribution).attribute(x, target=1, nt_samples=2, stdevs=0.1)
        assert smooth.shape == x.shape
        score = infidelity(
            model, lambda z: (0.1 * torch.ones_like(z), z - 0.1), x, attributions, target=1, n_perturb_samples=2
        )
        assert score.shape == (2,)
        assert sensitivity_max(attribution.attribute, x, target=1, n_perturb_samples=2).shape == (2,)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("make", FAMILY, ids=IDS)
    def test_keeps_dtype(self, make, dtype):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 2)).to(dtype)
        attributions = make(model).attribute(torch.rand(2, 3, 8, 8).to(dtype), 1)
        assert attributions.dtype == dtype and bool(torch.isfinite(attributions).all())

    def test_channels_last_gives_the_same(self):
        model, x = small_cnn().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
        expected = FullGrad(model).attribute(x, 1)
        model = model.to(memory_format=torch.channels_last)
        attributions = FullGrad(model).attribute(x.to(memory_format=torch.channels_last), 1)
        torch.testing.assert_close(attributions, expected)
        assert attributions.is_contiguous()

    def test_additional_arguments_and_keywords_of_captum(self):
        def forward(x, scale, shift, flag):
            return x.exp() * scale + (shift if flag else 0.0)

        x, scale = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
        args = (scale, 2.0, True)
        full = FullGrad(forward).decompose(x, target=1, additional_forward_args=args)
        torch.testing.assert_close(full.total(), forward(x, *args)[:, 1])

    @pytest.mark.parametrize("make", [FullGrad, SimpleFullGrad, SmoothFullGrad])
    def test_either_name_of_the_model(self, make):
        model = nn.Sequential(nn.Linear(4, 2))
        assert make(model=model).forward_func is make(forward_func=model).forward_func is make(model).forward_func

    def test_repr_reads(self):
        text = repr(FullGrad(small_cnn()).decompose(torch.randn(2, 3, 8, 8), 1))
        assert "2 examples" in text and "0:conv2d" in text and "total" in text and "(2, 4, 8, 8)" in text

    def test_terms_are_in_forward_order_and_numbered(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.unused, self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.layer(self.layer(x).relu()).relu())

        full = FullGrad(Model()).decompose(torch.randn(2, 4), 0)
        assert list(full.biases) == ["layer:linear", "layer:linear#2", "head:linear"]

    def test_models_inside_functions_name_their_modules(self):
        model = small_cnn()
        full = FullGrad(lambda x: model(x) + 1).decompose(torch.randn(1, 3, 8, 8), 0)
        assert list(full.biases) == ["0:conv2d", "1:batch_norm", "4:conv2d", "7:linear", "add"]


class TestDifferentiable:
    @pytest.mark.parametrize("activation", [nn.Softplus, nn.GELU, nn.Tanh])
    def test_by_inputs_and_parameters(self, activation):
        model = nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 2)).double()
        x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

        def first_bias_term(x, weight):
            with torch.no_grad():
                model[0].weight.copy_(weight)
            full = FullGrad(model).decompose(x, 1, create_graph=True)
            return full.biases["1:" + activation.__name__.lower()].sum()

        weight = model[0].weight.detach().clone()
        value = first_bias_term(x, weight)
        by_input, by_weight = torch.autograd.grad(value, [x, model[0].weight])
        step = 1e-6
        for gradient, move in [
            (by_input, lambda d: first_bias_term((x + d).detach(), weight)),
            (by_weight, lambda d: first_bias_term(x.detach(), weight + d)),
        ]:
            direction = torch.randn_like(gradient)
            numeric = (move(step * direction) - move(-step * direction)) / (2 * step)
            torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-8)

    def test_attributions(self):
        model = small_cnn(nn.Softplus)
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        for make in (FullGrad, lambda m: FullGrad(m, complete=True), SimpleFullGrad):
            attributions = make(model).attribute(x, 1, create_graph=True)
            (gradient,) = torch.autograd.grad(attributions.square().sum(), x)
            assert float(gradient.abs().sum()) > 0

    def test_detached_otherwise(self):
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        full = FullGrad(small_cnn(nn.GELU)).decompose(x, 1)
        assert not any(t.requires_grad for t in [full.output, *full.inputs, *full.biases.values()])


class TestSmooth:
    def test_generator_decides_the_noise(self):
        model, x = small_cnn(), torch.rand(2, 3, 8, 8)
        before = torch.get_rng_state()
        maps = [
            SmoothFullGrad(model).attribute(x, 1, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
        ]
        assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])
        assert torch.equal(before, torch.get_rng_state())

    def test_the_default_noise_is_a_share_of_each_examples_range(self):
        """0.15 of it, as SmoothGrad's authors take; an offset of an example changes nothing."""
        points = []

        def record(x):
            points.append(x.detach())
            return x.pow(2)

        small, large = torch.tensor([0.0, 1.0]).repeat(500) + 50, torch.tensor([0.0, 10.0]).repeat(500)
        SmoothFullGrad(record).attribute(torch.stack([small, large]), 1, nt_samples=4)
        noisy = max(points, key=len)
        assert len(noisy) == 8
        for x, stdev in ((small, 0.15), (large, 1.5)):
            rows = noisy[(noisy.mean(1) - x.mean()).abs() < 10]
            torch.testing.assert_close((rows - x).std(1), torch.full((4,), stdev), rtol=0.15, atol=0)

    def test_without_noise_it_averages_to_full_grad(self):
        # One channel, so that summing channels before psi changes nothing; eps of psi meets a sum of samples.
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double()
        x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
        smooth = SmoothFullGrad(model).attribute(x, 1, nt_samples=1, stdevs=0.0)
        torch.testing.assert_close(smooth, FullGrad(model).attribute(x, 1))

    @pytest.mark.parametrize("batch", [1, 2, 5, 100])
    def test_batches_of_noise_change_nothing(self, batch):
        model, x = small_cnn().double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)

        def run(size):
            generator = torch.Generator().manual_seed(3)
            return SmoothFullGrad(model).attribute(
                x, [1, 2], nt_samples=5, nt_samples_batch_size=size, generator=generator
            )

        torch.testing.assert_close(run(batch), run(None))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"nt_samples": 0}, "at least 1"),
            ({"nt_samples_batch_size": 0}, "at least 1"),
            ({"stdevs": -1.0}, "stdevs"),
            ({"stdevs": (0.1, 0.1)}, "stdevs"),
            ({"stdevs": float("nan")}, "stdevs"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            SmoothFullGrad(small_cnn()).attribute(torch.rand(2, 3, 8, 8), 1, **options)


class Returning(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(4, 3), wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


class TestBadInput:
    @pytest.mark.parametrize("make", FAMILY, ids=IDS)
    @pytest.mark.parametrize(
        ("inputs", "error", "message"),
        [
            ([[1.0, 2.0]], TypeError, "tensor or a non-empty tuple"),
            ((), TypeError, "non-empty tuple"),
            ((torch.zeros(2, 4), 3.0), TypeError, "input 1 is float"),
            (torch.zeros(0, 4), ValueError, "at least one example"),
            (torch.tensor(1.0), ValueError, "at least one example"),
            (torch.zeros(2, 4, dtype=torch.long), TypeError, "additional_forward_args"),
            (torch.full((2, 4), float("nan")), ValueError, "NaN"),
            (torch.full((2, 4), float("inf")), ValueError, "infinity"),
            ((torch.zeros(2, 4), torch.zeros(3, 4)), ValueError, "input 1 holds 3 examples"),
            (torch.zeros(2, 4, device="meta"), ValueError, "move one of them"),
        ],
        ids=["list", "no_tensor", "number", "empty", "scalar", "integer", "nan", "infinity", "unequal", "device"],
    )
    def test_inputs(self, make, inputs, error, message):
        calls = []
        model = Returning(lambda y: calls.append(y) or y)
        with pytest.raises(error, match=message):
            make(model).attribute(inputs, 1)
        assert not calls, "the model ran before the inputs were checked"

    @pytest.mark.parametrize(
        ("wrap", "error", "message"),
        [
            (lambda y: (y, y), TypeError, r"returned tuple.*model\(x\)\[0\]"),
            (lambda y: {"logits": y}, TypeError, "logits"),
            (lambda y: y.sum(), ValueError, "examples must come first"),
            (lambda y: y.detach(), ValueError, "not connected"),
            (lambda y: y.argmax(1, keepdim=True), ValueError, "not connected"),
            (lambda y: y - y.mean(0), RuntimeError, "mixes examples"),
        ],
        ids=["tuple", "dict", "scalar", "detached", "integer", "mixing"],
    )
    def test_outputs(self, wrap, error, message):
        with pytest.raises(error, match=message):
            FullGrad(Returning(wrap)).attribute(torch.randn(3, 4), 0)

    @pytest.mark.parametrize("model", [None, 3, "model"])
    def test_model(self, model):
        with pytest.raises(TypeError, match="Module or a function"):
            FullGrad(model)

    @pytest.mark.parametrize("make", [FullGrad, SimpleFullGrad, SmoothFullGrad])
    def test_a_layer_or_a_setting_without_its_name(self, make):
        model = small_cnn()
        with pytest.raises(TypeError, match=r"LayerFullGrad.*by name"):
            make(model, model[0])
        with pytest.raises(TypeError, match=r"LayerFullGrad.*by name"):
            make(model, True)
        with pytest.raises(TypeError, match="two names of one argument"):
            make(model, forward_func=model)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
    @pytest.mark.parametrize("part", [False, True])
    def test_torchscript(self, part):
        scripted = torch.jit.trace(nn.Linear(4, 2), torch.zeros(1, 4))
        model = nn.Sequential(nn.ReLU(), scripted) if part else scripted
        with pytest.raises(TypeError, match=r"TorchScript.*pass the nn.Module it was made from"):
            FullGrad(model).attribute(torch.randn(1, 4), 0)

    def test_hooks_that_change_gradients(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        model[1].register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * 2,))
        with pytest.raises(RuntimeError, match=r"do not sum to the output.*hooks"):
            FullGrad(model).attribute(torch.randn(2, 4), 0)

    def test_an_operation_whose_result_changes_is_named(self):
        state = []

        class Drifting(torch.autograd.Function):
            @staticmethod
            def forward(ctx, u):
                state.append(None)
                return u * len(state)

            @staticmethod
            def backward(ctx, gradient):
                state.append(None)
                return gradient * len(state)

        with pytest.raises(RuntimeError, match=r"do not sum|differs|mixes"):
            FullGrad(lambda x: Drifting.apply(x * 1.0)).attribute(torch.ones(2, 3), 0)

    def test_an_operation_without_second_derivatives_is_named(self):
        class Once(torch.autograd.Function):
            @staticmethod
            def forward(ctx, u):
                ctx.save_for_backward(u)
                return u.square()

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, gradient):
                return gradient * 2 * ctx.saved_tensors[0]

        with pytest.raises(NotImplementedError, match=r"OnceBackward.*differentiable operations"):
            FullGrad(lambda x: Once.apply(x * 1.0)).attribute(torch.ones(2, 3), 0)

    def test_examples_that_cannot_be_told_apart_nor_run_alone(self):
        x = torch.randn(3, 5, 4)
        mask = torch.arange(5)[None] < torch.tensor([5, 2, 3])[:, None]

        def model(x, mask):
            out = torch.zeros(*mask.shape, 4)
            out[mask] = torch.tanh(x[mask] + 1)
            return out.sum(1)

        with pytest.raises(RuntimeError, match=r"tell its 3 examples apart.*example 0 alone.*additional_forward_args"):
            FullGrad(lambda x: model(x, mask)).attribute(x, 1)
        full = FullGrad(model).decompose(x, 1, mask)
        torch.testing.assert_close(full.total(), model(x, mask)[:, 1])

    def test_gradients_taken_inside_a_model(self):
        def model(x):
            return torch.autograd.grad(x.exp().sum(), x, create_graph=True)[0]

        with pytest.raises(NotImplementedError, match=r"torch\.func\.grad"):
            FullGrad(model).attribute(torch.randn(2, 3), 1)
        inside = torch.vmap(torch.func.grad(lambda row: row.exp().sum()))
        assert_complete(FullGrad(lambda x: inside(x)).decompose(torch.randn(2, 3), 1))

    def test_bad_target_raises_what_captum_raises(self):
        model, x = small_cnn(), torch.randn(2, 3, 8, 8)
        with pytest.raises(IndexError):
            FullGrad(model).attribute(x, 5)
        with pytest.raises(AssertionError, match="Target not provided"):
            FullGrad(model).attribute(x)
        with pytest.raises(AssertionError):
            FullGrad(model).attribute(x, [0, 1, 2])


class TestTrainingMode:
    def test_batch_norm_is_refused_and_left_alone(self):
        model = small_cnn().train()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=r"'1' normalises with the statistics of the batch.*eval\(\)"):
            FullGrad(model).attribute(torch.randn(2, 3, 8, 8), 1)
        assert model.training
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key

    def test_batch_statistics_without_training_mode_are_refused(self):
        model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(192, 2)).eval()
        with pytest.raises(ValueError, match="statistics of the batch"):
            FullGrad(model).attribute(torch.randn(2, 3, 8, 8), 1)

    def test_dropout_is_explained_as_drawn(self):
        # Feature dropout, alpha dropout, attention dropout: each drawn once, and complete for that draw.
        model = nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Dropout2d(), nn.Flatten(2), nn.Linear(36, 8), nn.AlphaDropout()),
            *(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True), nn.Flatten(), nn.Linear(32, 2)),
        ).train()
        full = FullGrad(model).decompose(torch.randn(2, 3, 8, 8), 1)
        assert float(full.gap().max()) < 1e-6
        again = FullGrad(model).decompose(torch.randn(2, 3, 8, 8), 1)
        assert not torch.equal(full.output, again.output)


@pytest.mark.cuda
@pytest.mark.parametrize("make", FAMILY[:3], ids=IDS[:3])
def test_cuda_agrees_with_the_cpu(make):
    for activation in (nn.ReLU, nn.GELU):
        model, x = small_cnn(activation).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
        expected = make(model).attribute(x, 1)
        attributions = make(copy.deepcopy(model).cuda()).attribute(x.cuda(), 1)
        assert attributions.is_cuda
        torch.testing.assert_close(attributions.cpu(), expected)


@pytest.mark.cuda
def test_cuda_data_parallel_is_unwrapped():
    model = small_cnn().cuda()
    x = torch.randn(2, 3, 8, 8, device="cuda")
    torch.testing.assert_close(FullGrad(nn.DataParallel(model)).attribute(x, 1), FullGrad(model).attribute(x, 1))
