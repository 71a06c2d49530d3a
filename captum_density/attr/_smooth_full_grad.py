"""SmoothFullGrad: FullGrad's map of terms averaged over noise."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from captum_density._linear.maps import BatchSums, SampleSums, smooth_maps
from captum_density._model.arrays import takes_arrays
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric, log_usage
from captum_density._model.generators import standard_noise
from captum_density._model.modules import unwrap
from captum_density.attr._common import FullGradAttribution, finish, warn_of_unreached, without_floor

__all__ = ["SmoothFullGrad"]


class SmoothFullGrad(FullGradAttribution):
    """FullGrad's saliency map of terms averaged over noisy copies of the input, before psi.

    As the authors' published code has it: grad * x, summed over channels, and every bias-gradient are summed over
    x + stdev * N(0, 1), then go through psi. The noise is drawn for a batch as a whole, samples first, so what an
    example gets depends on the batch it is in.

    Args:
        model: As `FullGrad`.
        layer: As `FullGrad`.
        forward_func: As `FullGrad`.
        layout: As `FullGrad`.
        keep_floor: As `FullGrad`.

    Raises:
        TypeError: As `FullGrad`.

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
    @takes_arrays
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        nt_samples: int = 5,
        nt_samples_batch_size: int | None = None,
        stdevs: float | tuple[float, ...] | None = None,
        generator: torch.Generator | None = None,
    ) -> TensorOrTupleOfTensorsGeneric:
        """Saliency maps of the inputs' shape, >= 0, higher is more relevant.

        Args:
            inputs: As in `FullGrad.attribute`.
            target: As in `FullGrad.attribute`.
            additional_forward_args: As in `FullGrad.attribute`.
            nt_samples: Noisy copies of each example, as in Captum's `NoiseTunnel`.
            nt_samples_batch_size: How many of them go through the model at once; all if None.
            stdevs: Standard deviation of the noise, in units of the inputs, one for all or one for each input. None:
                0.15 of the range of each example, the published code's choice.
            generator: Source of the noise, on any device; the global one of the inputs' device if None.

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes.

        Warns:
            UserWarning: As `FullGrad.attribute`, of a map that no bias term reaches.

        Raises:
            ValueError: As `FullGrad.attribute`; and for a number of samples below 1 or a negative stdev.
            TypeError: As `FullGrad.attribute`.
            NotImplementedError: As `FullGrad.attribute`.
        """
        batch = ModelOnBatch(unwrap(self.forward_func), inputs, target, additional_forward_args, name="model")
        xs, scales = batch.inputs, _noise_scales(batch.inputs, stdevs)
        size = nt_samples if nt_samples_batch_size is None else nt_samples_batch_size
        if nt_samples < 1 or size < 1:
            raise ValueError(
                f"nt_samples and nt_samples_batch_size must be at least 1, but are {nt_samples} and {size}"
            )
        noise = standard_noise(xs, nt_samples, "gaussian", generator)
        displacements = tuple(scale * z for scale, z in zip(scales, noise, strict=True))
        # On a GPU, which is waited for at each look, all samples' sums are looked at together.
        met: list[Tensor] | None = None if batch.device.type == "cpu" else []
        sums = self._sums(batch, displacements, size, met)
        if met and not bool(torch.stack(met).all()):
            sums = self._sums(batch, displacements, size, None)
        maps = smooth_maps(sums)
        warn_of_unreached(maps)
        return finish(without_floor(maps.maps, self.keep_floor), inputs)

    def _sums(
        self, batch: ModelOnBatch, displacements: tuple[Tensor, ...], size: int, met: list[Tensor] | None
    ) -> BatchSums:
        """The terms' sums over displaced copies of a batch, so many copies at once."""
        sums: BatchSums | None = None
        for parts in zip(*(d.split(size) for d in displacements), strict=True):
            k = len(parts[0])
            # Copies of an example stand together, as Captum's repeat_interleave has them.
            noisy = tuple((x + part).transpose(0, 1).flatten(0, 1) for x, part in zip(batch.inputs, parts, strict=True))
            rows = torch.arange(batch.n, device=batch.device).repeat_interleave(k)
            reduction = partial(SampleSums, k)
            swept = self._sweep(noisy, batch.target_of(rows), batch.args_of(rows), reduction, unchecked=met)
            sums = swept.result if sums is None else sums + swept.result
        assert sums is not None  # as there is one sample at least
        return sums


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
