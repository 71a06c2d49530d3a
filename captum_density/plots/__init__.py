"""Pictures of attributions, samples and curves, free of pyplot's state."""

from captum_density.plots._curves import density_ratio_curves as density_ratio_curves
from captum_density.plots._curves import pixel_perturbation_curves as pixel_perturbation_curves
from captum_density.plots._saliency_grid import saliency_grid as saliency_grid
from captum_density.plots._sample_grid import sample_grid as sample_grid

__all__ = ["density_ratio_curves", "pixel_perturbation_curves", "saliency_grid", "sample_grid"]
