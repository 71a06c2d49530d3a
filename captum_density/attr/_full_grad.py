"""FullGrad: where all of f(x) comes from; and its variant without the bias factor.

S. Srinivas and F. Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
arXiv:1905.00780. The paper's words here: *full-gradient representation* is `FullGradients`, *bias-gradients* are its
`biases`, *completeness* is equation (2), psi is what `SaliencyMaps` makes of a term.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NoReturn, overload

from torch import Tensor

from captum_density._linear.maps import AllTerms, SaliencyMaps, SignedMaps, SimpleSaliencyMaps
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric, log_usage
from captum_density.attr._common import (
    FullGradAttribution,
    check_placed,
    check_share,
    delta,
    finish,
    warn_of_places,
    warn_of_unreached,
    without_floor,
)
from captum_density.attr._full_gradients import FullGradients
from captum_density.attr._repr import given, shown

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
        layer: Not taken: `LayerFullGrad` and `NeuronFullGrad` explain layers.
        complete: False for the paper's saliency map (equation 4), >= 0; True for signed attributions that sum to f(x).
        forward_func: Captum's name for `model`.
        layout: Which dimensions of the input are positions, as (2, 3) for (N, C, H, W), where you know better than the
            model shows: without it they are those that the first operation with weights leaves apart (see
            `attribute`). One such tuple, or None, for each of several inputs.
        min_placed: The least share of |terms| that must have a place on the inputs, in [0, 1], for each example; less
            is refused. None accepts everything.
        keep_floor: Whether the saliency map keeps its floor, as the paper's sum does: each bias term is rescaled to
            [0, 1] by itself, and hundreds of small maps of coarse layers add up to nearly the same number everywhere,
            which makes maps of any two images look alike and hardly move. False takes each example's smallest value
            away, which changes no ranking.

    Raises:
        TypeError: If `model` is not callable, or a second argument is not named.
        ValueError: If `min_placed` is not in [0, 1].

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
        layout: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
        min_placed: float | None = None,
        keep_floor: bool = False,
    ) -> None:
        super().__init__(model, *layer, forward_func=forward_func, layout=layout, keep_floor=keep_floor)
        check_share(min_placed)
        self.complete = complete
        self.min_placed = min_placed

    def __repr__(self) -> str:
        settings = given(layout=self.layout, min_placed=self.min_placed, keep_floor=self.keep_floor)
        return shown(self, self.forward_func, complete=self.complete, **settings)

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
            inputs: Floating-point tensor (N, ...) or tuple of such, in any layout: images (N, C, H, W) or (N, H, W, C),
                volumes, signals (N, C, L), embeddings (N, L, E), features (N, F). Its channels are the dimensions of
                which the first operation with weights leaves nothing apart, the others are positions; all are if that
                leaves none. `layout` overrides it.
            target: As Captum's `Saliency`: picks the output to explain.
            additional_forward_args: As Captum's: passed on after the inputs.
            return_convergence_delta: Also return the sum of the attributions minus f(x), (N,). Only if `complete`.
                It shows what rounding leaves, which is much of f(x) where terms far larger than f(x) cancel.
            create_graph: Make the result differentiable, by the inputs that require grad and by the parameters.

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes, contiguous.

            `complete=False`: >= 0, higher is more relevant; summed over channels it is psi(grad * x) + sum over layers
            and channels of psi(bias-gradient), psi = bilinear upsampling of rescaled absolute values; less each
            example's smallest value unless `keep_floor`.

            `complete=True`: signed; summed over all inputs it is f(x). A bias term that has a place is spread over the
            positions it covers, and evenly over channels; any other evenly over all elements of all inputs. A term that
            has a place on several inputs is shared equally among them.

            Each element of an operation is followed back to an interval of positions, through whatever moves, mixes
            and pools it. It has no place where those are all of the input (after a dense layer over everything, global
            pooling, a Fourier transform), where it is constant (a class token), and where the operation scatters by
            index or is out of sight (inside `torch.vmap`, unless derivatives show it to be elementwise). Dense layers
            over features (N, F) leave no place: only `complete=True` shows their biases.

        Warns:
            UserWarning: If more than half of |terms| has no place (`complete=True`), or no bias term reaches the
                saliency map; names the operation that lost it. Not of dense layers over features (N, F). The share is
                estimated from a sample of elements; exact with `min_placed`, and in `decompose`.

        Raises:
            ValueError: Empty batch, NaN or infinity, another device than the model's, a convergence delta of the
                saliency map, batch norm in training mode.
            TypeError: Inputs that are not floating-point tensors, TorchScript, a model that returns no tensor.
            RuntimeError: If f(x) is not the sum of the terms; names the operation responsible. If less than
                `min_placed` of |terms| has a place.
            NotImplementedError: If an operation has no gradient, as those of quantised models, or one that cannot be
                differentiated again, as reentrant checkpointing and some custom autograd Functions.
        """
        if return_convergence_delta and not self.complete:
            raise ValueError(
                "the saliency map has no convergence delta: it is not a sum; use FullGrad(model, complete=True)"
            )
        kind = SignedMaps if self.complete else SaliencyMaps
        reduction = partial(kind, self.min_placed is not None)
        maps = self._sweep(inputs, target, additional_forward_args, reduction, create_graph)
        if maps.result.placement is not None:
            check_placed(maps.result.placement, self.min_placed)
        if self.complete and maps.result.placement is not None:
            warn_of_places(maps.result.placement)
        else:
            warn_of_unreached(maps.result)
        parts = without_floor(maps.result.maps, self.complete or self.keep_floor)
        attributions = finish(parts, inputs)
        return (attributions, delta(attributions, maps.output)) if return_convergence_delta else attributions

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
        return delta(attributions, output)

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
            RuntimeError: As in `attribute`: an example whose terms do not sum to f(x), or lie nowhere.

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
        check_placed(terms.result.placement, self.min_placed)
        unplaced = terms.result.placement.unplaced_size()
        return FullGradients(terms.output, tuple(terms.result.products), terms.result.biases, unplaced)


class SimpleFullGrad(FullGradAttribution):
    """FullGrad's saliency map with intermediate gradients df/dy in place of bias-gradients df/dy * r.

    As the authors' published code has it: psi(grad * x) + the sum of psi(df/dy) over every operation that has a bias.

    Args:
        model: As `FullGrad`.
        layer: As `FullGrad`.
        forward_func: As `FullGrad`.
        layout: As `FullGrad`.
        keep_floor: As `FullGrad`.

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

        Warns:
            UserWarning: As `FullGrad.attribute`, of a map that no bias term reaches.

        Raises:
            TypeError: As `FullGrad.attribute`.
            ValueError: As `FullGrad.attribute`.
            NotImplementedError: As `FullGrad.attribute`.
        """
        maps = self._sweep(inputs, target, additional_forward_args, SimpleSaliencyMaps, create_graph)
        warn_of_unreached(maps.result)
        return finish(without_floor(maps.result.maps, self.keep_floor), inputs)
