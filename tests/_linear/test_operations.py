"""Completeness of every differentiable operation in PyTorch's own test data base, in place and out of place.

Run by hand (`pytest -m slow tests/_linear/test_operations.py`, needs expecttest): the data base is internal to PyTorch
and grows with it.
"""

import pytest
import torch

from captum_density._model.calls import map_tensors, tensors_in
from captum_density.attr import FullGrad

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# Operations that have no full gradient, and why. Whatever else fails is a defect of the engine.
EXCEPTIONS = {
    **dict.fromkeys(("acosh", "asinh", "atanh"), "PyTorch has no derivative of their in-place form"),
    **dict.fromkeys(
        ("_segment_reduce", "nn.functional.multi_margin_loss",
         "nn.functional.multilabel_margin_loss", "nn.functional.embedding_bag", "nn.functional.ctc_loss",
         "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu", "to_sparse"),
        "neither a forward-mode nor a second reverse-mode derivative, which the error says",
    ),
    **dict.fromkeys(
        ("as_strided_scatter", *(f"nn.functional.max_unpool{k}d" for k in (1, 2, 3))),
        "samples that write one element several times: their derivative is not that of their value",
    ),
    **dict.fromkeys(("linalg.eig", "linalg.eigh"), "eigenvectors are defined up to a phase"),
    **dict.fromkeys(
        ("cholesky_inverse", "cov", "logcumsumexp", "masked.median", "scatter_reduce", "triangular_solve",
         "nn.functional.linear_cross_entropy"),
        "PyTorch's forward-mode derivative disagrees with its backward on some samples, or loses digits",
    ),
    "nn.functional.fractional_max_pool3d": "draws its windows anew for each call",
    "nn.functional.batch_norm": "refused on batch statistics",
    **dict.fromkeys(("bfloat16", "half", "float", "cfloat", "chalf"), "rounds to fewer digits than the bound"),
}  # fmt: skip


def complete_or_undefined(function, sample):
    """Check one sample as a batch of one; those whose own forward or backward fails or is not finite say nothing."""
    tree = (sample.input, sample.args, sample.kwargs)
    operands = [t for t in tensors_in(tree) if t.requires_grad and t.is_floating_point()]
    if not operands or any(
        t.layout != torch.strided or t.numel() == 0 or not bool(t.isfinite().all()) for t in operands
    ):
        return False
    inputs = tuple(t.detach().unsqueeze(0) for t in operands)
    index = {id(t): i for i, t in enumerate(operands)}

    def model(*xs):
        first, args, kwargs = map_tensors(lambda t: xs[index[id(t)]][0] if id(t) in index else t, tree)
        value = torch.zeros((), dtype=torch.float64)
        for seed, y in enumerate(tensors_in(function(first, *args, **kwargs))):
            if y.requires_grad:
                y = torch.view_as_real(y) if y.is_complex() else y
                weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
                value = value + (y * weights).sum()
        return value.reshape(1)

    try:
        torch.manual_seed(5)
        output = model(*(x.clone().requires_grad_() for x in inputs))
        output.backward()
    except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
        return False
    if not bool(torch.isfinite(output)):
        return False
    torch.manual_seed(5)
    full = FullGrad(model).decompose(inputs)
    assert float(full.gap()) < 1e-9
    torch.testing.assert_close(full.output, output.detach())
    return True


def test_the_data_base():
    pytest.importorskip("expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    checked, failed = 0, {}
    for operation in op_db:
        if not operation.supports_autograd or operation.name in EXCEPTIONS:
            continue
        forms = [operation.op]
        if operation.inplace_variant is not None:
            forms.append(
                lambda a, *args, _f=operation.inplace_variant, **kwargs: _f(b := a.clone(), *args, **kwargs) * 0 + b
            )
        for sample in list(operation.sample_inputs("cpu", torch.float64, requires_grad=True))[:8]:
            for form in forms:
                try:
                    checked += complete_or_undefined(form, sample)
                except Exception as error:
                    failed.setdefault(operation.name, f"{type(error).__name__}: {error}")
    assert checked > 2000
    assert not failed
