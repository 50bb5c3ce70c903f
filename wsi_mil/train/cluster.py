"""Networks trained by a cluster's workers: those that are trained together are one task.

Comes in: the jobs of a cross-validation. Goes out: the last state of each training, in RUN/train/states, as
if this process had trained it and been killed at the end. The workers map the packed features, which are on
the file system that all share; nothing large travels.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from wsi_mil import parallel, store
from wsi_mil.config import TrainConfig
from wsi_mil.device import pick_device
from wsi_mil.errors import FormatError, TrainingError
from wsi_mil.parallel import console
from wsi_mil.train.bags import Cohort
from wsi_mil.train.fit import fit_together, groups
from wsi_mil.train.memory import Work
from wsi_mil.train.networks import Job
from wsi_mil.train.packed import tensor_of
from wsi_mil.train.patches import Patches, Ranges


@dataclass(frozen=True)
class _Cohort:
    """Where a worker finds the patches, and how it knows that they are those that are meant."""

    run: Path
    encoder: str
    slide_ids: tuple[str, ...]
    checksums: tuple[str, ...]
    ranges: tuple[Ranges, ...]


@dataclass(frozen=True)
class _Task:
    cohort: _Cohort
    config: TrainConfig
    head: dict[str, Any]
    targets: NDArray[Any]
    jobs: tuple[Job, ...]
    folder: Path
    record: dict[str, Any]
    name: str


class Cluster:
    """Trains jobs on the cluster that the settings name: an ``Elsewhere`` for ``cross_validate``."""

    def __init__(
        self, cohort: Cohort, patches: Patches, device: torch.device, report: Callable[[int], None]
    ) -> None:
        """Begin nothing yet. ``device`` is that of this process; ``report`` is told of network-epochs."""
        self._cohort, self._patches, self._device, self._report = cohort, patches, device, report

    def __call__(
        self,
        config: TrainConfig,
        head: dict[str, Any],
        targets: NDArray[Any],
        jobs: Sequence[Job],
        work: Work,
        number: int,
    ) -> None:
        """Train ``jobs``, and leave their last states in ``work``.

        Raises:
            TrainingError: a training came to nothing.
            ClusterError: the cluster is not to be had, or was lost.
        """
        packed = self._cohort.packed
        cohort = _Cohort(
            config.run, str(packed.identity["encoder"]), packed.slide_ids, packed.checksums,
            tuple(tuple(each) for each in self._patches.ranges),
        )  # fmt: skip
        work.begin()  # before a worker looks
        tasks: dict[str, _Task] = {}
        for group in groups(self._patches, jobs, head, config, self._device):
            name = f"{number}-{group[0]}"
            some = tuple(jobs[i] for i in group)
            task = _Task(cohort, config, head, targets, some, work.folder, work.record, name)
            tasks[f"networks-{name}"] = task
        place = parallel.Place(cluster=config, shared=config.run, alone=True, resource="GPU")
        ended = parallel.as_they_end(
            _train, tasks, title="train", place=place, cost=lambda task: float(len(task.jobs))
        )
        with closing(ended):
            for outcome in ended:
                if outcome.status == "failed":
                    raise TrainingError(outcome.reason)
                self._report(len(tasks[outcome.slide_id].jobs) * config.epochs)
                if not console.is_terminal:
                    console.print(f"train: {outcome.slide_id} {outcome.seconds:.1f} s", markup=False)


def _train(task: _Task) -> dict[str, Any]:
    """In a worker: train some networks together, or go on where another worker was."""
    torch.set_num_threads(parallel.cpu_count())
    work = Work.joined(task.folder, task.record)
    fit_together(
        _patches(task.cohort),
        task.targets,
        task.jobs,
        head=task.head,
        config=task.config,
        device=pick_device(task.config.device),
        memory=work.memory(task.name),
    )
    return {}


@functools.lru_cache(maxsize=1)
def _patches(cohort: _Cohort) -> Patches:
    packed = store.read_packed(cohort.run, cohort.encoder)
    if set(cohort.slide_ids) <= set(packed.slide_ids):
        packed = packed.take(cohort.slide_ids)
    if packed.checksums != cohort.checksums:
        raise FormatError(
            f"{store.bags_folder(cohort.run, cohort.encoder)}: other features than when the training began; "
            "give the command again."
        )
    return Patches(tensor_of(packed), cohort.ranges)
