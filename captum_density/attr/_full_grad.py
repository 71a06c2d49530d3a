"""FullGrad: where all of f(x) comes from; and its variant without the bias factor.

S. Srinivas and F. Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
arXiv:1905.00780. The paper's words here: *full-gradient representation* is `FullGradients`, *bias-gradients* are its
`biases`, *completeness* is equation (2), psi is what `SaliencyMaps` makes of a term.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NoReturn, overload

import torch
from torch import Tensor

from captum_density._linear.maps import AllTerms, SaliencyMaps, SignedMaps, SimpleSaliencyMaps
from captum_density._linear.sweep import per_example
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric, format_tensor_into_tuples, log_usage
from captum_density._model.precision import accumulation_dtype
from captum_density.attr._common import FullGradAttribution, finish
from captum_density.attr._full_gradients import FullGradients
from captum_density.attr._repr import shown

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
        layer: Not taken: there is no form for a layer yet.
        complete: False for the paper's saliency map (equation 4), >= 0; True for signed attributions that sum to f(x).
        forward_func: Captum's name for `model`.

    Raises:
        TypeError: If `model` is not callable, or a second argument is not named.

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

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *layer: NoReturn,
        complete: bool = False,
        forward_func: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, *layer, forward_func=forward_func)
        self.complete = complete

    def __repr__(self) -> str:
        return shown(self, self.forward_func, complete=self.complete)

    def has_convergence_delta(self) -> bool:
        """True for `complete=True`, whose delta is the sum minus f(x); the saliency map is not a sum."""
        return self.complete

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        return_convergence_delta: Literal[False] = False,
        *,
        create_graph: bool = False,
    ) -> TensorOrTupleOfTensorsGeneric: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        return_convergence_delta: Literal[True],
        create_graph: bool = False,
    ) -> tuple[TensorOrTupleOfTensorsGeneric, Tensor]: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        return_convergence_delta: bool = False,
        *,
        create_graph: bool = False,
    ) -> Any: ...

    @log_usage()
    @takes_arrays
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
                It shows what rounding leaves, which is much of f(x) where terms far larger than f(x) cancel.
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
        maps = self._sweep(
            inputs, target, additional_forward_args, SignedMaps if self.complete else SaliencyMaps, create_graph
        )
        attributions = finish(maps.result, inputs)
        return (attributions, _delta(attributions, maps.output)) if return_convergence_delta else attributions

    @takes_arrays
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
        output = self._sweep(inputs, target, additional_forward_args, SignedMaps).output
        return _delta(attributions, output)

    @takes_arrays
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
        terms = self._sweep(inputs, target, additional_forward_args, AllTerms, create_graph)
        return FullGradients(terms.output, tuple(terms.result.products), terms.result.biases)


def _delta(attributions: Any, output: Tensor) -> Tensor:
    parts = (per_example(a.to(accumulation_dtype(a))) for a in format_tensor_into_tuples(attributions))
    return (sum(parts, torch.zeros_like(output)) - output).to(output.dtype)


class SimpleFullGrad(FullGradAttribution):
    """FullGrad's saliency map with intermediate gradients df/dy in place of bias-gradients df/dy * r.

    As the authors' published code has it: psi(grad * x) + the sum of psi(df/dy) over every operation that has a bias.

    Args:
        model: As `FullGrad`.
        layer: As `FullGrad`.
        forward_func: As `FullGrad`.

    Raises:
        TypeError: As `FullGrad`.

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
    @takes_arrays
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        create_graph: bool = False,
    ) -> TensorOrTupleOfTensorsGeneric:
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
        maps = self._sweep(inputs, target, additional_forward_args, SimpleSaliencyMaps, create_graph)
        return finish(maps.result, inputs)
