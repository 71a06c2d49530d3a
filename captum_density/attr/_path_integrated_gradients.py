"""PathIntegratedGradients: integrated gradients along any path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import torch
from captum.attr import GradientAttribution, LayerIntegratedGradients
from torch import Tensor, nn

from captum_density._model.arrays import takes_arrays
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import (
    QUADRATURES,
    BaselineType,
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    approximation_parameters,
    log_usage,
    run_forward,
)
from captum_density._model.evaluation import differentiable, full_precision
from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import check_model, expanded_baselines, selected_output
from captum_density.attr._common import delta, finish
from captum_density.attr._layer import Cut, check_layers, layers_of, refuse_grad_kwargs
from captum_density.attr._paths import FunctionPath, Leg, Path, StraightPath
from captum_density.attr._repr import shown

__all__ = ["LayerPathIntegratedGradients", "PathIntegratedGradients"]


_NO_DELTA = "a mean of gradients has no convergence delta; leave multiply_by_inputs=True"


class PathIntegratedGradients(GradientAttribution):
    r"""Gradients of a model integrated along a path gamma from a baseline x' to the input x.

    .. math:: a_i = \int_0^1 \frac{\partial f}{\partial \gamma_i}(\gamma(\alpha))
              \frac{d \gamma_i}{d \alpha} \, d\alpha

    Along any path the attributions sum to f(x) - f(x'); along the straight one they are Captum's
    `IntegratedGradients`, for each of its quadratures.

    Args:
        forward_func: The model, a module or a function, as for `IntegratedGradients`.
        path: `StraightPath` (None), `PowerPath`, `PiecewiseLinearPath`, or a function of alpha, baseline and input, as
            `FunctionPath` takes it.
        multiply_by_inputs: False leaves d gamma / d alpha out: the mean over alpha of the gradients along the path, in
            output units per input unit, which sums to nothing in particular.

    Raises:
        TypeError: If model or path cannot be called.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        section 4.

    Example:
        >>> import torch
        >>> from captum_density.attr import PowerPath
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> bent = PathIntegratedGradients(lambda x: x[:, 0] * x[:, 1], PowerPath(torch.tensor([1.0, 3.0])))
        >>> [round(a, 4) for a in bent.attribute(x)[0].tolist()]  # 2 = f(x), unequally shared
        [0.5, 1.5]
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        path: Path | Callable[..., Any] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        check_model(forward_func)
        super().__init__(forward_func)
        self.path = _path(path)
        self._multiply_by_inputs = multiply_by_inputs

    def __repr__(self) -> str:
        return shown(self, self.forward_func, path=self.path, multiply_by_inputs=self._multiply_by_inputs)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions are in units of the output."""
        return self._multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """Whether there is one: with `multiply_by_inputs`, whose attributions sum to f(x) - f(x')."""
        return self._multiply_by_inputs

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: Literal[False] = False,
    ) -> TensorOrTupleOfTensorsGeneric: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        *,
        return_convergence_delta: Literal[True],
    ) -> tuple[TensorOrTupleOfTensorsGeneric, Tensor]: ...

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Attributions of the inputs' shape.

        Args:
            inputs: Floating-point tensor (N, ...) or tuple of such.
            baselines: x', as Captum's: a number, a tensor (N, ...) or (1, ...), a tuple of these; None for 0.
            target: As Captum's: picks the output to explain.
            additional_forward_args: As Captum's: passed on after the inputs; the same all along the path.
            n_steps: Gradients to take of each example, shared out evenly between the pieces of a path that has some.
            method: As Captum's: "gausslegendre", "riemann_right", "riemann_left", "riemann_middle" or
                "riemann_trapezoid". For smooth models the error falls faster than any power of the steps, with order
                1, 1, 2, and 1: Captum's trapezoid, followed here, has weights that sum to 1 - 1 / n_steps.
            internal_batch_size: As Captum's: at most so many points run at once, but one step of all examples does.
            return_convergence_delta: Also return the sum of the attributions minus f(x) - f(x'), (N,).

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes; signed; in units of the
            output. With `return_convergence_delta`, a pair of that and a tensor (N,), nearer 0 the more steps there
            are.

        Raises:
            ValueError: A path that does not start at the baseline or end at the input, or does not fit the inputs; too
                few steps; an unknown method; inputs or baselines that are empty, NaN or infinite; inputs on another
                device than the model; a convergence delta without `multiply_by_inputs`.
            TypeError: Inputs that are not floating-point tensors.
        """
        if return_convergence_delta and not self._multiply_by_inputs:
            raise ValueError(_NO_DELTA)
        if method not in QUADRATURES:
            raise ValueError(f"method must be one of {', '.join(QUADRATURES)}, but is {method!r}")
        if internal_batch_size is not None and not (isinstance(internal_batch_size, int) and internal_batch_size >= 1):
            raise ValueError(f"internal_batch_size must be an integer of at least 1, but is {internal_batch_size!r}")
        batch = ModelOnBatch(self.forward_func, inputs, target, additional_forward_args)
        starts = expanded_baselines(baselines, batch.inputs)
        with torch.inference_mode(False), torch.no_grad(), fixed_modules(self.forward_func, needs_statistics=False):
            xs = tuple(x.detach().clone() if x.is_inference() else x.detach() for x in batch.inputs)
            legs = self.path.legs(starts, xs)
            totals: list[Tensor] | None = None
            for leg, steps in zip(legs, _shares(n_steps, len(legs), method), strict=True):
                parts = self._integrals(batch, leg, steps, method, internal_batch_size)
                if not self._multiply_by_inputs:
                    parts = [part / len(legs) for part in parts]
                totals = parts if totals is None else [a + b for a, b in zip(totals, parts, strict=True)]
        assert totals is not None
        attributions = finish(totals, inputs)
        if not return_convergence_delta:
            return attributions
        with fixed_modules(self.forward_func, needs_statistics=False):
            gap = self.compute_convergence_delta(
                attributions,
                batch.in_form(starts),
                inputs,
                target=target,
                additional_forward_args=additional_forward_args,
            )
        return attributions, gap

    def _integrals(
        self, batch: ModelOnBatch, leg: Leg, steps: int, method: str, internal_batch_size: int | None
    ) -> list[Tensor]:
        """The integral along one piece, for each input (N, ...)."""
        step_sizes, places = (
            torch.tensor(of(steps), dtype=torch.float64, device="cpu") for of in approximation_parameters(method)
        )
        count = steps if internal_batch_size is None else max(1, internal_batch_size // batch.n)
        totals = [torch.zeros_like(x, dtype=accumulation_dtype(x)) for x in leg.end]
        for weights, alphas in zip(step_sizes.split(count), places.split(count), strict=True):
            s = len(alphas)
            rows = torch.arange(batch.n, device=batch.device).repeat(s)
            points = leg.path.points(alphas, leg.start, leg.end)
            gradients = self.gradient_func(
                forward_fn=functools.partial(self._summed, batch.target_of(rows), batch.span),
                inputs=tuple(p.flatten(0, 1).requires_grad_() for p in points),
                target_ind=None,
                additional_forward_args=batch.args_of(rows),
            )
            slopes = leg.path.derivatives(alphas, leg.start, leg.end) if self._multiply_by_inputs else None
            if slopes is not None and not all(bool(slope.isfinite().all()) for slope in slopes):
                raise ValueError(
                    "the path's derivative is NaN or infinite at a step; take a method that leaves out the ends of "
                    "alpha, such as gausslegendre, or a path that starts slower"
                )
            for i, gradient in enumerate(gradients):
                integrand, factor = gradient.reshape(s, -1).to(totals[i].dtype), None
                if slopes is not None and len(slopes[i]) == 1:
                    factor = slopes[i][0]
                elif slopes is not None:
                    integrand = integrand * slopes[i].reshape(s, -1)
                with full_precision(batch.device):
                    integral = (weights.to(totals[i]) @ integrand).view_as(totals[i])
                totals[i] += integral if factor is None else integral * factor
        return totals

    def _summed(self, target: TargetType, span: tuple[int, int] | None, *args: Any) -> Tensor:
        """(1,): the sum of the target's outputs.

        Its gradient by a row is that of the row's own output, which Captum would take of each row by itself; nor would
        Captum tell a target of several numbers from a missing one.
        """
        with differentiable(self.forward_func, args[0].device):
            output = self.forward_func(*args)
        return selected_output(output, target, len(args[0]), span).sum().reshape(1)


class LayerPathIntegratedGradients(LayerIntegratedGradients):
    r"""Gradients integrated along a path of what a layer returns, or takes: where `LayerIntegratedGradients` stands.

    .. math:: a_i = \int_0^1 \frac{\partial f}{\partial \gamma_i}(\gamma(\alpha), x)
              \frac{d \gamma_i}{d \alpha} \, d\alpha

    along a path gamma from the layer's tensors at the baseline x' to those at x, what goes around the layer being as it
    is at x. Along the straight one this is Captum's `LayerIntegratedGradients`.

    Args:
        forward_func: As `PathIntegratedGradients`. Token ids may be its inputs, and its baselines.
        layer: A module of the model, or a list of modules whose tensors move together, as Captum's: none may be
            computed from another's. Each must run once in a pass. Where one returns a tuple or a record, its
            floating-point tensors are meant, in order.
        device_ids: As Captum's; DataParallel is unwrapped, so that nothing depends on it.
        multiply_by_inputs: As `PathIntegratedGradients`.
        path: As `PathIntegratedGradients`, of the layer's tensors, examples first.

    Raises:
        TypeError: If model or path cannot be called, or the layer is no module.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        section 4.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 4), nn.GELU(), nn.Linear(4, 2))
        >>> ids, padding = torch.tensor([[1, 5, 2], [7, 0, 3]]), torch.zeros(1, 3, dtype=torch.long)
        >>> attributions = LayerPathIntegratedGradients(model, model[0]).attribute(ids, padding, target=1)
        >>> change = model(ids)[:, 1] - model(padding)[:, 1]
        >>> attributions.shape, torch.allclose(attributions.sum((1, 2)), change, atol=1e-4)
        (torch.Size([2, 3, 4]), True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | list[nn.Module],
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        *,
        path: Path | Callable[..., Any] | None = None,
    ) -> None:
        check_model(forward_func)
        check_layers(layer)
        super().__init__(forward_func, layer, device_ids, multiply_by_inputs)
        self.path = _path(path)

    def __repr__(self) -> str:
        return shown(self, self.forward_func, self.layer, path=self.path, multiply_by_inputs=self.multiplies_by_inputs)

    def has_convergence_delta(self) -> bool:
        """As `PathIntegratedGradients`."""
        return bool(self.multiplies_by_inputs)

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: BaselineType = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Attributions of the shapes of the layer's tensors.

        Args:
            inputs: Tensor (N, ...) or tuple of such, floating-point or integer.
            baselines: x' for the inputs, as Captum's: a number, a tensor (N, ...) or (1, ...), a tuple of these;
                None for 0.
            target: As in `PathIntegratedGradients.attribute`.
            additional_forward_args: As in `PathIntegratedGradients.attribute`.
            n_steps: As in `PathIntegratedGradients.attribute`.
            method: As in `PathIntegratedGradients.attribute`.
            internal_batch_size: As in `PathIntegratedGradients.attribute`.
            return_convergence_delta: Also return the sum of the attributions, of all layers together, minus
                f(x) - f(x'), (N,). It holds what goes around the layers, beside the error of the integral.
            attribute_to_layer_input: As in `LayerFullGrad.attribute`.
            grad_kwargs: As Captum's; results are not differentiable.

        Returns:
            As Captum's: a tensor, (N, ...) where examples come first in the layer's, or a tuple where it has several; a
            list of these for a list of layers. Of the tensors' shapes and dtypes; signed; in units of the output.

        Raises:
            ValueError: As `PathIntegratedGradients.attribute`; a layer that does not run, or runs several times.
            TypeError: Inputs that are no tensors.
        """
        if return_convergence_delta and not self.multiplies_by_inputs:
            raise ValueError(_NO_DELTA)
        refuse_grad_kwargs(grad_kwargs)
        layers = layers_of(self)
        cut = Cut(self.forward_func, layers, attribute_to_layer_input, inputs, additional_forward_args, lookups=False)
        starts = expanded_baselines(baselines, cut.batch.inputs)
        fixed = fixed_modules(self.forward_func, needs_statistics=False)
        with torch.inference_mode(False), fixed, cut.hooked():
            values, floats = cut.tensors()
            bases, _ = cut.tensors(starts)
            cut.refuse_shared(values, floats, repeated=True)
            integrated = PathIntegratedGradients(cut, self.path, self.multiplies_by_inputs)
            integrated.gradient_func = _layer_gradients
            parts = integrated.attribute(
                values, bases, target, (*floats, *(cut.rest or ())) or None, n_steps, method, internal_batch_size
            )
        attributions = cut.in_form(parts, isinstance(self.layer, list))
        if not return_convergence_delta:
            return attributions
        return attributions, delta(parts, cut.output(target) - cut.output(target, starts))


def _layer_gradients(
    forward_fn: Callable[..., Tensor], inputs: tuple[Tensor, ...], target_ind: None, additional_forward_args: Any
) -> tuple[Tensor, ...]:
    """As Captum's `compute_gradients`, but 0 of tensors that go unused, as an RNN's last state often does.

    Raises:
        ValueError: None is used.
    """
    with torch.enable_grad():
        output = run_forward(forward_fn, inputs, target_ind, additional_forward_args)
        gradients = torch.autograd.grad(output.unbind(), inputs, allow_unused=True) if output.requires_grad else ()
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            "the model's output is not connected to the layer's tensors by differentiable operations; pass a layer "
            "that it is, and checkpoint with use_reentrant=False"
        )
    return tuple(torch.zeros_like(z) if g is None else g for g, z in zip(gradients, inputs, strict=True))


def _path(path: Path | Callable[..., Any] | None) -> Path:
    if isinstance(path, type):
        raise TypeError(f"path must be made, such as {path.__name__}(...), and not the class itself")
    return StraightPath() if path is None else path if isinstance(path, Path) else FunctionPath(path)


def _shares(n_steps: int, pieces: int, method: str) -> list[int]:
    least = pieces * (1 if method == "gausslegendre" else 2)
    if not isinstance(n_steps, int) or n_steps < least:
        of = "" if pieces == 1 else f" of {pieces} pieces"
        raise ValueError(
            f"n_steps must be an integer of at least {least} for a path{of} with {method}, but is {n_steps!r}"
        )
    return [n_steps // pieces + (i < n_steps % pieces) for i in range(pieces)]
