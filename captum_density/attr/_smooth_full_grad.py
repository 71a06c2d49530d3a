"""SmoothFullGrad: FullGrad's map of terms averaged over noise."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from captum.log import log_usage
from torch import Tensor

from captum_density._linear.maps import SaliencyMaps, SampleSums, over_channels, rescaled
from captum_density._linear.sweep import Sweep, Term
from captum_density._model.captum import (
    ExpansionTypes,
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    expand_additional_forward_args,
    expand_target,
    format_additional_forward_args,
)
from captum_density._model.modules import unwrap
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import validate_inputs
from captum_density.attr._common import FullGradAttribution, as_tuple, finish, products_of

__all__ = ["SmoothFullGrad"]


class SmoothFullGrad(FullGradAttribution):
    """FullGrad's saliency map of terms averaged over noisy copies of the input, before psi.

    As the authors' published code has it: grad * x, summed over channels, and every bias-gradient are summed over
    x + stdev * N(0, 1), then go through psi. The noise is drawn for a batch as a whole, samples first, so what an
    example gets depends on the batch it is in.

    Args:
        model: As `FullGrad`.

    Raises:
        TypeError: If `model` is not callable.

    References:
        S. Srinivas and F. Fleuret, NeurIPS 2019, arXiv:1905.00780, `smooth_fullgrad` of the published code.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
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
            stdevs: Standard deviation of the noise, in units of the inputs, one for all or one for each input. None:
                0.15 of the range of each example, the published code's choice.
            generator: Source of the noise, on the inputs' device; the global one if None.

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes.

        Raises:
            ValueError: As `FullGrad.attribute`; and for a number of samples below 1 or a negative stdev.
            TypeError: As `FullGrad.attribute`.
        """
        xs = as_tuple(inputs)
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
            parts = self._sweep(noisy, copies, more, partial(SampleSums, k), False)
            for term in _merged(parts, k):
                if term.name in terms:
                    term = replace(term, gradient=terms[term.name].gradient + term.gradient)
                terms[term.name] = term
            for i in range(len(xs)):
                product = torch.cat([products_of(result)[i] for result, _ in parts])
                products[i] = products[i] + SampleSums(k).summed(product)
        maps = SaliencyMaps()
        for term in terms.values():
            maps.add(term)
        return finish(isinstance(inputs, tuple), [_smooth(i, p, x, maps) for i, (p, x) in enumerate(zip(
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
