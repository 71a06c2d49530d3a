"""What ranks: whatever attributes the inputs of the explained model, or what is attributed already."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import Attribution
from torch import Tensor, nn

from captum_density._model.arrays import as_tensors
from captum_density._model.attribution import attribute_function, attribution_of, parameters_of
from captum_density._model.batch import ModelOnBatch
from captum_density._model.evaluation import differentiable
from captum_density._model.validation import received

__all__ = ["Array", "Attributor", "Split", "attribute_rows", "check_attributor", "device_of", "explained_module"]

Array: TypeAlias = Tensor | npt.NDArray[Any]
Split: TypeAlias = tuple[Array, Array]
Attributor: TypeAlias = Attribution | Callable[..., Any] | tuple[Array, Array]


def check_attributor(name: str, attributor: Any, splits: tuple[Split, Split], target: str) -> None:
    """Refuse what cannot rank, before anything is computed.

    Raises:
        TypeError: It is of no known kind.
        ValueError: Ready attributions of another number of examples; a target of its own.
    """
    if isinstance(attributor, tuple | list):
        if len(attributor) != 2 or not all(isinstance(a, Tensor | np.ndarray) for a in attributor):
            raise TypeError(f"ready attributions {name!r} must be a pair of tensors or arrays, of train and test")
        for array, (inputs, _), what in zip(attributor, splits, ("training", "test"), strict=True):
            if len(array) != len(inputs):
                raise ValueError(f"attributions {name!r} are of {len(array)} {what} examples, not of {len(inputs)}")
        return
    if isinstance(attributor, Tensor | np.ndarray):
        raise TypeError(f"ready attributions {name!r} must be a pair of tensors or arrays, of train and test")
    attribute_function(attributor, f"attributions[{name!r}]")
    if isinstance(attributor, functools.partial) and "target" in attributor.keywords:
        raise ValueError(
            f"attributions[{name!r}] has a target of its own, which the argument target of this call would replace; "
            "leave it out, or pass a function that sets it"
        )
    if target == "predicted" and attribution_of(attributor) is None and _needs_target(attributor):
        raise TypeError(
            f"attributions[{name!r}] is a function with an argument target, and is given none with target='predicted': "
            "only Captum attributions say which model to predict with; let it predict the class itself, such as "
            "`lambda x: explain(x, model(x).argmax(1))`"
        )


def attribute_rows(
    name: str, attributor: Attributor, splits: tuple[Split, Split], target: str
) -> Callable[[int, slice, torch.device], Any]:
    """What gives the attributions of some rows of a split.

    Raises:
        TypeError: The explained model returns no logits to predict a class with.
        RuntimeError: The attributor raised; the message names it.
    """
    if isinstance(attributor, tuple | list):
        ready = attributor
        return lambda split, rows, device: ready[split][rows]
    attribution = attribution_of(attributor)
    function = attribute_function(attributor, f"attributions[{name!r}]")

    def attribute(split: int, rows: slice, device: torch.device) -> Any:
        # Copies, as an attributor may write to what it is given.
        inputs, labels = (as_tensors(a[rows]).clone().to(device) for a in splits[split])
        options = {}
        if target == "true":
            options["target"] = labels.long()
        elif attribution is not None:
            with torch.no_grad():
                logits = ModelOnBatch(attribution.forward_func, inputs.clone(), differentiable=False).run()
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise TypeError(
                    f"the model that attributions[{name!r}] explains must return logits (N, classes), but returned "
                    f"{received(logits)}; or pass a function of the inputs that returns attributions"
                )
            options["target"] = logits.argmax(1)
        try:
            with differentiable(explained_module(attributor) or function, device):
                return function(inputs, **options)
        except Exception as error:
            raise RuntimeError(
                f"attributions[{name!r}] raised {type(error).__name__}: {error}. Options are passed as in "
                "functools.partial(NoiseTunnel(Saliency(model)).attribute, nt_samples=10)"
            ) from error

    return attribute


def _needs_target(function: Callable[..., Any]) -> bool:
    parameter = parameters_of(function).get("target")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def explained_module(attributor: Any) -> nn.Module | None:
    """The module that a Captum attribution explains; None where it is no module, or nothing says which."""
    attribution = None if isinstance(attributor, tuple | list) else attribution_of(attributor)
    model = getattr(attribution, "forward_func", None)
    return model if isinstance(model, nn.Module) else None


def device_of(attributor: Any, inputs: Array) -> torch.device:
    """Where an attributor takes its inputs: on its model's device, else on that of the inputs as they are."""
    model = explained_module(attributor)
    parameter = None if model is None else next(model.parameters(), None)
    if parameter is not None:
        return parameter.device
    return inputs.device if isinstance(inputs, Tensor) else torch.device("cpu")
