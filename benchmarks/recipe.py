r"""Compare training recipes inside the training parts, on data sets that are unlike each other.

    python -m benchmarks.recipe --grid GRID.toml --field NAME RUN LABELS --mnist FOLDER --witness --shares \
        --out FILE

GRID.toml has a table per recipe, ``[recipe.NAME]``, with settings of the train stage. Each is scored on

* a run's fields (``--field``), by cross-validation *inside* the training part of each outer fold: the outer
  test part is not looked at. ``--outer`` adds the scores of the outer test parts, for a table and not for a
  choice;
* ``witness``: drawn bags of 100 patches, of which 5 are shifted in positive bags; tested on new bags;
* ``mnist``: bags of 10 digits on average, positive with a 9; features are principal components
  of the pixels; tested on bags of other digits;
* ``shares``: bags as ``benchmarks.train`` draws them, other ones and smaller (600 patches of 256 features):
  witnesses are up to 10 % of a positive bag and up to 2 % of a negative one; 60 to learn from, 200 to test.

A line of JSON per recipe, data set and seed: AUROC, log loss at the best temperature (smoothed labels make
timid probabilities) and seconds.
"""

import argparse
import gzip
import json
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks import train_cohort as cohort
from wsi_mil import manifest, models, store
from wsi_mil.config import TrainConfig
from wsi_mil.train.fit import assemble, fit_jobs, make_jobs, predict
from wsi_mil.train.patches import Patches

INNER = 4


@dataclass
class Data:
    """Bags, codes (0, 1), groups that stay together, and (train, test) rows of each outer fold."""

    patches: Patches
    codes: np.ndarray
    groups: np.ndarray
    folds: list[tuple[np.ndarray, np.ndarray]]
    inner: bool
    """Whether recipes are compared inside the training parts; else the test rows are new draws."""


def fields(run: Path, labels_path: Path, folds: int, seed: int) -> Data:
    """Return a run's bags; outer folds from the split column, else stratified."""
    labels = manifest.read_labels(labels_path)
    features = store.open_features(run, store.only_encoder(run))
    bags = [features.read(each).features for each in labels.slide_ids]
    codes = np.unique(labels.labels, return_inverse=True)[1]
    groups = np.array(labels.patient_ids)
    if labels.splits:
        splits = np.array(labels.splits)
        tests = [np.flatnonzero(splits == each) for each in sorted(set(labels.splits))]
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        tests = [test for _, test in splitter.split(codes, codes, groups)]
    rows = np.arange(len(codes))
    return Data(Patches.of(bags), codes, groups, [(np.setdiff1d(rows, t), t) for t in tests], inner=True)


def witness(seed: int, *, train_bags: int = 100, test_bags: int = 400, dim: int = 256) -> Data:
    """Return drawn bags of 100 patches; in positive ones 5 are shifted by 0.2 in every dimension."""
    rng = np.random.default_rng([seed, 9])
    codes = np.arange(train_bags + test_bags) % 2
    direction = rng.choice([-1.0, 1.0], dim)
    bags = []
    for code in codes:
        bag = rng.normal(size=(100, dim))
        if code:
            bag[:5] += 0.2 * direction
        bags.append(bag.astype(np.float16))
    rows = np.arange(len(codes))
    return Data(
        Patches.of(bags), codes, rows.astype(str), [(rows[:train_bags], rows[train_bags:])], inner=False
    )


def shares(seed: int, *, train_bags: int = 60, test_bags: int = 200, dim: int = 256) -> Data:
    """Return bags of ``train_cohort``'s kind, none of them one of its own."""
    rng = np.random.default_rng([seed, 11])
    map_LD = rng.normal(size=(cohort.LATENT, dim)).astype(np.float32) / np.sqrt(cohort.LATENT)
    direction_L = rng.normal(size=cohort.LATENT)
    direction_L *= cohort.SHIFT / np.linalg.norm(direction_L)
    codes = np.arange(train_bags + test_bags) % 2
    bags = [
        cohort.draw(
            rng, 600, rng.uniform(0, cohort.POSITIVE if code else cohort.NEGATIVE), map_LD, direction_L
        )
        for code in codes
    ]
    rows = np.arange(len(codes))
    split = [(rows[:train_bags], rows[train_bags:])]
    return Data(Patches.of(bags), codes, rows.astype(str), split, inner=False)


def mnist(folder: Path, seed: int, *, train_bags: int = 200, test_bags: int = 400) -> Data:
    """Return MNIST-bags (Ilse et al. 2018): sizes normal (10, 2), half with a 9.

    Features are the 64 principal components of the training digits' pixels.
    """
    rng = np.random.default_rng([seed, 7])
    bags, codes = [], []
    axes = mean = np.empty(0)
    for part, count in (("train", train_bags), ("t10k", test_bags)):
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
            pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 784)
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
            digits = np.frombuffer(file.read()[8:], np.uint8)
        pixels = pixels[:20_000] / 255
        digits = digits[:20_000]
        if part == "train":
            mean = pixels.mean(axis=0)
            axes = np.linalg.eigh(np.cov(pixels.T))[1][:, -64:]
        nines, others = np.flatnonzero(digits == 9), np.flatnonzero(digits != 9)
        for i in range(count):
            size = max(2, round(rng.normal(10, 2)))
            rows = rng.choice(others, size)
            if i % 2:
                rows[: max(1, rng.binomial(size, 0.1))] = rng.choice(nines)
            bags.append(((pixels[rows] - mean) @ axes).astype(np.float16))
            codes.append(i % 2)
    rows = np.arange(len(codes))
    split = [(rows[:train_bags], rows[train_bags:])]
    return Data(Patches.of(bags), np.array(codes), rows.astype(str), split, inner=False)


def parts(data: Data, train_rows: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Return up to ``count`` stratified, grouped parts of the rows, with both classes in the rest of each."""
    codes, groups = data.codes[train_rows], data.groups[train_rows]
    count = min(count, *(len(set(groups[codes == code])) for code in (0, 1)))
    for draw in range(50):
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=(seed + 7919 * draw) % 2**32)
        tests = [test for _, test in splitter.split(codes, codes, groups)]
        if all(len(set(codes[np.setdiff1d(np.arange(len(codes)), t)])) == 2 for t in tests):
            return [train_rows[test] for test in tests]
    raise ValueError("no parts with both classes")


def tasks(data: Data, seed: int, outer: bool) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (which, train rows, test rows): what a recipe is trained and scored on."""
    for number, (train_rows, test_rows) in enumerate(data.folds):
        if data.inner:
            for held in parts(data, train_rows, INNER, seed * 1000 + number):
                yield f"inner {number}", np.setdiff1d(train_rows, held), held
        if outer or not data.inner:
            yield "test", train_rows, test_rows


def score(data: Data, settings: dict[str, Any], seed: int, outer: bool) -> dict[str, float]:
    """Train the recipe on every task, all networks together; return AUROC and log loss of both kinds."""
    config = TrainConfig(run=Path(), labels=Path(), **settings)
    task = models.make_task("classification", ("a", "b"))
    head = {
        "model": config.model, "identity": {"dim": data.patches.dim}, "hidden_dim": config.hidden_dim,
        "attention_dim": config.attention_dim, "branches": "shared", "dropout": config.dropout,
        "members": config.members, "task": task.to_head(), "initial_weights": config.initial_weights,
    }  # fmt: skip
    todo, jobs = list(tasks(data, seed, outer)), []
    for number, (_, train_rows, _) in enumerate(todo):
        if not config.val_fraction:
            vals = [np.empty(0, np.int64)] * config.members
        else:
            held = parts(data, train_rows, round(1 / config.val_fraction), seed * 1000 + number)
            vals = [held[m % len(held)] for m in range(config.members)]
        jobs.append(make_jobs(data.patches, data.codes, train_rows, vals, task, seed * 1000 + number))
    trained = fit_jobs(
        data.patches, data.codes, [job for each in jobs for job in each], head=head, config=config
    )
    probability: dict[str, list[np.ndarray]] = {}
    codes: dict[str, list[np.ndarray]] = {}
    at = 0
    for (which, _, test_rows), each in zip(todo, jobs, strict=True):
        fitted = assemble(head, each, trained[at : at + len(each)])
        at += len(each)
        rows = predict(fitted.model, [data.patches.whole(int(i)) for i in test_rows])[:, 1]
        probability.setdefault(which, []).append(rows)
        codes.setdefault(which, []).append(data.codes[test_rows])
    result: dict[str, float] = {}
    kinds = {
        "inner": [each for each in probability if each != "test"],
        "test": ["test"] if "test" in probability else [],
    }
    for kind, names in kinds.items():
        if names:
            pairs = [(np.concatenate(codes[n]), np.concatenate(probability[n])) for n in names]
            result[f"{kind}_auroc"] = float(np.mean([roc_auc_score(*pair) for pair in pairs]))
            result[f"{kind}_loss"] = float(np.mean([scaled_loss(*pair) for pair in pairs]))
    result["epochs"] = float(np.mean([each.epoch for each in trained]))
    return result


def scaled_loss(codes: np.ndarray, probability: np.ndarray) -> float:
    """Return the log loss at the best temperature."""
    logit = np.log(np.clip(probability, 1e-6, 1 - 1e-6)) - np.log(np.clip(1 - probability, 1e-6, 1 - 1e-6))
    sign = np.where(codes == 1, 1, -1)

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0, -sign * logit * np.exp(log_t)).mean())

    return float(scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").fun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--field", nargs=3, action="append", default=[], metavar=("NAME", "RUN", "LABELS"))
    parser.add_argument("--witness", action="store_true")
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--outer", action="store_true", help="score the outer test parts too")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    recipes = tomllib.loads(arguments.grid.read_text())["recipe"]
    for seed in arguments.seeds:
        sets = {
            name: fields(Path(run), Path(labels), arguments.folds, seed)
            for name, run, labels in arguments.field
        }
        if arguments.witness:
            sets["witness"] = witness(seed)
        if arguments.shares:
            sets["shares"] = shares(seed)
        if arguments.mnist:
            sets["mnist"] = mnist(arguments.mnist, seed)
        for recipe, settings in recipes.items():
            for name, data in sets.items():
                begin = time.perf_counter()
                line = {"recipe": recipe, "data": name, "seed": seed} | score(
                    data, dict(settings), seed, arguments.outer
                )
                line["seconds"] = round(time.perf_counter() - begin, 1)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(line, flush=True)


if __name__ == "__main__":
    main()
