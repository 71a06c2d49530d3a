"""The paper's effects, where what decides is known: H. Shah, P. Jain and P. Netrapalli, arXiv:2102.12781.

Bounds were set beforehand, or lie below what 8 seeds gave: `python -m tests.experiments.leakage` prints those.
"""

import gzip
import struct
from dataclasses import replace

import pytest
import torch

from captum_density.datasets import block_digits
from captum_density.retraining import FitConfig
from tests.experiments import leakage


def test_distinct_examples_are_those_of_equation_2():
    x, y = leakage.distinct(5)
    assert x.shape == (10, 10) and (x != 0).sum(1).tolist() == [1] * 10
    assert torch.equal(x.sum(1), 2.0 * y - 1)
    assert (x[:, 5:] == 0).all()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_gradients_of_a_standard_network_leak_and_those_of_a_robust_one_do_not(seed):
    standard, robust = (leakage.leak(leakage.synthetic_model(radius, seed)) for radius in (0.0, leakage.LINF))
    assert standard.share < 0.25  # alike on the five blocks, 0.2
    assert standard.on_top < 0.3
    assert standard.relevant > 0.85
    assert robust.share > 0.5
    assert robust.on_top == 1


def test_theorem_1_gradients_are_alike_on_relevant_blocks_and_nothing_on_noise_blocks_as_width_grows():
    narrow, wide, wider = (
        torch.tensor([leakage.theorem_1(width, seed) for seed in range(3)]).mean(0) for width in (30, 300, 3000)
    )
    assert (wide < 0.6 * narrow).all() and (wider < 0.6 * wide).all()  # as the root of the width: 0.32
    assert (wider < torch.tensor([0.005, 0.01])).all()


@pytest.mark.slow
def test_diff_roar_tells_leaking_gradients_from_others():
    result = leakage.synthetic_diff_roar(seed=0, runs=2, fractions=(0.2,))
    standard, robust = result.score[:, 0].tolist()
    assert result.attributions == ("standard", "robust")
    assert standard <= -0.3
    assert robust >= 0.4
    assert result.control_score("random")[0, 0].abs() <= 0.05
    assert "ranks low predicts better" in result.conclusions[0]
    assert "ranks high predicts better" in result.conclusions[1]


@pytest.mark.slow
def test_gradients_of_block_digits_leak():
    data, top = block_digits(), block_digits(position="top")
    fit = replace(leakage.DIGITS, epochs=25)
    standard, accuracy = leakage.block_share(data, leakage.block_model(data, 0.0, seed=0, fit=fit))
    robust, robust_accuracy = leakage.block_share(data, leakage.block_model(data, leakage.DIGITS_LINF, 0, fit))
    assert standard < 0.56
    assert robust > 0.72
    assert leakage.block_share(top, leakage.block_model(top, 0.0, 0, fit))[0] > 0.8
    assert accuracy > 0.9 and robust_accuracy > 0.85


@pytest.mark.slow
def test_effects_hold_on_eight_seeds():
    seeds = range(8)
    for seed in seeds:
        data, top = block_digits(seed=seed), block_digits(position="top", seed=seed)
        assert leakage.block_share(data, leakage.block_model(data, 0.0, seed))[0] < 0.56
        assert leakage.block_share(data, leakage.block_model(data, leakage.DIGITS_LINF, seed))[0] > 0.72
        assert leakage.block_share(top, leakage.block_model(top, 0.0, seed))[0] > 0.8
    results = [leakage.synthetic_diff_roar(seed) for seed in seeds]
    k = results[0].fractions.index(0.2)
    scores = torch.stack([result.score[:, k] for result in results])
    assert scores[:, 0].max() <= -0.3 and scores[:, 1].min() >= 0.4
    assert torch.stack([result.control_score("random")[0, k] for result in results]).mean().abs() <= 0.05


@pytest.mark.slow
def test_patches_of_robust_gradients_predict_better_than_those_of_standard_ones():
    results = [leakage.block_diff_roar(seed) for seed in range(4)]
    standard, robust = torch.stack([result.score for result in results]).mean((0, 2))
    random = torch.stack([result.control_score("random") for result in results]).mean()
    assert robust > standard + 0.1  # standard is above random by 0.03 on 8 seeds, too little to ask for
    assert abs(random) < 0.03


def test_the_picture_is_drawn_from_the_data_set_s_own_files(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, n in (("train", 64), ("t10k", 16)):
        images = torch.randint(256, (n, 28, 28), dtype=torch.uint8)
        labels = (torch.arange(n) % 10).to(torch.uint8)
        for name, header, values in (
            ("images-idx3", struct.pack(">iiii", 2051, n, 28, 28), images),
            ("labels-idx1", struct.pack(">ii", 2049, n), labels),
        ):
            content = header + values.numpy().tobytes()
            (folder / f"{split}-{name}-ubyte").write_bytes(content)
            (folder / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    figure = leakage.picture(tmp_path, "random", fit=FitConfig(epochs=1))
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "standard", "robust"]
    assert figure.axes[0].images[0].get_array().shape == (56, 28)
    assert "signal block" in figure.get_supxlabel()
