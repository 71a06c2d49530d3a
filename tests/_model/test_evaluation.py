"""What a model is evaluated within: norms that have third derivatives."""

import pytest
import torch
from torch import nn

from captum_density._model.evaluation import DifferentiableNorms


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_from_its_definition(affine):
    x, norm = torch.randn(4, 3, 5, 2), nn.InstanceNorm2d(3, affine=affine, track_running_stats=True)
    for p in norm.parameters():
        nn.init.normal_(p)
    for training in (True, False):
        expected = norm.train(training)(x)
        with DifferentiableNorms():
            torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_from_its_definition(shape, affine):
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    norm = nn.LayerNorm(shape, elementwise_affine=affine).double()
    for p in norm.parameters():
        nn.init.normal_(p)
    expected = norm(x)
    with DifferentiableNorms():
        torch.testing.assert_close(norm(x), expected)
        torch.testing.assert_close(torch.layer_norm(x, shape, norm.weight, norm.bias, norm.eps, False), expected)
        assert norm.half()(x.half()).dtype == torch.float16
