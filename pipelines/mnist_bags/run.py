"""MNIST-bags of the paper: the AUC of bags over the number of training bags, of 10, 50 and 100 digits each.

python -m pipelines.mnist_bags.run --data FOLDER --methods attention --means 10 --bags 50 100 --repetitions 5
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.mnist_bags.data import DEVIATION, Digits, draw, read
from pipelines.paper import keys, networks, runs
from pipelines.paper.bags import digest
from pipelines.paper.crossval import arguments, changed
from pipelines.paper.recipe import METHODS, Recipe
from pipelines.paper.tables import Cell
from wsi_mil.errors import WsiMilError

RECIPE = Recipe(
    front=networks.digits, features=networks.DIGITS, augment=None,
    learning_rate=5e-4, weight_decay=1e-4, epochs=200,
)  # fmt: skip
COUNTS = (50, 100, 150, 200, 300, 400, 500)
TESTED = 1000
_VALIDATES = (8, 9)  # of ten training bags, a positive and a negative one


@functools.cache
def _digits(folder: Path) -> tuple[Digits, Digits]:
    return read(folder, "train"), read(folder, "t10k")


@functools.lru_cache(maxsize=2)
def _bags(folder: Path, mean: int, repetition: int) -> tuple[list, list]:
    """Return the training bags, as many as are ever used, and the test bags of a repetition."""
    train, test = _digits(folder)
    shape = (mean, DEVIATION[mean])
    return (
        draw(train, max(COUNTS), *shape, [repetition, mean, 0], f"train{mean}-{repetition}"),
        draw(test, TESTED, *shape, [repetition, mean, 1], f"test{mean}-{repetition}"),
    )


@dataclass(frozen=True, kw_only=True)
class MnistBags:
    """Every repetition draws its own bags; fewer training bags are the first of more."""

    recipe: Recipe
    data: Path

    def run(self, method: str, mean: int, count: int, repetition: int) -> runs.Run:
        """Return one run."""
        train, test = _bags(self.data, mean, repetition)
        return runs.Run(
            name=f"{method}/mean{mean}_bags{count}_repetition{repetition}",
            method=method,
            settings=self.recipe.settings(method)
            | {"data": digest(train[:count] + test), "mean": mean, "bags": count, "repetition": repetition},
        )

    def parts(self, run: runs.Run) -> runs.Parts:
        """Return the bags of a run: a fifth of the training bags only chooses the epoch."""
        mean, count, repetition = (run.settings[name] for name in ("mean", "bags", "repetition"))
        train, test = _bags(self.data, mean, repetition)
        return runs.Parts(
            learn=train[:count],
            val=np.flatnonzero(np.isin(np.arange(count) % 10, _VALIDATES)),
            test=test,
            seed=1000 * repetition + count,
        )


def table(found: dict[tuple[str, int, int], list[runs.Outcome]]) -> str:
    """Return Markdown: the mean AUC of each method, its standard error over repetitions, and their number."""
    lines = []
    for mean in sorted({mean for _, mean, _ in found}):
        counts = sorted({count for _, each, count in found if each == mean})
        lines += [f"\n| bags of {mean} | " + " | ".join(f"{count} bags" for count in counts) + " |"]
        lines += ["|---" * (len(counts) + 1) + "|"]
        for method in METHODS:
            cells = [_cell(found.get((method, mean, count), [])) for count in counts]
            if any(cell != "-" for cell in cells):
                lines.append(f"| {METHODS[method]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(outcomes: list[runs.Outcome]) -> str:
    areas = [outcome.auroc for outcome in outcomes]
    values = [area for area in areas if area is not None]
    if not values:
        return "-"
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return f"{Cell(mean=float(np.mean(values)), error=error)} ({len(values)})"


def main(arguments_: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__.splitlines()[0], "runs/mnist_bags")
    parser.add_argument(
        "--means", nargs="+", type=int, choices=sorted(DEVIATION), default=[10], help="default 10"
    )
    parser.add_argument("--bags", nargs="+", type=int, choices=COUNTS, default=list(COUNTS), metavar="N",
                        help=f"training bags: of {', '.join(map(str, COUNTS))}; default: all")  # fmt: skip
    parser.add_argument("--repetitions", type=int, default=5, help="each draws its own bags; default 5")
    given = parser.parse_args(arguments_)
    experiment = MnistBags(recipe=changed(RECIPE, given), data=given.data)
    # A repetition of everything before the next one, and within it few bags before many.
    each = [
        (method, mean, count, repetition)
        for repetition in range(given.repetitions)
        for mean in given.means
        for count in given.bags
        for method in given.methods
    ]
    try:
        wanted = {key: experiment.run(*key) for key in each}
        if not given.table:
            runs.perform(experiment, wanted.values(), given.out, workers=given.workers, threads=given.threads)
        found: dict[tuple[str, int, int], list[runs.Outcome]] = {}
        for (method, mean, count, _), run in wanted.items():
            outcome = runs.read(run, given.out)
            if outcome is not None:
                found.setdefault((method, mean, count), []).append(outcome)
    except (WsiMilError, FileNotFoundError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(table(found))
    for (method, mean, count), outcomes in found.items():
        areas = keys.within_bags(outcomes)
        if areas and method in ("attention", "gated-attention"):
            print(f"key instances, {METHODS[method]}, {count} bags of {mean}: AUROC {keys.interval(areas)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
