"""Weights as PyTorch and training scripts save them, loaded by the command or refused in one line."""

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import ToTensor

from tests._command.users import audited, check_model_figures, of_folder, refused, user_model, write_images

OPTIONS = ["--metrics", "accuracy", "gradient_norm", "--attributions", "Saliency"]


def under(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def other(state):
    """Weights that fit as well, and are others."""
    return {key: value + 1 for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrapped", "told"),
    [
        (lambda state: {"state_dict": state, "epoch": 3}, "['state_dict']"),
        (lambda state: {"model_state_dict": state, "optimizer": {"state": {0: {}}}}, "['model_state_dict']"),
        (lambda state: {"model": state, "args": Namespace(lr=0.1)}, "['model']"),
        (lambda state: {"net": state, "acc": 0.9}, "['net']"),
        (lambda state: {"ema": state}, "['ema']"),
        (lambda state: {"state_dict_ema": state, "arch": "net"}, "['state_dict_ema']"),
        (lambda state: {"student": {"weights": state}}, "['student']['weights']"),
        (lambda state: {"ema": other(state), "state_dict": state}, "['state_dict']; beside it: ['ema']"),
        (lambda state: {"state_dict": {"a": torch.zeros(2)}, "ema": state}, "['ema']; beside it: ['state_dict']"),
        (lambda state: under("module.", state), "without the prefix 'module.'"),
        (lambda state: {"state_dict": under("module.", state)}, "['state_dict'], without the prefix 'module.'"),
        (lambda state: under("_orig_mod.", state), "without the prefix '_orig_mod.'"),
        (lambda state: under("module._orig_mod.", state), "without the prefix 'module._orig_mod.'"),
        (lambda state: under("_orig_mod.module.", state), "without the prefix '_orig_mod.module.'"),
        (lambda state: {"model_ema": {"n_averaged": torch.tensor(3), **under("module.", state)}}, "['model_ema'], w"),
        (
            lambda state: {"state_dict": under("model.", state), "hyper_parameters": {"lr": 0.1}, "loops": {}},
            "['state_dict'], without the prefix 'model.'",
        ),
        (
            lambda state: {"state_dict": under("net.", state) | {"loss.weight": torch.ones(3)}},
            "['state_dict'], what begins with 'net.', without loss.weight",
        ),
    ],
)
def test_weights_as_training_scripts_save_them(wrapped, told, user, undrawn, capsys):
    model = user_model()
    torch.save(wrapped(model.state_dict()), "weights.pt")
    report = audited("--weights", "weights.pt", *OPTIONS)
    check_model_figures(report, model, *of_folder("images", ToTensor()))
    assert f"--weights: of weights.pt, {told}" in capsys.readouterr().out


def test_weights_alone_are_loaded_without_a_word(user, undrawn, capsys):
    torch.save(user_model().state_dict(), "weights.pt")
    audited("--weights", "weights.pt", *OPTIONS)
    assert "--weights" not in capsys.readouterr().out


def test_averaged_weights(user, undrawn):
    averaged = AveragedModel(user_model())
    for seed in (2, 3):
        averaged.update_parameters(user_model(seed=seed))
    torch.save(averaged.state_dict(), "weights.pt")
    report = audited("--weights", "weights.pt", *OPTIONS)
    check_model_figures(report, averaged.module.eval(), *of_folder("images", ToTensor()))


def older_vision_transformer(state):
    """The names that torchvision's MLPBlock had before its version 2."""
    for number, old in (("0", "linear_1"), ("3", "linear_2")):
        state = {key.replace(f".mlp.{number}.", f".mlp.{old}."): value for key, value in state.items()}
    return state


def older_weight_norm(state):
    for number, letter in (("0", "g"), ("1", "v")):
        name = f"parametrizations.weight.original{number}"
        state = {key.replace(name, f"weight_{letter}"): value for key, value in state.items()}
    return state


@pytest.mark.parametrize(
    ("name", "older", "side"),
    [
        ("normed", lambda state: {key: v for key, v in state.items() if "num_batches_tracked" not in key}, 8),
        ("vit", older_vision_transformer, 16),
        ("weight_normed", older_weight_norm, 8),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_an_older_version_that_pytorch_loads(name, older, side, prefix, user, undrawn):
    images = write_images(user / "of its size", sizes=(side,), n=2)
    model = user_model(name)
    state = older(dict(model.state_dict()))
    assert state.keys() != model.state_dict().keys()
    torch.save(under(prefix, state), "weights.pt")
    report = audited("--weights", "weights.pt", *OPTIONS, model=name, data=str(images))
    check_model_figures(report, model, *of_folder(images, ToTensor()))


def test_modules_read_the_version_that_wrote_them(user, undrawn):
    """As a module of the user's does that stored half of its weights before its version 2."""
    text = Path("my_package/model.py").read_text()
    Path("my_package/model.py").write_text(
        text
        + """

class Halved(Net):
    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        if (local_metadata.get("version") or 1) < 2:
            state_dict = {key: 2 * value for key, value in state_dict.items()}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def halved():
    return Halved()
"""
    )
    model = user_model("halved")
    state = model.state_dict()
    torch.save(state, "weights.pt")
    x, y = of_folder("images", ToTensor())
    check_model_figures(audited("--weights", "weights.pt", *OPTIONS, model="halved"), model, x, y)
    wrapped = OrderedDict(under("module.", state))
    wrapped._metadata = OrderedDict({f"module.{key}".rstrip("."): value for key, value in state._metadata.items()})
    torch.save(wrapped, "weights.pt")
    check_model_figures(audited("--weights", "weights.pt", *OPTIONS, model="halved"), model, x, y)


def endless():
    content = {}
    content["state_dict"] = content
    return content


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path, state: path.write_bytes(b""), "holds no weights that torch.load(weights_only=True) reads"),
        (lambda path, state: path.write_text("not weights"), "holds no weights"),
        (lambda path, state: path.write_bytes(_saved(state)[:-200]), "holds no weights"),
        (lambda path, state: torch.save(user_model(), path), "holds no weights"),
        (
            lambda path, state: torch.save([1, 2], path),
            "must hold a state dict, alone or under a key such as state_dict",
        ),
        (lambda path, state: torch.save({"lr": 0.1, "epoch": 3}, path), "but holds a dict with the keys lr, epoch"),
        (lambda path, state: torch.save(endless(), path), "but holds a dict with the keys state_dict; save model"),
        (lambda path, state: torch.save({1: torch.zeros(2)}, path), "but holds a dict with the keys 1; save model"),
        (
            lambda path, state: torch.save({}, path),
            "4 missing (convolution.weight, convolution.bias, linear.weight,",
        ),
        (lambda path, state: torch.save(_without(state), path), "does not fit the model: 1 missing (linear.bias)"),
        (
            lambda path, state: torch.save({key: value.to_sparse() for key, value in state.items()}, path),
            "does not fit the model: 4 sparse, nested or quantised; save them dense (convolution.weight,",
        ),
        (lambda path, state: torch.save(state | {"head": torch.zeros(2)}, path), "1 unexpected (head)"),
        (
            lambda path, state: torch.save(state | {"linear.weight": torch.zeros(5, 64)}, path),
            "1 of another shape (linear.weight is (5, 64) and should be (3, 64))",
        ),
    ],
)
def test_bad_weights_are_one_line(write, words, user, capsys):
    write(user / "weights.pt", user_model().state_dict())
    message = refused(capsys, "--model", "my_package.model:build", "--data", "images", "--weights", "weights.pt")
    assert "--weights: weights.pt " in message and words in message


def _saved(state):
    torch.save(state, "whole.pt")
    return Path("whole.pt").read_bytes()


def _without(state):
    return {key: value for key, value in state.items() if key != "linear.bias"}
