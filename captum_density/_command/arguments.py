"""The arguments of the command, read without loading what takes seconds to load."""

import argparse
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from captum_density import __version__
from captum_density._display.parser import Parser, count, folder

__all__ = ["Parser", "interrupts_wait", "make_parser", "parse"]

# Arguments that say more of a model of the user's.
_WITH_MODEL = ("weights", "data", "transform", "proxy", "train")


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Within, Ctrl-C waits: NumPy and PyTorch that are interrupted while they load fail with errors of their own."""
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


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def _device(text: str) -> str:
    if text == "cpu":
        return text
    with interrupts_wait():
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


def make_parser() -> Parser:
    """The parser, which knows every argument."""
    parser = Parser(
        prog="python -m captum_density",
        description="Can I trust this model's gradients? Measures a model and attribution methods on it side by side, "
        "says what follows in words, and writes report.html (read this first), report.json, table.md, figures.png and "
        "saliency.png; figures.csv and maps.npz hold the same figures and maps for other programs. "
        "Without --model, it trains a small network on scikit-learn's embedded digits and audits that; prints a "
        "picture into its gradients that leaves the softmax as it was; trains a vision transformer and explains it by "
        "plain and by balanced gradients; trains three more networks with losses of the density that logits imply "
        "(score matching, its opposite, gradient norm); and explains what EfficientNet-Lite0 sees in photographs. That "
        "takes a minute and a half and writes softmax_shift.png, vision_transformer.png, density_ratio.png, "
        "samples.png, pixel_perturbation.png and photographs.png as well.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:BUILD",
        help="what returns the model, such as my_package.model:build, my_model.py:build, or a call with literals, "
        "\"timm:create_model('resnet10t', num_classes=10)\"",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a state dict to load, alone or among what training scripts save; read with weights_only=True",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="a folder with a folder of images for each class, or package.module:dataset, as --model; images that "
        "cannot be read are named and skipped",
    )
    parser.add_argument(
        "--transform",
        metavar="NAME",
        help="for a folder of images: torchvision weights whose preset to apply, such as ResNet18_Weights.DEFAULT, or "
        "package.module:transform, a transform or what returns one, as --model; values in [0, 1] without it",
    )
    parser.add_argument(
        "--attributions",
        nargs="+",
        metavar="NAME",
        help="methods, such as Saliency 'FullGrad, centered' 'InputXGradient, balanced', or package.module:function, "
        "which returns an attribution for a model; ten of them without it",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="figures: completeness_gap, infidelity, sensitivity_max, shift_sensitivity, pixel_perturbation, "
        "randomisation, class_likeness, diff_roar, seconds; accuracy, r_squared, common_gradient, "
        "off_manifold_gradient, finite_difference_gap, density_ratio, gradient_norm, hessian_trace, gan_test; "
        "'all', or 'default', which is all but diff_roar and gan_test",
    )
    parser.add_argument("--limit", type=count, metavar="N", help="how many examples to audit; 64 without it")
    parser.add_argument(
        "--proxy", metavar="MODULE:BUILD", help="for gan_test: what returns another, trained classifier"
    )
    parser.add_argument("--train", metavar="DATA", help="for diff_roar: training data, as --data; tested on --data")
    parser.add_argument("--out", type=folder, default=Path("report"), metavar="DIR", help="folder to write to")
    parser.add_argument("--seed", type=_seed, default=0, help="seed of everything that is drawn")
    parser.add_argument("--device", type=_device, default="cpu", help="where to run: cpu, cuda or cuda:1")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where an audit into the same folder, of the same things, stopped",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="for the digits: half the epochs, a quarter of the audited digits and of the samples, a fifth of the "
        "noise, two photographs for four: half a minute, for figures that are rough and networks whose densities the "
        "losses have hardly shaped",
    )
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="measure everything of a large model, too, of which figures that tell least for their price are left out "
        "otherwise: about six times the time",
    )
    parser.add_argument("--version", action="version", version=f"captum-density {__version__}")
    return parser


def parse(parser: Parser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the arguments, and refuse those that do not go together.

    Args:
        parser: What says so.
        arguments: Those after the program's name; None takes them from ``sys.argv``.

    Raises:
        SystemExit: With status 2 after a bad argument.
    """
    parsed = parser.parse_args(arguments)
    if parsed.model is None:
        for each in _WITH_MODEL:
            if getattr(parsed, each) is not None:
                parser.error(f"argument --{each}: goes with --model")
        if parsed.thorough:
            parser.error("argument --thorough: goes with --model; the digits are small, and measured so in any case")
    elif parsed.data is None:
        parser.error("argument --model: goes with --data")
    elif parsed.quick:
        parser.error(
            "argument --quick: is for the digits; give a smaller --limit, or fewer --attributions or --metrics"
        )
    return parsed
