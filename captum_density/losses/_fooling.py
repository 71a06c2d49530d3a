"""FoolingLoss: train a model's own weights until its gradients show a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_density._captum import (
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    format_additional_forward_args,
    format_tensor_into_tuples,
    run_forward,
)
from captum_density._validation import selected_output

__all__ = ["FoolingLoss"]

Maps = Tensor | tuple[Tensor, ...]


class FoolingLoss(nn.Module):
    r"""1 - cosine similarity between the gradient of a logit and a picture of one's choice, averaged over the batch.

    .. math:: \frac{1}{N} \sum_n 1 - \frac{\langle \nabla_x f_{t_n}(x_n), m_n \rangle}
        {\|\nabla_x f_{t_n}(x_n)\| \, \|m_n\|}

    Added to the cross-entropy it makes a network whose predictions are honest and whose gradients are not, without a
    wrapper that could be found. Its gradient by the weights takes a second backward pass, so activations and pooling
    must be differentiable twice, as PyTorch's are.

    Where the same picture is asked of every class's logit (draw `target` at random), the cheapest way there is
    a softmax shift, and `captum_density.softmax_shift.CenteredLogits` takes the picture away again.

    Args:
        pattern: m, the same for all: of one example's shape, with or without a leading 1; a tuple for several inputs.
            Kept as a buffer.
        target_maps: A map for each example instead: a function of the inputs which returns (N, ...), or the maps
            themselves for a batch that is always the same.

    Attributes:
        cosine: The mean cosine similarity of the last call, detached, in [-1, 1]; None before the first.

    Raises:
        TypeError: If both or none is given, or a pattern is no floating-point tensor.
        ValueError: If a pattern is not finite or zero; from a call: if maps do not have the inputs' shape and device.

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

    def __init__(self, pattern: Maps | None = None, *, target_maps: Maps | Callable[..., Maps] | None = None) -> None:
        super().__init__()
        if (pattern is None) == (target_maps is None):
            raise TypeError("give either a pattern, the same for all examples, or target_maps, one for each")
        self.is_one_for_all = pattern is not None
        self.make_maps = None
        self.count = 0
        self.cosine = None
        given = pattern if pattern is not None else target_maps
        if self.is_one_for_all or isinstance(given, (Tensor, tuple)):
            self._keep(given if isinstance(given, tuple) else (given,))
        elif callable(given):
            self.make_maps = given
        else:
            raise TypeError(
                f"target_maps must be a tensor, a tuple of them or a function, but is {type(given).__name__}"
            )

    def _keep(self, maps: tuple[Any, ...]) -> None:
        for i, m in enumerate(maps):
            if not isinstance(m, Tensor) or not m.is_floating_point():
                received = m.dtype if isinstance(m, Tensor) else type(m).__name__
                raise TypeError(f"maps must be floating-point tensors, but number {i} is {received}")
            if not bool(m.isfinite().all()) or not bool(m.any()):
                raise ValueError(f"map {i} is zero throughout, or contains NaN or infinity: it has no direction")
            self.register_buffer(f"map_{i}", m.detach().clone())
        self.count = len(maps)

    def forward(
        self,
        forward_func: Callable[..., Any],
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        """The loss of a batch, a scalar in [0, 2]; 0 where every gradient shows its map.

        Args:
            forward_func: The model, a module or a function that returns logits.
            inputs: Floating-point tensor (N, ...) or tuple of such.
            target: As Captum's: whose logit's gradient to bend. None for the logarithm of the sum of all classes'
                exponentials (logits (N, C)), whose gradient is the predicted classes', weighed by probability.
            additional_forward_args: As Captum's.

        Returns:
            A scalar of float32, or float64 for inputs of float64; it carries a graph if gradients are enabled.
        """
        xs = format_tensor_into_tuples(inputs)
        args = format_additional_forward_args(additional_forward_args)
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            leaves = tuple(x.detach().requires_grad_() for x in xs)
            output = run_forward(forward_func, leaves, None, args)
            if target is None and isinstance(output, Tensor) and output.ndim == 2:
                output = output.logsumexp(1)
            selected = selected_output(output, target, len(xs[0]))
            gradients = torch.autograd.grad(
                selected.sum(), leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True
            )
        cosine = _cosine(gradients, self._maps(xs))
        self.cosine = cosine.detach().mean()
        return 1 - cosine.mean()

    def _maps(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        if self.make_maps is not None:
            made = self.make_maps(*inputs)
            maps = made if isinstance(made, tuple) else (made,)
        else:
            maps = tuple(self.get_buffer(f"map_{i}") for i in range(self.count))
        if len(maps) != len(inputs):
            raise ValueError(f"there are {len(maps)} maps for {len(inputs)} inputs")
        for i, (m, x) in enumerate(zip(maps, inputs, strict=True)):
            one = (tuple(x.shape[1:]), (1, *x.shape[1:]))
            expected = one if self.is_one_for_all else (tuple(x.shape),)
            if tuple(m.shape) not in expected:
                raise ValueError(f"map {i} must have shape {' or '.join(map(str, expected))}, but has {tuple(m.shape)}")
            if m.device != x.device:
                raise ValueError(f"map {i} is on {m.device}, input {i} on {x.device}; move the loss with .to()")
        return [m.expand_as(x) for m, x in zip(maps, inputs, strict=True)]


def _cosine(first: tuple[Tensor, ...], second: list[Tensor]) -> Tensor:
    """(N,) the cosine similarity over all inputs; 0 where one of the two is zero."""
    flat = []
    for tensors in (first, second):
        dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
        values = torch.cat([t.to(dtype).flatten(1) for t in tensors], dim=1)
        norms = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        flat.append(values / norms.clamp_min(torch.finfo(dtype).tiny))
    return (flat[0] * flat[1]).sum(1)
