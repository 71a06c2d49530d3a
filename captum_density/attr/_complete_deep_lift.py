"""CompleteDeepLift: DeepLift's rescale rule on any model, with a sum that is always met."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from captum.attr import GradientAttribution, LayerAttribution
from torch import Tensor, nn

from captum_density._linear.multipliers import multipliers
from captum_density._model.arrays import as_tensors, takes_arrays
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import BaselineType, TargetType, TensorOrTupleOfTensorsGeneric, log_usage
from captum_density._model.errors import warn
from captum_density._model.modules import unwrap
from captum_density._model.validation import check_model, expanded_baselines
from captum_density.attr._common import delta, finish
from captum_density.attr._layer import Cut, check_layers, refuse_grad_kwargs
from captum_density.attr._repr import shown

__all__ = ["CompleteDeepLift", "CompleteDeepLiftShap", "LayerCompleteDeepLift", "multipliers_of"]

CustomAttribution = Callable[..., tuple[Tensor, ...]]


class CompleteDeepLift(GradientAttribution):
    r"""DeepLift's rescale rule for every operation, so that attributions sum to f(x) - f(x') on any model.

    The model runs at the input x and at the baseline x' at once. Every operation y = op(u_1, ..., u_k) gets a discrete
    gradient between the two, linear maps A_j with

    .. math:: \sum_j A_j (u_j - u'_j) = y - y'

    and one backward pass through these makes the multipliers m of a_i = m_i (x_i - x'_i). On networks of linear layers
    and elementwise activations, which have one input, this is Captum's `DeepLift`; other operations have:

    ================================  =================================================================================
    linear, affine, moving            their own backward pass: constants drop out
    elementwise functions             the secant (y - y') / (u - u'); where it is rounding, the derivative at the
                                      midpoint
    products, matrix products         the midpoint form: uv - u'v' = mean(u) (v - v') + mean(v) (u - u')
    softmax, attention                exp(u - log sum exp u), step by step
    normalisations, quotients, norms  root, reciprocal and product, step by step
    LSTM, GRU                         step by step
    maximum over dimensions, max      Gonzalez' discrete gradient in each window: the largest at the midpoint, and the
    pooling                           rest of y - y' in proportion to (u - u')^2
    anything else                     Gonzalez' discrete gradient for each example: the Jacobian at the midpoint, and
                                      the rest in proportion to (u - u')^2
    ================================  =================================================================================

    Only values count: `detach` and `no_grad` inside the model hide nothing. Where the runs at x and x' would take
    different operations (routing, branches, top-k), or what the model does cannot be seen, the smallest module around
    is one such step of Gonzalez', at last the whole model, and a warning names it. The model may be any module or
    function, with reused activations, functional code, masks of -inf and in-place operations, and is not changed.

    Args:
        model: An `nn.Module`, or a function of the inputs.
        multiply_by_inputs: False returns the multipliers, in output units per input unit, which sum to nothing in
            particular.

    Raises:
        TypeError: If `model` cannot be called.

    References:
        A. Shrikumar, P. Greenside and A. Kundaje, "Learning Important Features Through Propagating Activation
        Differences", ICML 2017, arXiv:1704.02685, section 3.2; O. Gonzalez, "Time integration and discrete Hamiltonian
        systems", Journal of Nonlinear Science 6, 1996, for discrete gradients.

    Example:
        A normalisation and a softmax, on which Captum's `DeepLift` does not add up:

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Softmax(1))
        >>> x, baseline = torch.randn(2, 4), torch.randn(1, 4)
        >>> attributions = CompleteDeepLift(model).attribute(x, baseline, target=1)
        >>> torch.allclose(attributions.sum(1), model(x)[:, 1] - model(baseline)[:, 1], atol=1e-5)
        True
    """

    def __init__(self, model: Callable[..., Any], multiply_by_inputs: bool = True) -> None:
        check_model(model, "model")
        super().__init__(model)
        self._multiply_by_inputs = multiply_by_inputs

    def __repr__(self) -> str:
        return shown(self, self.forward_func, multiply_by_inputs=self._multiply_by_inputs)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions are in units of the output."""
        return self._multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """True, as Captum's `DeepLift`."""
        return True

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        return_convergence_delta: Literal[False] = False,
        custom_attribution_func: CustomAttribution | None = None,
    ) -> TensorOrTupleOfTensorsGeneric: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        return_convergence_delta: Literal[True],
        custom_attribution_func: CustomAttribution | None = None,
    ) -> tuple[TensorOrTupleOfTensorsGeneric, Tensor]: ...

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        return_convergence_delta: bool = False,
        custom_attribution_func: CustomAttribution | None = None,
    ) -> Any:
        """Attributions of the inputs' shape.

        Args:
            inputs: Floating-point tensor (N, ...) or tuple of such.
            baselines: x', as Captum's: a number, a tensor (N, ...) or (1, ...), a tuple of these; None for 0.
            target: As Captum's: picks the output to explain.
            additional_forward_args: As Captum's: passed on after the inputs, the same at x and x'.
            return_convergence_delta: Also return the sum of the attributions minus f(x) - f(x'), (N,).
            custom_attribution_func: As Captum's: makes attributions of the multipliers, or of these and inputs, or of
                these and inputs and baselines, each a tuple; None for multipliers * (inputs - baselines).

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes; signed; in units of the
            output. With `return_convergence_delta`, a pair of that and a tensor (N,), 0 up to rounding unless
            attributions are not the default's.

        Raises:
            ValueError: Inputs or baselines that are empty, NaN or infinite, or do not fit; inputs on another device
                than the model; a model that draws random numbers.
            TypeError: Inputs that are not floating-point tensors; TorchScript; a model that returns no tensor.
            RuntimeError: If the attributions of an example do not sum to f(x) - f(x'); names the operation responsible.
            NotImplementedError: Activation checkpointing; hooks of Captum's DeepLift, LRP, GuidedBackprop or
                Deconvolution.
        """
        batch = ModelOnBatch(unwrap(self.forward_func), inputs, target, additional_forward_args, name="model")
        starts = expanded_baselines(baselines, batch.inputs)
        attributions = self._attributions(batch, starts, custom_attribution_func)
        result = finish(attributions, inputs)
        if not return_convergence_delta:
            return result
        return result, self._delta(batch, starts, attributions)

    def _attributions(
        self, batch: ModelOnBatch, starts: tuple[Tensor, ...], custom: CustomAttribution | None
    ) -> tuple[Tensor, ...]:
        values = multipliers_of(batch, starts)
        return _combined(values, batch.inputs, starts, custom, self._multiply_by_inputs)

    def _delta(self, batch: ModelOnBatch, starts: tuple[Tensor, ...], attributions: tuple[Tensor, ...]) -> Tensor:
        with batch.evaluation(), torch.no_grad():
            change = batch.selected() - batch.selected(starts)
        return sum((a.reshape(batch.n, -1).sum(1) for a in attributions), torch.zeros_like(change)) - change


class CompleteDeepLiftShap(CompleteDeepLift):
    r"""The mean of `CompleteDeepLift` over a distribution of baselines, an approximation of SHAP values.

    Args:
        model: As `CompleteDeepLift`.
        multiply_by_inputs: As `CompleteDeepLift`.

    Raises:
        TypeError: As `CompleteDeepLift`.

    References:
        S. Lundberg and S.-I. Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017,
        arXiv:1705.07874, section 4.2.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU(), torch.nn.Linear(3, 2))
        >>> x, baselines = torch.randn(2, 4), torch.randn(5, 4)
        >>> attributions = CompleteDeepLiftShap(model).attribute(x, baselines, target=1)
        >>> expected = model(x)[:, 1] - model(baselines)[:, 1].mean()
        >>> torch.allclose(attributions.sum(1), expected, atol=1e-5)
        True
    """

    @overload  # type: ignore[override]
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        baselines: Any,
        target: TargetType = None,
        additional_forward_args: object = None,
        return_convergence_delta: Literal[False] = False,
        custom_attribution_func: CustomAttribution | None = None,
    ) -> TensorOrTupleOfTensorsGeneric: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        baselines: Any,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        return_convergence_delta: Literal[True],
        custom_attribution_func: CustomAttribution | None = None,
    ) -> tuple[TensorOrTupleOfTensorsGeneric, Tensor]: ...

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        baselines: Any,
        target: TargetType = None,
        additional_forward_args: object = None,
        return_convergence_delta: bool = False,
        custom_attribution_func: CustomAttribution | None = None,
    ) -> Any:
        """Attributions of the inputs' shape, the mean over baselines.

        Args:
            inputs: Floating-point tensor (N, ...) or tuple of such.
            baselines: The distribution: B baselines (B, ...), a tuple of such for several inputs, or a function, of the
                inputs or of nothing, that returns these. All N * B pairs run at once.
            target: As in `CompleteDeepLift.attribute`.
            additional_forward_args: As in `CompleteDeepLift.attribute`.
            return_convergence_delta: Also return the sum of the attributions minus f(x) - f(x') for each pair of an
                example and a baseline, (N * B,), an example's B together.
            custom_attribution_func: As in `CompleteDeepLift.attribute`, of all pairs, (N * B, ...).

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes, as
            `CompleteDeepLift.attribute`.

        Raises:
            ValueError: As `CompleteDeepLift.attribute`; baselines that are not as many as the inputs, or of other
                shapes.
            TypeError: As `CompleteDeepLift.attribute`; baselines that are no tensors.
            RuntimeError: As `CompleteDeepLift.attribute`.
            NotImplementedError: As `CompleteDeepLift.attribute`.
        """
        batch = ModelOnBatch(unwrap(self.forward_func), inputs, target, additional_forward_args, name="model")
        xs, n = batch.inputs, batch.n
        given = _distribution(baselines, inputs, xs)
        count = len(given[0])
        pairs = batch.at(torch.arange(n, device=batch.device).repeat_interleave(count))
        starts = tuple(b.to(x).repeat(n, *[1] * (b.ndim - 1)) for b, x in zip(given, xs, strict=True))
        attributions = self._attributions(pairs, starts, custom_attribution_func)
        means = [a.unflatten(0, (n, count)).mean(1) for a in attributions]
        result = finish(means, inputs)
        if not return_convergence_delta:
            return result
        return result, self._delta(pairs, starts, attributions)


class LayerCompleteDeepLift(LayerAttribution, GradientAttribution):
    r"""`CompleteDeepLift` of what a layer returns, or takes: where `LayerDeepLift` stands.

    With z and z' for the layer's tensors at x and at x', and m for the multipliers of the rest of the model between the
    two, a_i = m_i (z_i - z'_i). What goes around the layer has multipliers of its own, so that

    .. math:: \sum_i m_i (z_i - z'_i) + \text{around} = f(x) - f(x')

    Args:
        model: As `CompleteDeepLift`; any function, where Captum's takes a module. Token ids may be its inputs.
        layer: A module of the model that runs once in a pass. Where it returns a tuple or a record, its floating-point
            tensors are meant, in order.
        multiply_by_inputs: As `CompleteDeepLift`.

    Raises:
        TypeError: If `model` cannot be called, or the layer is no module.

    References:
        A. Shrikumar, P. Greenside and A. Kundaje, "Learning Important Features Through Propagating Activation
        Differences", ICML 2017, arXiv:1704.02685, section 3.2, as `CompleteDeepLift`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(12, 2), nn.Softmax(1))
        >>> ids, padding = torch.tensor([[1, 5, 2], [7, 0, 3]]), torch.zeros(1, 3, dtype=torch.long)
        >>> attributions = LayerCompleteDeepLift(model, model[0]).attribute(ids, padding, target=1)
        >>> torch.allclose(attributions.sum((1, 2)), model(ids)[:, 1] - model(padding)[:, 1], atol=1e-5)
        True
    """

    def __init__(self, model: Callable[..., Any], layer: nn.Module, multiply_by_inputs: bool = True) -> None:
        check_model(model, "model")
        check_layers(layer, several=False)
        LayerAttribution.__init__(self, model, layer)
        self._multiply_by_inputs = multiply_by_inputs

    def __repr__(self) -> str:
        return shown(self, self.forward_func, self.layer, multiply_by_inputs=self._multiply_by_inputs)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions are in units of the output."""
        return self._multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """True, as Captum's `LayerDeepLift`."""
        return True

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        custom_attribution_func: CustomAttribution | None = None,
        grad_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Attributions of the shapes of the layer's tensors.

        Args:
            inputs: Tensor (N, ...) or tuple of such, floating-point or integer.
            baselines: x' for the inputs, as Captum's: a number, a tensor (N, ...) or (1, ...), a tuple of these;
                None for 0.
            target: As in `CompleteDeepLift.attribute`.
            additional_forward_args: As in `CompleteDeepLift.attribute`.
            return_convergence_delta: Also return the sum of the attributions minus f(x) - f(x'), (N,): what goes around
                the layer, with a minus sign.
            attribute_to_layer_input: As in `LayerFullGrad.attribute`.
            custom_attribution_func: As in `CompleteDeepLift.attribute`, of the layer's tensors, examples first.
            grad_kwargs: As Captum's; results are not differentiable.

        Returns:
            As Captum's: a tensor, (N, ...) where examples come first in the layer's, or a tuple where it has several.
            Of the tensors' shapes and dtypes, as `CompleteDeepLift.attribute`.

        Raises:
            ValueError: As `CompleteDeepLift.attribute`; a layer that does not run, or runs several times.
            TypeError: Inputs that are no tensors; TorchScript; a model that returns no tensor.
            RuntimeError: As `CompleteDeepLift.attribute`, of the sum with what goes around.
            NotImplementedError: As `CompleteDeepLift.attribute`.
        """
        refuse_grad_kwargs(grad_kwargs)
        cut = Cut(self.forward_func, [self.layer], attribute_to_layer_input, inputs, additional_forward_args)
        starts = expanded_baselines(baselines, cut.batch.inputs)
        with cut.hooked():
            with cut.batch.evaluation():
                values, beside = cut.tensors()
                bases, beside_bases = cut.tensors(starts)
                cut.refuse_shared(values, beside)
            batch = ModelOnBatch(cut, values + beside, target, cut.rest, name="model")
            lifted = multipliers_of(batch, bases + beside_bases)[: len(values)]
        parts = _combined(lifted, values, bases, custom_attribution_func, self._multiply_by_inputs)
        attributions = cut.in_form([a.to(z.dtype) for a, z in zip(parts, values, strict=True)])
        if not return_convergence_delta:
            return attributions
        return attributions, delta(parts, cut.output(target) - cut.output(target, starts))


def multipliers_of(batch: ModelOnBatch, starts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Multipliers, with a word on modules that are one step."""
    lifted = multipliers(batch, starts)
    if lifted.steps:
        warn(
            "taken as one step each, with Gonzalez' discrete gradient: "
            + "; ".join(f"{path} ({reason})" for path, reason in lifted.steps.items())
        )
    return tuple(lifted.values)


def _combined(
    values: tuple[Tensor, ...],
    inputs: Sequence[Tensor],
    starts: tuple[Tensor, ...],
    custom: CustomAttribution | None,
    multiply_by_inputs: bool,
) -> tuple[Tensor, ...]:
    """Attributions, of multipliers and what they stand between."""
    xs = tuple(x.detach() for x in inputs)
    if custom is None:
        return tuple(m * (x - b) for m, x, b in zip(values, xs, starts, strict=True)) if multiply_by_inputs else values
    count = len(inspect.signature(custom).parameters)
    if not 1 <= count <= 3:
        raise ValueError(
            f"custom_attribution_func must take multipliers, or also inputs, or also baselines, but takes {count}"
        )
    return custom(*(values, xs, starts)[:count])


def _distribution(baselines: Any, inputs: Any, xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if callable(baselines):
        baselines = as_tensors(baselines(inputs) if inspect.signature(baselines).parameters else baselines())
    given = baselines if isinstance(baselines, tuple) else (baselines,)
    if not all(isinstance(b, Tensor) for b in given):
        raise TypeError(
            "baselines must be a tensor (B, ...), or a tuple of such for several inputs; for a number or None take "
            "CompleteDeepLift"
        )
    if len(given) != len(xs) or any(b.shape[1:] != x.shape[1:] for b, x in zip(given, xs, strict=True)):
        raise ValueError(
            f"there must be baselines (B, ...) for each of {len(xs)} inputs, of its shape after the first dimension, "
            f"but they are {[tuple(b.shape) for b in given]} for {[tuple(x.shape) for x in xs]}"
        )
    if len({len(b) for b in given}) > 1 or len(given[0]) == 0 or not all(bool(b.isfinite().all()) for b in given):
        raise ValueError("baselines must be equally many for each input, at least one, and finite")
    return tuple(b.detach() for b in given)
