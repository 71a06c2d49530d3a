"""On a GPU, values are looked at together: what is refused is the same, and the GPU is waited for once."""

from functools import partial

import pytest
import torch
from captum.attr import InputXGradient, Saliency
from torch import nn

from captum_density._model.refusals import looked_at_together, refuse_where
from captum_density.audit import audit
from captum_density.metrics import pixel_perturbation, shift_sensitivity
from captum_density.softmax_shift import CenteredLogits, CounterShift, SoftmaxShift
from tests.waits import waits, waits_for_numbers


def refuse(condition: torch.Tensor, text: str) -> None:
    refuse_where(condition, partial(ValueError, text))


def test_on_a_cpu_it_is_looked_at_once_a_condition_holds():
    with looked_at_together():
        refuse(torch.tensor(False), "not")
        with pytest.raises(ValueError, match="at once"):
            refuse(torch.tensor(True), "at once")


@pytest.mark.cuda
def test_the_first_that_holds_is_raised_in_place_of_what_it_led_to():
    holds, does_not = torch.tensor(True, device="cuda"), torch.tensor(False, device="cuda")
    with pytest.raises(ValueError, match="at once"):
        refuse(holds, "at once")
    with pytest.raises(ValueError, match="first"), looked_at_together():
        refuse(does_not, "not")
        refuse(holds, "first")
        refuse(holds, "second")
        raise RuntimeError("what it led to")
    with pytest.raises(RuntimeError, match="another reason"), looked_at_together():
        refuse(does_not, "not")
        raise RuntimeError("another reason")
    with looked_at_together():
        refuse(does_not, "not")
        with pytest.raises(ValueError, match="within"), looked_at_together():
            refuse(holds, "within")


@pytest.mark.cuda
def test_it_is_waited_for_once():
    condition = torch.tensor(False, device="cuda")

    def all_of_them() -> None:
        with looked_at_together():
            for _ in range(20):
                refuse(condition, "never")

    assert waits(all_of_them) == 1


CASES = {
    "maps": (lambda x, maps: (x, maps / 0), 0, "attributions contain NaN"),
    "inputs": (lambda x, maps: (x / 0, maps), 0, "input 0 contains NaN"),
    "baselines": (lambda x, maps: (x, maps, torch.nan), 0, "baselines contain NaN"),
    "logits": (lambda x, maps: (1e38 * x, maps), 0, "NaN or infinite logits"),
    "too high": (lambda x, maps: (x, maps), [0, 7], "holds class 7, the classifier knows 3"),
    "negative": (lambda x, maps: (x, maps), [-1, 0], "target must be a class"),
}


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_pixel_perturbation_refuses_what_it_refuses_on_a_cpu(name):
    change, target, message = CASES[name]
    x, classes = torch.rand(2, 1, 4, 4) + 0.1, torch.tensor(target)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.constant_(model[1].weight, 10.0)
    for device in ("cpu", "cuda"):
        arguments = [a.to(device) if isinstance(a, torch.Tensor) else a for a in change(x, x)]
        with pytest.raises(ValueError, match=message):
            pixel_perturbation(model.to(device), *arguments, target=classes.to(device))


@pytest.mark.cuda
def test_pixel_perturbation_waits_once():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).cuda(), torch.rand(2, 1, 4, 4).cuda()
    run = partial(pixel_perturbation, model, x, x, target=torch.tensor([0, 2], device="cuda"))
    assert waits(run) <= 2  # and a copy of the fractions to it
    assert waits_for_numbers(run) in (None, 1)


class Broken(InputXGradient):
    def attribute(self, inputs, target=None):
        return super().attribute(inputs, target) / 0


@pytest.mark.cuda
def test_an_audit_says_of_each_figure_what_it_says_on_a_cpu():
    model, x = nn.Linear(3, 2), torch.rand(4, 3)
    masked = nn.Sequential(model, nn.Threshold(9.0, -torch.inf))
    for device in ("cpu", "cuda"):
        report = audit(model.to(device), x.to(device), {"broken": Broken, "ok": Saliency})
        assert all(measured.failed for measured in report.methods["broken"].values())
        assert "8 of the" not in report.methods["broken"]["infidelity"].note
        assert "12 of the attributions are NaN or infinite" in report.methods["broken"]["infidelity"].note
        assert not any(measured.failed for measured in report.methods["ok"].values())
        with pytest.raises(ValueError, match="logsumexp"):
            CenteredLogits(masked.to(device))(x.to(device))


@pytest.mark.cuda
def test_classes_that_there_are_not_do_not_reach_it():
    model, x, high = nn.Linear(3, 2).cuda(), torch.rand(2, 3).cuda(), torch.tensor([0, 5], device="cuda")
    with pytest.raises(ValueError, match=r"target must be in \[0, 2\)"), looked_at_together():
        SoftmaxShift(model, CounterShift(model, high, inputs=x))(x)
    with pytest.raises(RuntimeError, match="holds classes from 0 to 5"), looked_at_together():
        shift_sensitivity(Saliency, model, x, target=high)
    assert bool(model(x).isfinite().all())
