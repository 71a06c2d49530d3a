"""`python -m captum_density`: the main job from the command line; arguments only, the work is elsewhere."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from captum_density import __version__


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the arguments)\n")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the folder has no name")
    path = Path(text)
    try:
        nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists() or folder.is_symlink())
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise argparse.ArgumentTypeError(f"cannot write to {path}: {error.strerror}") from error
    if not nearest.is_dir():
        raise argparse.ArgumentTypeError(f"{nearest} exists and is not a folder")
    return path


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m captum_density",
        description="Train a small network on scikit-learn's embedded digits, explain test digits with Captum's "
        "methods and the FullGrad family side by side, print a table (accuracy; per method the completeness gap, "
        "infidelity, sensitivity_max, shift sensitivity and seconds), print a picture into the gradients that leaves "
        "the softmax as it was, train three more networks with losses of the density that logits imply (score "
        "matching, its opposite, gradient norm), print what that does to density and gradients, and write "
        "saliency.png, softmax_shift.png, density_ratio.png, samples.png, pixel_perturbation.png, table.md and "
        "report.json. Takes about a minute; --diff-roar adds less than half a minute.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=_folder, default=Path("report"), metavar="DIR", help="folder to write to")
    parser.add_argument("--seed", type=_seed, default=0, help="seed of the training and of every perturbation")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train and to explain")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="half the epochs, a quarter of the explained digits and of the samples, a fifth of the noise: half a "
        "minute, for figures that are rough and networks whose densities the losses have hardly shaped yet",
    )
    parser.add_argument(
        "--diff-roar",
        action="store_true",
        help="also ask which 2x2 patches matter: retrain some hundred small networks on the patches that Saliency, "
        "IntegratedGradients and FullGrad rank highest, and lowest, with controls, and write diff_roar.png",
    )
    parser.add_argument("--version", action="version", version=f"captum-density {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the main job with command line arguments.

    Args:
        arguments: the arguments after the program's name; None takes them from ``sys.argv``.

    Raises:
        SystemExit: with status 2 after a bad argument, and 1 where scikit-learn is missing; one line says why.
    """
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: cuda was asked for, and PyTorch finds no CUDA device here; use cpu")
    # Only now: `--help` and a bad argument answer without loading the rest.
    from captum_density import _demo

    try:
        effort = _demo.QUICK if parsed.quick else _demo.FULL
        _demo.run(parsed.out, seed=parsed.seed, device=parsed.device, effort=effort, with_diff_roar=parsed.diff_roar)
    except OSError as error:
        parser.error(f"argument --out: cannot write to {parsed.out}: {error}")
    except ImportError as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error


if __name__ == "__main__":
    main()
