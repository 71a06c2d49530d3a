"""What a model's outputs are, classes or numbers; the labels that fit them, and which of them is explained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_density._model.validation import class_targets
from captum_density.audit._sample import Sample
from captum_density.audit._setting import Task
from captum_density.audit._subject import Subject

__all__ = ["class_titles", "fitting_labels", "targets_of", "task_of"]


def task_of(given: Task | None, subject: Subject, labels: Tensor | None) -> Task:
    """Whether the outputs are logits of classes, or numbers, as far as outputs and labels tell.

    Raises:
        ValueError: It is told as neither.
    """
    if given is not None:
        if given not in ("classification", "regression"):
            raise ValueError(f"task must be 'classification' or 'regression', or left out, but is {given!r}")
        return given
    has_one = subject.logits.shape[1] == 1
    if labels is None:
        return "regression" if subject.is_flat else "classification"
    if has_one:
        return "classification" if _are_two_classes(labels) else "regression"
    return "regression" if labels.is_floating_point() else "classification"


def _are_two_classes(labels: Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1)).all())


def fitting_labels(sample: Sample, subject: Subject, task: Task) -> tuple[Tensor | None, str]:
    """The labels as numbers of the model's outputs, or of a regression as they are; where there are none, why.

    Raises:
        TypeError: Labels of another kind than the outputs.
    """
    labels, logits = sample.labels, subject.logits
    if labels is None:
        return None, "the data have no labels"
    labels = labels.to(logits.device)
    if task == "regression":
        return _of_regression(labels, logits)
    if labels.is_floating_point() and _are_two_classes(labels) and labels.numel() == len(labels):
        labels = labels.reshape(-1).long()
    if subject.regions is not None and labels.ndim > 1:
        labels = _of_regions(labels, subject.regions, logits.shape[1])
    if labels.is_floating_point() or labels.ndim > 1:
        raise TypeError(
            f"labels must be integers, one class for each example, but are {labels.dtype} of shape "
            f"{tuple(labels.shape)}; of a regression say task='regression'"
        )
    classes, categories = sample.classes, sample.categories
    n = max(2, logits.shape[1])
    if classes is not None and categories is not None and len(categories) == n and {*classes} <= {*categories}:
        outputs = torch.tensor([categories.index(name) for name in classes], device="cpu")
        return outputs.to(labels.device)[labels], ""
    if classes is not None and len(classes) != n:
        return None, f"the data have {len(classes)} classes and the model {logits.shape[1]} outputs"
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n:
        return None, f"labels reach from {low} to {high}, outputs to {n - 1}"
    return labels, ""


def _of_regression(labels: Tensor, logits: Tensor) -> tuple[Tensor, str]:
    labels = labels.to(logits.dtype)
    labels = labels.unsqueeze(1) if labels.ndim == 1 else labels
    if labels.shape != logits.shape:
        raise TypeError(
            f"labels must be integers of classes, or numbers of the outputs' shape {tuple(logits.shape)} for a "
            f"regression, but are floating-point of shape {tuple(labels.shape)}"
        )
    return labels, ""


def _of_regions(labels: Tensor, regions: Tensor, classes: int) -> Tensor:
    """The class that most labelled pixels of each region have; -1 where none is labelled."""
    if labels.shape != regions.shape:
        raise TypeError(
            f"labels of pixels must have the size of the outputs, {tuple(regions.shape)}, but have shape "
            f"{tuple(labels.shape)}; resize them with nearest neighbours"
        )
    found = []
    for row, region in zip(labels, regions, strict=True):
        values = row[region]
        values = values[(values >= 0) & (values < classes)]
        found.append(int(values.bincount().argmax()) if len(values) else -1)
    return torch.tensor(found, device=labels.device)


def targets_of(target: Any, subject: Subject, labels: Tensor | None, task: Task) -> Tensor:
    """(N,) the explained outputs.

    Raises:
        ValueError: A target that does not fit, or is missing.
    """
    logits, outputs = subject.logits, subject.logits.shape[1]
    if subject.target is not None and not isinstance(target, str):
        return subject.target
    if isinstance(target, Tensor) or type(target) is int:
        classes = class_targets(target, len(logits), logits.device)
        if classes.max() >= outputs:
            raise ValueError(f"target names output {int(classes.max())} of a model with {outputs} outputs")
        return classes
    if target not in ("predicted", "label"):
        raise ValueError(f"target must be 'predicted', 'label', an integer or a tensor (N,), but is {target!r}")
    if task == "regression":
        if outputs > 1:
            raise ValueError(f"of a regression's {outputs} outputs name the one to explain, as in target=0")
        return torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    if target == "predicted":
        return logits.argmax(dim=1) if subject.target is None else subject.target
    if labels is None:
        raise ValueError("target='label' needs labels that fit the model's outputs, and there are none")
    return labels if outputs > 1 else torch.zeros_like(labels)


def class_titles(given: Any, sample: Sample, outputs: int, task: Task) -> list[str] | None:
    """Names of the classes, given or of the data.

    Raises:
        ValueError: There are not as many as classes.
    """
    n = outputs if task == "regression" else max(2, outputs)
    if given is not None:
        names = [str(name) for name in given]
        if isinstance(given, str) or len(names) != n:
            raise ValueError(f"class_names must hold a name for each of {n} classes, but holds {len(names)}")
        return names
    known = [names for names in (sample.categories, sample.classes) if names is not None and len(names) == n]
    return list(known[0]) if known else None
