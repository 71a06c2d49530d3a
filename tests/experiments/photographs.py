"""The README's picture: what the main job draws of photographs, with more noisy copies.

`python -m tests.experiments.photographs .github/photographs.jpg` takes a few minutes.
"""

import argparse
from pathlib import Path

from captum_density._command.photographs import study_photographs
from captum_density.datasets import efficientnet_lite0, photographs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the picture to write")
    parser.add_argument("--samples", type=int, default=30, help="noisy copies of each photograph (default: 30)")
    arguments = parser.parse_args()

    network, data = efficientnet_lite0(), photographs()
    study = study_photographs(network, data, seed=0, device="cpu", count=4, samples=arguments.samples)
    figure = study.draw(caption=False)  # the README's own stands below it
    # Noise compresses badly without loss: a PNG of this is five times as large.
    figure.savefig(arguments.path, dpi=130, pil_kwargs={"quality": 90, "subsampling": 0})


if __name__ == "__main__":
    main()
