"""FullGrad: where all of f(x) comes from; and its variant without the bias factor.

S. Srinivas and F. Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
arXiv:1905.00780. The paper's words here: *full-gradient representation* is `FullGradients`, *bias-gradients* are its
`biases`, *completeness* is equation (2), psi is `SaliencyMaps`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum.log import log_usage
from torch import Tensor

from captum_density._linear.maps import SaliencyMaps, SignedMaps, SimpleSaliencyMaps, Terms, over_channels
from captum_density._linear.sweep import Sweep, per_example
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric, format_tensor_into_tuples
from captum_density._model.precision import accumulation_dtype
from captum_density.attr._common import FullGradAttribution, as_tuple, finish, products_of, saliency_maps
from captum_density.attr._full_gradients import FullGradients

__all__ = ["FullGrad", "SimpleFullGrad"]


class FullGrad(FullGradAttribution):
    r"""Full-gradient attribution, exactly complete for any PyTorch model.

    Every operation y = op(u) of a model is locally affine, y = J u + r, and

    .. math:: f(x) = \langle \nabla_x f, x \rangle + \sum_{\text{operations}} \langle \nabla_y f, r \rangle

    where r is the bias of a convolution, beta - gamma mean / std of a batch norm, sigma(u) - sigma'(u) u of a smooth
    nonlinearity, and 0 of whatever is positively homogeneous.

    Args:
        model: An `nn.Module`, or a function of the inputs; DataParallel, DistributedDataParallel and compiled models
            are unwrapped. Put it in eval mode: batch norm on batch statistics is refused, and dropout is explained as
            drawn.
        complete: False for the paper's saliency map (equation 4), >= 0; True for signed attributions that sum to f(x).

    Raises:
        TypeError: If `model` is not callable.

    References:
        S. Srinivas and F. Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
        arXiv:1905.00780.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
        >>> x = torch.randn(5, 3)
        >>> attributions = FullGrad(model, complete=True).attribute(x, target=1)
        >>> torch.allclose(attributions.sum(1), model(x)[:, 1], atol=1e-5)
        True
    """

    def __init__(self, model: Callable[..., Any], complete: bool = False) -> None:
        super().__init__(model)
        self.complete = complete

    def has_convergence_delta(self) -> bool:
        """True for `complete=True`, whose delta is the sum minus f(x); the saliency map is not a sum."""
        return self.complete

    @log_usage()
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        return_convergence_delta: bool = False,
        *,
        create_graph: bool = False,
    ) -> Any:
        """Attributions of the inputs' shape.

        Args:
            inputs: Floating-point tensor (N, ...) or tuple of such: images (N, C, H, W), volumes (N, C, D, H, W),
                signals (N, C, L), embeddings (N, L, E) or features (N, F). Whether a 3-D input has its channels second
                or last is read from the first operation that tells.
            target: As Captum's `Saliency`: picks the output to explain.
            additional_forward_args: As Captum's: passed on after the inputs.
            return_convergence_delta: Also return the sum of the attributions minus f(x), (N,). Only if `complete`.
            create_graph: Make the result differentiable, by the inputs that require grad and by the parameters.

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes, contiguous.

            `complete=False`: >= 0, higher is more relevant; summed over channels it is psi(grad * x) + sum over layers
            and channels of psi(bias-gradient), psi = bilinear upsampling of rescaled absolute values.

            `complete=True`: signed; summed over all inputs it is f(x). A bias term that has a place on the input grid
            is spread over the positions it covers, any other evenly over all elements of all inputs.

        Raises:
            ValueError: Empty batch, NaN or infinity, another device than the model's, a convergence delta of the
                saliency map, batch norm in training mode.
            TypeError: Inputs that are not floating-point tensors, TorchScript, a model that returns no tensor.
            RuntimeError: If f(x) is not the sum of the terms; names the operation responsible.
        """
        if return_convergence_delta and not self.complete:
            raise ValueError(
                "the saliency map has no convergence delta: it is not a sum; use FullGrad(model, complete=True)"
            )
        xs = as_tuple(inputs)
        make = SignedMaps if self.complete else SaliencyMaps
        parts = self._sweep(xs, target, additional_forward_args, make, create_graph)
        make_maps = self._complete_maps if self.complete else self._saliency
        maps = [torch.cat(chunks) for chunks in zip(*(make_maps(result, c) for result, c in parts), strict=True)]
        attributions = finish(isinstance(inputs, tuple), maps, xs)
        if not return_convergence_delta:
            return attributions
        output = torch.cat([result.output for result, _ in parts])
        return attributions, _delta(attributions, output)

    def _saliency(self, result: Sweep, consumer: SaliencyMaps) -> list[Tensor]:
        return saliency_maps(products_of(result), result.inputs, consumer)

    def _complete_maps(self, result: Sweep, consumer: SignedMaps) -> list[Tensor]:
        maps = products_of(result)
        elements = sum(m[0].numel() for m in maps)
        for index, own in enumerate(maps):
            placed = consumer.on_input(index)
            if placed is not None:
                own = own + over_channels(placed, consumer.source(index, result.inputs[index]))
            if consumer.unplaced is not None:
                own = own + (consumer.unplaced / elements).view(-1, *[1] * (own.ndim - 1))
            maps[index] = own
        return maps

    def compute_convergence_delta(
        self,
        attributions: TensorOrTupleOfTensorsGeneric,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        """Sum of the attributions minus f(x), (N,); there is no baseline.

        Raises:
            ValueError: For the saliency map, which sums to nothing in particular.
        """
        if not self.complete:
            raise ValueError(
                "the saliency map has no convergence delta: it is not a sum; use FullGrad(model, complete=True)"
            )
        parts = self._sweep(as_tuple(inputs), target, additional_forward_args, SignedMaps, False)
        return _delta(attributions, torch.cat([result.output for result, _ in parts]))

    def decompose(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        create_graph: bool = False,
    ) -> FullGradients:
        """Every term of f(x), by name.

        Args:
            inputs: As in `attribute`.
            target: As in `attribute`.
            additional_forward_args: As in `attribute`.
            create_graph: As in `attribute`.

        Returns:
            The full gradients, each term with the batch first; half-precision terms in float32.

        Raises:
            RuntimeError: As in `attribute`: an example whose terms do not sum to f(x).

        Example:
            >>> import torch
            >>> layer = torch.nn.Linear(2, 1)
            >>> _ = torch.nn.init.constant_(layer.weight, 2.0), torch.nn.init.constant_(layer.bias, 5.0)
            >>> FullGrad(layer).decompose(torch.tensor([[1.0, 10.0]]), target=0)
            FullGradients of 1 examples; sum per term, mean over examples:
              input 0            22  (1, 2)
              linear              5  (1, 1)
              total              27  output 27
        """
        xs = as_tuple(inputs)
        parts = self._sweep(xs, target, additional_forward_args, Terms, create_graph)
        names = list(dict.fromkeys(name for _, terms in parts for name in reversed(terms.biases)))
        biases = {name: _joined([terms.biases.get(name) for _, terms in parts]) for name in names}
        products = [torch.cat(chunks) for chunks in zip(*(products_of(result) for result, _ in parts), strict=True)]
        return FullGradients(torch.cat([result.output for result, _ in parts]), tuple(products), biases)


def _joined(chunks: list[Tensor | None]) -> Tensor:
    """One batch of a term taken one by one; zeros where an example is shorter, or did not meet the operation."""
    found = [chunk for chunk in chunks if chunk is not None]
    if len(found) == 1 and len(chunks) == 1:
        return found[0]
    shape = [max(sizes) for sizes in zip(*(chunk.shape[1:] for chunk in found), strict=True)]
    rows = []
    for chunk in chunks:
        row = found[0].new_zeros(1, *shape) if chunk is None else chunk
        rows.append(F.pad(row, [p for size, full in zip(row.shape[:0:-1], shape[::-1], strict=True)
                                for p in (0, full - size)]))  # fmt: skip
    return torch.cat(rows)


def _delta(attributions: Any, output: Tensor) -> Tensor:
    parts = (per_example(a.to(accumulation_dtype(a))) for a in format_tensor_into_tuples(attributions))
    return (sum(parts, torch.zeros_like(output)) - output).to(output.dtype)


class SimpleFullGrad(FullGradAttribution):
    """FullGrad's saliency map with intermediate gradients df/dy in place of bias-gradients df/dy * r.

    As the authors' published code has it: psi(grad * x) + the sum of psi(df/dy) over every operation that has a bias.

    Args:
        model: As `FullGrad`.

    Raises:
        TypeError: If `model` is not callable.

    References:
        S. Srinivas and F. Fleuret, NeurIPS 2019, arXiv:1905.00780, `simple_fullgrad` of the published code.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
        >>> SimpleFullGrad(model).attribute(torch.randn(4, 1, 8, 8), target=0).shape
        torch.Size([4, 1, 8, 8])
    """

    @log_usage()
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        create_graph: bool = False,
    ) -> Any:
        """Saliency maps of the inputs' shape, >= 0, higher is more relevant.

        Args:
            inputs: As in `FullGrad.attribute`.
            target: As in `FullGrad.attribute`.
            additional_forward_args: As in `FullGrad.attribute`.
            create_graph: As in `FullGrad.attribute`.

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes.

        Raises:
            TypeError: As `FullGrad.attribute`.
            ValueError: As `FullGrad.attribute`.
        """
        xs = as_tuple(inputs)
        parts = self._sweep(xs, target, additional_forward_args, SimpleSaliencyMaps, create_graph)
        maps = (saliency_maps(products_of(result), result.inputs, consumer) for result, consumer in parts)
        return finish(isinstance(inputs, tuple), [torch.cat(chunks) for chunks in zip(*maps, strict=True)], xs)
