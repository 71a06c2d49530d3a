"""The ledger of language models of many families: every row sums to its logit, padded or not."""

import pytest
import torch
from torch.testing import assert_close

from captum_density.attr import LogitLedger
from tests.attr.language_models import FAMILIES, OTHERS, language_model, padded, prompts

pytest.importorskip("transformers")

# Which compute norms, scores or scans in float32 whatever they are given; of Mixtral, the routing, too.
SINGLE = {"llama", "qwen3", "gemma3", "mixtral", "mamba", "t5", "modernbert"}
LEFT = ("llama", "qwen3", "gemma3", "mixtral", "gpt2", "gpt_neox", "mamba", "t5")
QUICK = {("llama", "left"), ("gpt2", "left"), ("mamba", "left"), ("t5", "left"), ("bert", "right"), ("llama", "right")}
PADDED = [
    pytest.param(family, side, marks=() if (family, side) in QUICK else pytest.mark.slow)
    for side, families in (("left", LEFT), ("right", FAMILIES))  # an encoder answers at its first token
    for family in families
]


def of_family(family):
    model = language_model(family)
    if family in ("mixtral", "gpt_oss", "jamba"):
        model.set_experts_implementation("eager")  # the others have no float64
    return model


@pytest.mark.parametrize("rules", [None, "libragrad"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_sum_to_their_logits(family, rules):
    model, ids = of_family(family), prompts(2, 6)
    ledger = LogitLedger(model, rules=rules).attribute(ids)
    assert float(ledger.gap().max()) < (1e-6 if family in SINGLE else 1e-13)
    with torch.no_grad():
        more = {"decoder_input_ids": torch.zeros(2, 1, dtype=torch.int64)} if family == "t5" else {}
        logits = model(ids, **more).logits
    assert_close(ledger.output, (logits[:, -1] if logits.ndim == 3 else logits).amax(1))
    assert float(ledger.sums[:, :, -1].abs().sum()) <= 1e-12  # everything has a position


@pytest.mark.slow
@pytest.mark.parametrize("rules", [None, "libragrad", "attnlrp", "cp-lrp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_sum_to_their_logits_in_single_precision(family, rules):
    ledger = LogitLedger(of_family(family).float(), rules=rules).attribute(prompts(2, 6))
    assert float(ledger.gap().max()) < 1e-5


@pytest.mark.parametrize(("family", "side"), PADDED)
def test_padded_batches_equal_single_rows(family, side):
    method = LogitLedger(of_family(family), rules="libragrad")
    ids, lengths = prompts(2, 6), [6, 3]
    x, mask = padded(ids, lengths, side)
    together = method.attribute(x, attention_mask=mask)
    for i, length in enumerate(lengths):
        alone = method.attribute(ids[i : i + 1, :length], attention_mask=torch.ones(1, length, dtype=torch.int64))
        columns = torch.cat([mask[i].bool(), torch.ones(1 + (family == "t5"), dtype=torch.bool)])
        assert_close(together.output[i], alone.output[0], rtol=1e-6, atol=1e-7)
        assert_close(together.inputs[i, columns[:-1]], alone.inputs[0], rtol=1e-6, atol=1e-7)
        assert_close(together[i].by_layer(), alone.by_layer(), rtol=1e-6, atol=1e-7)
        if family != "mamba":  # whose convolutions lie on what they read, padding too
            assert_close(together.table()[i, :, columns], alone.table()[0], rtol=1e-6, atol=1e-7)
            assert not together.table()[i, :, ~columns].any()


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts_however_they_run(implementation):
    model = language_model("mixtral").float()
    model.set_experts_implementation(implementation)
    ledger = LogitLedger(model).attribute(prompts(2, 6))
    assert float(ledger.gap().max()) < 1e-6
    assert not ledger.sums[:, :, -1].any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:taken as one step each", "ignore:GeLUFunction")
@pytest.mark.parametrize("family", OTHERS)
def test_other_families(family):
    """Every row sums to its logit, under any rules and against a baseline; a padded row is that row alone."""
    model, ids = of_family(family), prompts(2, 8)
    for rules in (None, "libragrad", "attnlrp"):
        ledger = LogitLedger(model, rules=rules).attribute(ids)
        assert float(ledger.gap().max()) < 1e-6
    if family != "bloom":  # whose masks leave nothing of its scores in float64
        assert float(LogitLedger(model).attribute(ids, baselines=3).gap().max()) < 1e-6
    x, mask = padded(ids, [8, 5], "right")
    together = LogitLedger(model, rules="libragrad").attribute(x, attention_mask=mask)
    alone = LogitLedger(model, rules="libragrad").attribute(
        ids[1:, :5], attention_mask=torch.ones(1, 5, dtype=torch.int64)
    )
    assert_close(together.output[1], alone.output[0], rtol=1e-6, atol=1e-7)
    assert_close(together.inputs[1, :5], alone.inputs[0, :5], rtol=1e-5, atol=1e-6)
