"""The density hidden in a classifier: log p(x | y) and log p(x) up to a constant, their scores and Hessian traces."""

from captum_density.density._hessian_trace import hessian_trace as hessian_trace
from captum_density.density._log_densities import class_log_density as class_log_density
from captum_density.density._log_densities import class_score as class_score
from captum_density.density._log_densities import marginal_log_density as marginal_log_density
from captum_density.density._log_densities import marginal_score as marginal_score
from captum_density.density._softplus import softplus_surrogate as softplus_surrogate

__all__ = [
    "class_log_density",
    "class_score",
    "hessian_trace",
    "marginal_log_density",
    "marginal_score",
    "softplus_surrogate",
]


def __dir__() -> list[str]:
    return __all__
