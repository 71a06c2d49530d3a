"""The main job, and what its experiments share: train small networks on the digits, explain, measure and draw."""

from captum_density._command.density import HEADINGS as HEADINGS
from captum_density._command.density import MODELS as MODELS
from captum_density._command.density import DensityStudy as DensityStudy
from captum_density._command.density import ModelFigures as ModelFigures
from captum_density._command.density import keep_by_gradient as keep_by_gradient
from captum_density._command.density import markdown as markdown
from captum_density._command.density import study_density as study_density
from captum_density._command.digits_job import FULL as FULL
from captum_density._command.digits_job import QUICK as QUICK
from captum_density._command.digits_job import Effort as Effort
from captum_density._command.digits_job import run as run
from captum_density._command.network import train as train
from captum_density._command.softmax_shift import Fooled as Fooled
from captum_density._command.softmax_shift import fool as fool

__all__ = [
    "FULL",
    "HEADINGS",
    "MODELS",
    "QUICK",
    "DensityStudy",
    "Effort",
    "Fooled",
    "ModelFigures",
    "fool",
    "keep_by_gradient",
    "markdown",
    "run",
    "study_density",
    "train",
]
