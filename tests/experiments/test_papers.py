"""The experiments on the papers' claims, small; and the page, which says what the results say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.experiments import papers

PAGE = Path(__file__).parents[2] / "tutorials" / "guides" / "papers.md"
RESULTS = json.loads(papers.RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "table"), papers.tables(RESULTS).items())
def test_the_page_has_the_tables(name, table):
    assert table in PAGE.read_text(encoding="utf-8"), f"print {name} by --table"


def test_what_the_page_says():
    roar, photographs = RESULTS["diff_roar"]["figures"], RESULTS["full_grad"]["figures"]["photographs"]["black"]
    for seeds in roar.values():
        for seed in seeds:
            assert seed["score"]["robust"][1] > seed["score"]["standard"][1]
    changes = {name: np.mean(pictures, axis=0) for name, pictures in photographs.items()}
    assert all((changes["FullGrad"] <= other).all() for other in changes.values())
    for networks in (result["networks"] for result in RESULTS["density"]["figures"].values()):
        gan = {kind: np.mean([row["gan_test"] for row in rows]) for kind, rows in networks.items()}
        assert gan["anti score matching"] < gan["plain"] < gan["score matching"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["diff_roar", "blocks"])
def test_a_rerun_has_the_same_digest(part, tmp_path):
    for file in papers.DATA.values():
        draw = np.random.default_rng(0)
        labels = draw.integers(0, 10, 300)
        np.savez(tmp_path / file, x=draw.integers(0, 256, (300, 28, 28), dtype=np.uint8), y=labels)
    sizes = replace(papers.SIZES[part], epochs=1, retrain_epochs=1, fractions=(0.5, 1.0), seeds=(0,))
    torch.set_num_threads(1)
    first = papers.measure(part, tmp_path, sizes, tmp_path / "store")
    again = papers.measure(part, tmp_path, sizes, tmp_path / "store")
    fresh = papers.measure(part, tmp_path, sizes, tmp_path / "another")
    assert first == again
    assert first["digest"] == fresh["digest"]
