"""log p(x | y) and log p(x), up to their constants, and their gradients by x, the scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_density._density.log_density import LogDensity
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.evaluation import without_compilation

__all__ = ["class_log_density", "class_score", "marginal_log_density", "marginal_score"]


@takes_arrays
def class_log_density(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    target: TargetType,
    additional_forward_args: object = None,
) -> Tensor:
    r"""log p(x | y) up to a constant: the logit of the target class.

    .. math:: p(y = i | x) = \frac{e^{f_i(x)}}{\sum_j e^{f_j(x)}}, \qquad \log p(x | y = i) = f_i(x) - \log Z_i

    That is one density that agrees with the classifier, of many: a term g(x) added to all logits gives another.
    Batch norm uses its running statistics in any mode, and autocast is off, here as in all of `captum_density.density`.

    Args:
        forward_func: Returns logits, (N, C) or with further dimensions.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        target: y, as Captum's: a class, one for each example, or an index into further dimensions.
        additional_forward_args: As Captum's.

    Returns:
        (N,) in nats, without bounds; higher is likelier. Comparable between inputs of one class, and not between
        classes, whose Z differ. Differentiable by the model's parameters where gradients are enabled; not by the
        inputs, for which see `class_score`.

    Raises:
        TypeError: If the model cannot be called or the inputs are not floating-point.
        ValueError: If inputs are empty, unequally many, NaN or infinite, or the examples do not come first in the
            output.
        AssertionError: Captum's own, for a target that does not fit.

    References:
        S. Srinivas and F. Fleuret, "Rethinking the Role of Gradient-Based Attribution Methods for Model
        Interpretability", ICLR 2021, arXiv:2006.09128, section 3.

    Example:
        >>> import torch
        >>> logits = torch.nn.Linear(2, 3)  # exponential families of one slope a class
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> bool(torch.isclose(class_log_density(logits, x, target=1), logits(x)[:, 1]))
        True
    """
    return _values(LogDensity(forward_func, inputs, target, additional_forward_args, marginal=False))


@takes_arrays
def marginal_log_density(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    additional_forward_args: object = None,
) -> Tensor:
    r"""log p(x) up to a constant: logsumexp of the logits.

    .. math:: \log p(x) = \log \sum_i e^{f_i(x)} - \log Z

    which takes all classes' normalisers Z_i to be in proportion to the classes' probabilities.

    Args:
        forward_func: Returns logits (N, C); or (N,) or (N, 1), an unnormalised log-density itself.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        additional_forward_args: As Captum's.

    Returns:
        (N,) in nats, without bounds; higher is likelier. Differentiable by the model's parameters.

    Raises:
        TypeError: As `class_log_density`.
        ValueError: As `class_log_density`, and where the model returns more than two dimensions.

    References:
        W. Grathwohl et al., "Your Classifier is Secretly an Energy Based Model and You Should Treat it Like One",
        ICLR 2020, arXiv:1912.03263, section 4.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> marginal_log_density(lambda x: torch.cat([x, x], dim=1), x).tolist()  # x + log 2
        [0.6931471824645996, 1.6931471824645996]
    """
    return _values(LogDensity(forward_func, inputs, None, additional_forward_args))


@without_compilation
@takes_arrays
def class_score(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    target: TargetType,
    additional_forward_args: object = None,
    *,
    create_graph: bool = False,
) -> TensorOrTupleOfTensorsGeneric:
    r"""The gradient of log p(x | y) by x, which needs no constant: the signed gradient of the target's logit.

    Args:
        forward_func: As for `class_log_density`.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        target: y, as Captum's.
        additional_forward_args: As Captum's.
        create_graph: Whether the result can be differentiated, by the model's parameters.

    Returns:
        Tensor or tuple of tensors like the inputs, in nats per unit of the input.

    Raises:
        TypeError: As `class_log_density`.
        ValueError: As `class_log_density`, and where no gradient reaches the inputs.
        AssertionError: Captum's own, for a target that does not fit.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 3.

    Example:
        >>> import torch
        >>> class_score(lambda x: -0.5 * x**2, torch.tensor([[3.0]]), target=0)  # of a standard normal, -x
        tensor([[-3.]])
    """
    return _score(LogDensity(forward_func, inputs, target, additional_forward_args, marginal=False), create_graph)


@without_compilation
@takes_arrays
def marginal_score(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    additional_forward_args: object = None,
    *,
    create_graph: bool = False,
) -> TensorOrTupleOfTensorsGeneric:
    r"""The gradient of log p(x) by x: the logits' gradients, averaged with the classes' probabilities.

    Args:
        forward_func: As for `marginal_log_density`.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        additional_forward_args: As Captum's.
        create_graph: Whether the result can be differentiated, by the model's parameters.

    Returns:
        Tensor or tuple of tensors like the inputs, in nats per unit of the input.

    Raises:
        TypeError: As `class_log_density`.
        ValueError: As `marginal_log_density`, and where no gradient reaches the inputs.

    References:
        W. Grathwohl et al., ICLR 2020, arXiv:1912.03263, section 4.

    Example:
        >>> import torch
        >>> marginal_score(lambda x: -0.5 * x**2, torch.tensor([[3.0]]))  # one output: a log-density itself
        tensor([[-3.]])
    """
    return _score(LogDensity(forward_func, inputs, None, additional_forward_args), create_graph)


def _values(density: LogDensity) -> Tensor:
    with density.evaluation():
        return density.values(density.points())[0]


def _score(density: LogDensity, create_graph: bool) -> Any:
    with density.evaluation(second_derivatives=create_graph):
        _, gradients = density.scores(density.points(), create_graph=create_graph)
    parts = tuple(g[0] for g in gradients)
    return parts if density.is_tuple else parts[0]
