"""What is kept of a prediction, as the probability of one of two classes, whatever the model predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_density.audit._setting import Setting

__all__ = ["Prediction", "prediction_of"]


class Prediction:
    """The model as a classifier of what is asked for, for `captum_density.metrics.pixel_perturbation`.

    Of classes it is the model, and the explained class. Of one output z of a classifier the logits are -z/2 and z/2,
    whose softmax is the sigmoid of z. Of numbers the first of two probabilities is exp(-d^2 / 2), the likelihood of the
    prediction as it was, d being how many deviations of the outputs it has moved.

    Args:
        setting: What is audited.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.model: Callable[..., Tensor] = setting.remembered
        self.target = setting.target
        if setting.task == "regression":
            self.model, self.target = self._likelihood, torch.zeros_like(setting.target)
        elif setting.classes == 1:
            self.model, self.target = self._two_classes, setting.predicted
        self._original = setting.logits.gather(1, setting.target[:, None])[:, 0].double()
        self._unit = self._original.std(unbiased=False)

    @property
    def is_constant(self) -> bool:
        """Whether all predictions are the same number, of which nothing is lost."""
        return self._setting.task == "regression" and not bool(self._unit > 0)

    def arguments(self, at: slice) -> dict[str, Any]:
        """As `Setting.arguments`, for this function."""
        setting = self._setting
        if setting.task != "regression":
            return setting.arguments(at)
        return {"additional_forward_args": (torch.arange(len(setting.inputs), device=setting.inputs.device)[at],)}

    def _two_classes(self, x: Tensor, *rows: Tensor) -> Tensor:
        z = self._setting.remembered(x, *rows).double()
        if self._setting.ends_in_a_sigmoid:
            z = z.logit(eps=1e-6)
        return torch.cat([-z / 2, z / 2], dim=1)

    def _likelihood(self, x: Tensor, rows: Tensor) -> Tensor:
        setting = self._setting
        outputs = setting.remembered(x) if setting.rows is None else setting.remembered(x, setting.rows[rows])
        now = outputs.gather(1, setting.target[rows][:, None])[:, 0].double()
        p = (-((now - self._original[rows]) / self._unit).square() / 2).exp().clamp(1e-12, 1 - 1e-12)
        return torch.stack([p.log(), (-p).log1p()], dim=1)


def prediction_of(setting: Setting) -> Prediction:
    """The one of a setting, made once."""
    return setting.shared("prediction", lambda: Prediction(setting))
