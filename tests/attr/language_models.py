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
_PARTS = {
    **_SIZE, **_SHORT, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 2,
}  # fmt: skip
_BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
# Tried now and then: the slow tests.
OTHERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "falcon": ("FalconForCausalLM", {**_SIZE, **_BLOCKS}),
    "falcon_alibi": ("FalconForCausalLM", {**_SIZE, **_BLOCKS, "alibi": True}),
    "phi": ("PhiForCausalLM", {**_SIZE, **_WIDTH, **_SHORT}),
    "phi3": ("Phi3ForCausalLM", {**_SIZE, **_WIDTH, **_SHORT}),
    "opt": ("OPTForCausalLM", {**_SIZE, **_SHORT, **_BLOCKS, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    "bloom": ("BloomForCausalLM", {**_SIZE, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "gemma2": ("Gemma2ForCausalLM", {**_LLAMA, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "olmo2": ("Olmo2ForCausalLM", {**_SIZE, **_WIDTH, **_SHORT}),
    "mpt": ("MptForCausalLM", {**_SIZE, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32}),
    "cohere": ("CohereForCausalLM", {**_SIZE, **_WIDTH, **_SHORT}),
    "glm": ("GlmForCausalLM", _LLAMA),
    "gptj": ("GPTJForCausalLM", {**_SIZE, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "rotary_dim": 4}),
    "biogpt": ("BioGptForCausalLM", {**_SIZE, **_WIDTH, **_SHORT}),
    "mistral": ("MistralForCausalLM", {**_LLAMA, "sliding_window": 4}),
    "gpt_oss": ("GptOssForCausalLM", {**_LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "xlnet": ("XLNetLMHeadModel", {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}),
    "mamba2": (
        "Mamba2ForCausalLM",
        {
            **_SIZE, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8,
            "n_groups": 1, "chunk_size": 4,
        },
    ),
    "rwkv": ("RwkvForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}),
    "jamba": (
        "JambaForCausalLM",
        {
            **_SIZE, **_WIDTH, "num_key_value_heads": 1, "num_experts": 2, "attn_layer_period": 2,
            "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4,
            "mamba_dt_rank": 4, "use_mamba_kernels": False,
        },
    ),
    "electra": ("ElectraForSequenceClassification", {**_SIZE, **_WIDTH, **_SHORT, "embedding_size": 16}),
    "roberta": ("RobertaForSequenceClassification", {**_SIZE, **_WIDTH, **_SHORT}),
    "mpnet": ("MPNetForSequenceClassification", {**_SIZE, **_WIDTH, **_SHORT}),
    "albert": ("AlbertForSequenceClassification", {**_SIZE, **_WIDTH, **_SHORT, "embedding_size": 16}),
    "llama_classifier": ("LlamaForSequenceClassification", {**_LLAMA, "num_labels": 3}),
    "bart": ("BartForConditionalGeneration", _PARTS),
    "marian": ("MarianMTModel", _PARTS),
    "whisper_decoder": ("WhisperForCausalLM", {**_PARTS, "max_target_positions": 32}),
}  # fmt: skip
FAMILIES = {**DECODERS, **ENCODERS, "t5": T5}


def language_model(family: str, seed: int = 0, **settings: Any) -> nn.Module:
    """A model of a family, in float64 and evaluation mode, with weights far from zero, biases and norms among them."""
    import transformers

    name, own = {**FAMILIES, **OTHERS}[family]
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
