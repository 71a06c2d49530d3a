"""Language models of many families, small and with random weights."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

VOCABULARY = 40

_SIZE = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_SHORT = {"max_position_embeddings": 32}
_LLAMA = {**_SIZE, **_WIDTH, **_SHORT, "num_key_value_heads": 1, "head_dim": 8}

# Family: the class, its settings.
DECODERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _LLAMA),
    "qwen3": ("Qwen3ForCausalLM", _LLAMA),
    "gemma3": ("Gemma3ForCausalLM", {**_LLAMA, "sliding_window": 4}),
    "mixtral": ("MixtralForCausalLM", {**_LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2LMHeadModel", {**_SIZE, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**_SIZE, **_WIDTH, **_SHORT}),
    "mamba": ("MambaForCausalLM", {**_SIZE, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}),
}
ENCODERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", {**_SIZE, **_WIDTH, **_SHORT, "num_labels": 3}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {**_SIZE, **_SHORT, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "num_labels": 3},
    ),
    "deberta": (
        "DebertaV2ForSequenceClassification",
        {
            **_SIZE, **_WIDTH, **_SHORT, "num_labels": 3, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8, "max_relative_positions": -1, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        },
    ),
    "modernbert": (
        "ModernBertForSequenceClassification",
        {
            **_SIZE, **_WIDTH, **_SHORT, "num_labels": 3, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2,
            "attention_dropout": 0.0, "mlp_dropout": 0.0, "embedding_dropout": 0.0, "reference_compile": False,
        },
    ),
}  # fmt: skip
T5 = (
    "T5ForConditionalGeneration",
    {**_SIZE, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
)
FAMILIES = {**DECODERS, **ENCODERS, "t5": T5}


def language_model(family: str, seed: int = 0, **settings: Any) -> nn.Module:
    """A model of a family, in float64 and evaluation mode, with weights far from zero, biases and norms among them."""
    import transformers

    name, own = FAMILIES[family]
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    kind = getattr(transformers, name)
    torch.manual_seed(seed)
    model = kind(kind.config_class(**{**own, **settings})).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def prompts(n: int = 2, length: int = 7, seed: int = 0) -> torch.Tensor:
    """(N, L) ids, none of them special."""
    return torch.randint(3, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(seed))


def padded(ids: torch.Tensor, lengths: list[int], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows cut to lengths, padded on a side; and the mask."""
    mask = torch.zeros_like(ids)
    result = torch.zeros_like(ids)
    for i, length in enumerate(lengths):
        at = slice(ids.size(1) - length, None) if side == "left" else slice(length)
        result[i, at], mask[i, at] = ids[i, :length], 1
    return result, mask
