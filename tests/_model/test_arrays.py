"""NumPy arrays as tensors: every kind that PyTorch knows, and what it refuses to share."""

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from torch import nn
from torch.testing import assert_close

from captum_density._model.arrays import as_tensors, takes_arrays

X = np.arange(12.0, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?", "c8"])
def test_dtypes_are_kept(dtype):
    array = X.astype(dtype)
    assert_close(as_tensors(array), torch.from_numpy(array))


@pytest.mark.parametrize(
    "array",
    [
        X[::-1],
        X[:, ::-2],
        X.T,
        X.astype(">f4"),
        X.astype(">f4")[::-1],
        np.broadcast_to(X, (2, 3, 4)),  # read only
        np.zeros(3, [("a", "i1"), ("x", "f4")])["x"],  # strides of no whole number of elements
        np.array(3.0, dtype=np.float32),
        X[:0],
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}{array.strides}",
)
def test_what_pytorch_cannot_share_is_copied(array):
    with np.errstate(all="raise"):
        assert_close(as_tensors(array), torch.tensor(array.astype(np.float32).tolist()).reshape(array.shape))


def test_memory_is_shared_where_it_can_be():
    assert as_tensors(X).data_ptr() == X.ctypes.data


def test_containers_hold_tensors_and_stay_themselves_without_arrays():
    mapping = as_tensors({"a": X, "b": (X, [X, 1]), "c": None})
    assert_close(mapping["a"], torch.from_numpy(X))
    assert_close(mapping["b"][1][0], torch.from_numpy(X))
    assert mapping["b"][1][1] == 1 and mapping["c"] is None
    for value in ((torch.ones(1), 2), [1, 2], {"a": 1}, "text", None, 3.0, torch.Size((1, 2))):
        assert as_tensors(value) is value


def test_numbers_are_pythons():
    number = as_tensors((np.int64(3), [np.float32(0.5)], np.bool_(True)))
    assert number == (3, [0.5], True)
    assert [type(number[0]), type(number[1][0]), type(number[2])] == [int, float, bool]


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.array(["2020-01-01"], dtype="M8[D]")])
def test_what_is_no_number_is_refused(array):
    with pytest.raises(TypeError, match=r"array\.astype"):
        as_tensors(array)


def test_arrays_go_where_the_model_is():
    @takes_arrays
    def devices(*args, **kwargs):
        return [value.device.type for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]

    model, tensor = nn.Linear(3, 2, device="meta"), torch.ones(1)
    assert devices(nn.ReLU(), model, X, tensor, y=X) == ["meta", "cpu", "meta"]
    assert devices(Saliency(model), X) == devices(X, model=model) == ["meta"]
    assert devices(nn.ReLU(), X) == ["cpu"]


def test_arguments_by_position_and_by_name():
    @takes_arrays
    def function(x, *, y):
        """Its own."""
        return x + y

    assert_close(function(X, y=X), torch.from_numpy(2 * X))
    assert function.__doc__ == "Its own." and function.__name__ == "function"
