"""The examples of README and guides run, each ends in a property that holds, and what they link to exists."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "tutorials" / "index.md", *sorted((ROOT / "tutorials" / "guides").glob("*.md"))]
EXAMPLES = {
    name: (page, code)
    for page in PAGES
    for name, code in re.findall(
        r"<!-- example: (.*?) -->\n```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
}


def _run(name: str) -> dict[str, object]:
    page, code = EXAMPLES[name]
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(code, page.name, "exec"), names)
    return names


def _full_grad(names):
    assert names["saliency"].shape == names["parts"].shape == names["images"].shape
    assert names["saliency"].min() >= 0
    assert names["parts"].min() < 0


def _images(names):
    assert names["largest"] in names["terms"].biases
    assert len(names["picture"].axes) == len(names["images"]) * (1 + len(names["maps"]))


def _softmax_shift(names):
    similarities = [
        torch.nn.functional.cosine_similarity(names[kind].flatten(1), names["pattern"].flatten()[None])
        for kind in ("lie", "honest")
    ]
    assert similarities[0].min() > 0.9
    assert similarities[1].max() < 0.3
    twin = names["Saliency"](names["CenteredLogits"](names["model"])).attribute(names["images"], names["target"])
    torch.testing.assert_close(names["honest"], twin, rtol=1e-3, atol=1e-5)


def _density(names):
    assert all(p.grad is not None and p.grad.isfinite().all() for p in names["model"].parameters())
    assert names["score_matching"].trace.isfinite()
    assert names["ratio"].shape == (8,)


def _diff_roar(names):
    result = names["result"]
    assert result.predictive_power.shape == (2, 2, 3, 2)
    assert set(result.controls) == {"random", "input_agnostic", "mask_only", "blurred"}
    assert "2x2" not in result.table() and "kept 0.25 (4)" in result.table()


# What is asked of an example besides its own assertions.
MORE = {
    "full_grad": _full_grad,
    "images": _images,
    "softmax shift": _softmax_shift,
    "density": _density,
    "diff_roar": _diff_roar,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name):
    MORE.get(name, lambda names: None)(_run(name))


def test_examples_are_found_and_named_once():
    marked = [name for page in PAGES for name in re.findall(r"<!-- example: (.*?) -->", page.read_text("utf-8"))]
    assert sorted(marked) == sorted(EXAMPLES)
    assert set(MORE) <= set(EXAMPLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    """Those within the repository, as GitHub reads them; the documentation's build checks its own."""
    for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{page.name} links to {link}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", aim.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link
