"""The experiments on the papers' claims, small; and the page, which says what the results say."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.experiments import papers, papers_density, papers_diff_roar, papers_full_grad
from tests.experiments.real_data import Parts, digest, images

PAGE = Path(__file__).parents[2] / "tutorials" / "guides" / "papers.md"
RESULTS = json.loads(papers.RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "table"), papers.tables(RESULTS).items())
def test_the_page_has_the_tables(name, table):
    assert table in PAGE.read_text(encoding="utf-8"), f"print {name} by --table"


def test_figures_have_their_digests_and_seeds():
    assert list(RESULTS) == list(papers.SIZES)
    for part, result in RESULTS.items():
        assert result["seeds"] == list(papers.SIZES[part].seeds)
        assert result["digest"] == digest(result["figures"])


def test_what_the_page_says():
    for part in papers.NETWORKS:
        for seeds in RESULTS[part]["figures"].values():
            for seed in seeds:
                assert seed["score"]["robust"][1] > seed["score"]["standard"][1]
    photographs = RESULTS["full_grad"]["figures"]["photographs"]["black"]
    changes = {name: np.mean(pictures, axis=0) for name, pictures in photographs.items()}
    assert all((changes["FullGrad"] <= other).all() for other in changes.values())
    for networks in (result["networks"] for result in RESULTS["density"]["figures"].values()):
        gan = {kind: np.mean([row["gan_test"] for row in rows]) for kind, rows in networks.items()}
        assert gan["anti score matching"] < gan["plain"] < gan["score matching"]


def idx(array):
    """The format of MNIST's files."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """MNIST of noise as torchvision's files, Fashion-MNIST, the same images in another order, as NumPy's."""
    x = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    y = (np.arange(100) % 10).astype(np.uint8)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(idx(x))
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(y))
    np.savez(tmp_path / papers.DATA["FashionMNIST"], x=x[::-1], y=y[::-1])
    return tmp_path


def test_images_are_the_same_whatever_the_file_and_its_order(folder):
    one, other = (images(folder, name) for name in papers.DATA)
    assert [len(part[1]) for part in one] == [70, 10, 20]
    assert one.train[0].shape == (70, 1, 28, 28) and one.train[0].max() == 1
    for parts in zip(one, other, strict=True):
        assert torch.equal(parts[0][0], parts[1][0]) and torch.equal(parts[0][1], parts[1][1])


def test_removing_what_does_not_matter_changes_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    with torch.no_grad():
        model[1].weight[:, 392:] = 0
    half = torch.arange(784.0).lt(392).float().view(1, 1, 28, 28)
    x = torch.rand(4, 1, 28, 28)
    right, wrong = (
        papers_full_grad.changes(model, x, lambda model, x, y, sign=sign: sign * half.expand_as(x) + 1, 0.0)
        for sign in (1, -0.5)
    )
    assert right.shape == (len(papers_full_grad.REMOVED), 4)
    assert right.max() < 1e-6 < wrong.max()


TINY = {
    **dict.fromkeys(
        papers.NETWORKS, papers_diff_roar.Sizes(epochs=1, retrain_epochs=1, fractions=(0.5, 1.0), seeds=(0,))
    ),
    "blocks": papers_diff_roar.Sizes(epochs=1, seeds=(0,)),
    "density": papers_density.Sizes(epochs=1, samples=1, steps=2, examples=10, weights=(1e-3,), seeds=(0,)),
    "full_grad": papers_full_grad.Sizes(epochs=1, examples=5, samples=2, seeds=(0,)),
}


@pytest.mark.filterwarnings("ignore:Setting forward")  # Captum's
@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=() if part == "full_grad" else pytest.mark.slow) for part in TINY]
)
def test_a_rerun_has_the_same_digest_and_the_store_is_read(part, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(papers_full_grad, "measure_photographs", lambda parts, sizes: {})
    monkeypatch.setattr(papers, "DATA", ["MNIST"])
    first, fresh = (papers.measure(part, folder, TINY[part], tmp_path / store) for store in ("store", "another"))
    assert first["figures"] == fresh["figures"] and first["digest"] == fresh["digest"]
    call = Parts.__call__

    def of_the_store(parts, identity, compute):
        return call(parts, identity, lambda: pytest.fail("it is in the store"))

    monkeypatch.setattr(Parts, "__call__", of_the_store)
    assert papers.measure(part, folder, TINY[part], tmp_path / "store") == first
