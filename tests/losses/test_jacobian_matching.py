import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from captum_density.losses import AttentionMapLoss, DistillationLoss, JacobianMatchingLoss, NoiseMatchingLoss
from captum_density.losses import _noise_matching as noise_matching

DOUBLE = torch.float64
LABELS = torch.tensor([2, 0, 1, 1])
normalized = pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "plain"])


class TwoInputs(nn.Module):
    """Smooth, so that finite differences converge; every input, and a further argument, is in the outputs."""

    def __init__(self, width, outputs=3):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, width), nn.Linear(4, width), nn.Linear(width, outputs)

    def forward(self, x, y=None, factor=1.0):
        hidden = self.first(x.flatten(1))
        hidden = hidden if y is None else hidden + self.second(y)
        return self.head(torch.tanh(hidden * factor))


@pytest.fixture
def teacher():
    return TwoInputs(7).double()


@pytest.fixture
def student():
    return TwoInputs(5).double()


@pytest.fixture
def x():
    return torch.randn(4, 2, 3, dtype=DOUBLE)


@pytest.fixture
def y():
    return torch.randn(4, 4, dtype=DOUBLE)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def whole(model, n, inputs, *args):
    """The Jacobian (C, D) of example n, over all inputs."""
    one = tuple(x[n : n + 1] for x in inputs)
    args = [a[n : n + 1] if isinstance(a, torch.Tensor) else a for a in args]
    parts = torch.autograd.functional.jacobian(lambda *xs: model(*xs, *args)[0], one)
    return torch.cat([p.flatten(1) for p in parts], dim=1)


def in_words(teacher, student, inputs, rows_of, normalize, *args):
    """Mean of the squared errors of whatever rows are made of each whole Jacobian, and of their cosines."""
    errors, cosines = [], []
    for n in range(len(inputs[0])):
        t, s = (rows_of(whole(model, n, inputs, *args), n) for model in (teacher, student))
        cosines.append((t * s).sum() / (t.norm() * s.norm()))
        if normalize:
            t, s = t / t.norm(), s / s.norm()
        errors.append(((t - s) ** 2).sum())
    return sum(errors) / len(errors), sum(cosines) / len(cosines)


def equal(loss, value, expected):
    error, cosine = expected
    assert value.shape == () and value.dtype == DOUBLE
    assert value.item() == pytest.approx(error.item(), abs=1e-12)
    assert loss.cosine.item() == pytest.approx(cosine.item(), abs=1e-12)
    assert not loss.cosine.requires_grad


@normalized
@pytest.mark.parametrize("target", [1, LABELS, LABELS.tolist(), None], ids=["int", "tensor", "list", "None"])
def test_target(teacher, student, x, target, normalize):
    def rows(jacobian, n):
        return jacobian[chosen if isinstance(chosen, int) else int(chosen[n])]

    chosen = teacher(x).argmax(1) if target is None else target
    assert target is not None or not torch.equal(chosen, student(x).argmax(1))  # it is the teacher's prediction
    loss = JacobianMatchingLoss(teacher, normalize=normalize)
    equal(loss, loss(student, x, target), in_words(teacher, student, (x,), rows, normalize))


@normalized
def test_all(teacher, student, x, normalize):
    loss = JacobianMatchingLoss(teacher, "all", normalize)
    equal(loss, loss(student, x), in_words(teacher, student, (x,), lambda jacobian, n: jacobian, normalize))


@normalized
def test_random(teacher, student, x, normalize):
    v = torch.randint(0, 2, (2, 4, 3), generator=seeded()).to(DOUBLE) * 2 - 1
    loss = JacobianMatchingLoss(teacher, "random", normalize, n_projections=2, generator=seeded())
    error, cosine = in_words(teacher, student, (x,), lambda jacobian, n: v[:, n] @ jacobian, normalize)
    equal(loss, loss(student, x), (error if normalize else error / 2, cosine))


@normalized
def test_several_inputs_are_one_and_arguments_are_passed_on(teacher, student, x, y, normalize):
    factor = torch.rand(4, 1, dtype=DOUBLE) + 0.5
    loss = JacobianMatchingLoss(teacher, "all", normalize)
    expected = in_words(teacher, student, (x, y), lambda jacobian, n: jacobian, normalize, factor)
    equal(loss, loss(student, (x, y), None, factor), expected)


def test_random_projections_are_unbiased(teacher, student, x):
    def value(output, **options):
        return JacobianMatchingLoss(teacher, output, False, **options)(student, x).item()

    generator = seeded()
    estimates = torch.tensor([value("random", n_projections=3, generator=generator) for _ in range(144)])
    assert estimates.std() > 0.01
    assert abs(estimates.mean() - value("all")) < 5 * estimates.std() / 12
    # Enough projections come near it by themselves, in direction too.
    many = JacobianMatchingLoss(teacher, "random", n_projections=1000, generator=generator)
    assert many(student, x).item() == pytest.approx(JacobianMatchingLoss(teacher, "all")(student, x).item(), rel=0.1)


def test_one_output_is_the_same_in_any_way(x):
    teacher, student = TwoInputs(7, 1).double(), TwoInputs(5, 1).double()
    losses = [JacobianMatchingLoss(teacher, output, False) for output in ("target", "all", "random")]
    first, *others = (loss(student, x).item() for loss in losses)
    assert others == pytest.approx([first, first])
    flat = JacobianMatchingLoss(lambda x: teacher(x)[:, 0], normalize=False)
    assert flat(lambda x: student(x)[:, 0], x).item() == pytest.approx(first)


def test_targets_of_further_dimensions(teacher, student, x):
    def folded(model):
        return lambda x: torch.stack([model(x), 2 * model(x)], dim=2)

    loss = JacobianMatchingLoss(folded(teacher), normalize=False)
    expected = 4 * JacobianMatchingLoss(teacher, normalize=False)(student, x, 1)
    assert loss(folded(student), x, (1, 1)).item() == pytest.approx(expected.item())
    every = JacobianMatchingLoss(folded(teacher), "all", normalize=False)(folded(student), x)
    assert every.item() == pytest.approx(5 * JacobianMatchingLoss(teacher, "all", False)(student, x).item())
    with pytest.raises(ValueError, match="name a target"):
        loss(folded(student), x)


OUTPUTS = {
    "target": lambda teacher, normalize: JacobianMatchingLoss(teacher, "target", normalize),
    "all": lambda teacher, normalize: JacobianMatchingLoss(teacher, "all", normalize),
    "random": lambda teacher, normalize: JacobianMatchingLoss(
        teacher, "random", normalize, n_projections=2, generator=seeded()
    ),
}


@normalized
@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_by_the_weights_are_those_of_finite_differences(teacher, student, x, output, normalize):
    names = [name for name, _ in student.named_parameters()]

    def of_weights(*weights):
        def model(x):
            return torch.func.functional_call(student, dict(zip(names, weights, strict=True)), (x,))

        return OUTPUTS[output](teacher, normalize)(model, x)  # a new one, so that it draws the same

    unused = [p for name, p in student.named_parameters() if name.startswith("second") or name == "head.bias"]
    assert torch.autograd.gradcheck(of_weights, list(student.parameters()))
    OUTPUTS[output](teacher, normalize)(student, x).backward()
    assert all(p.grad is None for p in unused) and student.head.weight.grad.abs().sum() > 0


@given(seed=st.integers(0, 2**32 - 1), shape=st.tuples(*[st.integers(1, 5)] * 3))
def test_linear_models_have_their_weights_for_jacobians(seed, shape):
    n, d, c = shape
    generator = seeded(seed)
    a, b = (torch.randn(c, d, dtype=DOUBLE, generator=generator) for _ in range(2))
    x = torch.randn(n, d, dtype=DOUBLE, generator=generator)
    k = int(torch.randint(c, (), generator=generator))

    def error(t, s):
        return pytest.approx(((t - s) ** 2).sum().item())

    def loss(*args):
        return JacobianMatchingLoss(lambda x: x @ a.T, *args)(
            lambda x: x @ b.T + 1, x, k if "all" not in args else None
        )

    assert loss("target", False) == error(a[k], b[k])
    assert loss("all", False) == error(a, b)
    assert loss("target", True) == error(a[k] / a[k].norm(), b[k] / b[k].norm())
    assert loss("all", True) == error(a / a.norm(), b / b.norm())


def test_a_linear_student_learns_the_teachers_weights():
    # The minimum is where the weights are the teacher's, whatever the bias.
    teacher, student, x = nn.Linear(4, 3).double(), nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=DOUBLE)
    matching, before = JacobianMatchingLoss(teacher, "all", normalize=False), student.bias.detach().clone()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    matching(student, x).backward()
    optimizer.step()
    assert torch.allclose(student.weight, teacher.weight)
    assert torch.equal(student.bias, before)


@pytest.mark.parametrize("output", OUTPUTS)
def test_normalized_is_blind_to_scales(teacher, student, x, output):
    value = OUTPUTS[output](teacher, True)(student, x)
    scaled = OUTPUTS[output](lambda x: 1e-3 * teacher(x), True)(lambda x: 1e3 * student(x), x)
    assert scaled.item() == pytest.approx(value.item())
    opposite = OUTPUTS[output](teacher, True)
    assert opposite(lambda x: -teacher(x), x).item() == pytest.approx(4)
    assert opposite.cosine.item() == pytest.approx(-1)
    assert opposite(teacher, x).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(("zeros", "expected"), [("teacher", 1), ("student", 1), ("both", 0)])
def test_zero_jacobians(teacher, student, x, output, zeros, expected):
    if zeros != "student":
        nn.init.zeros_(teacher.first.weight)
    if zeros != "teacher":
        nn.init.zeros_(student.first.weight)
    loss = OUTPUTS[output](teacher, True)
    value = loss(student, x)
    value.backward()
    assert value.item() == pytest.approx(expected, abs=1e-14) and loss.cosine == 0
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert len(gradients) >= 2 and all(bool((g.abs() < 1e-14).all()) for g in gradients)  # which NaN is not


# NoiseMatchingLoss: the paper's proposition.


@pytest.fixture
def cubature(monkeypatch):
    """In place of Gaussian noise, 2 D points of equal weight which have its moments up to the third."""

    def points(inputs, n_samples, distribution, generator):
        (x,) = inputs
        d = x[0].numel()
        assert n_samples == 2 * d and distribution == "gaussian"
        every = d**0.5 * torch.cat([torch.eye(d), -torch.eye(d)]).to(x)
        return (every.reshape(2 * d, 1, *x.shape[1:]).expand(2 * d, *x.shape),)

    monkeypatch.setattr(noise_matching, "standard_noise", points)


def squared_distance(teacher, student, x):
    return ((teacher(x) - student(x)) ** 2).sum(1).mean().item()


@pytest.mark.parametrize("std", [1e-3, 0.1, 3.0])
def test_noise_form_is_exact_for_linear_models(cubature, std):
    teacher, student, x = nn.Linear(4, 3).double(), nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=DOUBLE)
    noisy = NoiseMatchingLoss(teacher, std, 8)(student, x).item()
    jacobians = JacobianMatchingLoss(teacher, "all", normalize=False)(student, x).item()
    assert noisy == pytest.approx(squared_distance(teacher, student, x) + std**2 * jacobians, rel=1e-10)


def test_noise_form_in_expectation():
    teacher, student, x = nn.Linear(4, 3).double(), nn.Linear(4, 3).double(), torch.randn(2, 4, dtype=DOUBLE)
    loss = NoiseMatchingLoss(teacher, 0.7, 10, generator=seeded())
    estimates = torch.tensor([loss(student, x).item() for _ in range(400)])
    jacobians = JacobianMatchingLoss(teacher, "all", normalize=False)(student, x).item()
    expected = squared_distance(teacher, student, x) + 0.7**2 * jacobians
    assert abs(estimates.mean() - expected) < 5 * estimates.std() / 20
    assert 5 * estimates.std() / 20 < 0.1 * 0.7**2 * jacobians  # or it would show nothing


def coefficient(teacher, student, x, std):
    """Of the noise's variance: what noise adds to the squared distance, divided by it."""
    noisy = NoiseMatchingLoss(teacher, std, 12)(student, x).item()
    return (noisy - squared_distance(teacher, student, x)) / std**2


def test_noise_form_is_jacobian_matching_for_relu_networks(cubature):
    def network(width):
        return nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).double()

    teacher, student, x = network(9), network(5), torch.randn(4, 2, 3, dtype=DOUBLE)
    jacobians = JacobianMatchingLoss(teacher, "all", normalize=False)(student, x).item()
    assert coefficient(teacher, student, x, 1e-4) == pytest.approx(jacobians, rel=1e-6)  # no bend so near


def test_noise_form_has_the_laplacian_too_for_smooth_networks(teacher, student, x, cubature):
    def difference(one):
        return (teacher(one[None]) - student(one[None]))[0]

    jacobians = JacobianMatchingLoss(teacher, "all", normalize=False)(student, x).item()
    curvature = 0.0
    for one in x:
        hessians = torch.func.jacrev(torch.func.jacrev(difference))(one).reshape(3, 6, 6)
        curvature += (difference(one) * hessians.diagonal(dim1=1, dim2=2).sum(1)).sum().item() / len(x)
    assert abs(curvature) > 0.01 * jacobians
    errors = [abs(coefficient(teacher, student, x, std) - jacobians - curvature) for std in (0.2, 0.1, 0.05)]
    # What is left is of the order of the variance: a quarter at half the noise.
    assert errors[1] / errors[0] == pytest.approx(0.25, rel=0.15)
    assert errors[2] / errors[1] == pytest.approx(0.25, rel=0.05)


def test_noise_is_the_same_for_both(teacher, student, x):
    loss = NoiseMatchingLoss(teacher, 0.5, 3, generator=seeded())
    assert loss(teacher, x) == 0 and loss.agreement == 1
    noise = 0.5 * torch.randn(3, *x.shape, generator=seeded(), dtype=DOUBLE)
    expected = sum(squared_distance(teacher, student, x + xi) for xi in noise) / 3
    loss.generator = seeded()
    assert loss(student, x).item() == pytest.approx(expected)
    agreed = [(teacher(x + xi).argmax(1) == student(x + xi).argmax(1)).double().mean() for xi in noise]
    assert loss.agreement.item() == pytest.approx(torch.stack(agreed).mean().item())


@pytest.mark.parametrize("limit", [1, 8, 100])
def test_noise_in_batches(teacher, student, x, y, limit):
    factor, sizes = torch.rand(4, 1, dtype=DOUBLE), []

    def recorded(*inputs):
        sizes.append(len(inputs[0]))
        return student(*inputs)

    def value(model, limit):
        loss = NoiseMatchingLoss(teacher, 0.5, 5, generator=seeded(), max_examples_per_batch=limit)
        return loss(model, (x, y), None, factor).item()

    assert value(recorded, limit) == pytest.approx(value(student, None))
    assert sum(sizes) == 20 and max(sizes) <= max(limit, 4)


def test_noise_matching_by_finite_differences(teacher, student, x):
    names = [name for name, _ in student.named_parameters()]

    def of_weights(*weights):
        loss = NoiseMatchingLoss(teacher, 0.5, 2, generator=seeded())
        return loss(lambda x: torch.func.functional_call(student, dict(zip(names, weights, strict=True)), (x,)), x)

    assert torch.autograd.gradcheck(of_weights, list(student.parameters()))


# What holds for every loss with a teacher.

LOSSES = {
    "target": JacobianMatchingLoss,
    "all": lambda teacher: JacobianMatchingLoss(teacher, "all", False),
    "random": lambda teacher: JacobianMatchingLoss(teacher, "random", generator=seeded()),
    "noise": lambda teacher: NoiseMatchingLoss(teacher, generator=seeded()),
    "distillation": DistillationLoss,
    "attention": lambda teacher: AttentionMapLoss(teacher, {"3": "3"}),
    "attention maps alone": lambda teacher: AttentionMapLoss(teacher, {"3": "3"}, jacobian_weight=0),
}
PARTS = {
    "target": {"cosine"},
    "all": {"cosine"},
    "random": {"cosine"},
    "noise": {"agreement"},
    "distillation": {"agreement"},
    "attention": {"map_distance", "jacobian_distance"},
    "attention maps alone": {"map_distance"},
}
every = pytest.mark.parametrize("name", LOSSES)


def network(width, *last, outputs=3):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.Softplus(),
        nn.Conv2d(width, width, 3),
        nn.Flatten(),
        *last,
        nn.Linear(9 * width, outputs),
    ).double()


def with_statistics(model):
    """With running statistics unlike a batch's."""
    model[1].running_mean.uniform_(-1, 1)
    model[1].running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def images():
    return torch.randn(4, 1, 5, 5, dtype=DOUBLE)


def everything(model):
    """What a call must leave alone."""
    return {
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "state": {key: value.clone() for key, value in model.state_dict().items()},
    }


def same(before, after):
    for key in ("modes", "requires_grad", "hooks"):
        assert before[key] == after[key], key
    for a, b in zip(before["grad"], after["grad"], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert all(torch.equal(value, after["state"][key]) for key, value in before["state"].items())


@every
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_models_inputs_and_random_numbers_are_left_alone(images, name, mode):
    teacher, student = (with_statistics(network(width)).train(mode != "eval") for width in (4, 2))
    if mode == "mixed":
        for model in (teacher, student):
            model[1].eval()
            model[0].weight.requires_grad_(False)
            model[3].weight.grad = torch.ones_like(model[3].weight)
    original, random_state = images.clone(), torch.get_rng_state()
    before = [everything(model) for model in (teacher, student)]
    LOSSES[name](teacher)(student, images)
    for model, was in zip((teacher, student), before, strict=True):
        same(was, everything(model))
    assert torch.equal(original, images) and images.grad is None and not images.requires_grad
    assert torch.equal(random_state, torch.get_rng_state())


class Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such luck")


@every
@pytest.mark.parametrize("who", ["teacher", "student"])
def test_all_is_restored_after_an_exception(images, name, who):
    teacher, student = (
        with_statistics(network(2, *([Raises()] if who == role else []))) for role in ("teacher", "student")
    )
    loss = LOSSES[name](teacher)
    before = [everything(model) for model in (teacher, student)]
    with pytest.raises(RuntimeError, match="no such luck"):
        loss(student, images)
    for model, was in zip((teacher, student), before, strict=True):
        same(was, everything(model))
    assert all(getattr(loss, part) is None for part in PARTS[name])


@every
def test_batch_norm_and_dropout_of_the_teacher_and_batch_norm_of_the_student_are_those_of_evaluation(images, name):
    teacher, student = with_statistics(network(4, nn.Dropout())), with_statistics(network(2))
    with torch.no_grad():
        student[3].weight += 0.1
    expected = LOSSES[name](teacher.eval())(student.eval(), images)
    assert LOSSES[name](teacher.train())(student.train(), images).item() == pytest.approx(expected.item(), abs=1e-14)
    assert teacher.training and student.training


@every
def test_gradients_reach_the_student_alone(images, name):
    teacher, student = network(4), network(2)
    loss = LOSSES[name](teacher)
    value = loss(student, images)
    assert value.requires_grad and value.item() > 0
    value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student[0].weight.grad.abs().sum() > 0
    assert all(not getattr(loss, part).requires_grad for part in PARTS[name])


@every
def test_the_teacher_is_no_part_of_the_loss(images, name):
    teacher = network(4).train()
    loss = LOSSES[name](teacher)
    assert not list(loss.parameters()) and not loss.state_dict() and not list(loss.children())
    loss.eval()
    assert teacher.training
    loss.to(torch.float32)
    assert next(teacher.parameters()).dtype == DOUBLE
    again = copy.deepcopy(loss)
    assert again(network(4).eval(), images) >= 0


@every
def test_the_teacher_may_be_the_student(images, name):
    model = network(2)
    loss = LOSSES[name](model)
    value = loss(model, images)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_only_the_value_where_gradients_are_off(images, name, mode):
    teacher, student = network(4), network(2)
    expected = LOSSES[name](teacher)(student, images)
    with mode():
        value = LOSSES[name](teacher)(student, images)
    assert not value.requires_grad and value.item() == pytest.approx(expected.item(), abs=1e-14)


@every
def test_autocast_is_off(images, name):
    teacher, student, images = network(4).float(), network(2).float(), images.float()
    expected = LOSSES[name](teacher)(student, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = LOSSES[name](teacher)(student, images)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@every
def test_half_precision_gives_a_single_precision_loss(images, name):
    value = LOSSES[name](network(4).bfloat16())(network(2).bfloat16(), images.bfloat16())
    assert value.dtype == torch.float32 and value > 0


@every
def test_models_may_write_to_their_inputs(images, name):
    if "attention" in name:
        pytest.skip("layers of a function are modules")
    teacher, student = network(4), network(2)
    expected = LOSSES[name](lambda x: teacher(2 * x))(lambda x: student(2 * x), images)
    value = LOSSES[name](lambda x: teacher(x.mul_(2)))(lambda x: student(x.mul_(2)), images)
    assert value.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["target", "all", "random", "noise", "distillation"])
def test_a_teachers_outputs_may_have_another_precision(images, name):
    teacher, student, images = network(4).float(), network(2).float(), images.float()
    expected = LOSSES[name](teacher)(student, images)
    value = LOSSES[name](lambda x: teacher(x).double())(student, images)
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.fixture
def processes():
    """One, which is enough for DistributedDataParallel to wait for gradients that never come."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@every
def test_distributed_models(images, name, processes):
    teacher, student = network(4), network(2)
    expected = LOSSES[name](teacher)(student, images)
    expected.backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    parallel = [DistributedDataParallel(model) for model in (teacher, student)]
    loss = LOSSES[name](parallel[0])
    for _ in range(2):  # the second refuses to start where the first waits
        value = loss(parallel[1], images)
        value.backward()
        if "random" not in name and name != "noise":
            assert value.item() == pytest.approx(expected.item())
    if name in ("target", "all", "distillation", "attention", "attention maps alone"):
        for p, gradient in zip(student.parameters(), gradients, strict=True):
            assert torch.allclose(p.grad, torch.zeros_like(p) if gradient is None else 2 * gradient)
    parallel[0](images).sum().backward()


@every
def test_reentrant_checkpoints_are_refused_where_they_would_run_in_another_mode(images, name):
    class Checkpointed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            x = x if x.requires_grad else x.clone().requires_grad_()
            return checkpoint(self.model, x, use_reentrant=True)

    loss = LOSSES[name](network(4))
    loss._layers = [("model.3", "3")]
    with pytest.raises(ValueError, match="reentrant activation checkpointing"):
        loss(Checkpointed(network(2)), images)


@every
def test_compiled_models(images, name):
    teacher, student = network(4), network(2)
    twin = copy.deepcopy(student)
    expected = LOSSES[name](teacher)(student, images)
    expected.backward()
    compiled = [torch.compile(model, backend="eager") for model in (teacher, twin)]
    value = LOSSES[name](compiled[0])(compiled[1], images)
    value.backward()
    torch._dynamo.reset()
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    for a, b in zip(student.parameters(), twin.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.allclose(a.grad, b.grad)


def test_attention_and_recurrent_layers_are_differentiable_twice():
    def model(width):
        layer = nn.TransformerEncoderLayer(4, 2, width, dropout=0.0, batch_first=True)
        return nn.Sequential(nn.LSTM(4, 4, batch_first=True), Picked(), layer, nn.Flatten(), nn.Linear(12, 3)).double()

    teacher, student, x = model(8), model(6), torch.randn(2, 3, 4, dtype=DOUBLE)
    value = JacobianMatchingLoss(teacher, "all")(student, x)
    value.backward()
    expected, _ = in_words(teacher.eval(), student, (x,), lambda jacobian, n: jacobian, True)
    assert value.item() == pytest.approx(expected.item())
    assert student[0].weight_ih_l0.grad.abs().sum() > 0


class Picked(nn.Module):
    def forward(self, output):
        return output[0]


@pytest.mark.parametrize("name", ["target", "all", "random", "noise", "distillation"])
def test_a_teacher_with_another_number_of_classes_is_refused(images, name):
    teacher, student = network(4, outputs=10), network(2, outputs=3)
    with pytest.raises(ValueError, match=r"the teacher's outputs are \(N, 10\), the student's \(N, 3\); they must be"):
        LOSSES[name](teacher)(student, images)
    if name != "distillation":
        with pytest.raises(ValueError, match=r"are \(N, 10\), the student's \(N, 3, 1\)"):
            LOSSES[name](teacher)(lambda x: student(x)[:, :, None], images)


@every
def test_bad_calls_are_refused(images, name):
    teacher, student = network(4), network(2)
    loss = LOSSES[name](teacher)
    with pytest.raises(TypeError, match="Module or a function, but is str"):
        loss("student", images)
    with pytest.raises(TypeError, match="has no gradient"):
        loss(student, images.long())
    with pytest.raises(ValueError, match="at least one example"):
        loss(student, images[:0])
    with pytest.raises(ValueError, match="NaN or infinity"):
        loss(student, images / 0)
    with pytest.raises(TypeError, match="Module or a function, but is NoneType"):
        LOSSES[name](None)
    with pytest.raises(TypeError, match="the model returned tuple, not a tensor"):
        loss(nn.Sequential(*student[:5], Tupled()), images)
    with pytest.raises(
        ValueError, match=r"the model returned shape \(4,.*\) for 8 examples|draws random|for 4 examples"
    ):
        loss(nn.Sequential(*student, Halved()), images)
    if name != "target":
        with pytest.raises(ValueError, match=r"target .*leave it out"):
            loss(student, images, 1)


class Tupled(nn.Module):
    def forward(self, x):
        return x, x


class Halved(nn.Module):
    def forward(self, x):
        return x[: len(x) // 2]


@pytest.mark.parametrize("name", ["target", "all", "random"])
def test_no_path_from_the_input_is_refused(images, name):
    teacher, student = network(4), network(2)
    for pair in ((teacher, lambda x: student(x.detach())), (lambda x: teacher(x).detach(), student)):
        with pytest.raises(ValueError, match="no gradient by its inputs"):
            LOSSES[name](pair[0])(pair[1], images)


@every
def test_a_teacher_that_draws_random_numbers_is_refused(images, name):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    loss, student, state = LOSSES[name](network(4, Noisy())), network(2), torch.get_rng_state()
    with pytest.raises(ValueError, match="draws random numbers"):
        loss(student, images)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: JacobianMatchingLoss(m, "some"), ValueError, "output must be one of 'target', 'all', 'random'"),
        (lambda m: JacobianMatchingLoss(m, "all", n_projections=2), ValueError, "are for output='random'"),
        (lambda m: JacobianMatchingLoss(m, generator=seeded()), ValueError, "are for output='random'"),
        (lambda m: JacobianMatchingLoss(m, "random", n_projections=0), ValueError, "n_projections must be at least 1"),
        (lambda m: JacobianMatchingLoss(m, "random", generator=3), TypeError, "generator must be"),
        (lambda m: NoiseMatchingLoss(m, 0.0), ValueError, "noise_std must be positive"),
        (lambda m: NoiseMatchingLoss(m, 0.1, 0), ValueError, "n_samples must be at least 1"),
        (lambda m: NoiseMatchingLoss(m, max_examples_per_batch=0), ValueError, "max_examples_per_batch must be"),
        (lambda m: JacobianMatchingLoss(nn.Linear), TypeError, "teacher must be a torch.nn.Module or a function"),
    ],
)
def test_bad_arguments_are_refused(teacher, make, error, message):
    with pytest.raises(error, match=message):
        make(teacher)


def test_settings_are_shown(teacher):
    assert repr(JacobianMatchingLoss(teacher)) == "JacobianMatchingLoss(output='target', normalize=True)"
    text = repr(JacobianMatchingLoss(teacher, "random", False, n_projections=4))
    assert text == "JacobianMatchingLoss(output='random', normalize=False, n_projections=4)"
    assert repr(NoiseMatchingLoss(teacher)) == "NoiseMatchingLoss(noise_std=0.1, n_samples=1)"


@pytest.mark.cuda
@every
def test_cuda(images, name):
    teacher, student = network(4), network(2)
    expected = LOSSES[name](teacher)(student, images)
    value = LOSSES[name](teacher.cuda())(student.cuda(), images.cuda())
    assert value.is_cuda and value.item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="move one of them"):
        LOSSES[name](teacher.cpu())(student, images.cuda())


@pytest.mark.parametrize("size", [1e-4, 400.0])
def test_half_precision_is_squared_in_single(size):
    teacher, student = (nn.Linear(4, 3, bias=False) for _ in range(2))
    nn.init.constant_(teacher.weight, size)
    nn.init.zeros_(student.weight)
    loss = JacobianMatchingLoss(teacher.half(), "all", normalize=False)(student.half(), torch.randn(2, 4).half())
    assert loss.item() == pytest.approx(12 * size**2, rel=1e-2)


def test_targets_that_the_teacher_does_not_have_are_refused():
    teacher, student, x = nn.Linear(4, 3), nn.Linear(4, 10), torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"the target does not fit the teacher's outputs \(2, 3\)"):
        JacobianMatchingLoss(teacher)(student, x, torch.tensor([1, 7]))
