"""FoolingLoss: train a model's own weights until its gradients show a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_density._density.log_density import LogDensity
from captum_density._model.arrays import as_tensors, takes_arrays
from captum_density._model.precision import accumulation_dtype
from captum_density.losses._density_loss import DensityLoss, Log

__all__ = ["FoolingLoss", "directions"]

Maps = Tensor | tuple[Tensor, ...]


class FoolingLoss(DensityLoss):
    r"""1 - cosine similarity between the gradient of a logit and a picture of one's choice, averaged over the batch.

    .. math:: \frac{1}{N} \sum_n 1 - \frac{\langle \nabla_x f_{t_n}(x_n), m_n \rangle}
        {\|\nabla_x f_{t_n}(x_n)\| \, \|m_n\|}

    It is in [0, 2], and 0 where every gradient shows its map. An example whose gradient or map is zero counts as 1, and
    trains nothing.

    Added to the cross-entropy it makes a network whose predictions are honest and whose gradients are not, without a
    wrapper that could be found. Its gradient by the weights takes a second backward pass, so every operation must be
    differentiable twice: PyTorch's are, with attention in its plain form, which the loss chooses, and without
    torch.compile, which it unwraps.

    What the network learns is above all a softmax shift: the logits of classes that nobody asked for show the picture
    too, and `captum_density.softmax_shift.CenteredLogits` takes most of it away. Asked of every class alike (`target`
    drawn at random) no more is left on average than an honest network has; asked of the labels, some is. Networks
    trained on the digits, mean cosine between the predicted class's gradient and a cross: honest 0.04 (0.04 after
    centring), fooled on random targets 0.94 (0.03), on the labels 0.96 (0.28). Single examples keep more, of
    either sign, as the classes' shares in the picture differ: mean absolute values after centring 0.16, 0.30 and 0.33.

    During a call batch norm uses copies of its running statistics, whatever the mode: in training mode it would hang
    the examples together and take away what all of them have in common. Add the cross-entropy in evaluation mode too,
    or the network may come to differ between the modes; in this order, as batch norm in training mode overwrites what a
    backward pass through evaluation mode still needs::

        loss = cross_entropy(model(x), labels) + fooling(model, x, labels)
        model.eval()
        loss = loss + cross_entropy(model(x), labels)
        model.train()

    Args:
        pattern: m, the same for all: of one example's shape, with or without a leading 1; a tuple for several inputs.
            Kept as a buffer.
        target_maps: A map for each example instead: a function of the inputs which returns (N, ...), or the maps
            themselves for a batch that is always the same. A target: nothing is trained through it.

    Attributes:
        cosine: The mean cosine similarity of the last call, detached, in [-1, 1]; None before the first.

    Raises:
        TypeError: If both or none is given, or a map is no floating-point tensor.
        ValueError: If a map is zero or not finite; from a call, if the maps are not as many as the inputs and of their
            shape and device, and where `forward` says so.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 2, for why it is possible; J. Heo, S. Joo and
        T. Moon, "Fooling Neural Network Interpretations via Adversarial Model Manipulation", NeurIPS 2019,
        arXiv:1902.02041, for fooling by training.

    Example:
        >>> import torch
        >>> model, x, labels = torch.nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
        >>> fooling = FoolingLoss(torch.tensor([0.0, 0.0, 1.0, 1.0]))
        >>> loss = torch.nn.functional.cross_entropy(model(x), labels) + fooling(model, x, labels)
        >>> loss.backward()
        >>> bool(-1 <= fooling.cosine <= 1)
        True
    """

    cosine: Tensor | None

    @takes_arrays
    def __init__(self, pattern: Maps | None = None, *, target_maps: Maps | Callable[..., Maps] | None = None) -> None:
        super().__init__(second_derivatives=True)
        if (pattern is None) == (target_maps is None):
            raise TypeError("give either a pattern, the same for all examples, or target_maps, one for each")
        self._is_one_for_all = pattern is not None
        self._make_maps = None
        self.cosine = None
        source = pattern if pattern is not None else target_maps
        if self._is_one_for_all or isinstance(source, (Tensor, tuple)):
            self._keep(source if isinstance(source, tuple) else (source,))
        elif callable(source):
            self._make_maps = source
        else:
            raise TypeError(
                f"target_maps must be a tensor, a tuple of them or a function, but is {type(source).__name__}"
            )

    def _keep(self, maps: tuple[Any, ...]) -> None:
        for i, m in enumerate(maps):
            if not isinstance(m, Tensor) or not m.is_floating_point():
                received = m.dtype if isinstance(m, Tensor) else type(m).__name__
                raise TypeError(f"maps must be floating-point tensors, but number {i} is {received}")
            if not bool(m.isfinite().all()) or not bool(m.any()):
                raise ValueError(f"map {i} is zero throughout, or contains NaN or infinity: it has no direction")
            self.register_buffer(f"map_{i}", m.detach().clone())

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        maps = self._maps(density.inputs)
        _, gradients = density.clean_scores(create_graph=create_graph)
        dtype = accumulation_dtype(*density.inputs)
        cosine = (directions(tuple(g[0] for g in gradients), dtype) * directions(maps, dtype)).sum(1).mean()
        return 1 - cosine, {"cosine": cosine}

    def extra_repr(self) -> str:
        """What `print` shows."""
        return "a function of the inputs" if self._make_maps else str([tuple(m.shape) for m in self.buffers()])

    def _maps(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One for each input, of its shape."""
        if self._make_maps is not None:
            result = as_tensors(self._make_maps(*(x.detach() for x in inputs)))
            maps = result if isinstance(result, tuple) else (result,)
        else:
            maps = tuple(self.buffers())
        if len(maps) != len(inputs):
            raise ValueError(f"there must be a map for each of {len(inputs)} inputs, but there are {len(maps)}")
        for i, (m, x) in enumerate(zip(maps, inputs, strict=True)):
            if not isinstance(m, Tensor) or not m.is_floating_point():
                received = m.dtype if isinstance(m, Tensor) else type(m).__name__
                raise TypeError(f"target_maps must return floating-point tensors, but number {i} is {received}")
            one = (tuple(x.shape[1:]), (1, *x.shape[1:]))
            expected = one if self._is_one_for_all else (tuple(x.shape),)
            if tuple(m.shape) not in expected:
                remedy = "; pass target_maps=... for a map of each example" if m.shape == x.shape else ""
                shapes = " or ".join(map(str, expected))
                raise ValueError(f"map {i} must have shape {shapes}, but has {tuple(m.shape)}{remedy}")
            if m.device != x.device:
                raise ValueError(f"map {i} is on {m.device}, input {i} on {x.device}; move the loss with .to()")
            if not bool(m.isfinite().all()):
                raise ValueError(f"map {i} contains NaN or infinity")
        return tuple(m.detach().expand_as(x) for m, x in zip(maps, inputs, strict=True))


def directions(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """(N, elements) of length 1 over all inputs; zeros, which pass no gradient on, for zeros."""
    values = torch.cat([t.to(dtype).reshape(len(t), -1) for t in tensors], dim=1)
    # By the largest element first, so that the squares of small ones are not lost: the direction does not depend on it.
    # Infinity, not 1, for zeros: what is divided by it has no gradient either.
    largest = values.detach().abs().amax(1, keepdim=True)
    scaled = values / largest.where(largest >= torch.finfo(dtype).tiny, torch.inf)
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1)
