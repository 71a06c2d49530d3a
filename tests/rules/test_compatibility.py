"""Each cell of the page on compatibility, and the page itself."""

import contextlib
import gc
from pathlib import Path

import pytest
import torch
from captum.attr import DeepLift, InputXGradient

from captum_density.attr import CompleteDeepLift
from captum_density.rules import BalancedGradients
from tests.rules.compatibility import METHODS, ROWS, inputs, network, table

PAGE = Path(__file__).parents[2] / "tutorials" / "guides" / "compatibility.md"


def test_the_page_has_this_table():
    assert f"\n\n{table()}\n\n" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace("`", ""))
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`", "ignore:Setting (forward, )?backward hooks")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_cell(row, method):
    if "fully_shard" in row.name and torch.__version__ < "2.7":
        pytest.skip("PyTorch 2.6 shards on no CPU")
    gc.collect()  # a checkpoint of PyTorch 2.6 that was refused is at work until its frame is gone
    cell, make = row.cells[method], METHODS[method]
    assert cell.text.startswith("no: " if cell.refusal else "yes")
    expected, output = make(network()).attribute(inputs(), target=1).detach(), network()(inputs())[:, 1].detach()
    for setting in row.settings:
        with setting() as (model, x):
            if cell.refusal is not None:
                with pytest.raises((NotImplementedError, RuntimeError), match=cell.refusal) as error:
                    row.attribute(make, model, x)
                assert "\n" not in str(error.value)
                continue
            with pytest.warns(match=cell.warning) if cell.warning else contextlib.nullcontext():
                found = row.attribute(make, model, x).detach().float()
        size = row.tolerance * expected.abs().max()
        if cell.same:
            torch.testing.assert_close(found, expected, rtol=0, atol=float(size))
        promised = {"FullGrad": output, "CompleteDeepLift": output - network()(torch.zeros(1, 6))[0, 1].detach()}
        if method in promised:
            torch.testing.assert_close(found.sum(1), promised[method], rtol=row.tolerance, atol=6 * float(size))


@pytest.mark.parametrize("method", METHODS)
def test_after_another_methods_hooks_the_model_is_explained_as_before(method):
    attribution, x = METHODS[method](network()), inputs()
    before = attribution.attribute(x, target=1)
    with pytest.warns(UserWarning, match="Setting forward, backward hooks"):
        DeepLift(network()).attribute(x, target=1)
    assert torch.equal(attribution.attribute(x, target=1), before)


def test_what_the_page_says_besides():
    x = inputs()
    with torch.inference_mode():
        for method in ("FullGrad", "CompleteDeepLift"):
            assert METHODS[method](network()).attribute(x, target=1).abs().max() > 0
        for model in (network(), BalancedGradients(network())):
            with pytest.raises(RuntimeError, match="does not require grad"):
                InputXGradient(model).attribute(x, target=1)

    def model(x):
        return (x * x.detach()).sum(1, keepdim=True)

    start = torch.ones_like(x)
    assert torch.allclose(METHODS["BalancedGradients"](model).attribute(x, target=0), x * x)
    parts = CompleteDeepLift(model).attribute(x, start, target=0)
    assert torch.allclose(parts, x * x - 1, atol=1e-6)  # both factors have their share
