"""The model parameter randomisation test: what is left of an attribution when the model's weights are drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from captum_density._display.rank_correlation import rank_correlation
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density.metrics._attribution_rows import attribution_rows
from captum_density.metrics._random_weights_map import attributions_and_weights

__all__ = ["ParameterRandomisation", "parameter_randomisation"]

_BINS = 100


class ParameterRandomisation(NamedTuple):
    """How alike an attribution is when weights are random. See `parameter_randomisation`.

    Args:
        layers: (K,) how many layers have other weights, those nearest to the output; or, where each layer was drawn
            alone, which one, counted from the output.
        similarity: (K, N) rank correlation of each example's attribution with that of the changed model, in [-1, 1]:
            lower is better.
        complexity_rise: (N,) by how much the entropy of the attribution's histogram rises, as a part of it, when all
            layers have other weights: higher is better. 0 where it has none before and after, as a constant map;
            infinite where it has none before.
    """

    layers: Tensor
    similarity: Tensor
    complexity_rise: Tensor


@takes_arrays
def parameter_randomisation(
    make_attribution: Any,
    model: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    order: Literal["cascading", "independent"] = "cascading",
    n_depths: int | None = None,
    signed: bool = False,
    seed: int = 0,
    **kwargs: Any,
) -> ParameterRandomisation:
    r"""Compare an attribution with that of the same model when weights of it are drawn anew.

    A method whose maps stay as they are does not depend on what the model has learned; an edge detector has a
    similarity of 1. New weights are the modules' own initial values (`reset_parameters`), or a parameter's values in
    random order where a module draws none.

    The efficient form asks no similarity, which favours noisy maps, but how much more complex maps become:

    .. math:: \frac{H(\hat a) - H(a)}{H(a)}

    with H the entropy of the histogram of an example's attributions, with their signs, in 100 equal bins from the
    smallest to the largest, and \hat a those of the model whose weights are all random. The smooth form is this
    function of a `NoiseTunnel`.

    Args:
        make_attribution: As `shift_sensitivity`. The model's weights are replaced in place for the time of a call, so
            that what holds layers of it sees them.
        model: Module, or function that runs modules.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        target: As Captum's; passed to the attribute function unless None.
        additional_forward_args: As Captum's; passed to the attribute function unless None.
        order: "cascading" draws the layers from the output on, each with those above it; "independent" each alone.
        n_depths: At how many depths, spread evenly, the last of them all layers; None for every layer.
        signed: Whether similarities are of attributions as they are; else of their absolute values.
        seed: Of the weights.
        kwargs: Further arguments of the attribute function, such as `n_steps`.

    Returns:
        Similarities, float64, by depth and example, and the rise in complexity.

    Raises:
        ValueError: A model without weights that can be drawn; `n_depths` below 1; attributions that are not finite or
            have another shape at random weights; an unknown order; `return_convergence_delta`.
        TypeError: As `shift_sensitivity`.

    References:
        J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv:1810.03292, section 3. The efficient
        form is that of A. Hedström, L. Weber, S. Lapuschkin and M. M.-C. Höhne, "Sanity Checks Revisited: An
        Exploration to Repair the Model Parameter Randomisation Test", 2024, arXiv:2401.06465; checked against the
        authors' code, not the paper's text: `EfficientMPRT` and `discrete_entropy` of their Quantus 0.6, with the
        settings of their experiments (signed, 100 bins; their scaling of attributions changes no bin).

    Example:
        >>> import torch
        >>> from captum.attr import Saliency
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(50, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
        >>> x = torch.randn(4, 50)
        >>> result = parameter_randomisation(Saliency, model, x, target=0)
        >>> result.layers.tolist(), bool((result.similarity[-1].abs() < 0.5).all())
        ([1, 2], True)
        >>> parameter_randomisation(lambda model: lambda x, **_: x, model, x).similarity[-1]  # no word of the model
        tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    if kwargs.get("return_convergence_delta"):
        raise ValueError("parameter_randomisation compares attributions only; leave return_convergence_delta out")
    if order not in ("cascading", "independent"):
        raise ValueError(f"order must be 'cascading' or 'independent', but is {order!r}")
    if n_depths is not None and n_depths < 1:
        raise ValueError(f"n_depths must be at least 1, but is {n_depths}")
    session = attributions_and_weights(make_attribution, model, inputs, target, additional_forward_args, seed, kwargs)
    with session as (batch, weights, attributions):

        def rows() -> Tensor:
            return attribution_rows(attributions(), batch.n)

        own = rows()
        depths = _depths(len(weights), n_depths)
        similarity = []
        for depth in depths:
            with weights.drawn_anew(depth, alone=order == "independent"):
                random = rows()
            similarity.append(_likeness(own, random, signed))
        if order == "independent":
            with weights.drawn_anew():
                random = rows()
    before, after = _entropy(own), _entropy(random)
    rise = ((after - before) / before).masked_fill(after == before, 0.0)
    return ParameterRandomisation(torch.tensor(depths, device="cpu"), torch.stack(similarity), rise)


def _depths(layers: int, n: int | None) -> list[int]:
    """Numbers of layers, ascending, to all of them."""
    if n is None or n >= layers:
        return list(range(1, layers + 1))
    return sorted({-(-layers * part // n) for part in range(1, n + 1)})


def _likeness(one: Tensor, other: Tensor, signed: bool) -> Tensor:
    if one.shape != other.shape:
        raise ValueError(
            f"attributions have {one.shape[1]} elements an example, and {other.shape[1]} at random weights"
        )
    return rank_correlation(one, other) if signed else rank_correlation(one.abs(), other.abs())


def _entropy(values: Tensor) -> Tensor:
    """(N,) nats, of each example's histogram of equal bins from its smallest value to its largest, as NumPy's."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    steps = torch.arange(_BINS + 1, dtype=values.dtype, device=values.device)
    edges = low + steps * ((high - low) / _BINS)
    at = (torch.searchsorted(edges, values, right=True) - 1).clamp(0, _BINS - 1)
    counts = torch.zeros(len(values), _BINS, dtype=torch.float64, device=values.device)
    p = counts.scatter_add_(1, at, torch.ones_like(values)) / values.shape[1]
    return torch.special.entr(p).sum(1)
