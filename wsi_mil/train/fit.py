"""Train on bags in memory, and predict: no files, no cohort, no printing.

Comes in: bags, targets, and for each network the bags set apart to choose its epoch. Goes out: models in
evaluation mode and how their training went. It knows nothing of slides. ``fit`` trains one committee;
``fit_jobs`` any number of networks, as many at a time as the device has room for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil import models
from wsi_mil.config import TrainConfig
from wsi_mil.device import bf16_is_fast
from wsi_mil.memory import keep_memory
from wsi_mil.models import Front, MilModel
from wsi_mil.train.networks import Job, Memory, Trained, Training, batch_size
from wsi_mil.train.patches import Augment, Indices, Patches

SMALL_STEP = 4_000_000
"""A step of fewer input values than this runs on one core: sharing it costs more than it saves, and on a
machine with other work, or a container that may use few of the cores it sees, many times more."""

_ROOM = {"cpu": 4_000_000, "cuda": 400_000_000}
"""Input values (float32) of a step up to which networks are trained together: more would not be faster."""

Bags = Sequence[NDArray[Any] | torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model in evaluation mode, its head, and each member's training."""

    model: MilModel
    head: dict[str, Any]
    members: list[Trained]

    @property
    def epochs(self) -> list[int]:
        """The epoch (from 1) that each member was taken from."""
        return [each.epoch for each in self.members]

    @property
    def val_losses(self) -> list[float | None]:
        """The validation loss of each member; None where there was nothing to validate on."""
        return [each.val_loss for each in self.members]


def fit(
    bags: Bags,
    targets: NDArray[Any],
    *,
    head: dict[str, Any],
    vals: Sequence[Indices],
    config: TrainConfig,
    seed: int,
    device: torch.device | str = "cpu",
    front: Front | None = None,
    augment: Augment | None = None,
) -> Fitted:
    """Train the model that ``head`` describes (``models.build``) on ``bags``, of which it sees nothing else.

    ``targets`` are the bags', as ``models.tasks`` has them. ``vals`` holds, per member, the indices of the
    bags that the member is validated on and not trained on; the member's epoch of lowest validation loss is
    kept. Features are standardised by the mean and deviation over all patches of ``bags``, each bag counting
    the same. ``front`` makes an encoder that is trained with the model: bags are then of pixels, and
    ``augment`` changes them at random in training. On the CPU the same seed gives the same model; the
    caller's random numbers are left as they were. Of ``config`` only the fields about training are read.

    Raises:
        ValueError: no bags, a bag without patches, or not one ``vals`` per member.
        TrainingError: the loss became no number.
    """
    if not bags or any(len(bag) == 0 for bag in bags):
        raise ValueError("fit wants at least one bag, and no bag without patches")
    if len(vals) != head["members"]:
        raise ValueError(f"fit wants one validation part per member: {head['members']}, not {len(vals)}")
    patches = Patches.of(bags)
    everything = np.arange(len(bags))
    jobs = make_jobs(patches, targets, everything, vals, models.task_of(head), seed, pixels=front is not None)
    trained = fit_jobs(
        patches, targets, jobs, head=head, config=config, device=device, front=front, augment=augment
    )
    fitted = assemble(head, jobs, trained, front, device)
    fitted.model.centre(patches.whole(b) for b in range(len(patches)))
    return fitted


def make_jobs(
    patches: Patches,
    targets: NDArray[Any],
    train: Indices,
    vals: Sequence[Indices],
    task: models.Task,
    seed: int,
    *,
    pixels: bool = False,
) -> list[Job]:
    """Return a job for each member of a committee that learns from the bags ``train``."""
    moments = None if pixels else patches.moments(train)
    fitted = task.fitted(targets[train])
    seeds = np.random.SeedSequence(seed).generate_state(len(vals))
    return [
        Job(train=np.setdiff1d(train, val), val=val, seed=int(each), moments=moments, task=fitted)
        for val, each in zip(vals, seeds, strict=True)
    ]


def fit_jobs(
    patches: Patches,
    targets: NDArray[Any],
    jobs: Sequence[Job],
    *,
    head: dict[str, Any],
    config: TrainConfig,
    device: torch.device | str = "cpu",
    front: Front | None = None,
    augment: Augment | None = None,
    memory: Callable[[int], Memory] | None = None,
    report: Callable[[int], None] | None = None,
) -> list[Trained]:
    """Train every network of ``jobs``, several at a time, and return them in the same order.

    ``memory`` gives the memory of the group that starts with a job; ``report`` is told of network-epochs.
    """
    device = torch.device(device)
    if device.type == "cpu":
        keep_memory()
    patches = patches.to(device)
    trained: dict[int, Trained] = {}
    for group in groups(patches, jobs, head, config, device, front):
        each = fit_together(
            patches, targets, [jobs[i] for i in group], head=head, config=config, device=device, front=front,
            augment=augment, memory=memory(group[0]) if memory else None, report=report,
        )  # fmt: skip
        trained |= dict(zip(group, each, strict=True))
    return [trained[i] for i in range(len(jobs))]


def fit_together(
    patches: Patches,
    targets: NDArray[Any],
    jobs: Sequence[Job],
    *,
    head: dict[str, Any],
    config: TrainConfig,
    device: torch.device,
    front: Front | None = None,
    augment: Augment | None = None,
    memory: Memory | None = None,
    report: Callable[[int], None] | None = None,
) -> list[Trained]:
    """Train the networks of ``jobs``, which are one of ``groups``, as one."""
    with _seeded(jobs[0].seed, device), _threads(patches, config, jobs[0].task, len(jobs)):
        training = Training(
            patches, targets, jobs, head=head, config=config, device=device, front=front, augment=augment,
            bf16=_bf16(patches, config, jobs[0].task, device, len(jobs)),
        )  # fmt: skip
        return training.run(memory, report)


def assemble(
    head: dict[str, Any],
    jobs: Sequence[Job],
    trained: Sequence[Trained],
    front: Front | None = None,
    device: torch.device | str = "cpu",
) -> Fitted:
    """Put the members of a committee together, on the device, in evaluation mode."""
    head = head | {"task": jobs[0].task.to_head(), "members": len(jobs)}
    with torch.random.fork_rng(devices=[]):
        model = models.build(head, front)
    if jobs[0].moments is not None:
        model.set_standardisation(jobs[0].moments.mean_D, jobs[0].moments.std_D)
    for member, each in zip(model.members, trained, strict=True):
        member.load_state_dict(each.state)
    return Fitted(model=model.to(device).eval(), head=head, members=list(trained))


def predict(model: MilModel, bags: Bags) -> NDArray[np.float64]:
    """Return the predictions (B, C) of the model's task, each bag with all its patches, one at a time."""
    return model.task.predict(predict_logits(model, bags))


@torch.inference_mode()
def predict_logits(model: MilModel, bags: Bags) -> torch.Tensor:
    """Return the logits (B, C), each bag with all its patches, one at a time."""
    return torch.cat([model.bag(bag).logits_BC.float().cpu() for bag in bags])


def groups(
    patches: Patches,
    jobs: Sequence[Job],
    head: dict[str, Any],
    config: TrainConfig,
    device: torch.device,
    front: Front | None = None,
) -> list[list[int]]:
    """Return which jobs are trained together: of equal shapes, and as many as fit."""
    together, task = 1, jobs[0].task
    if not (front is not None and device.type == "cpu") and ":" not in str(head["model"]):
        room = _ROOM.get(device.type, _ROOM["cpu"])
        validated = int(patches.lengths.max()) * patches.dim  # whole bags, one at a time
        together = max(1, room // max(int(_step(patches, config, task)), validated))
    shapes: dict[int, list[int]] = {}
    for i, job in enumerate(jobs):
        shapes.setdefault(job.task.outputs, []).append(i)
    return [
        alike[start : start + together]
        for alike in shapes.values()
        for start in range(0, len(alike), together)
    ]


def _step(patches: Patches, config: TrainConfig, task: models.Task) -> float:
    """Return about how many input values a step of one network has."""
    lengths = patches.lengths * (1 - config.patch_dropout)
    size = np.inf if config.bag_size == "full" else config.bag_size
    return float(np.minimum(lengths, size).mean()) * batch_size(config, task) * patches.dim


def _bf16(
    patches: Patches, config: TrainConfig, task: models.Task, device: torch.device, together: int
) -> bool:
    if config.precision == "auto":
        return bf16_is_fast(device) and _step(patches, config, task) * together >= SMALL_STEP / 4
    return config.precision == "bf16"


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block and give the caller's random state back after it.

    Dropout takes no generator of its own: the global one, forked, is the only one that reaches all draws.
    """
    cuda = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


@contextmanager
def _threads(patches: Patches, config: TrainConfig, task: models.Task, together: int) -> Iterator[None]:
    """Use one core inside the block where the steps are small."""
    before = torch.get_num_threads()
    if _step(patches, config, task) * together < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
