"""What a task asks of a model: how many logits, which loss, and what the logits mean.

Comes in: logits and targets. Goes out: losses, and predictions in the task's own units. What a task learns
from the targets of its training part (intervals of time, the scale of a number) is part of it and kept in the
model's head. It knows no network.

Targets come as (N,) classes, grades or values, (N, L) zeros and ones of multilabel, or (N, 2) time and event
of survival; ``encode`` makes of them what the loss wants. Tensors of a loss have a leading letter M for
networks that are trained together: logits (M, B, C), encoded targets (M, B, ...), weights (M, B), of which 0
is no bag.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsi_mil.errors import FormatError
from wsi_mil.models.arrays import as_tensor

Activation = Literal["softmax", "sigmoid", "identity"]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Base of all tasks. ``names`` are the columns of the prediction."""

    kind: ClassVar[str]
    activation: ClassVar[Activation]
    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Return how many logits a bag has."""
        return len(self.names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return what each logit is of: the classes or labels, or the one value."""
        return self.names

    def fitted(self, targets: NDArray[Any]) -> "Task":
        """Return the task with what it learns from the targets of a training part."""
        del targets
        return self

    def encode(self, targets: NDArray[Any]) -> Tensor:
        """Return the targets as the loss takes them, a row for each bag."""
        return as_tensor(targets).float()

    def codes(self, targets: NDArray[Any]) -> NDArray[np.int64] | None:
        """Return the class of each target, by which rare ones count more; None where there are no classes."""
        del targets
        return None

    @abstractmethod
    def loss(
        self, logits_MBC: Tensor, target_MB: Tensor, weight_MB: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Return the loss (M,) of each network; ``smoothing`` is of targets that are classes."""

    @abstractmethod
    def predict(self, logits_BC: Tensor) -> NDArray[np.float64]:
        """Return the prediction (B, len(names)): probabilities, values or risks."""

    def mean(self, logits_KBC: Tensor) -> Tensor:
        """Return logits (B, C) that stand for the mean of K models: of probabilities, or of values."""
        if self.activation == "softmax":
            return logits_KBC.log_softmax(dim=-1).logsumexp(dim=0) - float(np.log(len(logits_KBC)))
        if self.activation == "sigmoid":
            yes, no = (functional.logsigmoid(s * logits_KBC).logsumexp(dim=0) for s in (1, -1))
            return yes - no
        return logits_KBC.mean(dim=0)

    def wrong(self, logits_MBC: Tensor, target_MB: Tensor) -> Tensor:
        """Return (M, B): how wrong each prediction is, 0 to 1; 0 where right and wrong do not exist."""
        del target_MB
        return logits_MBC.new_zeros(logits_MBC.shape[:2])

    def to_head(self) -> dict[str, Any]:
        """Return the task as plain values for a model's head."""
        return {"task": self.kind} | dataclasses.asdict(self)


class BagwiseTask(Task):
    """Base of tasks whose loss is a mean over bags."""

    def loss(
        self, logits_MBC: Tensor, target_MB: Tensor, weight_MB: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Return the loss (M,) of each network: the weighted mean over its bags, with smoothed targets."""
        each_MB = self._losses(logits_MBC.float(), target_MB, smoothing)
        return (each_MB * weight_MB).sum(1) / weight_MB.sum(1)

    @abstractmethod
    def _losses(self, logits_MBC: Tensor, target_MB: Tensor, smoothing: float) -> Tensor:
        """Return the loss (M, B) of each bag."""


@dataclass(frozen=True, kw_only=True)
class Classification(BagwiseTask):
    """One of C classes; cross-entropy, with smoothed targets where asked."""

    kind = "classification"
    activation = "softmax"

    def codes(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        """Return the targets: they are classes."""
        return targets.astype(np.int64)

    def predict(self, logits_BC: Tensor) -> NDArray[np.float64]:
        """Return the probabilities (B, C)."""
        return _numpy(logits_BC.softmax(dim=1))

    def wrong(self, logits_MBC: Tensor, target_MB: Tensor) -> Tensor:
        """Return (M, B): whether the most probable class is not the bag's."""
        return (logits_MBC.argmax(dim=2) != target_MB).float()

    def _losses(self, logits_MBC: Tensor, target_MB: Tensor, smoothing: float) -> Tensor:
        flat = functional.cross_entropy(
            logits_MBC.flatten(0, 1), target_MB.flatten().long(), reduction="none", label_smoothing=smoothing
        )
        return flat.view_as(target_MB)


@dataclass(frozen=True, kw_only=True)
class Multilabel(BagwiseTask):
    """Any number of L labels; the mean over the labels of the binary cross-entropy."""

    kind = "multilabel"
    activation = "sigmoid"

    def predict(self, logits_BC: Tensor) -> NDArray[np.float64]:
        """Return the probabilities (B, L)."""
        return _numpy(logits_BC.sigmoid())

    def wrong(self, logits_MBC: Tensor, target_MB: Tensor) -> Tensor:
        """Return (M, B): the share of the labels that are on the wrong side of one half."""
        return ((logits_MBC > 0) != (target_MB > 0.5)).float().mean(dim=2)

    def _losses(self, logits_MBC: Tensor, target_MB: Tensor, smoothing: float) -> Tensor:
        return _binary(logits_MBC, target_MB, smoothing).mean(dim=2)


@dataclass(frozen=True, kw_only=True)
class Ordinal(BagwiseTask):
    """K ordered grades: K - 1 logits of P(y > k) with ordered thresholds.

    Source: the proportional odds model (McCullagh, J. R. Stat. Soc. B 42, 1980), trained as K - 1 binary
    tasks as in CORAL (Cao, Mirjalili & Raschka, Pattern Recognition Letters 140, 2020).
    """

    kind = "ordinal"
    activation = "sigmoid"

    @property
    def outputs(self) -> int:
        """Return K - 1, the number of thresholds."""
        return len(self.names) - 1

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the thresholds: above each grade but the highest."""
        return tuple(f"above {name}" for name in self.names[:-1])

    def codes(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        """Return the targets: grades are classes."""
        return targets.astype(np.int64)

    def predict(self, logits_BC: Tensor) -> NDArray[np.float64]:
        """Return the probabilities (B, K) of the grades."""
        above = logits_BC.sigmoid()
        ends = (torch.ones_like(above[:, :1]), above, torch.zeros_like(above[:, :1]))
        steps = -torch.cat(ends, dim=1).diff(dim=1)
        return _numpy(steps.clamp(min=0) / steps.clamp(min=0).sum(dim=1, keepdim=True))

    def wrong(self, logits_MBC: Tensor, target_MB: Tensor) -> Tensor:
        """Return (M, B): whether the grade is missed."""
        return ((logits_MBC > 0).sum(dim=2) != target_MB).float()

    def _losses(self, logits_MBC: Tensor, target_MB: Tensor, smoothing: float) -> Tensor:
        above = target_MB[..., None] > torch.arange(self.outputs, device=target_MB.device)
        return _binary(logits_MBC, above, smoothing).mean(dim=2)


@dataclass(frozen=True, kw_only=True)
class Regression(BagwiseTask):
    """A number; Huber's loss on the target less its ``centre``, over its ``scale`` (of the training part)."""

    kind = "regression"
    activation = "identity"
    centre: float = 0.0
    scale: float = 1.0

    def fitted(self, targets: NDArray[Any]) -> "Regression":
        """Return the task with mean and deviation of the targets."""
        scale = float(np.std(targets))
        return dataclasses.replace(self, centre=float(np.mean(targets)), scale=scale if scale > 0 else 1.0)

    def encode(self, targets: NDArray[Any]) -> Tensor:
        """Return the targets less the centre, over the scale."""
        return torch.as_tensor((targets - self.centre) / self.scale).float()

    def predict(self, logits_BC: Tensor) -> NDArray[np.float64]:
        """Return the value (B, 1) in the target's units."""
        return _numpy(logits_BC) * self.scale + self.centre

    def _losses(self, logits_MBC: Tensor, target_MB: Tensor, smoothing: float) -> Tensor:
        del smoothing
        return functional.smooth_l1_loss(logits_MBC[..., 0], target_MB, reduction="none")


@dataclass(frozen=True, kw_only=True)
class Cox(Task):
    """Survival by Cox's partial likelihood over the bags of a step, Breslow's way with ties.

    Source: Cox, J. R. Stat. Soc. B 34 (1972); as a loss Katzman et al., BMC Med. Res. Methodol. 18 (2018).
    """

    kind = "cox"
    activation = "identity"

    def predict(self, logits_BC: Tensor) -> NDArray[np.float64]:
        """Return the log-risk (B, 1): higher is sooner."""
        return _numpy(logits_BC)

    def loss(
        self, logits_MBC: Tensor, target_MB: Tensor, weight_MB: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Return the negative log partial likelihood (M,) per event; 0 where no bag has one."""
        del smoothing
        risk_MB, there_MB = logits_MBC[..., 0].float(), weight_MB > 0
        time_MB, event_MB = target_MB[..., 0], target_MB[..., 1] * there_MB
        # Who is under observation at the time of bag i: (M, i, j). A bag is always in its own risk set.
        at_risk_MBB = (time_MB[:, None, :] >= time_MB[:, :, None]) & (there_MB[:, None, :] | _same(time_MB))
        total_MB = risk_MB[:, None, :].masked_fill(~at_risk_MBB, -torch.inf).logsumexp(dim=2)
        return -((risk_MB - total_MB) * event_MB).sum(dim=1) / event_MB.sum(dim=1).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class DiscreteTime(BagwiseTask):
    """Survival by the hazard of each of K intervals of time, whose ``edges`` are K + 1 times from 0.

    The edges are quantiles of the event times of the training part; the last interval has no end but for the
    midpoint rule: who is censored in an interval is counted as having survived it after its middle.
    Source: Gensheimer & Narasimhan, PeerJ 7:e6257 (2019).
    """

    kind = "discrete"
    activation = "sigmoid"
    edges: tuple[float, ...]

    @property
    def outputs(self) -> int:
        """Return the number of intervals."""
        return len(self.edges) - 1

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the intervals, whose hazards the logits are; the last has no end."""
        ends = [f"{end:g}" for end in self.edges[1:-1]] + ["later"]
        return tuple(f"{start:g} to {end}" for start, end in zip(self.edges[:-1], ends, strict=True))

    def fitted(self, targets: NDArray[Any]) -> "DiscreteTime":
        """Return the task with edges at the quantiles of the event times; fewer where times coincide."""
        times = targets[targets[:, 1] > 0, 0]
        inner = np.unique(np.quantile(times, np.linspace(0, 1, self.outputs + 1)[1:-1]))
        last = max(float(targets[:, 0].max()), float(inner.max(initial=0.0)) * (1 + 1e-6))
        inner = inner[(inner > 0) & (inner < last)]
        return dataclasses.replace(self, edges=(0.0, *map(float, inner), last))

    def predict(self, logits_BC: Tensor) -> NDArray[np.float64]:
        """Return the risk (B, 1): minus the sum over the intervals of the chance to survive them."""
        survival = functional.logsigmoid(-logits_BC).cumsum(dim=1).exp()
        return _numpy(-survival.sum(dim=1, keepdim=True))

    def survival(self, logits_BC: Tensor) -> NDArray[np.float64]:
        """Return the chance (B, K) to be alive at the end of each interval."""
        return _numpy(functional.logsigmoid(-logits_BC).cumsum(dim=1).exp())

    def encode(self, targets: NDArray[Any]) -> Tensor:
        """Return (N, K, 2): whether each interval was survived, and whether it was died in."""
        time_N1, event_N1 = targets[:, :1], targets[:, 1:] > 0
        start_K, end_K = np.array(self.edges[:-1]), np.array(self.edges[1:])
        last_K = np.arange(self.outputs) == self.outputs - 1
        inside_NK = (time_N1 > start_K) & ((time_N1 <= end_K) | last_K)
        survived_NK = (time_N1 > end_K) & ~inside_NK
        survived_NK |= inside_NK & ~event_N1 & (time_N1 >= (start_K + end_K) / 2)
        return torch.as_tensor(np.stack((survived_NK, inside_NK & event_N1), axis=2)).float()

    def _losses(self, logits_MBC: Tensor, target_MB: Tensor, smoothing: float) -> Tensor:
        del smoothing
        survived, died = target_MB.unbind(dim=-1)
        chance = functional.logsigmoid(logits_MBC) * died + functional.logsigmoid(-logits_MBC) * survived
        return -chance.sum(dim=2)


TASKS: dict[str, type[Task]] = {
    each.kind: each for each in (Classification, Multilabel, Ordinal, Regression, Cox, DiscreteTime)
}


def task_of(head: Mapping[str, Any]) -> Task:
    """Return the task of a model's head (``Task.to_head``).

    Raises:
        FormatError: an unknown task, or one that lacks a value.
    """
    found: Mapping[str, Any] = head.get("task", {})
    kind = TASKS.get(str(found.get("task")))
    if kind is None:
        raise FormatError(
            f"the model's head has task {found.get('task')!r}; wanted one of {', '.join(TASKS)}."
        )
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items() if name != "task"}
    try:
        return kind(**values)
    except TypeError as error:
        raise FormatError(f"the model's head does not describe its task {kind.kind}: {error}.") from error


def make_task(task: str, names: Sequence[str], *, survival_loss: str = "cox", time_bins: int = 4) -> Task:
    """Return the task of a training run, not yet fitted to any targets."""
    if task == "survival" and survival_loss == "discrete":
        return DiscreteTime(names=tuple(names), edges=tuple(map(float, range(time_bins + 1))))
    return TASKS["cox" if task == "survival" else task](names=tuple(names))


def _same(time_MB: Tensor) -> Tensor:
    return torch.eye(time_MB.shape[1], dtype=torch.bool, device=time_MB.device)


def _binary(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    wanted = target.to(logits.dtype) * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def _numpy(values: Tensor) -> NDArray[np.float64]:
    plain: NDArray[np.float64] = values.detach().double().cpu().numpy()
    return plain
