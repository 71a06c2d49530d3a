"""Where terms lie on the input: layouts after which the share of each pixel in f(x) is known."""

import math

import pytest
import torch
from torch import nn

from captum_density.attr import FullGrad


def windows(x, size):
    """(N, H, W, C) to (N * H/s * W/s, s * s, C), windows folded into the batch as in Swin."""
    n, h, w, c = x.shape
    x = x.view(n, h // size, size, w // size, size, c).transpose(2, 3)
    return x.reshape(-1, size * size, c)


LAYOUTS = {
    "as it is": lambda x: x,
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "tokens in another order": lambda x: x.flatten(2)[:, :, torch.arange(23, -1, -1)],
    "rolled": lambda x: x.roll((1, -2), (2, 3)),
    "flipped": lambda x: x.flip(3),
    "sides swapped": lambda x: x.transpose(2, 3),
    "windows": lambda x: windows(x.permute(0, 2, 3, 1), 2),
    "rolled windows": lambda x: windows(x.permute(0, 2, 3, 1).roll((1, 1), (1, 2)), 2),
    "halves swapped": lambda x: torch.cat(x.chunk(2, 3)[::-1], 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_term_of_one_pixel_lies_on_it(layout):
    # f(x) = sum_p exp(x_p): gradient times input gives x_p exp(x_p), the remainder exp(x_p) (1 - x_p), and a bias term
    # is shared among the channels of its place.
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    move = LAYOUTS[layout]

    def model(x):
        return move(x).exp().reshape(len(x), -1).sum(1)

    parts = FullGrad(model, complete=True).attribute(x)
    torch.testing.assert_close(parts.sum(1), x.exp().sum(1), rtol=1e-12, atol=1e-12)


def with_class_token(tokens):
    return torch.cat([torch.full_like(tokens[:, :1], 0.3).detach(), tokens], 1)


@pytest.mark.parametrize(
    ("arrange", "spread"),
    [(lambda tokens: tokens, 0.0), (with_class_token, math.exp(0.3) / 6), (lambda tokens: tokens.flip(1), 0.0)],
    ids=["patches", "patches and a class token", "patches in another order"],
)
def test_a_term_of_a_patch_lies_on_its_patch(arrange, spread):
    # f(x) is the sum over patches of exp(w . patch): no patch has a share in what is another's. A class token is
    # constant and has no place: its exp(0.3) is spread over the image of six patches.
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    embed = nn.Conv2d(3, 1, 4, stride=4, bias=False).double()

    def model(x):
        return arrange(embed(x).flatten(1)).exp().sum(1)

    parts = FullGrad(model, complete=True).attribute(x)
    of_patches = 16 * nn.functional.avg_pool2d(parts.sum(1), 4)
    torch.testing.assert_close(of_patches, embed(x)[:, 0].exp() + spread, rtol=1e-12, atol=1e-12)
