import copy
import math

import pytest
import torch
from captum.attr import Saliency
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from captum_density.density import class_log_density, class_score, hessian_trace, marginal_log_density, marginal_score

DOUBLE = torch.float64
LABELS = torch.tensor([2, 0, 1, 1])


class Gaussians(nn.Module):
    """Logits are log weight + log N(x; mean, precision^-1), so that their logsumexp is a mixture's log-density."""

    def __init__(self):
        super().__init__()
        root = torch.randn(3, 2, 2, dtype=DOUBLE)
        self.precisions = nn.Parameter(root @ root.mT + torch.eye(2, dtype=DOUBLE))
        self.means = nn.Parameter(torch.randn(3, 2, dtype=DOUBLE))
        self.weights = nn.Parameter(torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE))

    def forward(self, x):
        apart = x[:, None] - self.means
        squares = torch.einsum("nci,cij,ncj->nc", apart, self.precisions, apart)
        return self.weights.log() + 0.5 * (self.precisions.logdet() - 2 * math.log(2 * math.pi) - squares)

    def mixture(self):
        return MixtureSameFamily(
            Categorical(self.weights), MultivariateNormal(self.means, precision_matrix=self.precisions)
        )

    def scores(self, x):
        """Of each class, (N, C, d)."""
        return -torch.einsum("cij,ncj->nci", self.precisions, x[:, None] - self.means)

    def responsibilities(self, x):
        """The classes' probabilities, by Bayes' rule from densities, (N, C)."""
        parts = torch.stack(
            [
                w * MultivariateNormal(m, precision_matrix=p).log_prob(x).exp()
                for w, m, p in zip(self.weights, self.means, self.precisions, strict=True)
            ],
            dim=1,
        )
        return parts / parts.sum(1, keepdim=True)


class TwoInputs(nn.Module):
    """Smooth; the second input and the factor are in the gradients."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x, y, factor=1.0, bias=None):
        hidden = torch.tanh((self.first(x.flatten(1)) + self.second(y)) * factor)
        return self.head(hidden) if bias is None else self.head(hidden) * bias


class Raises(nn.Module):
    def forward(self, x):
        raise KeyError("of the model's own")


def normed():
    """In training mode, with statistics that have moved from the initial ones."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    for _ in range(3):
        model(torch.randn(8, 3, dtype=DOUBLE) + 1)
    return model


@pytest.fixture
def x():
    return torch.randn(4, 2, dtype=DOUBLE)


def slow_scores(of_one, inputs):
    """Gradients example by example; `of_one` maps a batch of one, and its number, to a number."""
    result = []
    for n in range(len(inputs[0])):
        leaves = [x[n : n + 1].detach().requires_grad_() for x in inputs]
        result.append(torch.autograd.grad(of_one(n, *leaves), leaves))
    return tuple(torch.cat(parts) for parts in zip(*result, strict=True))


def test_classes_of_gaussians(x):
    model = Gaussians()
    for c in range(3):
        gaussian = MultivariateNormal(model.means[c], precision_matrix=model.precisions[c])
        expected = gaussian.log_prob(x) + model.weights[c].log()
        torch.testing.assert_close(class_log_density(model, x, c), expected)
        torch.testing.assert_close(class_score(model, x, c), model.scores(x)[:, c].detach())
        trace = hessian_trace(model, x, c, estimator="exact")
        torch.testing.assert_close(trace, -model.precisions[c].trace().detach().expand(4))


def test_mixture_of_gaussians(x):
    model = Gaussians()
    torch.testing.assert_close(marginal_log_density(model, x), model.mixture().log_prob(x))
    scores, shares = model.scores(x), model.responsibilities(x)
    score = (shares[..., None] * scores).sum(1)
    torch.testing.assert_close(marginal_score(model, x), score.detach())
    # The mean of the classes' Hessians, and the covariance of their scores.
    within = -model.precisions.diagonal(dim1=1, dim2=2).sum(1) + (scores**2).sum(2)
    expected = (shares * within).sum(1) - (score**2).sum(1)
    torch.testing.assert_close(hessian_trace(model, x, estimator="exact"), expected.detach())


def test_marginal_score_is_the_mean_of_class_scores(x):
    model = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    shares = model(x).softmax(1).detach()
    expected = sum(shares[:, c : c + 1] * class_score(model, x, c) for c in range(3))
    torch.testing.assert_close(marginal_score(model, x), expected)


@given(seed=st.integers(0, 2**32 - 1), slope=st.floats(-5, 5), shift=st.floats(-50, 50))
def test_a_function_added_to_all_logits_is_added_to_the_log_density(seed, slope, shift):
    x = torch.randn(3, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    def shifted(x):
        return model(x) + slope * x.sum(1, keepdim=True) + shift

    added = slope * x.sum(1) + shift
    torch.testing.assert_close(class_log_density(shifted, x, 1), class_log_density(model, x, 1) + added)
    torch.testing.assert_close(marginal_log_density(shifted, x), marginal_log_density(model, x) + added)
    torch.testing.assert_close(class_score(shifted, x, 1), class_score(model, x, 1) + slope)
    torch.testing.assert_close(marginal_score(shifted, x), marginal_score(model, x) + slope)


def test_marginal_of_large_logits_is_finite():
    x = torch.tensor([[1.0], [2.0]])
    result = marginal_log_density(lambda x: torch.cat([1000 * x, -1000 * x, 900 * x], dim=1), x)
    assert result.tolist() == [1000.0, 2000.0]


TARGETS = {
    "int": 1,
    "tensor": LABELS,
    "list": LABELS.tolist(),
    "one element": torch.tensor([2]),
    "no dimension": torch.tensor(2),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_several_inputs_and_arguments(target):
    model = TwoInputs().double()
    x, y = torch.randn(4, 2, 3, dtype=DOUBLE), torch.randn(4, 4, dtype=DOUBLE)
    factor, bias = torch.rand(4, 1, dtype=DOUBLE), torch.tensor(2.0, dtype=DOUBLE)
    classes = torch.as_tensor(target).expand(4) if torch.as_tensor(target).ndim == 0 else torch.as_tensor(target)
    classes = classes.expand(4)

    def logits(n, x, y):
        return model(x, y, factor[n : n + 1], bias)[0]

    expected = torch.stack([logits(n, x[n : n + 1], y[n : n + 1])[classes[n]] for n in range(4)])
    torch.testing.assert_close(class_log_density(model, (x, y), target, (factor, bias)), expected)
    result = class_score(model, (x, y), target, (factor, bias))
    assert isinstance(result, tuple)
    for a, b in zip(result, slow_scores(lambda n, *one: logits(n, *one)[classes[n]], (x, y)), strict=True):
        torch.testing.assert_close(a, b)
    result = marginal_score(model, (x, y), (factor, bias))
    for a, b in zip(result, slow_scores(lambda n, *one: logits(n, *one).exp().sum().log(), (x, y)), strict=True):
        torch.testing.assert_close(a, b)


PAIRS = [(1, 0), (0, 1), (1, 1), (0, 0)]


@pytest.mark.parametrize("target", [(1, 0), PAIRS], ids=["tuple", "list of tuples"])
@pytest.mark.parametrize("n", [1, 4])
def test_indices_into_further_dimensions(x, target, n):
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Unflatten(1, (2, 2))).double()
    x, target = x[:n], target if isinstance(target, tuple) else target[:n]
    pairs = [target] * n if isinstance(target, tuple) else target
    expected = torch.stack([model(x)[i][pair] for i, pair in enumerate(pairs)])
    torch.testing.assert_close(class_log_density(model, x, target), expected)
    (score,) = slow_scores(lambda i, one: model(one)[0][pairs[i]], (x,))
    torch.testing.assert_close(class_score(model, x, target), score)
    # Copies of a batch have copies of the target, in the same order.
    exact = hessian_trace(model, x, target, estimator="exact")
    one_by_one = [hessian_trace(model, x[i : i + 1], pairs[i], estimator="exact") for i in range(n)]
    torch.testing.assert_close(exact, torch.cat(one_by_one))


def test_one_output_is_a_log_density_itself(x):
    expected, score = -0.5 * (x**2).sum(1), -x
    for model in (
        lambda x: -0.5 * (x**2).sum(1),
        lambda x: -0.5 * (x**2).sum(1, keepdim=True),
        lambda x: -0.5 * (x**2).sum(1)[:, None, None],
    ):
        torch.testing.assert_close(marginal_log_density(model, x), expected)
        torch.testing.assert_close(marginal_score(model, x), score)
    torch.testing.assert_close(class_log_density(lambda x: -0.5 * (x**2).sum(1, keepdim=True), x, 0), expected)


def test_inputs_of_one_number():
    x = torch.tensor([1.0, -2.0])
    assert class_score(lambda x: x[:, None] ** 3, x, 0).tolist() == [3.0, 12.0]
    assert hessian_trace(lambda x: x**3, x, estimator="exact").tolist() == [6.0, -12.0]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,)], ids=["tensor", "tuple"])
def test_tensor_in_tensor_out(x, wrap):
    model = Gaussians()
    for score in (class_score(model, wrap(x), 0), marginal_score(model, wrap(x))):
        assert isinstance(score, type(wrap(x)))
        part = score[0] if isinstance(score, tuple) else score
        assert (part.shape, part.dtype) == (x.shape, x.dtype)
        assert not part.requires_grad
    assert class_log_density(model, wrap(x), 0).shape == (4,)


def test_examples_are_alone(x):
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    one = [x[n : n + 1] for n in range(4)]
    torch.testing.assert_close(
        class_log_density(model, x, LABELS),
        torch.cat([class_log_density(model, a, int(t)) for a, t in zip(one, LABELS, strict=True)]),
    )
    torch.testing.assert_close(marginal_log_density(model, x), torch.cat([marginal_log_density(model, a) for a in one]))
    torch.testing.assert_close(marginal_score(model, x), torch.cat([marginal_score(model, a) for a in one]))
    order = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(class_score(model, x[order], LABELS[order]), class_score(model, x, LABELS)[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(4, 2).to(dtype).float()
    model.to(dtype).float()  # rounded
    expected, scores = marginal_log_density(model, x), marginal_score(model, x)
    model.to(dtype)
    result = marginal_log_density(model, x.to(dtype))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, atol=0.02, rtol=0.02)
    # The logits are the model's, in half precision; their logsumexp is not rounded again.
    assert torch.equal(result, model(x.to(dtype)).float().logsumexp(1))
    result = marginal_score(model, x.to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), scores, atol=0.02, rtol=0.02)
    assert class_log_density(model, x.to(dtype), 1).dtype == torch.float32


def test_scores_and_log_densities_have_graphs_by_the_weights(x):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    names, weights = zip(*model.named_parameters(), strict=True)

    def of_weights(function):
        def call(*weights):
            def forward(inputs):
                return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (inputs,))

            return function(forward)

        return call

    for function in (
        lambda f: class_log_density(f, x, LABELS),
        lambda f: marginal_log_density(f, x),
        lambda f: class_score(f, x, LABELS, create_graph=True),
        lambda f: marginal_score(f, x, create_graph=True),
        lambda f: hessian_trace(f, x, LABELS, estimator="exact", create_graph=True),
        lambda f: hessian_trace(f, x, generator=torch.Generator().manual_seed(0), create_graph=True),
    ):
        assert torch.autograd.gradcheck(of_weights(function), weights)
    for function in (
        lambda f: class_score(f, x, LABELS),
        lambda f: marginal_score(f, x),
        lambda f: hessian_trace(f, x, LABELS, estimator="exact"),
        lambda f: hessian_trace(f, x, LABELS, estimator="hutchinson"),
        lambda f: hessian_trace(f, x, LABELS),
    ):
        assert not function(model).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradient_modes_of_the_caller(x, mode):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    functions = (
        lambda x: class_log_density(model, x, LABELS),
        lambda x: marginal_log_density(model, x),
        lambda x: class_score(model, x, LABELS),
        lambda x: hessian_trace(model, x, LABELS, estimator="exact"),
    )
    for function in functions:
        expected = function(x)
        with mode():
            result = function(x * 1)
        assert not result.requires_grad
        assert not result.is_inference()
        assert torch.equal(result, expected)


def test_autocast_is_off():
    model, x = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(4, 2)
    for function in (
        lambda: class_log_density(model, x, 1),
        lambda: marginal_log_density(model, x),
        lambda: class_score(model, x, 1),
        lambda: hessian_trace(model, x, 1, generator=torch.Generator().manual_seed(0)),
    ):
        expected = function()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(function(), expected)
            assert torch.is_autocast_enabled("cpu")


def everything(model):
    """Which tensors a model holds, what is in them, and in which mode it is."""
    buffers = [(id(b), b.clone()) for b in model.buffers()]
    return (
        [number for number, _ in buffers],
        [value.tolist() for _, value in buffers],
        [module.training for module in model.modules()],
        [(p.grad, p.requires_grad) for p in model.parameters()],
    )


def test_batch_norm_in_training_mode_is_that_of_evaluation():
    model = normed()
    expected_of = copy.deepcopy(model).eval()
    model[1].train()
    before, x = everything(model), torch.randn(5, 3, dtype=DOUBLE)
    for function in (
        lambda f: class_log_density(f, x, 1),
        lambda f: marginal_log_density(f, x),
        lambda f: marginal_score(f, x),
        lambda f: hessian_trace(f, x, 1, estimator="exact"),
        lambda f: hessian_trace(f, x, 1, generator=torch.Generator().manual_seed(0), n_samples=3),
    ):
        # Of a bound method too, whose module is known.
        for given_model in (model, model.forward):
            torch.testing.assert_close(function(given_model), function(expected_of))
        assert everything(model) == before


def test_batch_norm_may_move_before_the_backward_pass():
    """Its statistics are written to without autograd's knowledge, so that the evaluation needs copies."""
    model, x = normed(), torch.randn(5, 3, dtype=DOUBLE)
    reference = copy.deepcopy(model).eval()
    reference(x)[:, 1].sum().backward()
    value = class_log_density(model, x, 1).sum()
    model(100 * torch.randn(8, 3, dtype=DOUBLE))
    assert not torch.allclose(model[1].running_var, reference[1].running_var)
    value.backward()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_batch_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match=r"batch norm '1' keeps no running statistics.*track_running_stats=True"):
        class_log_density(model, torch.randn(4, 3), 0)


@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_keeps_its_mode_and_its_statistics(training):
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(12, 3)).train(training)
    x, before = torch.randn(5, 3, 4), everything(model)
    result = class_log_density(model, x, 1)
    assert everything(model) == before
    assert torch.equal(result, model(x)[:, 1])
    marginal_score(nn.Sequential(nn.InstanceNorm1d(3), nn.Flatten(), nn.Linear(12, 3)), x)  # no statistics, none needed


@pytest.mark.parametrize(
    ("last", "error"),
    [(Raises(), KeyError), (nn.Flatten(0), ValueError), (nn.Unflatten(1, (1, 3)), AssertionError)],
    ids=["raises", "examples not first", "target does not fit"],
)
def test_all_is_restored_after_an_exception(last, error):
    model = nn.Sequential(*normed(), last)
    before, state = everything(model), torch.get_rng_state()
    x = torch.randn(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    points = x.detach().clone()
    for function in (class_log_density, class_score, hessian_trace):
        options = {"generator": torch.Generator()} if function is hessian_trace else {}
        with pytest.raises(error):
            function(model, x, 0, **options)
        assert everything(model) == before
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(x, points)
        assert x.requires_grad
        assert x.grad is None
        assert torch.is_grad_enabled()


def test_inputs_and_weights_are_left_alone(x):
    model = Gaussians()
    x.requires_grad_()
    before = x.detach().clone()

    def writes(x):
        return model(x.mul_(2.0))

    # What the model is given is a copy, which it may write to.
    assert torch.equal(class_log_density(writes, x, 0), class_log_density(model, 2 * x, 0))
    hessian_trace(writes, x, 0)
    torch.testing.assert_close(class_score(writes, x, 0), 2 * class_score(model, 2 * x, 0))
    exact = hessian_trace(writes, x, 0, estimator="exact")
    torch.testing.assert_close(exact, 4 * hessian_trace(model, 2 * x, 0, estimator="exact"))
    class_score(model, x, 0)
    hessian_trace(model, x, 0, estimator="exact")
    assert x.requires_grad
    assert x.grad is None
    assert torch.equal(x, before)
    assert all(p.grad is None for p in model.parameters())
    value = class_log_density(model, x, 0)
    assert value.requires_grad
    assert torch.autograd.grad(value.sum(), x, allow_unused=True) == (None,)


X = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        ("net", X, TypeError, "forward_func must be a torch.nn.Module or a function, but is str"),
        (Saliency(nn.Linear(3, 3)), X, TypeError, "but is Saliency"),
        (nn.Linear, X, TypeError, "make an object of it"),
        (nn.Linear(3, 3), [X], TypeError, "inputs must be a tensor or a non-empty tuple of tensors, but is list"),
        (nn.Linear(3, 3), (), TypeError, "non-empty tuple"),
        (nn.Linear(3, 3), X.tolist(), TypeError, "but is list"),
        (nn.Linear(3, 3), ([1.0],), TypeError, "input 0 is list"),
        (nn.Linear(3, 3), X.long(), TypeError, "input 0 has dtype torch.int64"),
        (nn.Linear(3, 3), X[:0], ValueError, "at least one example"),
        (nn.Linear(3, 3), torch.tensor(1.0), ValueError, "at least one example"),
        (nn.Linear(3, 3), (X, X[:3]), ValueError, "input 1 holds 3 examples, input 0 holds 4"),
        (nn.Linear(3, 3), X * torch.nan, ValueError, "NaN or infinity"),
        (nn.Linear(3, 3), X / 0, ValueError, "NaN or infinity"),
        (nn.Linear(3, 3), X.to("meta"), ValueError, "input 0 is on meta, the model on cpu"),
        (lambda x: (x, x), X, TypeError, "the model returned tuple, not a tensor"),
        (lambda x: x.sum(), X, ValueError, r"shape \(\) for \d+ examples; examples must come first"),
        (lambda x: x.sum(0), X, ValueError, "examples must come first"),
        (lambda x: x[:1], X, ValueError, "examples must come first"),
    ],
)
def test_bad_calls_are_refused(model, inputs, error, message):
    for function in (
        lambda: class_log_density(model, inputs, 0),
        lambda: marginal_log_density(model, inputs),
        lambda: class_score(model, inputs, 0),
        lambda: marginal_score(model, inputs),
        lambda: hessian_trace(model, inputs, 0),
        lambda: hessian_trace(model, inputs, estimator="exact"),
    ):
        with pytest.raises(error, match=message):
            function()


@pytest.mark.parametrize(
    ("target", "error"), [((0, 1), AssertionError), (LABELS[:3], AssertionError), ([0, 1], AssertionError)]
)
def test_targets_that_do_not_fit_are_captums_to_refuse(target, error):
    for function in (class_log_density, class_score, hessian_trace):
        with pytest.raises(error):
            function(nn.Linear(3, 3), X, target)


def test_class_log_density_needs_a_class():
    with pytest.raises(TypeError, match="target"):
        class_log_density(nn.Linear(3, 3), X)


def test_marginal_of_further_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"logits \(N, C\), but the model returned \(4, 3, 2\)"):
        marginal_log_density(lambda x: x[:, :, None].expand(4, 3, 2), X)


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.bias.expand(len(x), 3)


APART = torch.arange(3.0).expand(4, 3)  # so far that small noise does not change their order


@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.ones(len(x), 3),
        lambda x: nn.functional.linear(x.detach(), torch.ones(3, 3)),
        torch.no_grad()(lambda x: 2 * x),
        lambda x: x.argmax(1, keepdim=True).float(),
        ByName(),
    ],
    ids=["constant", "detached", "no_grad", "classes", "weights alone"],
)
def test_no_path_from_the_input_is_refused(model):
    functions = [
        lambda: class_score(model, APART, 0),
        lambda: marginal_score(model, APART),
        lambda: hessian_trace(model, APART, 0, estimator="exact"),
        lambda: hessian_trace(model, APART, 0, estimator="hutchinson"),
    ]
    with torch.no_grad():
        constant = torch.equal(model(2 * APART), model(APART))
    if constant:  # what values show has no need of a gradient
        functions += [
            lambda: hessian_trace(model, APART, 0, noise_std=0.01),
            lambda: hessian_trace(model, APART, 0, estimator="taylor", noise_std=0.01),
        ]
    for function in functions:
        with pytest.raises(ValueError, match="no gradient by its inputs"):
            function()


def test_an_input_that_is_not_used_has_no_score():
    result = class_score(lambda x, y: x**2, (X, X), 0)
    assert torch.equal(result[0][:, 0], 2 * X[:, 0])
    assert not result[1].any()
    trace = hessian_trace(lambda x, y: x**2, (X, X), 0, estimator="exact")
    assert trace.tolist() == [2.0] * 4


def test_class_densities_want_a_class_where_there_are_several():
    x = torch.randn(4, 3)
    for function in (class_log_density, class_score):
        with pytest.raises(AssertionError, match="Target not provided"):
            function(nn.Linear(3, 2), x, None)
        function(nn.Linear(3, 1), x, None)
