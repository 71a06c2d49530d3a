"""Tasks with known answers: data, a network trained in seconds, and what decides, proved by changing it."""

from captum_density.ground_truth._agreement import SubjectVerbAgreement as SubjectVerbAgreement
from captum_density.ground_truth._block_digits import BlockDigits as BlockDigits
from captum_density.ground_truth._block_digits import BlockMNIST as BlockMNIST
from captum_density.ground_truth._creatures import Creatures as Creatures
from captum_density.ground_truth._known_function import KnownFunction as KnownFunction
from captum_density.ground_truth._planted_motif import PlantedMotif as PlantedMotif
from captum_density.ground_truth._recall import AssociativeRecall as AssociativeRecall
from captum_density.ground_truth._signal_block import SignalBlock as SignalBlock
from captum_density.ground_truth._task import Effects as Effects
from captum_density.ground_truth._task import Task as Task
from captum_density.ground_truth._task import TaskExamples as TaskExamples
from captum_density.ground_truth._task import Verification as Verification
from captum_density.ground_truth._watermark import Watermark as Watermark

__all__ = [
    "AssociativeRecall",
    "BlockDigits",
    "BlockMNIST",
    "Creatures",
    "Effects",
    "KnownFunction",
    "PlantedMotif",
    "SignalBlock",
    "SubjectVerbAgreement",
    "Task",
    "TaskExamples",
    "Verification",
    "Watermark",
]


def __dir__() -> list[str]:
    return __all__
