"""How fast is gated attention MIL trained, against the field's loop, torchmil's trainer and CLAM's?

    make bench-train           (or: python -m benchmarks.train --folder bench [--clam DIR] --append)

60 drawn bags of 1,500 to 6,000 x 1,024 features (``train_cohort``), the same network everywhere
(``train_contenders``). The baselines are tuned first (threads, loader workers, kind of file and batch by
speed; learning rate by the AUROC on the bags that are scored, which flatters whoever is tuned) and are shown
at their own defaults and at their best; of ours the rate and the initial weights are tuned in the same way,
and it is shown at its default and at its best too. Patch dropout and bag sampling are off: every patch
of every epoch goes through the network, and is counted there. Every contender runs in a process of its own,
all of them in each round, one after the other; a ratio is taken within a round, and the table shows the
median over the rounds and the middle half of them. Processor time is that of the contender's own process,
without loader workers; where other work shares the cores it says more than the clock does. The seed is the
round's: the AUROC is the mean over the rounds, and its difference from ours has an interval over the scored
bags.

CLAM is GPL-3 and not part of this project: give --clam the folder of your copy of mahmoodlab/CLAM (and
install pandas, which it needs), or it is left out, loudly.
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks import train_cohort as cohort
from benchmarks.results import publish
from benchmarks.train_contenders import Settings, measure

SEED_OF_TUNING = 1_000
BOOTSTRAP = 1_000
RATES = (1e-4, 3e-4, 1e-3)

DEFAULTS: dict[str, Settings] = {
    "field, warm": {"kind": "field", "files": "h5", "workers": 0, "rate": 2e-4, "cold": False},
    "field, cold": {"kind": "field", "files": "h5", "workers": 0, "rate": 2e-4, "cold": True},
    "torchmil": {"kind": "torchmil", "batch": 4, "rate": 1e-4, "load_at_init": False},
    "CLAM": {"kind": "clam", "cluster": True, "rate": 1e-4},
    "CLAM, attention MIL alone": {"kind": "clam", "cluster": False, "rate": 1e-4},
}
"""Each tool's own defaults; the field's loop has CLAM's README's rate (2e-4) and no loader workers."""

KNOBS: dict[str, list[Settings]] = {
    "field": [
        {"files": files, "workers": workers, "threads": threads}
        for files in ("h5", "run")
        for workers, threads in ((0, 2), (1, 2), (2, 1))
    ],
    "torchmil": [
        {"batch": batch, "load_at_init": True, "threads": threads}
        for batch in (1, 2, 4)
        for threads in (1, 2)
    ],
    "clam": [{"threads": 1}, {"threads": 2}],
    "ours": [{}],
}
"""What is tried for speed, an epoch each."""

STARTS: dict[str, list[Settings]] = {"ours": [{}, {"train": {"initial_weights": "glorot"}}]}
"""Initial weights: ours have an attention that starts as the mean, the others have drawn ones."""

FIELDS_RECIPE: Settings = {
    "batch_size": 1, "optimiser": "adam", "schedule": "constant", "weight_decay": 1e-5,
    "label_smoothing": 0.0, "attention_rate": 1.0, "balance": "none", "initial_weights": "uniform",
}  # fmt: skip
"""Ours with every setting that the field's loop has, its steps one for one."""

OURS: dict[str, Settings] = {
    "wsi-mil": {"kind": "ours", "cold": False, "rate": 1e-3},
    "wsi-mil, cold": {"kind": "ours", "cold": True},
    "wsi-mil --precision fp32": {"kind": "ours", "cold": False, "train": {"precision": "fp32"}},
    "wsi-mil, the field's recipe": {"kind": "ours", "cold": False, "rate": 2e-4, "train": FIELDS_RECIPE},
}
WANTED = {"field, warm": 2.5, "torchmil": 2.5, "CLAM": 2.5, "CLAM, attention MIL alone": 2.5}


def apart(folder: Path, settings: Settings) -> dict[str, Any]:
    """Measure one contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train", "--folder", str(folder)]
    command += ["--contender", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{settings}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def tune(folder: Path, contenders: dict[str, Settings], epochs: int) -> dict[str, Settings]:
    """Return the best settings of each baseline: first the fastest, then the rate of the highest AUROC.

    What was found is kept in the folder, and is not looked for again.
    """
    kept = folder / "train-tuned.json"
    tuned: dict[str, Settings] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name, defaults in contenders.items():
        if name in tuned:
            continue
        speeds = []
        for knobs in KNOBS[defaults["kind"]]:
            settings = defaults | knobs | {"epochs": 1, "seed": SEED_OF_TUNING}
            speeds.append((apart(folder, settings)["patches_per_second"], knobs))
            print(f"tuning {name}: {knobs}: {speeds[-1][0]:.0f}/s", flush=True)
        best = defaults | max(speeds, key=lambda each: each[0])[1]
        if not defaults.get("cold"):  # the same numbers as warm
            scores = []
            for start, rate in itertools.product(STARTS.get(defaults["kind"], [{}]), RATES):
                tried = start | {"rate": rate}
                settings = best | tried | {"epochs": epochs, "seed": SEED_OF_TUNING}
                scores.append((apart(folder, settings)["auroc"], tried))
                print(f"tuning {name}: {tried}: AUROC {scores[-1][0]:.3f}", flush=True)
            best |= max(scores, key=lambda each: each[0])[1]
        tuned[name] = best
        kept.write_text(json.dumps(tuned, indent=2))
    return {name: tuned[name] for name in contenders}


def contenders_of(clam: Path | None, only: Iterable[str]) -> dict[str, Settings]:
    """Return the baselines that can run here, at their defaults."""
    found = {name: settings for name, settings in DEFAULTS.items() if any(each in name for each in only)}
    if clam is None and any(each["kind"] == "clam" for each in found.values()):
        print("CLAM IS LEFT OUT: no --clam DIR with a copy of mahmoodlab/CLAM was given.", file=sys.stderr)
        return {name: each for name, each in found.items() if each["kind"] != "clam"}
    if clam is not None and not (clam / "utils" / "core_utils.py").is_file():
        raise SystemExit(f"--clam {clam}: no utils/core_utils.py in it; wanted a copy of mahmoodlab/CLAM.")
    for each in found.values():
        if each["kind"] == "clam":
            each["clam"] = str(clam)
    return found


def compare(folder: Path, baselines: dict[str, Settings], rounds: int, epochs: int) -> list[str]:
    """Run all contenders in rounds; return the lines of the tables."""
    runs = dict(OURS)
    ours = {"wsi-mil": OURS["wsi-mil"]}
    runs["wsi-mil, best"] = tune(folder, ours, epochs)["wsi-mil"]
    for name, best in tune(folder, baselines, epochs).items():
        defaults = baselines[name]
        runs[f"{name}, defaults"] = defaults
        if best != defaults:
            runs[f"{name}, best"] = best
    if "field, warm" in baselines:
        runs["field, warm, best, bf16 autocast"] = runs.get("field, warm, best", baselines["field, warm"]) | {
            "autocast": True
        }
    speed: dict[str, list[float]] = {name: [] for name in runs}
    auroc: dict[str, list[float]] = {name: [] for name in runs}
    work: dict[str, list[float]] = {name: [] for name in runs}
    margins: dict[str, list[list[float]]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, settings in runs.items():
            # A cold epoch takes long, and every one is as cold: one a round.
            found = apart(
                folder, settings | {"seed": number, "epochs": 1 if settings.get("cold") else epochs}
            )
            speed[name].append(found["patches_per_second"])
            auroc[name].append(found["auroc"])
            work[name].append(found["processor_us"])
            margins[name].append(found["margins"])
            print(
                f"round {number + 1}: {name}: {speed[name][-1]:.0f}/s, "
                f"{work[name][-1]:.0f} us of processor, AUROC {auroc[name][-1]:.3f}",
                flush=True,
            )
    lines = [
        "| what | against | ratio (middle half) | of processor time | must reach | |",
        "|---|---|---|---|---|---|",
    ]
    for name in runs:
        if not name.startswith("wsi-mil"):
            lines += ratio_lines(name, speed, work)
    lines += [
        "",
        "| contender | patches/s | processor, us a patch | AUROC: mean (least to most) | above wsi-mil's | "
        "settings |",
        "|---|---|---|---|---|---|",
    ]
    for name, settings in runs.items():
        scored = beside = ""
        if not settings.get("cold"):
            scored, beside = spread(auroc[name]), difference(margins[name], margins["wsi-mil"])
        said = ", ".join(
            f"{key} {value}" for key, value in settings.items() if key not in ("kind", "clam", "cold")
        )
        rate, us = statistics.median(speed[name]), statistics.median(work[name])
        lines.append(f"| {name} | {rate:.0f} | {us:.1f} | {scored} | {beside} | {said} |")
    return lines


def difference(theirs: list[list[float]], ours: list[list[float]]) -> str:
    """Return how far their AUROC lies above ours, the mean over rounds, with its 95 % interval.

    A bootstrap over the scored bags, the same bags for both; the bags that were learnt from are one draw, of
    which it knows nothing.
    """
    codes, rng, drawn = cohort.val_codes(), np.random.default_rng(0), []

    def mean(rows: NDArray[np.int64]) -> float:
        areas = [[roc_auc_score(codes[rows], np.array(m)[rows]) for m in each] for each in (theirs, ours)]
        return float(np.mean(areas[0]) - np.mean(areas[1]))

    while len(drawn) < BOOTSTRAP:
        rows = rng.integers(len(codes), size=len(codes))
        if len(set(codes[rows])) == 2:
            drawn.append(mean(rows))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{mean(np.arange(len(codes))):+.3f} ({low:+.3f} to {high:+.3f})"


def ratio_lines(name: str, speed: dict[str, list[float]], work: dict[str, list[float]]) -> list[str]:
    """Return the row of a baseline: how many times its speed ours has, by the clock and by processor time."""
    cold = "cold" in name
    family = name.rsplit(", ", 1)[0]
    wanted = 4.0 if cold else WANTED.get(family)
    ours = "wsi-mil, cold" if cold else "wsi-mil"
    values = [a / b for a, b in zip(speed[ours], speed[name], strict=True)]
    saved = statistics.median(b / a for a, b in zip(work[ours], work[name], strict=True))
    middle, (low, high) = statistics.median(values), np.quantile(values, [0.25, 0.75])
    verdict = "" if wanted is None else "met" if middle >= wanted else "**missed**"
    ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return [f"| {ours} | {name} | {ratio} | {saved:.2f} | {wanted or ''} | {verdict} |"]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def same_bytes(folder: Path) -> str:
    """Train the drawn run twice, each time in a process of its own, and compare metrics.json."""
    digests = []
    for _ in range(2):
        shutil.rmtree(folder / "train-run" / "models", ignore_errors=True)
        command = [sys.executable, "-m", "wsi_mil", "train", "--run", str(folder / "train-run")]
        command += ["--device", "cpu"]
        command += ["--labels", str(folder / "train-run" / "labels.csv"), "--folds", "2", "--members", "2"]
        command += ["--epochs", "2", "--hidden-dim", "512", "--attention-dim", "256", "--seed", "7"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found = (folder / "train-run" / "models" / "gated-attention" / "metrics.json").read_bytes()
        digests.append(hashlib.sha256(found).hexdigest()[:16])
    verdict = "the same bytes (met)" if digests[0] == digests[1] else "**other bytes (missed)**"
    return (
        f"metrics.json of two runs of `wsi-mil train` on the CPU, same seed: {verdict}; {', '.join(digests)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--clam", type=Path, help="folder of your copy of mahmoodlab/CLAM")
    parser.add_argument("--only", nargs="*", default=[""], help="baselines whose name holds one of these")
    parser.add_argument("--append", action="store_true", help="append the tables to RESULTS.md")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments.folder, json.loads(arguments.contender))))
        return
    ceiling = cohort.make(arguments.folder)
    baselines = contenders_of(arguments.clam, arguments.only)
    lines = compare(arguments.folder, baselines, arguments.rounds, arguments.epochs)
    text = [
        f"`make bench-train`: {cohort.TRAIN} drawn bags, {sum(cohort.lengths(arguments.folder)):,} patches "
        f"of {cohort.DIM} features; {arguments.epochs} epochs, {arguments.rounds} rounds; AUROC on "
        f"{cohort.VAL} bags of {cohort.VAL_PATCHES}, where the true parts of witnesses reach {ceiling:.3f}; "
        f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}.",
        "", *lines, "", same_bytes(arguments.folder),
    ]  # fmt: skip
    publish("Training", text, append=arguments.append)


if __name__ == "__main__":
    main()
