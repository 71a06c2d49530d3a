"""The one place that imports Captum's private helpers, so that a change there is mended here.

Tested with Captum 0.8 and 0.9. Everything else in the package uses Captum's public names or this file.
"""

from captum._utils.common import (
    ExpansionTypes,
)
from captum._utils.common import (
    _expand_additional_forward_args as expand_additional_forward_args,
)
from captum._utils.common import (
    _expand_target as expand_target,
)
from captum._utils.common import (
    _format_additional_forward_args as format_additional_forward_args,
)
from captum._utils.common import (
    _format_output as format_output,
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
from captum._utils.typing import BaselineType, TargetType, TensorOrTupleOfTensorsGeneric
from captum.attr._utils.approximation_methods import SUPPORTED_METHODS as QUADRATURES
from captum.attr._utils.approximation_methods import approximation_parameters
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule as PositiveRule

__all__ = [
    "QUADRATURES",
    "BaselineType",
    "ExpansionTypes",
    "PositiveRule",
    "TargetType",
    "TensorOrTupleOfTensorsGeneric",
    "approximation_parameters",
    "expand_additional_forward_args",
    "expand_target",
    "format_additional_forward_args",
    "format_output",
    "format_tensor_into_tuples",
    "run_forward",
    "select_targets",
]
