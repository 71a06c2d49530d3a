"""Read by mypy, not run: a tensor gives a tensor, a tuple a tuple, of every attribution."""

from torch import Tensor, nn
from typing_extensions import assert_type

from captum_density.attr import (
    AttentionGradient,
    AttentionWeights,
    CompleteDeepLift,
    CompleteDeepLiftShap,
    FullGrad,
    FullGradients,
    NeuronFullGrad,
    PathIntegratedGradients,
    ShiftFooledGradient,
    SimpleFullGrad,
    SmoothFullGrad,
)
from captum_density.datasets import digits, efficientnet_lite0, photographs
from captum_density.softmax_shift import LinearShift


def calls(model: nn.Module, x: Tensor) -> None:
    pair = (x, x)
    full_grad = FullGrad(model)
    assert_type(full_grad.attribute(x, 1), Tensor)
    assert_type(full_grad.attribute(pair, 1), tuple[Tensor, ...])
    assert_type(FullGrad(model, complete=True).attribute(x, 1, return_convergence_delta=True), tuple[Tensor, Tensor])
    assert_type(full_grad.decompose(x), FullGradients)

    assert_type(SimpleFullGrad(model).attribute(x, 1), Tensor)
    assert_type(SimpleFullGrad(model).attribute(pair, 1), tuple[Tensor, ...])
    assert_type(SmoothFullGrad(model).attribute(x, 1, nt_samples=3), Tensor)
    assert_type(SmoothFullGrad(model).attribute(pair, 1), tuple[Tensor, ...])

    fooled = ShiftFooledGradient(model, LinearShift(x[0]))
    assert_type(fooled.attribute(x, 1), Tensor)
    assert_type(fooled.attribute(pair, 1), tuple[Tensor, ...])

    lift, shap = CompleteDeepLift(model), CompleteDeepLiftShap(model)
    assert_type(lift.attribute(x, 0, 1), Tensor)
    assert_type(lift.attribute(pair, target=1), tuple[Tensor, ...])
    assert_type(lift.attribute(x, return_convergence_delta=True), tuple[Tensor, Tensor])
    assert_type(shap.attribute(pair, pair, return_convergence_delta=True), tuple[tuple[Tensor, ...], Tensor])

    neuron = NeuronFullGrad(model, model)
    assert_type(neuron.attribute(x, 1), Tensor)
    assert_type(neuron.attribute(pair, (1, 2)), tuple[Tensor, ...])

    integrated = PathIntegratedGradients(model)
    assert_type(integrated.attribute(x, target=1), Tensor)
    assert_type(integrated.attribute(pair, target=1), tuple[Tensor, ...])
    assert_type(integrated.attribute(x, target=1, return_convergence_delta=True), tuple[Tensor, Tensor])
    assert_type(integrated.attribute(pair, return_convergence_delta=True), tuple[tuple[Tensor, ...], Tensor])

    assert_type(AttentionWeights(model, "").attribute(x, heads="all"), Tensor)
    assert_type(AttentionGradient(model, "").attribute(pair, 1), Tensor)

    assert_type(digits().test_labels, Tensor)
    assert_type(photographs().names, tuple[str, ...])
    assert_type(efficientnet_lite0(), nn.Module)
