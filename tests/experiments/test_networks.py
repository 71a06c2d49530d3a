"""Networks of other packages are complete, and lie alike in two layouts."""

import pytest

from tests.experiments.networks import build, measure, names

BOUNDS = {"gap": 1e-6, "gap, balanced": 1e-6, "gap, DeepLift": 1e-5, "twin": 1e-6}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", names())
def test_sums_and_places(name):
    pytest.importorskip({"timm": "timm", "transformers": "transformers"}.get(name.partition(":")[0], "torch_geometric"))
    pytest.importorskip("monai")
    row = measure(build(name))
    assert {key: row[key] for key, bound in BOUNDS.items() if not row[key] <= bound} == {}
