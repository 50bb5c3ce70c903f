"""Runs: one network trained and tested, and the file that holds what came of it.

Comes in: an ``Experiment``, which says what there is to run and on which bags. Goes out: a JSON file per run,
with the patches' attention in an .npz beside it. A run whose file is there is not run again, so that a killed
command goes on; a file that other settings made is an error. It knows no data set.
"""

import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.paper.bags import Bag, codes
from pipelines.paper.recipe import Recipe
from wsi_mil import metrics, store, train
from wsi_mil.errors import ConfigError, StaleOutputError

FORMAT = {"format": "wsi-mil paper run", "format_version": 1}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its file's name in the output folder, less the suffix, its method, and all that decides it."""

    name: str
    method: str
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run learns from (``val``: which of ``learn`` only choose the epoch) and what it is tested on."""

    learn: Sequence[Bag]
    val: NDArray[np.int64]
    test: Sequence[Bag]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Which bags a network learns from, which of these only choose its epoch, and which it is tested on."""

    learn: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


class Experiment(Protocol):
    """A data set and a recipe; it is sent to other processes."""

    recipe: Recipe

    def parts(self, run: Run) -> Parts:
        """Return the bags of a run."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is stored of a run. ``attention`` and ``key`` hold an array per test bag (no key known: empty)."""

    settings: dict[str, Any]
    names: list[str]
    code_B: NDArray[np.int64]
    probability_B: NDArray[np.float64]
    attention: list[NDArray[np.float32]]
    key: list[NDArray[np.bool_]]
    facts: dict[str, Any]

    @property
    def auroc(self) -> float | None:
        """Return the area under the ROC curve of the test bags; None where they are of one class."""
        return auroc(self.code_B, self.probability_B)


def auroc(code_B: NDArray[np.int64], probability_B: NDArray[np.float64]) -> float | None:
    """Return the area under the ROC curve; None where a class has no bag."""
    return metrics.auroc(code_B, np.stack([1 - probability_B, probability_B], axis=1))


def folds(bags: Sequence[Bag], count: int, repetition: int) -> list[Fold]:
    """Return ``count`` folds with equal parts of both classes: each tests one part and validates on the next.

    Bags are dealt like cards, the positive ones first, in an order that the repetition draws. Every bag
    counts as a patient of its own: the data say no more, and the paper did the same.

    Raises:
        ConfigError: fewer than three folds, or fewer bags than folds.
    """
    if not 3 <= count <= len(bags):
        raise ConfigError(
            f"--folds {count}: wanted 3 to {len(bags)}, the number of bags: a fold to test on, one to "
            "choose the epoch by, and one to learn from."
        )
    rng, code_B = np.random.default_rng([repetition, count]), codes(bags)
    order = np.concatenate([rng.permutation(np.flatnonzero(code_B == code)) for code in (1, 0)])
    parts = [np.sort(order[start::count]) for start in range(count)]
    everything = np.arange(len(bags))
    return [
        Fold(learn=np.setdiff1d(everything, part), val=parts[(number + 1) % count], test=part)
        for number, part in enumerate(parts)
    ]


def carry_out(experiment: Experiment, run: Run, folder: Path) -> Outcome:
    """Train and test one network, and store what came of it."""
    recipe, parts = experiment.recipe, experiment.parts(run)
    started, cpu = time.perf_counter(), time.process_time()
    fitted = train.fit(
        [bag.patches for bag in parts.learn], codes(parts.learn), head=recipe.head(run.method),
        vals=[parts.val], config=recipe.config(run.method), seed=parts.seed, front=recipe.front,
        augment=recipe.augment,
    )  # fmt: skip
    trained_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    with torch.inference_mode():
        predictions = [fitted.model.bag(bag.patches) for bag in parts.test]
    logits_B2 = torch.cat([each.logits_BC.float() for each in predictions])
    member = fitted.members[0]
    outcome = Outcome(
        settings=run.settings,
        names=[bag.name for bag in parts.test],
        code_B=codes(parts.test),
        probability_B=fitted.model.task.predict(logits_B2)[:, 1],
        attention=[each.attention_BCN[0, 1].float().numpy() for each in predictions],
        key=[np.empty(0, np.bool_) if bag.key_N is None else bag.key_N for bag in parts.test],
        facts={
            "epoch": member.epoch,
            "val_loss": member.val_loss,
            "train_losses": member.train_losses,
            "val_losses": member.val_losses,
            "seconds": round(trained_s, 1),
            "cpu_seconds": round(cpu_s, 1),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    )
    write(outcome, folder / run.name)
    return outcome


def write(outcome: Outcome, stem: Path) -> None:
    """Write STEM.npz and then STEM.json, each whole or not at all; the JSON means that both are there."""
    with store.atomic_file(stem.with_name(f"{stem.name}.npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            attention=np.concatenate(outcome.attention),
            patches=np.array([len(each) for each in outcome.attention]),
            key=np.concatenate(outcome.key),
            keys=np.array([len(each) for each in outcome.key]),
        )
    content = FORMAT | {
        "settings": outcome.settings,
        "bags": outcome.names,
        "class": outcome.code_B.tolist(),
        "probability": outcome.probability_B.tolist(),
        **outcome.facts,
    }
    store.write_text(stem.with_name(f"{stem.name}.json"), json.dumps(content, indent=1) + "\n")


def read(run: Run, folder: Path) -> Outcome | None:
    """Return what is stored of a run, or None where it has not been run.

    Raises:
        StaleOutputError: the file was made with other settings; names the first that differs.
    """
    stem = folder / run.name
    path = stem.with_name(f"{stem.name}.json")
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    found, wanted = content.pop("settings"), run.settings
    for field in [*wanted, *(name for name in found if name not in wanted)]:
        if found.get(field) != wanted.get(field):
            raise StaleOutputError(
                f"{path}: made with {field} {found.get(field)!r}, and now it is {wanted.get(field)!r}. Use "
                "another --out, or remove the file."
            )
    with np.load(stem.with_name(f"{stem.name}.npz")) as arrays:
        attention = np.split(arrays["attention"], np.cumsum(arrays["patches"])[:-1])
        key = np.split(arrays["key"], np.cumsum(arrays["keys"])[:-1])
    return Outcome(
        settings=found, names=content.pop("bags"), code_B=np.array(content.pop("class"), np.int64),
        probability_B=np.array(content.pop("probability")), attention=attention, key=key, facts=content,
    )  # fmt: skip


def perform(experiment: Experiment, runs: Iterable[Run], folder: Path, *, workers: int, threads: int) -> None:
    """Carry out the runs that are not stored yet, in their order, several processes at a time."""
    missing = [run for run in runs if read(run, folder) is None]
    for done, (run, outcome) in enumerate(_outcomes(experiment, missing, folder, workers, threads), 1):
        area = outcome.auroc
        print(
            f"{time.strftime('%H:%M:%S')} {done}/{len(missing)} {run.name}: "
            f"AUC {'-' if area is None else f'{area:.3f}'}, epoch {outcome.facts['epoch']}, "
            f"{outcome.facts['seconds']:.0f} s",
            flush=True,
        )


def _outcomes(
    experiment: Experiment, runs: Sequence[Run], folder: Path, workers: int, threads: int
) -> Iterator[tuple[Run, Outcome]]:
    if workers == 1 or len(runs) < 2:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        for run in runs:
            yield run, carry_out(experiment, run, folder)
        torch.set_num_threads(before)
        return
    # spawn: a forked child inherits the locks of threads that it does not have
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    )
    with pool:
        futures = {pool.submit(carry_out, experiment, run, folder): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
