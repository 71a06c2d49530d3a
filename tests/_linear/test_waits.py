"""A GPU is not waited for at every operation: how often, beyond a plain gradient."""

from functools import partial

import pytest
import torch
import torchvision
from captum.attr import Saliency
from torch import nn

from captum_density.attr import FullGrad, SmoothFullGrad
from captum_density.audit import audit
from captum_density.retraining import pgd
from captum_density.samplers import ActivationMaximization, LangevinSampler
from tests.waits import waits, waits_for_numbers

IMAGES = torch.rand(2, 3, 32, 32)
MODELS = {
    "ResNet": lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3),
    "DenseNet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=3),
    "ViT": lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 16, num_classes=3),
    "Swin": lambda: torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [1, 2], [4, 4], num_classes=3),
}


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
def test_full_grad_waits_six_times_more_at_most(name):
    torch.manual_seed(0)
    model, images, target = MODELS[name]().eval().cuda(), IMAGES.cuda(), torch.tensor([0, 2], device="cuda")
    plain = partial(Saliency(model).attribute, images, target=target)
    for attribution in (FullGrad(model), FullGrad(model, complete=True), SmoothFullGrad(model)):
        run = partial(attribution.attribute, images, target=target)
        numbers, of_plain = waits_for_numbers(run), waits_for_numbers(plain)
        assert numbers is None or numbers <= of_plain + 6
        run()  # copies of where things lie are made, and kept
        copies = 60 if isinstance(attribution, SmoothFullGrad) else 0  # which has too many examples for some to be kept
        assert waits(run) <= waits(plain) + 6 + copies


@pytest.mark.cuda
def test_samplers_and_attacks_wait_once_in_ten_steps():
    model, x = nn.Linear(4, 3).cuda(), torch.rand(5, 4).cuda()
    target = torch.tensor([0, 1, 2, 0, 1], device="cuda")

    def langevin(steps: int) -> None:
        LangevinSampler(model, 0.1, steps).sample(x, target)

    def adjusted(steps: int) -> None:
        LangevinSampler(model, 0.1, steps, metropolis=True).sample(x, target)

    def maximization(steps: int) -> None:
        ActivationMaximization(model, 0.1, steps, normalize=True, bounds=(-1, 1)).sample(x, target)

    def attack(steps: int) -> None:
        pgd(model, x, target, norm="l2", radius=0.1, n_steps=steps, bounds=(0, 1))

    for run in (langevin, adjusted, maximization, attack):
        assert waits(partial(run, 60)) - waits(partial(run, 10)) <= 5, run.__name__


@pytest.mark.cuda
def test_an_audit_waits_for_its_figures_and_not_for_its_runs():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).cuda(), torch.rand(4, 1, 4, 4).cuda()
    run = partial(audit, model, (x, torch.tensor([0, 1, 2, 0], device="cuda")))
    assert waits(run) < 1200  # three in four as numbers are copied to it, by Captum's methods above all
    numbers = waits_for_numbers(run)
    assert numbers is None or numbers < 300
