"""Attention weights in any model: where they arise, read and changed without rewriting it.

They arise in one of four operations: a softmax of scores, `scaled_dot_product_attention`, `flex_attention` and
`multi_head_attention_forward`. A function mode sees each of them as the model runs.
"""

from captum_density._attention.calls import AttentionCalls as AttentionCalls
from captum_density._attention.calls import Observed as Observed
from captum_density._attention.calls import find_layer as find_layer
from captum_density._attention.calls import logits_of as logits_of
from captum_density._attention.calls import run_from_start as run_from_start
from captum_density._attention.layout import Place as Place
from captum_density._attention.layout import places as places

__all__ = ["AttentionCalls", "Observed", "Place", "find_layer", "logits_of", "places", "run_from_start"]
