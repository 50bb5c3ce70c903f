"""Train networks side by side: the steps, the epochs, and which epoch of each network is kept.

Comes in: patches of bags, encoded targets, and a ``Job`` per network: what it learns from and what it is
validated on. Goes out: its tensors and how the training went. It knows nothing of folds, slides and files;
what it needs to go on after a kill it hands to a ``Memory``.
"""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wsi_mil import models
from wsi_mil.config import TrainConfig
from wsi_mil.errors import TrainingError
from wsi_mil.models import CHUNK, Front, Task
from wsi_mil.train.balance import Stream, chances, weights
from wsi_mil.train.lanes import Lanes
from wsi_mil.train.patches import Augment, Indices, Moments, Patches

WARM_UP = 0.1
"""Part of the steps in which the learning rate rises."""

COX_BAGS = 32
"""Bags per step of Cox's likelihood, which compares the bags of a step."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One network to train: the bags it learns from and those that choose its epoch, its seed, and the
    standardisation (None: patches are pixels) and task as its training part makes them."""

    train: Indices
    val: Indices
    seed: int
    moments: Moments | None
    task: Task


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One trained network: its tensors, the epoch they are of (from 1), and the losses of every epoch.

    ``val_loss`` is None where there was nothing to validate on and the last epoch was taken.
    """

    state: dict[str, Tensor]
    epoch: int
    val_loss: float | None
    train_losses: list[float]
    val_losses: list[float]


class Memory(Protocol):
    """Keeps what a training needs to go on after a kill."""

    def load(self) -> dict[str, Any] | None:
        """Return what was kept last, or None."""

    def save(self, state: Callable[[], dict[str, Any]], last: bool = False) -> None:
        """Keep the state that the function returns, if it is time to or the ``last``."""


@dataclass
class _Progress:
    """Where each network stands."""

    epoch: int = 0
    best_M: list[float] = field(default_factory=list)
    epoch_M: list[int] = field(default_factory=list)
    train_losses_M: list[list[float]] = field(default_factory=list)
    val_losses_M: list[list[float]] = field(default_factory=list)


class Training:
    """The training of the networks of ``jobs``, which have equal shapes, as one."""

    def __init__(
        self,
        patches: Patches,
        targets: np.ndarray[Any, Any],
        jobs: Sequence[Job],
        *,
        head: dict[str, Any],
        config: TrainConfig,
        device: torch.device,
        bf16: bool = False,
        front: Front | None = None,
        augment: Augment | None = None,
    ) -> None:
        """Make the networks, each from its own seed, and the optimiser."""
        self.patches, self.jobs, self.config, self.device = patches, jobs, config, device
        self.bf16, self.augment, self.task = bf16, augment, jobs[0].task
        self.target_MN = torch.stack([job.task.encode(targets) for job in jobs]).to(device)
        self.weight_MN = torch.stack(
            [weights(job.task, job.train, targets, config.balance) for job in jobs]
        ).to(device)
        self.lanes = Lanes([_network(job, head, front) for job in jobs], device)
        self.bags = min(batch_size(config, self.task), *(len(job.train) for job in jobs))
        self.steps = math.ceil(max(len(job.train) for job in jobs) / self.bags)
        self.mean_MTD, self.scale_MTD = _standardisation(jobs, device)
        self.optimiser = _optimiser(self.lanes.parameters, config, device)
        warm = WARM_UP * self.steps * config.epochs if config.schedule == "cosine" else 0
        factor = _warm_cosine(self.steps * config.epochs, warm) if config.schedule == "cosine" else _constant
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, factor)
        self.draws = [np.random.default_rng([job.seed, 1]) for job in jobs]
        self.streams = [
            Stream(job.train, chances(job.task, job.train, targets, config.balance)) for job in jobs
        ]
        self.generator = torch.Generator(device).manual_seed(jobs[0].seed)
        count = len(jobs)
        self.progress = _Progress(0, [math.inf] * count, [0] * count, [[] for _ in jobs], [[] for _ in jobs])
        self.kept = self.lanes.state()

    def run(self, memory: Memory | None = None, report: Callable[[int], None] | None = None) -> list[Trained]:
        """Train until every network's epochs or patience have run out.

        Raises:
            TrainingError: a loss that is no number; names the epoch and the likely cause.
        """
        if memory is not None and (found := memory.load()) is not None:
            self.load(found)
        while self.progress.epoch < self.config.epochs and not self._over():
            self.lanes.train(True)
            loss_M = self._epoch()
            self.progress.epoch += 1
            self._check(loss_M)
            for losses, loss in zip(self.progress.train_losses_M, loss_M, strict=True):
                losses.append(loss)
            self._validate()
            if report is not None:
                report(len(self.jobs))
            if memory is not None:
                memory.save(self.state, last=self._over() or self.progress.epoch == self.config.epochs)
        return [self._trained(m) for m in range(len(self.jobs))]

    def _epoch(self) -> list[float]:
        """Make the steps of an epoch; return the mean loss of each network."""
        total_M = torch.zeros(len(self.jobs), device=self.device)
        size, dropout = self.config.bag_size, self.config.patch_dropout
        for _ in range(self.steps):
            bag_MB = np.stack(
                [s.take(self.bags, rng) for s, rng in zip(self.streams, self.draws, strict=True)]
            )
            rows_MB = [
                [self.patches.draw(b, size, dropout, rng) for b in bags]
                for bags, rng in zip(bag_MB.tolist(), self.draws, strict=True)
            ]
            x_MTD, bag_MT = self._batch(rows_MB)
            if self.config.feature_noise:
                noise = torch.randn(x_MTD.shape, generator=self.generator, device=self.device)
                x_MTD = x_MTD + self.config.feature_noise * noise
            if self.augment is not None:
                x_MTD = torch.stack([self.augment(x_TD.clone(), self.generator) for x_TD in x_MTD])
            loss_M = self._loss(x_MTD, bag_MT, torch.from_numpy(bag_MB).to(self.device))
            self.optimiser.zero_grad()
            loss_M.sum().backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            self.schedule.step()
            total_M += loss_M.detach()
        return [value / self.steps for value in total_M.tolist()]

    def _loss(self, x_MTD: Tensor, bag_MT: Tensor, at: Tensor) -> Tensor:
        """Return the loss (M,) of a step on the bags ``at`` (M, B): the task's, or the network's own."""
        target_MB, weight_MB = _pick(self.target_MN, at), _pick(self.weight_MN, at)
        with self._precision():
            if self.lanes.count == 1:
                each_B = self.lanes.network.losses(x_MTD[0], bag_MT[0], self.bags, target_MB[0])
                if each_B is not None:
                    return ((each_B * weight_MB[0]).sum() / weight_MB[0].sum())[None]
            logits_MBC = self.lanes(x_MTD, bag_MT, self.bags)
        return self.task.loss(logits_MBC, target_MB, weight_MB, self.config.label_smoothing)

    @torch.no_grad()
    def _validate(self) -> None:
        """Score every network on its validation bags, and keep those that are better than before."""
        progress, epoch = self.progress, self.progress.epoch
        if not any(len(job.val) for job in self.jobs):
            self.lanes.keep(self.kept, [True] * len(self.jobs))
            progress.epoch_M = [epoch] * len(self.jobs)
            return
        self.lanes.train(False)
        most = max(len(job.val) for job in self.jobs)
        # A network with fewer bags sees its first again, at weight 0.
        at_MV = np.stack([np.resize(job.val if len(job.val) else job.train[:1], most) for job in self.jobs])
        there_MV = torch.tensor(
            [[v < len(job.val) for v in range(most)] for job in self.jobs], device=self.device
        )
        logits_MVC = torch.cat([self._predict(bag_M) for bag_M in at_MV.T], dim=1)
        at = torch.from_numpy(at_MV).to(self.device)
        target_MV, weight_MV = _pick(self.target_MN, at), _pick(self.weight_MN, at) * there_MV
        value_M = self.task.loss(logits_MVC, target_MV, weight_MV)
        if self.config.stop_on == "loss+error":
            wrong_MV = self.task.wrong(logits_MVC, target_MV) * there_MV
            value_M = value_M + wrong_MV.sum(1) / there_MV.sum(1).clamp(min=1)
        better_M = []
        for m, (value, job) in enumerate(zip(value_M.tolist(), self.jobs, strict=True)):
            better_M.append(not self._stopped(m) and (value < progress.best_M[m] or not len(job.val)))
            if len(job.val) and not self._stopped(m):
                progress.val_losses_M[m].append(value)
            if better_M[m]:
                progress.best_M[m], progress.epoch_M[m] = value, epoch
        self.lanes.keep(self.kept, better_M)

    def _predict(self, bag_M: Indices) -> Tensor:
        """Return logits (M, 1, C) of one whole bag for each network."""
        if len(self.jobs) == 1 and self.patches.lengths[bag_M[0]] > CHUNK:
            x_ND = self.patches.whole(int(bag_M[0]))
            parts = range(0, len(x_ND), CHUNK)
            with self._precision():
                logits, _ = self.lanes.network.whole(
                    lambda: (self._standardise(x_ND[i : i + CHUNK].to(self.device)[None])[0] for i in parts)
                )
            return logits[None]
        x_MTD, bag_MT = self._batch([[self.patches.rows(b)] for b in bag_M.tolist()])
        with self._precision():
            return self.lanes(x_MTD, bag_MT, 1)

    def _batch(self, rows_MB: Sequence[Sequence[Indices]]) -> tuple[Tensor, Tensor]:
        """Return patches (M, T, ...), features standardised and pixels as they are, and their bags (M, T)."""
        row_MT, bags_MT = self.patches.layout(rows_MB)
        bag_MT = torch.from_numpy(bags_MT).to(self.device)
        if self.mean_MTD is None:
            return self.patches.take(row_MT).to(self.device), bag_MT
        shape = (*row_MT.shape, self.patches.dim)
        x_MTD = torch.empty(shape, dtype=torch.bfloat16 if self.bf16 else torch.float32, device=self.device)
        for part, raw_MTD in self.patches.pieces(row_MT, self.device):
            x_MTD[:, part] = self._standardise(raw_MTD)
        return x_MTD, bag_MT

    def _standardise(self, x_MTD: Tensor) -> Tensor:
        """Return features standardised, in float32; pixels as they are."""
        if self.mean_MTD is None or self.scale_MTD is None:
            return x_MTD
        return (x_MTD.float() - self.mean_MTD).mul_(self.scale_MTD)

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def _stopped(self, m: int) -> bool:
        """Tell whether a network's patience has run out before this epoch."""
        losses = self.progress.val_losses_M[m]
        return bool(losses) and len(losses) - self.progress.epoch_M[m] >= self.config.patience

    def _over(self) -> bool:
        return all(self._stopped(m) for m in range(len(self.jobs)))

    def _check(self, loss_M: list[float]) -> None:
        for m, loss in enumerate(loss_M):
            if not math.isfinite(loss):
                before = self.progress.train_losses_M[m]
                course = f"it was {before[-1]:.3g} the epoch before" if before else "in the first epoch"
                raise TrainingError(
                    f"the training loss became {loss} in epoch {self.progress.epoch} ({course}). The likely "
                    f"cause is a learning rate that is too high for these features: --learning-rate is "
                    f"{self.config.learning_rate:g}; try a tenth of it"
                    + (", or --precision fp32." if self.bf16 else ".")
                )

    def _trained(self, m: int) -> Trained:
        progress, job = self.progress, self.jobs[m]
        return Trained(
            state={name: each[m].cpu() for name, each in self.kept.items()},
            epoch=progress.epoch_M[m],
            val_loss=progress.best_M[m] if len(job.val) else None,
            train_losses=progress.train_losses_M[m],
            val_losses=progress.val_losses_M[m],
        )

    def state(self) -> dict[str, Any]:
        """Return all that decides how the training goes on."""
        return {
            "progress": vars(self.progress),
            "lanes": self.lanes.state(),
            "kept": self.kept,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            # As text: the numbers have 128 bits.
            "draws": [json.dumps(rng.bit_generator.state) for rng in self.draws],
            "streams": [stream.waiting.tolist() for stream in self.streams],
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state; of one at its end only what came out is taken: it may be another device's."""
        self.progress = _Progress(**state["progress"])
        self.kept = {name: each.to(self.device) for name, each in state["kept"].items()}
        if self._over() or self.progress.epoch >= self.config.epochs:
            return
        self.lanes.load(state["lanes"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        for rng, each in zip(self.draws, state["draws"], strict=True):
            rng.bit_generator.state = json.loads(each)
        for stream, waiting in zip(self.streams, state["streams"], strict=True):
            stream.waiting = np.array(waiting, np.int64)
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def _network(job: Job, head: dict[str, Any], front: Front | None) -> models.Network:
    torch.manual_seed(job.seed)  # the caller has forked the global generator
    return models.network(head | {"task": job.task.to_head()}, front)


def _standardisation(jobs: Sequence[Job], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    if jobs[0].moments is None:
        return None, None
    moments = [job.moments for job in jobs if job.moments is not None]
    mean_MD = torch.from_numpy(np.stack([each.mean_D for each in moments])).float()
    std_MD = torch.from_numpy(np.stack([models.safe_std(each.std_D) for each in moments])).float()
    return mean_MD[:, None].to(device), (1 / std_MD)[:, None].to(device)


def batch_size(config: TrainConfig, task: Task) -> int:
    """Return how many bags a step has."""
    return config.batch_size or (COX_BAGS if task.kind == "cox" else 4)


def _optimiser(
    parameters: dict[str, Tensor], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    rates = {True: config.learning_rate * config.attention_rate, False: config.learning_rate}
    groups: dict[bool, list[Tensor]] = {pools: [] for pools in rates}
    for name, each in parameters.items():
        groups[name.startswith("pool.")].append(each)
    given = [{"params": params, "lr": rates[pools]} for pools, params in groups.items() if params]
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return kind(given, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda"))


def _pick(values_MN: Tensor, at_MB: Tensor) -> Tensor:
    """Return (M, B, ...): of each network's values those of its bags."""
    return values_MN[torch.arange(len(values_MN), device=values_MN.device)[:, None], at_MB]


def _constant(_step: int) -> float:
    return 1.0


def _warm_cosine(steps: int, warm: float) -> Callable[[int], float]:
    warm = max(1, round(warm))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor
