"""Cross-validation of the paper's methods on fields, as a command.

Comes in: how to load a data set's bags, the recipe and the paper's figures. Goes out: runs on disk, and the
table on standard output. It knows no particular data set.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.paper import keys, runs, tables
from pipelines.paper.bags import Bag, digest
from pipelines.paper.recipe import METHODS, Recipe
from wsi_mil.errors import WsiMilError

Load = Callable[[Path], list[Bag]]


@functools.cache
def _loaded(load: Load, data: Path) -> tuple[list[Bag], str]:
    """Return the bags and their digest."""
    bags = load(data)
    return bags, digest(bags)


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """Every method on every fold: one part tests, the next one chooses the epoch, the rest trains."""

    recipe: Recipe
    load: Load
    data: Path
    folds: int

    @property
    def bags(self) -> list[Bag]:
        """Return all bags; they are read once per process."""
        return _loaded(self.load, self.data)[0]

    def runs_of(self, method: str, repetition: int) -> list[runs.Run]:
        """Return the runs of one cross-validation; each repetition draws its own folds."""
        settings = self.recipe.settings(method) | {
            "data": _loaded(self.load, self.data)[1],
            "repetition": repetition,
            "folds": self.folds,
        }
        return [
            runs.Run(
                name=f"{method}/repetition{repetition}_fold{fold}",
                method=method,
                settings=settings | {"fold": fold},
            )
            for fold in range(self.folds)
        ]

    def parts(self, run: runs.Run) -> runs.Parts:
        """Return the bags of a run; all methods start from the same seed in the same fold."""
        repetition, number = run.settings["repetition"], run.settings["fold"]
        bags = self.bags
        fold = runs.folds(bags, self.folds, repetition)[number]
        return runs.Parts(
            learn=[bags[i] for i in fold.learn],
            val=np.flatnonzero(np.isin(fold.learn, fold.val)),
            test=[bags[i] for i in fold.test],
            seed=1000 * repetition + number,
        )


def arguments(description: str, out: str) -> argparse.ArgumentParser:
    """Return the parser of what every command of the paper takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the data (the README says what)"
    )
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder of the runs; default {out}")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
                        help=f"of {', '.join(METHODS)}; default: all")  # fmt: skip
    parser.add_argument("--epochs", type=int, help="epochs of a run; default: the paper's")
    parser.add_argument(
        "--patience", type=int, help="epochs without a better one after which a run stops; default: never"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default fp32")
    parser.add_argument("--workers", type=int, default=1, help="processes that run side by side; default 1")
    parser.add_argument("--threads", type=int, default=1, help="threads of each; default 1")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of what is there")
    return parser


def changed(recipe: Recipe, given: argparse.Namespace) -> Recipe:
    """Return the recipe with the settings of the command."""
    epochs = recipe.epochs if given.epochs is None else given.epochs
    return dataclasses.replace(recipe, epochs=epochs, patience=given.patience, precision=given.precision)


def command(
    description: str,
    out: str,
    *,
    recipe: Recipe,
    load: Load,
    paper: Mapping[str, Mapping[str, tables.Figure | float]],
    arguments_: Sequence[str] | None = None,
) -> int:
    """Run what the arguments ask for and print the table; 1 where something is wrong, with a line of why."""
    parser = arguments(description, out)
    parser.add_argument(
        "--repetitions", type=int, default=1, help="cross-validations; default 1 (the paper: 5)"
    )
    parser.add_argument("--folds", type=int, default=10, help="default 10")
    given = parser.parse_args(arguments_)
    try:
        experiment = CrossValidation(
            recipe=changed(recipe, given), load=load, data=given.data, folds=given.folds
        )
        # A repetition of every method before the next one: what has run at any time can be compared.
        wanted = [(method, each) for each in range(given.repetitions) for method in given.methods]
        if not given.table:
            todo = [run for method, each in wanted for run in experiment.runs_of(method, each)]
            runs.perform(experiment, todo, given.out, workers=given.workers, threads=given.threads)
        found = stored(experiment, given.methods, given.repetitions, given.out)
    except (WsiMilError, FileNotFoundError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(tables.table(found, paper, given.folds))
    for method, repetitions in found.items():
        areas = keys.within_bags(outcome for each in repetitions for outcome in each)
        if areas and method != "mean":  # its patches all have the same attention
            print(
                f"\nkey instances, {METHODS[method]}: AUROC within positive test bags {keys.interval(areas)}"
            )
    return 0


def stored(
    experiment: CrossValidation, methods: Sequence[str], repetitions: int, folder: Path
) -> dict[str, list[list[runs.Outcome]]]:
    """Return what is stored of each method: the folds that have run, of each repetition that has begun."""
    found: dict[str, list[list[runs.Outcome]]] = {}
    for method in methods:
        for repetition in range(repetitions):
            each = [runs.read(run, folder) for run in experiment.runs_of(method, repetition)]
            if there := [outcome for outcome in each if outcome is not None]:
                found.setdefault(method, []).append(there)
    return found
