"""Five folds of a cross-validation on a GPU against one: are networks really trained together?

    make bench-train-gpu       (or: python -m benchmarks.train_gpu --folder bench --append)

Needs a CUDA device (``--device cpu`` runs the same code where there is none, to see that it works; its
figures mean nothing). The 60 drawn bags of ``benchmarks.train``; a fold is a committee of ``--members``
networks, each with a validation part of its own; the default recipe, and the large network on every patch.
Five folds, all their networks together, must take at most 1.5 times as long as one.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import train_cohort as cohort
from benchmarks.results import publish
from benchmarks.train_contenders import ATTENTION, HIDDEN, head_of, pack
from wsi_mil import models
from wsi_mil.config import TrainConfig
from wsi_mil.train import Job, Patches, fit_jobs, make_jobs
from wsi_mil.train.packed import tensor_of

FOLDS, MOST = 5, 1.5
CASES: dict[str, dict[str, Any]] = {
    "default recipe": {},
    "512 hidden, 256 attention, every patch": {
        "hidden_dim": HIDDEN, "attention_dim": ATTENTION, "bag_size": "full", "patch_dropout": 0,
    },
}  # fmt: skip


def jobs_of(patches: Patches, targets: np.ndarray[Any, Any], config: TrainConfig) -> list[list[Job]]:
    """Return the networks of each fold: bag b is tested in fold b // 2 % FOLDS."""
    task = models.make_task("classification", ("negative", "positive"))
    bags = np.arange(len(patches))
    found = []
    for fold in range(FOLDS):
        train = bags[bags // 2 % FOLDS != fold]
        vals = [train[np.arange(len(train)) // 2 % config.members == m] for m in range(config.members)]
        found.append(make_jobs(patches, targets, train, vals, task, fold))
    return found


def seconds(
    patches: Patches,
    targets: np.ndarray[Any, Any],
    jobs: list[Job],
    config: TrainConfig,
    device: torch.device,
) -> float:
    start = time.perf_counter()
    fit_jobs(patches, targets, jobs, head=head_of(config), config=config, device=device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --device cpu shows that the code runs, and measures nothing")
    if device.type != "cuda" and arguments.append:
        raise SystemExit(f"--append: the figures of --device {device} mean nothing and are not kept")
    cohort.make(arguments.folder)
    packed = pack(arguments.folder)
    patches = Patches(tensor_of(packed), [[each] for each in packed.ranges]).to(device)
    targets = np.arange(len(patches)) % 2
    lines = [
        f"| case | 1 fold | {FOLDS} folds | ratio (at most {MOST}) | |",
        "|---|---|---|---|---|",
    ]
    for name, changes in CASES.items():
        config = TrainConfig(
            run=arguments.folder, labels=arguments.folder, members=arguments.members, epochs=arguments.epochs,
            patience=arguments.epochs, device=arguments.device, **changes,
        )  # fmt: skip
        jobs = jobs_of(patches, targets, config)
        seconds(patches, targets, jobs[0][:1], config, device)  # the first kernels are slow
        rounds = []
        for number in range(arguments.rounds):
            one = seconds(patches, targets, jobs[0], config, device)
            all_ = seconds(patches, targets, [job for each in jobs for job in each], config, device)
            rounds.append((one, all_, all_ / one))
            print(f"{name}, round {number + 1}: {one:.1f} s, {all_:.1f} s", flush=True)
        one, all_, ratio = (statistics.median(each) for each in zip(*rounds, strict=True))
        verdict = "" if device.type != "cuda" else "met" if ratio <= MOST else "**missed**"
        lines.append(f"| {name} | {one:.1f} s | {all_:.1f} s | {ratio:.2f} | {verdict} |")
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU: figures mean nothing"
    head = (
        f"`make bench-train-gpu`: {len(patches)} drawn bags, {len(packed.array):,} patches of "
        f"{cohort.DIM} features; {arguments.members} networks a fold, {arguments.epochs} epochs, "
        f"{arguments.rounds} rounds; {where}, {os.cpu_count()} cores, torch {torch.__version__}."
    )
    publish("Training on a GPU", [head, "", *lines], append=arguments.append)


if __name__ == "__main__":
    main()
