"""FullGrad: where all of f(x) comes from.

S. Srinivas and F. Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
arXiv:1905.00780. The paper's words here: *full-gradient representation* is `FullGradients`, *bias-gradients* are its
`biases`, *completeness* is equation (2), psi is `SaliencyMaps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from captum_density._affine import unwrap
from captum_density._captum import (
    ExpansionTypes,
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    expand_additional_forward_args,
    expand_target,
    format_additional_forward_args,
    format_output,
    format_tensor_into_tuples,
)
from captum_density._maps import (
    SaliencyMaps,
    SampleSums,
    SignedMaps,
    SimpleSaliencyMaps,
    Terms,
    over_channels,
    rescaled,
)
from captum_density._sweep import Sweep, Term, accumulation_dtype, per_example, sweep, validate_inputs

__all__ = ["FullGrad", "FullGradients", "SimpleFullGrad", "SmoothFullGrad"]


@dataclass(frozen=True)
class FullGradients:
    """The full-gradient representation of f at a batch of inputs: f(x) = <df/dx, x> + sum over operations of <df/dy, r>.

    Attributes:
        output: (N,) f(x).
        inputs: Input terms df/dx * x, each of its input's shape (N, ...).
        biases: Bias terms df/dy * r by name, "module.path:operation", in forward order, each (N, ...).
    """

    output: Tensor
    inputs: tuple[Tensor, ...]
    biases: dict[str, Tensor]

    def total(self) -> Tensor:
        """(N,) sum of all terms of each example, which equals `output` up to rounding."""
        terms = [*self.inputs, *self.biases.values()]
        return sum((per_example(t.double()) for t in terms), torch.zeros_like(self.output).double()).to(
            accumulation_dtype(*terms)
        )

    def gap(self) -> Tensor:
        """(N,) |total - output| over the sum of the terms' absolute values: in [0, 1], lower is better."""
        terms = [*self.inputs, *self.biases.values()]
        magnitude = sum((per_example(t.double().abs()) for t in terms), self.output.double().abs() * 0)
        total = sum((per_example(t.double()) for t in terms), torch.zeros_like(magnitude))
        return (total - self.output.double()).abs() / magnitude.clamp(min=torch.finfo(torch.float64).tiny)

    def __repr__(self) -> str:
        terms = {f"input {i}": t for i, t in enumerate(self.inputs)} | self.biases
        width = max(map(len, terms))
        rows = [f"  {name:<{width}}  {_mean(t):>12.5g}  {tuple(t.shape)}" for name, t in terms.items()]
        head = f"FullGradients of {len(self.output)} examples; sum per term, mean over examples:"
        tail = f"  {'total':<{width}}  {float(self.total().mean()):>12.5g}  output {float(self.output.double().mean()):.5g}"
        return "\n".join([head, *rows, tail])


def _mean(term: Tensor) -> float:
    return float(term.detach().double().sum()) / len(term)


class _FullGradAttribution(GradientAttribution):
    """What the three have in common: a model, no baseline, attributions in the inputs' form."""

    def __init__(self, model: Callable[..., Any]) -> None:
        if not callable(model):
            raise TypeError(f"model must be a torch.nn.Module or a function, but is {type(model).__name__}")
        super().__init__(model)

    def _sweep(
        self,
        inputs: tuple[Tensor, ...],
        target: TargetType,
        additional_forward_args: object,
        make_consumer: Callable[[], Any],
        create_graph: bool,
    ) -> list[tuple[Sweep, Any]]:
        return sweep(self.forward_func, inputs, target, additional_forward_args, make_consumer, create_graph)


def _as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    if not isinstance(inputs, (Tensor, tuple)) or (isinstance(inputs, tuple) and not inputs):
        raise TypeError(f"inputs must be a tensor or a non-empty tuple of tensors, but is {type(inputs).__name__}")
    return format_tensor_into_tuples(inputs)  # type: ignore[no-any-return]


def _finish(is_tuple: bool, maps: Sequence[Tensor], inputs: tuple[Tensor, ...]) -> Any:
    """Contiguous, of the inputs' dtype, in the inputs' form."""
    return format_output(is_tuple, tuple(m.to(x.dtype).contiguous() for m, x in zip(maps, inputs, strict=True)))


def _products(result: Sweep) -> list[Tensor]:
    dtype = accumulation_dtype(*result.inputs)
    return [g.to(dtype) * x.to(dtype) for g, x in zip(result.gradients, result.inputs, strict=True)]


def _saliency_maps(products: Sequence[Tensor], inputs: Sequence[Tensor], consumer: SaliencyMaps) -> list[Tensor]:
    """psi of the input terms plus psi of the bias terms, the latter shared out over the channels."""
    maps = []
    for index, product in enumerate(products):
        own, placed = rescaled(product), consumer.on_input(index)
        maps.append(own if placed is None else own + over_channels(placed, consumer.source(index, inputs[index])))
    return maps


class FullGrad(_FullGradAttribution):
    r"""Full-gradient attribution, exactly complete for any PyTorch model.

    Every operation y = op(u) of a model is locally affine, y = J u + r, and

    .. math:: f(x) = \langle \nabla_x f, x \rangle + \sum_{\text{operations}} \langle \nabla_y f, r \rangle

    where r is the bias of a convolution, beta - gamma mean / std of a batch norm, sigma(u) - sigma'(u) u of a smooth
    nonlinearity, and 0 of whatever is positively homogeneous.

    Args:
        model: An `nn.Module`, or a function of the inputs; DataParallel, DistributedDataParallel and compiled models are
            unwrapped. Put it in eval mode: batch norm on batch statistics is refused, and dropout is explained as drawn.
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

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: the input term is gradient times input."""
        return True

    def has_convergence_delta(self) -> bool:
        """True for `complete=True`: sum of the attributions minus f(x). The saliency map sums to nothing in particular."""
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
            inputs: Floating-point tensor (N, ...) or tuple of such: images (N, C, H, W), volumes (N, C, D, H, W), signals
                (N, C, L), embeddings (N, L, E) or features (N, F). Whether a 3-D input has its channels second or last is
                read from the first operation that tells.
            target: As Captum's `Saliency`: picks the output to explain.
            additional_forward_args: As Captum's: passed on after the inputs.
            return_convergence_delta: Also return the sum of the attributions minus f(x), (N,). Only if `complete`.
            create_graph: Make the result differentiable, by the inputs that require grad and by the parameters.

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes, contiguous.

            `complete=False`: >= 0, higher is more relevant; summed over channels it is psi(grad * x) + sum over layers and
            channels of psi(bias-gradient), psi = bilinear upsampling of rescaled absolute values.

            `complete=True`: signed; summed over all inputs it is f(x). A bias term that has a place on the input grid is
            spread over the positions it covers, any other evenly over all elements of all inputs.

        Raises:
            ValueError: Empty batch, NaN or infinity, another device than the model's, a convergence delta of the saliency
                map, batch norm in training mode.
            TypeError: Inputs that are not floating-point tensors, TorchScript, a model that returns no tensor.
            RuntimeError: If f(x) is not the sum of the terms; names the operation responsible.
        """
        if return_convergence_delta and not self.complete:
            raise ValueError(
                "the saliency map has no convergence delta: it is not a sum; use FullGrad(model, complete=True)"
            )
        xs = _as_tuple(inputs)
        make = SignedMaps if self.complete else SaliencyMaps
        parts = self._sweep(xs, target, additional_forward_args, make, create_graph)
        finish = self._complete_maps if self.complete else self._saliency
        maps = [torch.cat(chunks) for chunks in zip(*(finish(result, c) for result, c in parts), strict=True)]
        attributions = _finish(isinstance(inputs, tuple), maps, xs)
        if not return_convergence_delta:
            return attributions
        output = torch.cat([result.output for result, _ in parts])
        return attributions, _delta(attributions, output)

    def _saliency(self, result: Sweep, consumer: SaliencyMaps) -> list[Tensor]:
        return _saliency_maps(_products(result), result.inputs, consumer)

    def _complete_maps(self, result: Sweep, consumer: SignedMaps) -> list[Tensor]:
        maps = _products(result)
        elements = sum(m[0].numel() for m in maps)
        for index, own in enumerate(maps):
            placed = consumer.on_input(index)
            if placed is not None:
                own = own + over_channels(placed, consumer.source(index, result.inputs[index]))
            if consumer.unplaced is not None:
                own = own + (consumer.unplaced / elements).view(-1, *[1] * (own.ndim - 1))
            maps[index] = own
        return maps

    def compute_convergence_delta(  # type: ignore[override]
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
        parts = self._sweep(_as_tuple(inputs), target, additional_forward_args, SignedMaps, False)
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
        xs = _as_tuple(inputs)
        parts = self._sweep(xs, target, additional_forward_args, Terms, create_graph)
        names = list(dict.fromkeys(name for _, terms in parts for name in reversed(terms.biases)))
        biases = {name: torch.cat([terms.biases[name] for _, terms in parts]) for name in names}
        products = [torch.cat(chunks) for chunks in zip(*(_products(result) for result, _ in parts), strict=True)]
        return FullGradients(torch.cat([result.output for result, _ in parts]), tuple(products), biases)


def _delta(attributions: Any, output: Tensor) -> Tensor:
    parts = (per_example(a.to(accumulation_dtype(a))) for a in format_tensor_into_tuples(attributions))
    return (sum(parts, torch.zeros_like(output)) - output).to(output.dtype)


class SimpleFullGrad(_FullGradAttribution):
    """FullGrad's saliency map with intermediate gradients df/dy in place of bias-gradients df/dy * r.

    As the authors' published code has it: psi(grad * x) + the sum of psi(df/dy) over every operation that has a bias.

    Args:
        model: As `FullGrad`.

    References:
        S. Srinivas and F. Fleuret, NeurIPS 2019, arXiv:1905.00780, `simple_fullgrad` of the published code.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 2))
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
        xs = _as_tuple(inputs)
        parts = self._sweep(xs, target, additional_forward_args, SimpleSaliencyMaps, create_graph)
        maps = (_saliency_maps(_products(result), result.inputs, consumer) for result, consumer in parts)
        return _finish(isinstance(inputs, tuple), [torch.cat(chunks) for chunks in zip(*maps, strict=True)], xs)


class SmoothFullGrad(_FullGradAttribution):
    """FullGrad's saliency map of terms averaged over noisy copies of the input, before psi.

    As the authors' published code has it: grad * x, summed over channels, and every bias-gradient are summed over
    x + stdev * N(0, 1), then go through psi.

    Args:
        model: As `FullGrad`.

    References:
        S. Srinivas and F. Fleuret, NeurIPS 2019, arXiv:1905.00780, `smooth_fullgrad` of the published code.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 2))
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(4, 1, 8, 8)
        >>> SmoothFullGrad(model).attribute(x, target=0, nt_samples=8, stdevs=0.1, generator=generator).shape
        torch.Size([4, 1, 8, 8])
    """

    @log_usage()
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        nt_samples: int = 5,
        nt_samples_batch_size: int | None = None,
        stdevs: float | tuple[float, ...] | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Saliency maps of the inputs' shape, >= 0, higher is more relevant.

        Args:
            inputs: As in `FullGrad.attribute`.
            target: As in `FullGrad.attribute`.
            additional_forward_args: As in `FullGrad.attribute`.
            nt_samples: Noisy copies of each example, as in Captum's `NoiseTunnel`.
            nt_samples_batch_size: How many of them go through the model at once; all if None.
            stdevs: Standard deviation of the noise, in units of the inputs, one for all or one for each input. None: 0.15
                of the range of each example, the published code's choice.
            generator: Source of the noise, on the inputs' device; the global one if None.

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes.

        Raises:
            ValueError: As `FullGrad.attribute`; and for a number of samples below 1 or a negative stdev.
            TypeError: As `FullGrad.attribute`.
        """
        xs = _as_tuple(inputs)
        validate_inputs(unwrap(self.forward_func), xs)
        scales = _noise_scales(xs, stdevs)
        batch = nt_samples if nt_samples_batch_size is None else nt_samples_batch_size
        if nt_samples < 1 or batch < 1:
            raise ValueError(
                f"nt_samples and nt_samples_batch_size must be at least 1, but are {nt_samples} and {batch}"
            )
        args = format_additional_forward_args(additional_forward_args)
        noise = [torch.randn((nt_samples, *x.shape), dtype=x.dtype, device=x.device, generator=generator) for x in xs]
        products: list[Tensor] = [x.new_zeros(x.shape, dtype=accumulation_dtype(x)) for x in xs]
        terms: dict[str, Term] = {}
        for start in range(0, nt_samples, batch):
            k = min(batch, nt_samples - start)
            # Copies of an example stand together, as Captum's repeat_interleave has them.
            noisy = tuple((x + s * z[start : start + k]).transpose(0, 1).flatten(0, 1) for x, s, z in zip(
                xs, scales, noise, strict=True))  # fmt: skip
            copies = expand_target(target, k, ExpansionTypes.repeat_interleave)
            more = expand_additional_forward_args(args, k, ExpansionTypes.repeat_interleave)
            parts = self._sweep(noisy, copies, more, lambda k=k: SampleSums(k), False)
            for term in _merged(parts, k):
                if term.name in terms:
                    term = replace(term, gradient=terms[term.name].gradient + term.gradient)
                terms[term.name] = term
            for i in range(len(xs)):
                product = torch.cat([_products(result)[i] for result, _ in parts])
                products[i] = products[i] + SampleSums(k).summed(product)
        maps = SaliencyMaps()
        for term in terms.values():
            maps.add(term)
        return _finish(isinstance(inputs, tuple), [_smooth(i, p, x, maps) for i, (p, x) in enumerate(zip(
            products, xs, strict=True))], xs)  # fmt: skip


def _smooth(index: int, product: Tensor, x: Tensor, maps: SaliencyMaps) -> Tensor:
    """psi of the averaged input term, its channels summed before as the published code does, plus the biases' part."""
    source = maps.source(index, x)
    channels = [d for d in range(1, product.ndim) if d not in source.final_positions()]
    own, placed = rescaled(product.sum(channels) if channels else product), maps.on_input(index)
    return over_channels(own if placed is None else own + placed, source)


def _noise_scales(inputs: tuple[Tensor, ...], stdevs: float | tuple[float, ...] | None) -> list[Tensor]:
    """The noise's standard deviation, broadcastable to each input."""
    if stdevs is None:
        ranges = [x.flatten(1).amax(1) - x.flatten(1).amin(1) for x in inputs]
        return [0.15 * r.view(-1, *[1] * (x.ndim - 1)) for r, x in zip(ranges, inputs, strict=True)]
    values = stdevs if isinstance(stdevs, tuple) else (stdevs,) * len(inputs)
    if len(values) != len(inputs) or any(not value >= 0 for value in values):
        raise ValueError(
            f"stdevs must be one number >= 0, or one for each of the {len(inputs)} inputs, but is {stdevs!r}"
        )
    return [x.new_tensor(value) for x, value in zip(inputs, values, strict=True)]


def _merged(parts: list[tuple[Sweep, SampleSums]], samples: int) -> list[Term]:
    """The terms of all parts, each summed over its samples."""
    if len(parts) == 1:
        return list(parts[0][1].terms.values())
    merged = []
    for name, term in parts[0][1].terms.items():
        values = SampleSums(samples).summed(torch.cat([consumer.terms[name].gradient for _, consumer in parts]))
        merged.append(replace(term, gradient=values))
    return merged
