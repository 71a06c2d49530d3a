"""Examples as vectors of their features, what a network makes of such vectors, and what a method attributes to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_density._model.attribution import parameters_of
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType
from captum_density._model.evaluation import differentiable
from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.generators import replayable
from captum_density._model.validation import expanded_baselines
from captum_density.metrics._attribution_rows import attribution_rows

__all__ = ["FeatureVectors", "explaining", "quotient"]


class FeatureVectors(ModelOnBatch):
    """N examples as vectors of d features, all inputs side by side, and their baselines.

    Args:
        model: f.
        inputs: A tensor (N, ...) or a tuple of such.
        baselines: A number, or what broadcasts to an input, or a tuple of them; None for 0.
        additional_forward_args: As Captum's.
        target: As Captum's.
        max_examples_per_batch: How many points run at once; None for N.

    Raises:
        TypeError: As `ModelOnBatch`.
        ValueError: As `ModelOnBatch`; inputs without features, baselines that do not fit.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: Any,
        baselines: Any,
        additional_forward_args: object,
        target: TargetType,
        max_examples_per_batch: int | None = None,
    ) -> None:
        super().__init__(
            model,
            inputs,
            target,
            additional_forward_args,
            max_examples_per_batch=max_examples_per_batch,
            name="the network",
        )
        if any(x[0].numel() == 0 for x in self.inputs):
            raise ValueError("the inputs have no features")
        self._user_baselines = baselines
        self.x = _joined(self.inputs)
        self.baselines = _joined(expanded_baselines(baselines, self.inputs))
        self.d = self.x.shape[1]
        self.rows = torch.arange(self.n, device=self.device)

    @property
    def eps(self) -> float:
        """Of the least precise input."""
        return max(torch.finfo(x.dtype).eps for x in self.inputs)

    def outputs(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """f at points, (R,) in double precision.

        Args:
            points: (R, d).
            rows: (R,) of which example each is a version; None for all in turn.

        Raises:
            ValueError: The output is not finite, or the model draws random numbers or changes itself.
        """
        rows = self.rows if rows is None else rows
        with torch.no_grad(), self.evaluation(comparison=True):
            parts = self.parts(len(rows), unlimited=self.n)
            values = torch.cat([self.selected(self._split(points[part]), rows[part]).double() for part in parts])
        if not bool(values.isfinite().all()):
            raise ValueError("the network's output contains NaN or infinity, with which nothing can be compared")
        return values

    def attributions(
        self, attribute: Callable[..., Any], points: Tensor, rows: Tensor | None, options: Mapping[str, Any]
    ) -> Tensor:
        """What a method attributes to each feature at points, (R, d) in double precision.

        Args:
            attribute: The method's attribute function.
            points: (R, d).
            rows: (R,) of which example each is a version; None for all in turn.
            options: Further arguments of the function.

        Raises:
            ValueError: Attributions of another shape than the inputs', NaN or infinite.
            TypeError: The function returns no tensors.
        """
        rows = self.rows if rows is None else rows
        attributions = []
        for part in self.parts(len(rows), unlimited=self.n):
            a = self.attributions_at_once(attribute, points[part], rows[part], options)
            if a.shape[1] != self.d:
                raise ValueError(
                    f"there must be an attribution of each of {self.d} features, but there are {a.shape[1]}"
                )
            attributions.append(a)
        return torch.cat(attributions)

    def attributions_at_once(
        self, attribute: Callable[..., Any], points: Tensor, rows: Tensor, options: Mapping[str, Any]
    ) -> Tensor:
        """As `attributions`, in one call of the method, and of whatever size they are."""
        parameters = parameters_of(attribute)
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        more: dict[str, Any] = {}
        # None is what they default to; but a baseline has to be the one that is meant.
        if "baselines" in parameters or (takes_any and self._user_baselines is not None):
            more["baselines"] = self.in_form(self._split(self.baselines[rows]))
        for name, value in (("target", self.target_of(rows)), ("additional_forward_args", self.args_of(rows))):
            if value is not None and (name in parameters or takes_any):
                more[name] = value
        return attribution_rows(attribute(self.in_form(self._split(points)), **more, **options), len(points))

    def _split(self, points: Tensor) -> tuple[Tensor, ...]:
        """In the inputs' form; copies, as a method may write to what it is given."""
        parts = points.split([x[0].numel() for x in self.inputs], dim=1)
        return tuple(
            part.to(x.dtype, copy=True).reshape(len(points), *x.shape[1:])
            for part, x in zip(parts, self.inputs, strict=True)
        )


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([x.detach().reshape(len(x), -1) for x in parts], dim=1)


@contextmanager
def explaining(model: Callable[..., Any], device: torch.device) -> Iterator[Callable[[], None]]:
    """Within, attributions may be taken and leave no trace; yields what rewinds the random numbers."""
    with (
        replayable(device) as rewind,
        torch.inference_mode(False),
        fixed_modules(model),
        differentiable(model, device),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", r"Input Tensor \d+ did not already require gradients", UserWarning)
        yield rewind


def quotient(difference: Tensor, scale: Tensor) -> Tensor:
    """Their ratio, and 0 for 0/0."""
    return torch.where(scale > 0, difference / scale.where(scale > 0, 1.0), 0.0)
