"""DistillationLoss, AttentionMapLoss, and what transfer does on the digits.

What any loss with a teacher leaves alone is in test_jacobian_matching.py.
"""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from captum_density.losses import AttentionMapLoss, DistillationLoss
from captum_density.losses import _attention_maps as attention_maps
from tests.experiments import transfer

DOUBLE = torch.float64


@pytest.fixture
def x():
    return torch.randn(4, 6, dtype=DOUBLE)


def perceptron(width, outputs=3):
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, outputs)).double()


# DistillationLoss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation(x, temperature):
    teacher, student = perceptron(5), perceptron(4)
    expected = 0.0
    for t, s in zip(teacher(x).tolist(), student(x).tolist(), strict=True):
        p, q = ([math.exp(z / temperature) for z in logits] for logits in (t, s))
        p, q = ([e / sum(each) for e in each] for each in (p, q))
        expected += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(x)
    loss = DistillationLoss(teacher, temperature)
    value = loss(student, x)
    assert value.shape == () and value.item() == pytest.approx(expected)
    agreed = (teacher(x).argmax(1) == student(x).argmax(1)).double().mean()
    assert loss.agreement.item() == pytest.approx(agreed.item())
    assert 0 < agreed < 1


def test_distillation_by_finite_differences(x):
    teacher, student = perceptron(5), perceptron(4)
    names = [name for name, _ in student.named_parameters()]

    def of_weights(*weights):
        return DistillationLoss(teacher)(
            lambda x: torch.func.functional_call(student, dict(zip(names, weights, strict=True)), (x,)), x
        )

    assert torch.autograd.gradcheck(of_weights, list(student.parameters()))


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 6), temperature=st.floats(0.1, 100))
def test_distillation_is_a_divergence(seed, classes, temperature):
    generator = torch.Generator().manual_seed(seed)
    t, s = (3 * torch.randn(4, classes, dtype=DOUBLE, generator=generator) for _ in range(2))
    shift = torch.randn(4, 1, dtype=DOUBLE, generator=generator)
    x = torch.zeros(4, 1, dtype=DOUBLE)
    loss = DistillationLoss(lambda _: t, temperature)
    assert loss(lambda _: s, x) > 0
    assert loss(lambda _: t + shift, x).item() == pytest.approx(0, abs=1e-14 * (1 + temperature**2))
    assert loss.agreement == 1
    assert loss(lambda _: s + shift, x).item() == pytest.approx(loss(lambda _: s, x).item())


def test_hot_distillation_matches_centered_logits(x):
    # Hinton et al., section 2.1: for a temperature that is high beside the logits, their squared difference.
    teacher, student = perceptron(5), perceptron(4)
    difference = teacher(x) - student(x)
    expected = 0.5 * (difference - difference.mean(1, keepdim=True)).square().mean(1).mean()
    assert DistillationLoss(teacher, 1e3)(student, x).item() == pytest.approx(expected.item(), rel=1e-2)


def test_impossible_classes_of_the_teacher():
    x, mask = torch.randn(4, 3), torch.tensor([0.0, 0.0, -math.inf])
    student = nn.Linear(3, 3)
    value = DistillationLoss(lambda x: x + mask)(student, x)
    value.backward()
    assert value.isfinite() and student.weight.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        DistillationLoss(perceptron(5), temperature)


@pytest.mark.parametrize("teacher", [perceptron(5, 1), lambda x: x.sum(1), lambda x: x[:, :, None]])
def test_distillation_needs_classes(x, teacher):
    with pytest.raises(ValueError, match=r"must return logits \(N, C\) of two classes at least, but returned \(4"):
        DistillationLoss(teacher)(perceptron(4), x)


def test_settings_are_shown():
    assert repr(DistillationLoss(perceptron(5))) == "DistillationLoss(temperature=4.0)"
    convolution = nn.Conv2d(1, 2, 3)
    text = repr(AttentionMapLoss(convolution, [("0", convolution)], 0.5))
    assert text == "AttentionMapLoss('0' from Conv2d, jacobian_weight=0.5)"


# AttentionMapLoss


class Convolutional(nn.Module):
    """Two convolutions; every input, and a further argument, is in the second one's activations."""

    def __init__(self, width, stride=1, outputs=3):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(width, width + 1, 3, padding=1)
        self.head = nn.Linear(width + 1, outputs)

    def forward(self, x, y=None, factor=1.0):
        hidden = torch.tanh(self.first(x if y is None else x * y))
        return self.head((self.second(hidden) * factor).mean((2, 3)))


@pytest.fixture
def images():
    return torch.randn(3, 1, 6, 6, dtype=DOUBLE)


def in_words(teacher, student, layers, inputs, resized=lambda maps: maps):
    """The two terms, example by example and layer by layer."""

    def attention(model, name, n, leaves):
        inputs = []
        handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: inputs.append(output))
        model(*leaves)
        handle.remove()
        return sum(channel**2 for channel in inputs[0][0])

    def unit(tensors):
        flat = torch.cat([t.flatten() for t in tensors])
        return flat / flat.norm()

    of_maps = of_gradients = 0.0
    for n in range(len(inputs[0])):
        for of_student, of_teacher in layers:
            leaves = [x[n : n + 1].clone().requires_grad_() for x in inputs]
            t = attention(teacher, of_teacher, n, leaves)
            s = resized(attention(student, of_student, n, leaves))
            of_maps += (unit([t]) - unit([s])).square().sum().item() / len(inputs[0])
            i = t.argmax()
            gradients = [unit(torch.autograd.grad(each.flatten()[i], leaves)) for each in (t, s)]
            of_gradients += (gradients[0] - gradients[1]).square().sum().item() / len(inputs[0])
    return of_maps, of_gradients


PAIRS = [("first", "second"), ("second", "first")]


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("layers", [PAIRS, PAIRS[:1], dict(PAIRS)], ids=["pairs", "pair", "mapping"])
def test_attention_maps(images, layers, weight):
    # The outputs are others: they are not compared.
    teacher, student = Convolutional(4, outputs=5).double(), Convolutional(2).double()
    inputs = (images, torch.rand_like(images))
    loss = AttentionMapLoss(teacher, layers, weight)
    value = loss(student, inputs)
    pairs = list(layers.items()) if isinstance(layers, dict) else layers
    of_maps, of_gradients = in_words(teacher, student, pairs, inputs)
    assert value.shape == () and value.item() == pytest.approx(of_maps + weight * of_gradients)
    assert loss.map_distance.item() == pytest.approx(of_maps)
    assert loss.jacobian_distance.item() == pytest.approx(of_gradients)


def test_attention_maps_without_gradients(images):
    teacher, student = Convolutional(4).double(), Convolutional(2).double()
    loss = AttentionMapLoss(teacher, PAIRS, 0)
    value = loss(student, images)
    assert value.item() == pytest.approx(in_words(teacher, student, PAIRS, (images,))[0])
    assert loss.jacobian_distance is None


def test_layers_as_modules_of_functions(images):
    teacher, student = Convolutional(4).double(), Convolutional(2).double()
    expected = AttentionMapLoss(teacher, PAIRS)(student, images, None, (None, 2.0))
    modules = [(getattr(student, a), getattr(teacher, b)) for a, b in PAIRS]
    loss = AttentionMapLoss(lambda x: teacher(x, None, 2.0), modules)
    assert loss(lambda x: student(x, None, 2.0), images).item() == pytest.approx(expected.item())
    assert AttentionMapLoss(teacher, modules)(student, images, None, (None, 2.0)).item() == expected.item()
    assert not list(loss.children())
    with pytest.raises(ValueError, match="the student has no such module as the Conv2d given"):
        loss(copy.deepcopy(student), images)
    with pytest.raises(ValueError, match="the student is a function, in which 'first' cannot be looked up"):
        AttentionMapLoss(teacher, PAIRS)(lambda x: student(x), images)


def test_grids_may_differ(images):
    def halved(maps):
        return torch.stack([maps[i : i + 2, j : j + 2].mean() for i in (0, 2, 4) for j in (0, 2, 4)]).reshape(3, 3)

    def doubled(maps):
        return torch.stack([maps[i // 2, j // 2] for i in range(6) for j in range(6)]).reshape(6, 6)

    coarse, fine = Convolutional(4, stride=2).double(), Convolutional(2).double()
    for teacher, student, resized in ((coarse, fine, halved), (fine, coarse, doubled)):
        expected = sum(in_words(teacher, student, PAIRS, (images,), resized))
        assert AttentionMapLoss(teacher, PAIRS)(student, images).item() == pytest.approx(expected)


@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_gradients_by_the_weights_are_those_of_finite_differences(convolution):
    dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[convolution]
    x = torch.randn(2, 1, *[5] * dimensions, dtype=DOUBLE)
    teacher, student = (nn.Sequential(convolution(1, 2, k), nn.Tanh(), nn.Flatten()).double() for k in (4, 2))
    of_weights = list(student.parameters())

    def value(weight, bias):
        student[0].__dict__.update(weight=weight, bias=bias)  # in place of the parameters
        return AttentionMapLoss(teacher, {"1": "1"})(student, x)

    for name in ("weight", "bias"):
        del student[0]._parameters[name]
    assert torch.autograd.gradcheck(value, of_weights)


def test_an_in_place_operation_comes_after(images):
    def model(width, inplace):
        torch.manual_seed(width)
        return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(inplace), nn.Flatten()).double()

    values = []
    for inplace in (False, True):
        teacher, student = model(3, inplace), model(2, inplace)
        value = AttentionMapLoss(teacher, {"0": "0"})(student, images)
        value.backward()
        values.append([value.item(), student[0].weight.grad.norm().item()])
    assert values[0] == pytest.approx(values[1])


def test_scales_make_no_difference(images):
    teacher, student = Convolutional(4).double(), Convolutional(2).double()
    expected = AttentionMapLoss(teacher, {"second": "second"})(student, images, None, (None, 1.0))
    small = AttentionMapLoss(teacher, {"second": "second"})
    with torch.no_grad():
        for p in (*student.second.parameters(), *teacher.second.parameters()):
            p *= 1e-3
    assert small(student, images, None, (None, 1.0)).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("zeros", "expected"), [("teacher", 2), ("student", 2), ("both", 0)])
def test_zero_maps(images, zeros, expected):
    teacher, student = Convolutional(4).double(), Convolutional(2).double()
    for model in [teacher] * (zeros != "student") + [student] * (zeros != "teacher"):
        nn.init.zeros_(model.second.weight)
        nn.init.zeros_(model.second.bias)
    value = AttentionMapLoss(teacher, {"second": "second"})(student, images)
    value.backward()
    assert value.item() == pytest.approx(expected, abs=1e-14)
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert len(gradients) == 4 and all(bool((g.abs() < 1e-13).all()) for g in gradients)  # which NaN is not


def test_recorded_leaves_no_hook():
    layer = nn.Identity()
    with attention_maps._recorded([layer]) as runs:
        layer(torch.ones(1))
    layer(torch.ones(1))
    assert len(runs[0]) == 1 and not layer._forward_hooks


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.unused, self.pair = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3), Pair()
        self.flat = nn.Flatten()

    def forward(self, x):
        return self.flat(self.pair(self.layer(self.layer(x)))[0])


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer", "layer 'layer' ran 2 times in the model's forward pass; choose one that runs once"),
        ("unused", "layer 'unused' did not run"),
        ("pair", r"layer 'pair' must return \(N, C, ...\) .* but returned tuple; choose a convolution"),
        ("flat", r"layer 'flat' must return .* but returned \(3, 36\)"),
        ("lost", "the student has no layer 'lost'; it has 'layer', 'unused', 'pair', 'flat'"),
    ],
)
def test_layers_that_cannot_be_compared(images, layer, message):
    student, teacher = Twice().double(), Convolutional(2).double()
    with pytest.raises(ValueError, match=message):
        AttentionMapLoss(teacher, {layer: "first"})(student, images)
    with pytest.raises(ValueError, match=message.replace("student", "teacher")):
        AttentionMapLoss(student, {"first": layer})(teacher, images)
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))


def test_layers_that_fold_something_into_the_batch_are_refused(images):
    class Folded(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 1, *x.shape[2:])

    folded = nn.Sequential(nn.Conv2d(1, 2, 3), Folded(), nn.Unflatten(0, (-1, 2)), nn.Flatten()).double()
    with pytest.raises(ValueError, match=r"layer '1' must return .* for 3 examples.* but returned \(6, 1, 4, 4\)"):
        AttentionMapLoss(Convolutional(2).double(), {"1": "first"})(folded, images)


def test_grids_of_other_dimensions_are_refused(images):
    class Line(nn.Module):
        def forward(self, x):
            return x.flatten(2)

    line = nn.Sequential(nn.Conv2d(1, 2, 3), Line(), nn.Flatten()).double()
    with pytest.raises(ValueError, match=r"the student's grid \(16,\) and the teacher's \(6, 6\) must have as many"):
        AttentionMapLoss(Convolutional(2).double(), {"1": "first"})(line, images)


@pytest.mark.parametrize(
    ("layers", "weight", "error", "message"),
    [
        ("first", 1.0, TypeError, "layers must be a mapping .* but is str"),
        (3, 1.0, TypeError, "layers must be a mapping .* but is int"),
        ({}, 1.0, ValueError, "at least one pair"),
        (["first"], 1.0, TypeError, r"pairs \(student's, teacher's\) of names or modules, but one is 'first'"),
        ([("first", 2)], 1.0, TypeError, "but one is"),
        ([("a", "b", "c")], 1.0, TypeError, "but one is"),
        (PAIRS, -1.0, ValueError, "jacobian_weight must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(layers, weight, error, message):
    with pytest.raises(error, match=message):
        AttentionMapLoss(Convolutional(2), layers, weight)


def test_attention_trains_where_a_student_looks():
    teacher, student = Convolutional(4).double(), Convolutional(3, outputs=2).double()
    images = torch.randn(32, 1, 6, 6, dtype=DOUBLE)
    loss, optimizer = AttentionMapLoss(teacher, PAIRS), torch.optim.Adam(student.parameters(), 0.02)
    loss(student, images)
    before = loss.map_distance, loss.jacobian_distance
    for _ in range(60):
        optimizer.zero_grad()
        loss(student, images).backward()
        optimizer.step()
    assert loss.map_distance < 0.5 * before[0] and loss.jacobian_distance < 0.7 * before[1]


# The experiment.


def test_parts_of_the_experiment():
    data = transfer.digits()
    part, left = transfer.split(data, 50, seed=3)
    assert part.train_images.shape == (50, 1, 8, 8) and len(left) == 1437 - 50
    assert torch.equal(part.train_images, transfer.split(data, 500, seed=3)[0].train_images[:50])
    result = [{"cross-entropy": [0.5, 0.75]}, {"cross-entropy": [0.75, 0.75]}]
    assert transfer.table(result, (50, 100)).splitlines()[-1] == "| cross-entropy | 62.5 (17.7) |   75.0 (0.0) |"


@pytest.mark.slow
def test_jacobians_help_most_where_data_are_scarce():
    names = (transfer.PLAIN, transfer.DISTILLED, transfer.MATCHED)
    result = [transfer.measured(seed, (50, 500), names=names) for seed in (0, 1, 2)]
    plain, distilled, matched = (torch.tensor([f[name] for f in result]) for name in names)  # (seeds, sizes)
    assert (distilled[:, 0] > plain[:, 0] + 0.02).all() and (matched[:, 0] > plain[:, 0] + 0.02).all()
    scarce, plenty = (matched - distilled).mean(0)
    assert scarce > 0.005 and scarce > plenty


@pytest.mark.parametrize("temperature", [16.0, 1e3, 1e5])
def test_high_temperatures_keep_their_digits(temperature):
    teacher, student, x = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(8, 4)
    result = DistillationLoss(teacher, temperature)(student, x)
    expected = DistillationLoss(teacher.double(), temperature)(student.double(), x.double())
    assert result.item() == pytest.approx(expected.item(), rel=1e-5)
    assert DistillationLoss(teacher, temperature)(teacher, x.double()).item() == 0


def test_classes_that_are_ruled_out_count_nothing():
    teacher, student, x = nn.Linear(4, 3).double(), nn.Linear(4, 3).double(), torch.randn(8, 4).double()
    out = torch.tensor([0.0, 0.0, -torch.inf])
    loss = DistillationLoss(lambda x: teacher(x) + out)(lambda x: student(x) + out, x)
    expected = DistillationLoss(lambda x: teacher(x)[:, :2])(lambda x: student(x)[:, :2], x)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in student.parameters())
