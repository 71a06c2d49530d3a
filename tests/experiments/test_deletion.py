"""The experiment on deletions, small; and the guide, which has what the results say."""

import json
from pathlib import Path

import pytest
import torch

from captum_density.retraining import FitConfig
from tests.experiments import deletion
from tests.experiments.real_data import CLASSES, DATA, Images, Parts, digest, rounded

GUIDE = (Path(__file__).parents[2] / "tutorials" / "guides" / "retraining.md").read_text(encoding="utf-8")
RESULTS = json.loads(deletion.RESULTS.read_text(encoding="utf-8"))
FIGURES = RESULTS["figures"]


@pytest.mark.parametrize(("name", "table"), deletion.tables(FIGURES).items())
def test_the_guide_has_the_tables(name, table):
    assert table in GUIDE, f"print {name} by --table"


def test_what_the_guide_says():
    assert RESULTS["digest"] == digest(FIGURES)
    assert f"{RESULTS['seconds']} seconds of a core" in GUIDE
    (whole, deleted), (whole_tuned, deleted_tuned) = FIGURES["holes"].values()
    assert whole == whole_tuned
    sentence = f"accuracy is {deleted:.3f} as trained and {deleted_tuned:.3f} fine-tuned ({whole:.3f} on whole images"
    assert sentence in " ".join(GUIDE.split())
    assert list(FIGURES["idsds"]) == list(DATA)
    for seeds in FIGURES["idsds"].values():
        assert len(seeds) == len(deletion.SEEDS)
        for kinds in seeds:
            assert kinds["in-domain"]["deleted"] > kinds["as trained"]["deleted"]
            for scores in (kind["scores"] for kind in kinds.values()):
                assert scores["constant"] == 0
                assert max(scores, key=scores.get) == "IntegratedGradients"


def test_a_rerun_has_the_same_figures_and_the_store_is_read(tmp_path, monkeypatch):
    noise = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(20) % CLASSES
    data = Images(noise, noise, noise)
    for name, value in {
        "images": lambda folder, name: data,
        "DATA": ["MNIST"],
        "SEEDS": range(1),
        "RUNS": 1,
        "EXAMPLES": 4,
        "TRAINING": FitConfig(epochs=1),
        "TUNING": FitConfig(epochs=1, lr=1e-3),
    }.items():
        monkeypatch.setattr(deletion, name, value)
    first = deletion.measure(tmp_path, tmp_path)
    assert first["figures"]["idsds"]["MNIST"] == [rounded(deletion.idsds(data, 0))]
    assert list(deletion.tables(first["figures"])) == list(deletion.tables(FIGURES))
    call = Parts.__call__

    def of_the_store(parts, identity, compute):
        return call(parts, identity, lambda: pytest.fail("it is in the store"))

    monkeypatch.setattr(Parts, "__call__", of_the_store)
    assert deletion.measure(tmp_path, tmp_path) == first
