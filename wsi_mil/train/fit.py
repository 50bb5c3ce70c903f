"""Train one committee on bags in memory, and predict with it: no files, no cohort, no printing.

Comes in: bags (N, D), class codes, and for each member the bags set apart to choose its epoch. Goes out: a
model in evaluation mode and how its training went. It knows nothing of folds and slides.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil import models
from wsi_mil.config import TrainConfig

WARM_UP = 0.1
"""Part of the steps in which the learning rate rises."""

ATTENTION_RATE = 3.0
"""The pooling learns at this multiple of the rate: it starts as the mean (w = 0) and has to get away from it
before the hidden layer has learnt the bags by heart. More helps bags with few witnesses and costs where the
signal is everywhere (pipelines/ucsb_breast/README.md has the figures)."""

SMALL_STEP = 4_000_000
"""A step of fewer input values than this runs on one core: sharing it costs more than it saves, and on a
machine with other work, or a container that may use few of the cores it sees, many times more."""

Bags = Sequence[NDArray[Any]]
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model in evaluation mode; per member the epoch it was taken from (from 1) and its
    validation loss, which is None where there was nothing to validate on and the last epoch was taken.
    """

    model: models.MilModel
    epochs: list[int]
    val_losses: list[float | None]


def fit(
    bags: Bags,
    codes_B: Indices,
    *,
    head: dict[str, Any],
    vals: Sequence[Indices],
    config: TrainConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> Fitted:
    """Train the model that ``head`` describes (``models.build``) on ``bags``, of which it sees nothing else.

    ``vals`` holds, per member, the indices of the bags that the member is validated on and not trained on;
    the member's epoch of lowest validation loss is kept. Loss: cross-entropy with smoothed labels (unsmoothed
    when validating), classes weighted inversely to their bags. AdamW, the pooling at ``ATTENTION_RATE`` times
    the rate; the rate warms up linearly and falls as a cosine. Features are standardised by the mean and
    deviation over all patches of ``bags``, each bag counting the same. On the CPU the same seed gives the
    same model; the caller's random numbers are left as they were. Of ``config`` only the fields about
    training are read.

    Raises:
        ValueError: no bags, a bag without patches, or not one ``vals`` per member.
    """
    if not bags or any(len(bag) == 0 for bag in bags):
        raise ValueError("fit wants at least one bag, and no bag without patches")
    if len(vals) != head["members"]:
        raise ValueError(f"fit wants one validation part per member: {head['members']}, not {len(vals)}")
    device = torch.device(device)
    with _seeded(seed, device), _threads(bags, config):
        model = models.build(head)
        model.set_standardisation(*_moments(bags))
        model.to(device)
        taken = [_fit_member(model, number, bags, codes_B, val, config) for number, val in enumerate(vals)]
    return Fitted(
        model=model.eval(), epochs=[epoch for epoch, _ in taken], val_losses=[loss for _, loss in taken]
    )


def predict(model: models.MilModel, bags: Bags) -> NDArray[np.float64]:
    """Return (B, C) probabilities, each bag with all its patches, one at a time."""
    device = model.mean_D.device
    rows = []
    with torch.inference_mode():
        for bag in bags:
            x_BND, mask_BN = _pad([torch.from_numpy(np.asarray(bag))], device)
            rows.append(model(x_BND, mask_BN).logits_BC.softmax(dim=1)[0].double().cpu().numpy())
    return np.stack(rows)


def _fit_member(
    model: models.MilModel, number: int, bags: Bags, codes_B: Indices, val: Indices, config: TrainConfig
) -> tuple[int, float | None]:
    """Train one member in place; return the epoch it was taken from and its validation loss."""
    member = model.members[number]
    device = model.mean_D.device
    train = np.setdiff1d(np.arange(len(bags)), val)
    weight_C = _class_weights(codes_B[train], model.classes).to(device)
    optimiser = torch.optim.AdamW(_groups(member, config.learning_rate), weight_decay=config.weight_decay)
    steps = math.ceil(len(train) / config.batch_size) * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warm_cosine(steps))
    best, best_epoch = math.inf, 0
    best_state: dict[str, Tensor] = {}
    for epoch in range(1, config.epochs + 1):
        member.train()
        for batch_B in _batches(train, config.batch_size):
            x_BND, mask_BN = _pad([_draw(bags[i], config) for i in batch_B], device)
            y_B = torch.from_numpy(codes_B[batch_B]).to(device)
            logits_BC = member(model.standardise(x_BND), mask_BN).logits_BC
            loss = functional.cross_entropy(
                logits_BC, y_B, weight=weight_C, label_smoothing=config.label_smoothing
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        if not len(val):
            continue
        value = _loss(model, member, bags, codes_B, val, weight_C)
        if value < best or not best_state:  # kept even where it is NaN
            best, best_epoch = value, epoch
            best_state = {name: each.detach().clone() for name, each in member.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    if not len(val):
        return config.epochs, None
    member.load_state_dict(best_state)
    return best_epoch, best


def _groups(member: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups; mean and max pooling have no parameters."""
    rates = {True: rate * ATTENTION_RATE, False: rate}
    groups: dict[bool, list[nn.Parameter]] = {pools: [] for pools in rates}
    for name, each in member.named_parameters():
        groups[name.startswith("pool.")].append(each)
    return [{"params": params, "lr": rates[pools]} for pools, params in groups.items() if params]


def _batches(train: Indices, size: int) -> list[Indices]:
    order = train[torch.randperm(len(train)).numpy()]
    return [order[start : start + size] for start in range(0, len(order), size)]


def _loss(
    model: models.MilModel,
    member: nn.Module,
    bags: Bags,
    codes_B: Indices,
    val: Indices,
    weight_C: Tensor,
) -> float:
    """Return the class-weighted cross-entropy over the bags of ``val``, each with all its patches."""
    member.eval()
    with torch.no_grad():
        logits = []
        for i in val:
            x_BND, mask_BN = _pad([torch.from_numpy(np.asarray(bags[i]))], model.mean_D.device)
            logits.append(member(model.standardise(x_BND), mask_BN).logits_BC)
        y_B = torch.from_numpy(codes_B[val]).to(weight_C.device)
        return float(functional.cross_entropy(torch.cat(logits), y_B, weight=weight_C))


def _draw(bag: NDArray[Any], config: TrainConfig) -> Tensor:
    """Return a random part of a bag's patches, or all of them: (n, D), at least one patch."""
    patches = torch.from_numpy(np.asarray(bag))
    wanted = min(max(1, round(len(bag) * (1 - config.patch_dropout))), config.max_patches)
    return patches if wanted == len(bag) else patches[torch.randperm(len(bag))[:wanted]]


def _pad(bags: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the bags as one tensor (B, N, D), zeros below, and the mask (B, N) of real patches."""
    x_BND = nn.utils.rnn.pad_sequence(list(bags), batch_first=True)
    lengths_B = torch.tensor([len(bag) for bag in bags])
    mask_BN = torch.arange(x_BND.shape[1])[None] < lengths_B[:, None]
    return x_BND.to(device, torch.float32), mask_BN.to(device)


def _moments(bags: Bags) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and deviation (D,) over the patches; each bag weighs the same, however large it is."""
    mean_D = np.mean([bag.mean(axis=0, dtype=np.float64) for bag in bags], axis=0)
    square_D = np.mean([((bag.astype(np.float64) - mean_D) ** 2).mean(axis=0) for bag in bags], axis=0)
    return mean_D, np.sqrt(square_D)


def _class_weights(codes_B: Indices, classes: int) -> Tensor:
    counts = np.bincount(codes_B, minlength=classes)
    return torch.from_numpy((len(codes_B) / (classes * np.maximum(counts, 1))).astype(np.float32))


def _warm_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, round(steps * WARM_UP))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


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
def _threads(bags: Bags, config: TrainConfig) -> Iterator[None]:
    """Use one core inside the block where the steps are small."""
    before = torch.get_num_threads()
    patches = min(float(np.mean([len(bag) for bag in bags])), config.max_patches) * config.batch_size
    if patches * bags[0].shape[1] < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
