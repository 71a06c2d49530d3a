"""Tasks with known answers: data, a network trained in seconds, and what decides, proved by changing it."""

from captum_density.ground_truth._agreement import SubjectVerbAgreement as SubjectVerbAgreement
from captum_density.ground_truth._block_digits import BlockDigits as BlockDigits
from captum_density.ground_truth._block_digits import BlockMNIST as BlockMNIST
from captum_density.ground_truth._creatures import Creatures as Creatures
from captum_density.ground_truth._known_function import KnownFunction as KnownFunction
from captum_density.ground_truth._methods import METHODS as METHODS
from captum_density.ground_truth._metrics import METRICS as METRICS
from captum_density.ground_truth._planted_motif import PlantedMotif as PlantedMotif
from captum_density.ground_truth._recall import AssociativeRecall as AssociativeRecall
from captum_density.ground_truth._result import Examination as Examination
from captum_density.ground_truth._result import GroundTruthTable as GroundTruthTable
from captum_density.ground_truth._run import TASKS as TASKS
from captum_density.ground_truth._run import examine as examine
from captum_density.ground_truth._run import run as run
from captum_density.ground_truth._signal_block import SignalBlock as SignalBlock
from captum_density.ground_truth._task import Effects as Effects
from captum_density.ground_truth._task import Task as Task
from captum_density.ground_truth._task import TaskExamples as TaskExamples
from captum_density.ground_truth._task import Verification as Verification
from captum_density.ground_truth._trial import Trial as Trial
from captum_density.ground_truth._watermark import Watermark as Watermark

__all__ = [
    "METHODS",
    "METRICS",
    "TASKS",
    "AssociativeRecall",
    "BlockDigits",
    "BlockMNIST",
    "Creatures",
    "Effects",
    "Examination",
    "GroundTruthTable",
    "KnownFunction",
    "PlantedMotif",
    "SignalBlock",
    "SubjectVerbAgreement",
    "Task",
    "TaskExamples",
    "Trial",
    "Verification",
    "Watermark",
    "examine",
    "run",
]


def __dir__() -> list[str]:
    return __all__
