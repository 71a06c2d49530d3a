"""Implementation invariance: whether two networks that compute the same function get the same attributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.attribution import attribute_function, attribution_maker
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.validation import check_model
from captum_density.metrics._attribution_rows import counted_runs
from captum_density.metrics._axioms._feature_vectors import FeatureVectors, explaining, quotient

__all__ = ["implementation_gap"]

_BETWEEN = (0.0, 0.25, 0.5, 0.75, 1.0)


@takes_arrays
def implementation_gap(
    make_attribution: Callable[..., Any],
    model: Callable[..., Any],
    rewritten: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    baselines: float | Tensor | tuple[float | Tensor, ...] | None = None,
    additional_forward_args: object = None,
    target: TargetType = None,
    **kwargs: Any,
) -> Tensor:
    r"""How much a method's attributions depend on how a function is written as a network.

    .. math:: \frac{\|a - a'\|}{\|a\| + \|a'\|}

    for the attributions a of a network and a' of another that computes the same function, with the same random numbers.
    `captum_density.rewriting` makes such networks.

    Args:
        make_attribution: A function of a model that returns the attribute function of it or the attribution itself: a
            Captum class will do. It is called for both networks. Or an attribution, which is made anew for both. The
            attribute function is given `baselines` (of the inputs' shape), `target` and `additional_forward_args` as
            far as it takes them.
        model: A network.
        rewritten: The other one. That both return the same is tried at the inputs, the baselines and points between.
        inputs, baselines, additional_forward_args, target: As `completeness_gap`.
        kwargs: Further arguments of the attribute function, such as `n_steps`.

    Returns:
        (N,) float64 in [0, 1], lower is better: 0 for equal attributions, 1 for opposite ones or where only one is
        zero. 0/0 is 0.

    Raises:
        ValueError: Networks that compute different functions; attributions of different shapes; a method that ignores
            which network it is made for; shapes that do not fit; values that are not finite; or a model that draws
            random numbers (dropout in training mode).
        TypeError: `make_attribution` is a model, or returns no function; inputs that are not floating-point.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        section 2.2. The measure is ours.

    Example:
        >>> import torch
        >>> from captum.attr import Saliency
        >>> from captum_density.rewriting import split_layer
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2)).double()
        >>> x = torch.randn(4, 3).double()
        >>> bool((implementation_gap(Saliency, model, split_layer(model, "0"), x, target=0) < 1e-9).all())
        True
    """
    for network, name in ((model, "model"), (rewritten, "rewritten")):
        check_model(network, name)
    make = attribution_maker(make_attribution, "make_attribution")
    both = [FeatureVectors(f, inputs, baselines, additional_forward_args, target) for f in (model, rewritten)]
    _check_equal(*both)
    device, attributions = both[0].x.device, []
    with explaining(model, device) as rewind, explaining(rewritten, device):
        for vectors in both:
            rewind()
            attribute = attribute_function(make(vectors.forward_func), "make_attribution(model)")
            with counted_runs(model) as model_runs, counted_runs(rewritten) as rewritten_runs:
                attributions.append(vectors.attributions_at_once(attribute, vectors.x, vectors.rows, kwargs))
    if model_runs and not rewritten_runs:
        raise ValueError(
            "the attribution ran the first network and not the rewritten one; make_attribution must make it for the "
            "model it is given, as `lambda model: Saliency(model).attribute` does"
        )
    a, b = attributions
    if a.shape != b.shape:
        raise ValueError(f"the two attributions have {a.shape[1]} and {b.shape[1]} elements an example")
    # By the largest element first, so that squares of very small or large ones are not lost.
    largest = torch.maximum(a.abs(), b.abs()).amax(1, keepdim=True)
    a, b = quotient(a, largest), quotient(b, largest)
    return quotient((a - b).norm(dim=1), a.norm(dim=1) + b.norm(dim=1))


def _check_equal(first: FeatureVectors, second: FeatureVectors) -> None:
    scale, difference = 0.0, 0.0
    for t in _BETWEEN:
        points = first.baselines + t * (first.x - first.baselines)
        outputs, others = first.outputs(points), second.outputs(points)
        scale = max(scale, float(outputs.abs().max()), float(others.abs().max()))
        difference = max(difference, float((outputs - others).abs().max()))
    if difference > first.eps**0.5 * scale:
        raise ValueError(
            f"the two networks compute different functions: their outputs differ by up to {difference:.2g}, where the "
            f"largest is {scale:.2g}"
        )
