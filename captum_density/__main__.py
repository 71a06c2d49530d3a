"""`python -m captum_density`: the audit from the command line; arguments only, the work is elsewhere."""

import argparse
import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from captum_density import __version__


@contextmanager
def _interrupted_after() -> Iterator[None]:
    # NumPy and PyTorch that are interrupted while they are imported fail with errors of their own.
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {line} (--help lists the arguments)\n")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _device(text: str) -> str:
    if text == "cpu":
        return text
    with _interrupted_after():
        import torch  # seconds, which neither `--help` nor a bad argument need wait for

    try:
        kind = torch.device(text).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:0, got {text!r}")
    index = torch.device(text).index or 0
    if kind == "cuda" and (not torch.cuda.is_available() or index >= torch.cuda.device_count()):
        raise argparse.ArgumentTypeError(f"{text} was asked for, and PyTorch finds no such CUDA device here; use cpu")
    return text


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
        description="Can I trust this model's gradients? Measures a model and attribution methods on it side by side, "
        "says what follows in words, and writes report.html, report.json, table.md, figures.png and saliency.png. "
        "Without --model, it trains a small network on scikit-learn's embedded digits and audits that; prints a "
        "picture into its gradients that leaves the softmax as it was, and trains three more networks with losses "
        "of the density that logits imply (score matching, its opposite, gradient norm), which takes about a minute "
        "and writes softmax_shift.png, density_ratio.png, samples.png and pixel_perturbation.png as well.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", metavar="MODULE:BUILD", help="what returns the model, such as my_package.model:build"
    )
    parser.add_argument("--weights", metavar="FILE", help="a state dict to load, read with weights_only=True")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="a folder with a folder of images for each class, or package.module:dataset; images that cannot be "
        "read are named and skipped",
    )
    parser.add_argument(
        "--transform",
        metavar="NAME",
        help="for a folder of images: torchvision weights whose preset to apply, such as ResNet18_Weights.DEFAULT, or "
        "package.module:transform; values in [0, 1] without it",
    )
    parser.add_argument(
        "--attributions",
        nargs="+",
        metavar="NAME",
        help="methods, such as Saliency 'FullGrad, centered' IntegratedGradients, or package.module:function, which "
        "returns an attribution for a model; eight of them without it",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="figures: completeness_gap, infidelity, sensitivity_max, shift_sensitivity, pixel_perturbation, "
        "diff_roar, seconds; accuracy, density_ratio, gradient_norm, hessian_trace, gan_test; 'all', or 'default', "
        "which is all but diff_roar and gan_test",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="how many examples to audit; 64 without it")
    parser.add_argument(
        "--proxy", metavar="MODULE:BUILD", help="for gan_test: what returns another, trained classifier"
    )
    parser.add_argument("--train", metavar="DATA", help="for diff_roar: training data, as --data; tested on --data")
    parser.add_argument("--out", type=_folder, default=Path("report"), metavar="DIR", help="folder to write to")
    parser.add_argument("--seed", type=_seed, default=0, help="seed of everything that is drawn")
    parser.add_argument("--device", type=_device, default="cpu", help="where to run: cpu, cuda or cuda:1")
    parser.add_argument(
        "--resume", action="store_true", help="go on where an audit into the same folder, of the same things, stopped"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="for the digits: half the epochs, a quarter of the audited digits and of the samples, a fifth of the "
        "noise: half a minute, for figures that are rough and networks whose densities the losses have hardly shaped",
    )
    parser.add_argument("--version", action="version", version=f"captum-density {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the audit with command line arguments.

    Args:
        arguments: The arguments after the program's name; None takes them from ``sys.argv``.

    Raises:
        SystemExit: With status 2 after bad input, 1 where scikit-learn is missing, and 130 after Ctrl-C; one line says
            why.
    """
    parser, cells = _parser(), None
    try:
        parsed = parser.parse_args(arguments)
        cells = parsed.out / "cells"
        _audit(parser, parsed, cells)
    except KeyboardInterrupt:
        kept = cells is not None and cells.is_dir() and any(cells.glob("**/*.json"))
        how = f"what was measured is kept in {cells}, and the same command with --resume goes on from there"
        print(f"\n{parser.prog}: interrupted; {how if kept else 'nothing was measured yet'}", file=sys.stderr)
        raise SystemExit(130) from None


def _audit(parser: _Parser, parsed: argparse.Namespace, cells: Path) -> None:
    only_with_model = ("weights", "data", "transform", "proxy", "train")
    unused = [each for each in only_with_model if getattr(parsed, each) is not None and parsed.model is None]
    if unused:
        parser.error(f"argument --{unused[0]}: goes with --model")
    if parsed.model is not None and parsed.data is None:
        parser.error("argument --model: goes with --data")
    if parsed.model is not None and parsed.quick:
        parser.error(
            "argument --quick: is for the digits; give a smaller --limit, or fewer --attributions or --metrics"
        )
    # Only now: `--help` and a bad argument answer without loading the rest.
    with _interrupted_after():
        from captum_density._command.job import BadInput, audit_digits, audit_model

    try:
        (audit_digits if parsed.model is None else audit_model)(parsed, cells)
    except BadInput as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"argument --out: cannot write to {parsed.out}: {error}")
    except ImportError as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no plus-minus sign
    main()
