"""The text guide's adapter of inseq: each generated token's attributions sum to its logit."""

import re
from pathlib import Path

import pytest
import torch
from captum.attr import InputXGradient
from torch.testing import assert_close

from captum_density.rules import BalancedGradients

inseq = pytest.importorskip("inseq")
transformers = pytest.importorskip("transformers")

GUIDE = Path(__file__).parents[2] / "tutorials" / "guides" / "text.md"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(20))]
PROMPT, TEXT = "w1 w2 w3", "w1 w2 w3 w4 w5 w6"


@pytest.fixture(scope="module")
def adapter():
    (code,) = re.findall(r"<!-- inseq: methods -->\n```python\n(.*?)```", GUIDE.read_text("utf-8"), flags=re.DOTALL)
    names = {"__name__": "guide"}
    exec(compile(code, GUIDE.name, "exec"), names)
    return names  # inseq finds classes for as long as they live


@pytest.fixture(scope="module")
def model():
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = {
        f"{name}_token": f"<{tag}>" for name, tag in (("bos", "s"), ("eos", "/s"), ("pad", "pad"), ("unk", "unk"))
    }
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": len(WORDS)}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**size, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    network = transformers.GPT2LMHeadModel(config).eval()
    network.name_or_path = "small"
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    return inseq.load_model(network, "saliency", tokenizer=tokenizer)


def columns(model, method):
    """The sum of each generated token's attributions, and the logits (generated tokens,) as a plain run has them."""
    output = model.attribute(PROMPT, TEXT, method=method, attributed_fn="logit", show_progress=False)
    attributions = output.sequence_attributions[0].target_attributions
    ids = torch.tensor([[WORDS.index(word) for word in TEXT.split()]])
    with torch.no_grad():
        logits = model.model(ids).logits[0]
    generated = range(len(PROMPT.split()), ids.shape[1])
    return attributions.sum(-1).nansum(0), torch.stack([logits[i - 1, ids[0, i]] for i in generated]), generated


def test_full_grad_sums_to_each_logit(adapter, model):
    sums, logits, _ = columns(model, "full_grad")
    assert_close(sums, logits, rtol=1e-4, atol=1e-5)
    sums, logits, _ = columns(model, "input_x_gradient")
    assert not torch.allclose(sums, logits, rtol=0.1)


def test_balanced_is_as_without_inseq(adapter, model):
    sums, _, generated = columns(model, "balanced")
    network = model.model
    embeddings = network.get_input_embeddings()(torch.tensor([[WORDS.index(word) for word in TEXT.split()]])).detach()
    relevance = InputXGradient(BalancedGradients(lambda x: network(inputs_embeds=x).logits[:, -1]))
    expected = [relevance.attribute(embeddings[:, :i], WORDS.index(TEXT.split()[i])).sum() for i in generated]
    assert_close(sums, torch.stack(expected).detach(), rtol=1e-4, atol=1e-6)


def test_complete_deep_lift_sums_to_differences_of_logits(adapter, model):
    sums, logits, generated = columns(model, "complete_deep_lift")
    ids = [WORDS.index(word) for word in TEXT.split()]
    baseline = torch.full((1, len(ids)), WORDS.index("<unk>"))
    with torch.no_grad():
        at_baseline = model.model(baseline).logits[0]
    assert_close(sums, logits - torch.stack([at_baseline[i - 1, ids[i]] for i in generated]), rtol=1e-4, atol=1e-5)
