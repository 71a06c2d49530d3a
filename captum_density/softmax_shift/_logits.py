"""What the wrappers of a model have in common: one model, whose output has a dimension of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_density._model.validation import check_model, how_to_pick, one_output_advice, warn_of_probabilities

__all__ = ["LogitsWrapper", "class_dimension"]


class LastLayer(nn.Module):
    """What a wrapper ends in: a layer for which Captum's LRP has no rule, so that it refuses.

    LRP follows layers only, and would be silently wrong about what a wrapper does to the logits outside of them.
    """

    def forward(self, logits: Tensor) -> Tensor:
        """The logits as they are.

        Args:
            logits: The changed logits.
        """
        return logits


class LogitsWrapper(nn.Module):
    """A model whose logits are changed before they are returned.

    Warns at its first call, and not again, where the model seems to return probabilities.

    Args:
        model: Module or function that returns logits.
        class_dim: Where in the logits the classes stand; None where their shape says so.
    """

    # What is wrong with probabilities, for the warning.
    _harm: str

    def __init__(self, model: Callable[..., Any], class_dim: int | None) -> None:
        check_model(model, "model")
        if not isinstance(class_dim, int | None) or isinstance(class_dim, bool):
            raise TypeError(f"class_dim must be an integer, but is {class_dim!r}")
        super().__init__()
        self.model = model
        self.class_dim = class_dim
        self.last = LastLayer()
        self._is_checked = False
        if isinstance(model, nn.Module):
            self.training = model.training  # not train(): the model's own parts keep their modes

    def logits(self, *args: Any, **kwargs: Any) -> tuple[Tensor, int]:
        """The model's logits, checked, and the dimension of their classes counted from 0.

        Args:
            args: The model's own arguments.
            kwargs: The model's own keyword arguments.

        Returns:
            The logits, (N, ...), and the dimension.

        Raises:
            TypeError: If the model returned no floating-point tensor.
            ValueError: If there is no such dimension, it is the batch, or it holds a single class.
        """
        logits = self.model(*args, **kwargs)
        dim = class_dimension(logits, self.class_dim)
        if not self._is_checked and not torch.compiler.is_compiling():
            self._is_checked = logits.numel() > 0  # once, as a look at values waits for the device
            warn_of_probabilities(logits, self._harm)
        return logits, dim

    def extra_repr(self) -> str:
        """What `print` shows beside the model."""
        return f"class_dim={self.class_dim}"


def class_dimension(logits: Any, class_dim: int | None) -> int:
    """The dimension of the classes, counted from 0.

    None stands for 1, as PyTorch's cross-entropy has it, but for logits of three dimensions: (N, C, L) of a sequence
    and (N, L, C) of tokens look alike, unless one of the two is 1.

    Raises:
        TypeError: If the model returned no floating-point tensor.
        ValueError: If there is no such dimension, it is the batch, or it holds a single class; for None, if two
            dimensions could be it.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model returned {type(logits).__name__}, not a tensor of logits; {how_to_pick(logits)}")
    if not logits.is_floating_point():
        raise TypeError(f"the model returned {logits.dtype}, not logits; pass a model that returns no classes yet")
    shape = tuple(logits.shape)
    if class_dim is None and logits.ndim == 3:
        if min(shape[1:]) > 1:
            raise ValueError(
                f"the model returned shape {shape}, in which the classes may stand in dimension 1 or 2; pass "
                "class_dim=1 for (N, C, L), class_dim=2 for tokens (N, L, C)"
            )
        class_dim = 2 if shape[2] > 1 else 1
    class_dim = 1 if class_dim is None else class_dim
    dim = class_dim + logits.ndim if class_dim < 0 else class_dim
    if not 0 < dim < logits.ndim:
        raise ValueError(
            f"the model returned shape {shape}, which has no class dimension {class_dim}; logits are (N, C), or "
            "(N, C, H, W) with class_dim=1, or (N, L, C) with class_dim=2, the batch first; of one output z for a "
            "sigmoid make two, `torch.stack([torch.zeros_like(z), z], dim=1)`"
        )
    if shape[dim] == 1:
        raise ValueError(
            f"the model returned shape {shape}: one class in dimension {dim}, of which softmax makes 1. A sigmoid is "
            f"not blind to a shift; {one_output_advice(dim)}"
        )
    return dim
