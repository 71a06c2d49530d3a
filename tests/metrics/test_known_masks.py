import pytest
import torch
from torch.testing import assert_close

from captum_density.metrics import pointing_game, relevance_mass, relevance_rank, signal_block_share

MASKS = torch.rand(5, 1, 4, 6, generator=torch.Generator().manual_seed(1)) > 0.75
MAPS = torch.randn(5, 2, 4, 6, generator=torch.Generator().manual_seed(0))


def test_against_a_slow_form():
    inside = MASKS.expand_as(MAPS)
    for signed in (False, True):
        for a, m, rank, hit in zip(
            MAPS,
            inside,
            relevance_rank(MAPS, MASKS, signed=signed),
            pointing_game(MAPS, MASKS, signed=signed),
            strict=True,
        ):
            values = [
                (v if signed else abs(v), bool(k))
                for v, k in zip(a.flatten().tolist(), m.flatten().tolist(), strict=True)
            ]
            order = sorted(values, key=lambda pair: -pair[0])
            size = sum(k for _, k in values)
            assert rank.item() == pytest.approx(sum(k for _, k in order[:size]) / size)
            assert hit.item() == order[0][1]


def test_mass_is_the_share_of_absolute_values_or_of_positive_ones():
    assert_close(relevance_mass(MAPS, MASKS), signal_block_share(MAPS, MASKS))
    inside, positive = MASKS.expand_as(MAPS), MAPS.clamp_min(0)
    want = (positive * inside).sum((1, 2, 3)) / positive.sum((1, 2, 3))
    assert_close(relevance_mass(MAPS, MASKS, positive=True), want)


def test_what_marks_all_that_decides_is_perfect():
    perfect = MASKS.expand_as(MAPS).float()
    for metric in (relevance_mass, relevance_rank, pointing_game):
        assert (metric(perfect, MASKS) == 1).all()
        assert (metric(1 - perfect, MASKS) == 0).all()


@pytest.mark.parametrize("metric", [relevance_rank, pointing_game])
def test_a_mask_of_nothing_is_refused(metric):
    with pytest.raises(ValueError, match="leave out the examples"):
        metric(MAPS, torch.zeros_like(MASKS))
    with pytest.raises(TypeError, match=r"masks > 0"):
        metric(MAPS, MASKS.float())
