"""Pictures of attributions, samples, curves and erased attention, free of pyplot's state."""

from captum_density.plots._attention import attention_erasure_scatter as attention_erasure_scatter
from captum_density.plots._attention import fraction_to_flip_boxes as fraction_to_flip_boxes
from captum_density.plots._curves import density_ratio_curves as density_ratio_curves
from captum_density.plots._curves import pixel_perturbation_curves as pixel_perturbation_curves
from captum_density.plots._saliency_grid import saliency_grid as saliency_grid
from captum_density.plots._sample_grid import sample_grid as sample_grid

__all__ = [
    "attention_erasure_scatter",
    "density_ratio_curves",
    "fraction_to_flip_boxes",
    "pixel_perturbation_curves",
    "saliency_grid",
    "sample_grid",
]


def __dir__() -> list[str]:
    return __all__
