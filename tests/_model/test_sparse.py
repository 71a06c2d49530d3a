"""Models with sparse weights, as buffers and as parameters."""

import pytest
import torch
from torch import nn

from captum_density._model.random_weights import RandomWeights
from captum_density.attr import CompleteDeepLift, FullGrad
from captum_density.audit import audit
from captum_density.losses import ScoreMatchingLoss
from captum_density.retraining import Examples, Job, fit_many
from captum_density.testing import assert_complete

X, LABELS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
FIGURES = ["randomisation", "shift_sensitivity"]
layouts = pytest.mark.parametrize("layout", LAYOUTS)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC) tensor support"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


class Sparse(nn.Module):
    """A sparse layer below a dense one; layout None makes it dense."""

    def __init__(self, layout, trained=False, moves=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(6, 8, generator=generator)
        weight[torch.rand(6, 8, generator=generator) < 0.5] = 0
        weight = weight if layout is None else weight.to_sparse(layout=layout)
        if trained:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.scale, self.head = nn.Parameter(torch.ones(6, 1)), nn.Linear(6, 3)
        nn.init.ones_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.moves = moves

    def forward(self, x):
        if self.moves:
            self.weight = self.weight * 2
        return self.head((self.scale * (self.weight @ x.mT)).mT.sigmoid())


@layouts
def test_explanations_and_losses_are_those_of_the_dense_model(layout):
    sparse, dense = Sparse(layout), Sparse(None)
    for explain in (
        lambda m: FullGrad(m).attribute(X, LABELS),
        lambda m: CompleteDeepLift(m).attribute(X, 0 * X, LABELS),
        lambda m: ScoreMatchingLoss(generator=torch.Generator().manual_seed(0))(m, X, LABELS),
        lambda m: torch.autograd.grad(ScoreMatchingLoss("exact")(m, X, LABELS), [m.scale, m.head.weight]),
    ):
        torch.testing.assert_close(explain(sparse), explain(dense))
    assert_complete(FullGrad(sparse).decompose(X, LABELS))


@layouts
def test_a_sparse_buffer_that_moves_is_refused(layout):
    with pytest.raises(ValueError, match=r"changes its buffer 'weight'.*model\.eval"):
        ScoreMatchingLoss()(Sparse(layout, moves=True), X, LABELS)


@pytest.mark.parametrize("trained", [False, True])
@layouts
def test_an_audit_and_its_store(layout, trained, tmp_path):
    def report(model):
        return audit(model, (X, LABELS), ["Saliency"], metrics=FIGURES, store=tmp_path)

    first = report(Sparse(layout, trained))
    assert not any(first.methods["Saliency"][figure].failed for figure in FIGURES)
    files = len(list(tmp_path.iterdir()))
    report(Sparse(layout, trained))
    assert len(list(tmp_path.iterdir())) == files, "the model was not recognised"
    other = Sparse(layout, trained)
    with torch.no_grad():
        other.weight = nn.Parameter(2 * other.weight) if trained else 2 * other.weight
    report(other)
    assert len(list(tmp_path.iterdir())) > files


@pytest.mark.parametrize("trained", [False, True])
@layouts
def test_retraining_is_refused(layout, trained):
    with pytest.raises(ValueError, match=r"such as 'weight'.*to_dense"):
        fit_many(lambda: Sparse(layout, trained), [Job(Examples((X, LABELS), (X, LABELS)))])


@layouts
def test_sparse_weights_are_drawn_where_they_are(layout):
    model = Sparse(layout, trained=True)
    before = model.weight.detach().to_dense()
    with RandomWeights(model, X, seed=0).drawn_anew():
        drawn = model.weight.detach().to_dense()
    assert torch.equal(drawn != 0, before != 0) and not torch.equal(drawn, before)
    assert torch.equal(drawn.flatten().sort()[0], before.flatten().sort()[0])
    assert torch.equal(model.weight.detach().to_dense(), before)
