"""Rewrite a network into another that computes the same function: what implementation invariance is tested with."""

from captum_density.rewriting._fold import fold_batch_norm as fold_batch_norm
from captum_density.rewriting._identity import insert_identity as insert_identity
from captum_density.rewriting._permute import permute_hidden_units as permute_hidden_units
from captum_density.rewriting._split import split_layer as split_layer

__all__ = ["fold_batch_norm", "insert_identity", "permute_hidden_units", "split_layer"]


def __dir__() -> list[str]:
    return __all__
