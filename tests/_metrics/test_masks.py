"""Which elements count: the order of ties, and counts that add up, over every dtype and fraction.

Of the private parts on purpose: a public call trains or perturbs something for each of these cases.
"""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_density.metrics._masks import ranks, top_count

UNIT = st.one_of(
    st.floats(0, 1),
    st.builds(lambda a, b: min(a, b) / max(a, b, 1), st.integers(0, 40), st.integers(0, 40)),
    st.sampled_from([5e-324, 2.0**-54, 2.0**-53, 0.5 - 2.0**-54, 0.5 + 2.0**-53, 1 - 2.0**-53]),
)
# With many ties, zeros of both signs among them.
ROWS = st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 5e-324, 1.0, 1e300]), min_size=1, max_size=40)


@given(ROWS)
def test_ranks_are_those_of_a_stable_sort(row):
    result = ranks(torch.tensor([row, row[::-1]], dtype=torch.float64))
    assert result.dtype == torch.int64
    for values, places in zip((row, row[::-1]), result.tolist(), strict=True):
        assert sorted(places) == list(range(len(row)))
        # Once more, by Python's sort: larger ones first, of equal ones (0.0 == -0.0) the first one first.
        order = sorted(range(len(row)), key=lambda i: (-values[i], i))
        assert [order.index(i) for i in range(len(row))] == places


@given(ROWS, st.integers(0, 40))
def test_below_k_are_the_k_largest(row, k):
    top = ranks(torch.tensor([row], dtype=torch.float64))[0] < k
    values = torch.tensor(row, dtype=torch.float64)
    assert int(top.sum()) == min(k, len(row))
    if 0 < k < len(row):
        assert values[top].min() >= values[~top].max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_long_rows_of_one_value_stay_in_order(dtype):
    # Sorting algorithms change with the length; unstable ones show only beyond a few dozen.
    assert torch.equal(ranks(torch.zeros(2, 5000, dtype=dtype)), torch.arange(5000).expand(2, -1))
    signs = torch.where(torch.arange(5000) % 3 == 0, -0.0, 0.0).to(dtype)[None]
    assert torch.equal(ranks(signs)[0], torch.arange(5000))


@given(UNIT, st.integers(0, 200_000))
def test_counts_are_to_the_nearest(fraction, d):
    assert abs(Fraction(fraction) * d - top_count(fraction, d)) <= Fraction(1, 2) + Fraction(2, 10**6)
    assert 0 <= top_count(fraction, d) <= d


@given(st.integers(0, 1000), st.integers(1, 3000))
def test_decimals_count_as_written_halves_up(thousandths, d):
    expected = math.floor(Fraction(thousandths, 1000) * d + Fraction(1, 2))
    assert top_count(thousandths / 1000, d) == expected
    # The same number, as a subtraction leaves it: 1 - 0.9 is below 0.1.
    assert top_count(1 - (1000 - thousandths) / 1000, d) == expected


@given(UNIT, st.integers(0, 200_000))
def test_a_fraction_and_its_complement_share_all(fraction, d):
    # What is kept of the top, and what is kept of the bottom by the count of the complement's complement.
    complement = 1 - fraction
    assert top_count(fraction, d) == top_count(1 - complement, d)


@given(st.lists(UNIT, min_size=2, max_size=5), st.integers(0, 1000))
def test_more_is_never_fewer(fractions, d):
    counts = [top_count(fraction, d) for fraction in sorted(fractions)]
    assert counts == sorted(counts)
