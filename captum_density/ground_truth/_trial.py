"""A trained network of a task on some examples: what methods attribute and metrics judge."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from captum.attr import Attribution
from torch import Tensor, nn

from captum_density import __version__
from captum_density._cache.identity import described
from captum_density._cache.store import SCHEMA, Store
from captum_density._model.attribution import attribution_maker
from captum_density._model.generators import derived_seed, pinned, seeded
from captum_density.ground_truth._task import Effects, Task, TaskExamples

__all__ = ["Trial", "attributed", "identity_of_trial", "remembered", "trained"]

T = TypeVar("T")
_BACKGROUND = 8  # examples that stand for the data, for methods that take several baselines


@dataclass(frozen=True, eq=False)
class Trial:
    """A trained network of a task on examples of it, as metrics of one's own are given it. See `run`.

    Args:
        task: The task.
        seed: Of the network and the examples.
        model: The network, in evaluation mode.
        examples: What is explained: inputs (N, ...), targets, masks and latents.
    """

    task: Task
    seed: int
    model: nn.Module
    examples: TaskExamples

    @property
    def inputs(self) -> Tensor:
        """The inputs, (N, ...)."""
        return self.examples.inputs

    @property
    def targets(self) -> Tensor:
        """The explained classes, (N,)."""
        return self.examples.targets

    @cached_property
    def baselines(self) -> Tensor:
        """What stands for a unit that is away, (1, ...)."""
        return self.task.baseline.to(self.inputs).expand(self.inputs.shape[1:])[None].clone()

    @cached_property
    def groups(self) -> Tensor:
        """The unit of each element, (1, ...) int64."""
        return self.task.groups.to(self.inputs.device).expand(self.inputs.shape[1:])[None].contiguous()

    @cached_property
    def background(self) -> Tensor:
        """Inputs of other examples, (M, ...)."""
        return self.task.examples(_BACKGROUND, derived_seed(self.seed, "background") % 2**31).inputs.to(self.inputs)

    @cached_property
    def effects(self) -> Effects | None:
        """As `Task.effects`, of these examples: (N, P) and (N, P, ...)."""
        effects = self.task.effects(self.model, self.examples)
        return None if effects is None else Effects(*(values.to(self.inputs.device) for values in effects))

    @cached_property
    def decides(self) -> Tensor:
        """Which units decide, (N, G) bool."""
        return self.scores(self.examples.masks.to(self.inputs).expand_as(self.inputs)) > 0

    @cached_property
    def answer(self) -> Tensor:
        """The known answer as an attribution, (N, ...): effects spread over their parts, or else 1 on what decides."""
        if self.effects is None:
            return self.examples.masks.to(self.inputs).expand_as(self.inputs).contiguous()
        values, masks = self.effects
        values = values.to(self.inputs).view(*values.shape, *(1 for _ in self.inputs.shape[1:]))
        masks = masks.expand(*masks.shape[:2], *self.inputs.shape[1:])
        sizes = masks.flatten(2).sum(2).clamp(min=1).view(values.shape)
        return (values / sizes * masks).sum(1)

    def scores(self, attributions: Tensor) -> Tensor:
        """What units are given, the sum over their elements.

        Args:
            attributions: (N, ...) like the inputs.

        Returns:
            (N, G).
        """
        flat, groups = attributions.flatten(1), self.groups.flatten()
        return flat.new_zeros(len(flat), int(groups.max()) + 1).index_add_(1, groups, flat)

    def spread(self, scores: Tensor) -> Tensor:
        """The reverse of `scores`, each unit's score shared alike by its elements.

        Args:
            scores: (N, G).

        Returns:
            (N, ...) like the inputs.
        """
        sizes = self.groups.flatten().bincount().to(scores)
        return (scores / sizes)[:, self.groups.flatten()].view(len(scores), *self.inputs.shape[1:])

    def output(self, inputs: Tensor) -> Tensor:
        """What is explained, the logit of the target.

        Args:
            inputs: (N, ...) like the inputs, changed.

        Returns:
            (N,).
        """
        with torch.no_grad():
            return self.model(inputs).gather(1, self.targets[:, None]).squeeze(1)


def remembered(trial: Trial, key: Hashable, make: Callable[[], T]) -> T:
    """What several metrics make of a trial, made by the first of them."""
    made: dict[Hashable, Any] = vars(trial).setdefault("_remembered", {})
    if key not in made:
        made[key] = make()
    value: T = made[key]
    return value


def trained(task: Task, seed: int, store: Store | None) -> nn.Module:
    """A task's network, trained now or some time before."""
    identity = {**identity_of_trial(task, seed), "kind": "weights"}
    state = None if store is None else store.read(identity, _unpacked)
    if state is None:
        with pinned(1):
            model = task.train(seed)
        if store is not None:
            store.write(identity, {name: _packed(value) for name, value in model.state_dict().items()})
        return model
    with seeded(0, torch.device("cpu")):
        model = task.network()
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def identity_of_trial(task: Task, seed: int) -> dict[str, Any]:
    """What tells a network from others, JSON."""
    training = {"fit": described(task.fit), "examples": task.training_examples, "train": described(type(task).train)}
    return {"schema": SCHEMA, "version": __version__, "task": described(task), "training": training, "seed": seed}


def _packed(value: Tensor) -> dict[str, Any]:
    array = np.ascontiguousarray(value.numpy())
    content = base64.b64encode(array.tobytes()).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(value.shape), "content": content}


def _unpacked(result: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(
            np.frombuffer(base64.b64decode(value["content"]), dtype=value["dtype"]).reshape(value["shape"]).copy()
        )
        for name, value in result.items()
    }


def attributed(trial: Trial, name: str, make: Callable[[nn.Module], Any]) -> Tensor:
    """What a method attributes, (N, ...) like the inputs.

    It is given what its signature asks for by name: `target`, `baselines`, `background` (M, ...), `feature_mask`.

    Raises:
        TypeError: It is no method.
        ValueError: Attributions of another shape, or not finite.
        Exception: Whatever the method raises.
    """
    with seeded(derived_seed(trial.seed, name) % 2**63, trial.inputs.device):
        method = attribution_maker(make, name)(trial.model)
        attribute = method.attribute if isinstance(method, Attribution) else method
        offered = {
            "target": trial.targets,
            "baselines": trial.baselines,
            "background": trial.background,
            "feature_mask": trial.groups,
        }
        parameters = inspect.signature(attribute).parameters
        # What takes anything by keyword, as NoiseTunnel does, is given the target.
        asked = {*parameters, *("target" for each in parameters.values() if each.kind is each.VAR_KEYWORD)}
        inputs = trial.inputs.clone().requires_grad_()
        values = attribute(inputs, **{key: value for key, value in offered.items() if key in asked})
    values = values[0] if isinstance(values, tuple) else values
    values = values.detach()
    if values.shape == (len(inputs), int(trial.groups.max()) + 1) and values.shape != inputs.shape:
        values = trial.spread(values)
    if values.ndim != inputs.ndim:
        raise ValueError(f"attributions must be {tuple(inputs.shape)} or (N, units), but are {tuple(values.shape)}")
    if not values.isfinite().all():
        raise ValueError("the attributions are not finite")
    return values.expand_as(inputs).to(inputs.dtype)
