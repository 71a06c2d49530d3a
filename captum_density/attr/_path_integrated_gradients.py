"""PathIntegratedGradients: integrated gradients along any path."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from captum.attr import GradientAttribution
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import (
    QUADRATURES,
    BaselineType,
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    approximation_parameters,
    log_usage,
)
from captum_density._model.evaluation import differentiable
from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import check_model, expanded_baselines, selected_output
from captum_density.attr._common import finish
from captum_density.attr._paths import FunctionPath, Leg, Path, StraightPath
from captum_density.attr._repr import shown

__all__ = ["PathIntegratedGradients"]


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
        if isinstance(path, type):
            raise TypeError(f"path must be made, such as {path.__name__}(...), and not the class itself")
        super().__init__(forward_func)
        self.path = StraightPath() if path is None else path if isinstance(path, Path) else FunctionPath(path)
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
            raise ValueError("a mean of gradients has no convergence delta; leave multiply_by_inputs=True")
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
            delta = self.compute_convergence_delta(
                attributions,
                batch.in_form(starts),
                inputs,
                target=target,
                additional_forward_args=additional_forward_args,
            )
        return attributions, delta

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


def _shares(n_steps: int, pieces: int, method: str) -> list[int]:
    least = pieces * (1 if method == "gausslegendre" else 2)
    if not isinstance(n_steps, int) or n_steps < least:
        of = "" if pieces == 1 else f" of {pieces} pieces"
        raise ValueError(
            f"n_steps must be an integer of at least {least} for a path{of} with {method}, but is {n_steps!r}"
        )
    return [n_steps // pieces + (i < n_steps % pieces) for i in range(pieces)]
