"""The one place that imports Captum's private helpers, so that a change there is mended here.

Tested with Captum 0.8 and 0.9. Everything else in the package uses Captum's public names or this file.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from captum import log
from captum._utils.common import (
    _format_additional_forward_args as format_additional_forward_args,
)
from captum._utils.common import (
    _format_tensor_into_tuples as format_tensor_into_tuples,
)
from captum._utils.common import (
    _run_forward as run_forward,
)
from captum._utils.common import (
    _select_targets as select_targets,
)
from captum._utils.common import (
    _verify_select_neuron as select_neuron,
)
from captum._utils.typing import BaselineType, TargetType
from captum.attr._utils.approximation_methods import SUPPORTED_METHODS as QUADRATURES
from captum.attr._utils.approximation_methods import approximation_parameters
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule as PositiveRule
from torch import Tensor

__all__ = [
    "QUADRATURES",
    "BaselineType",
    "PositiveRule",
    "TargetType",
    "TensorOrTupleOfTensorsGeneric",
    "approximation_parameters",
    "format_additional_forward_args",
    "format_tensor_into_tuples",
    "log_usage",
    "run_forward",
    "select_neuron",
    "select_targets",
]

# Captum has no types for a checker: this is its own type variable of the same name, written again.
TensorOrTupleOfTensorsGeneric = TypeVar("TensorOrTupleOfTensorsGeneric", Tensor, tuple[Tensor, ...])

Method = TypeVar("Method", bound=Callable[..., Any])


def log_usage() -> Callable[[Method], Method]:
    """Captum's decorator, which a type checker sees through."""
    return log.log_usage()
