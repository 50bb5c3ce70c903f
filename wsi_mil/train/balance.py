"""Which bags a network sees when, and how much each counts.

Comes in: the bags of a training part, their targets, and how classes are balanced. Goes out: bags in random
order, and weights of their losses. It knows no network.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsi_mil.models import Task
from wsi_mil.train.patches import Indices


class Stream:
    """Bags in random order without end: every bag once, then all again; or drawn by chances (balanced)."""

    def __init__(self, bags: Indices, chances: np.ndarray[Any, Any] | None) -> None:
        """Begin with nothing drawn; ``chances`` are those of the bags, None: each comes once."""
        self.bags, self.chances = bags, chances
        self.waiting: Indices = np.empty(0, np.int64)

    def take(self, count: int, rng: np.random.Generator) -> Indices:
        """Return the next ``count`` bags."""
        while len(self.waiting) < count:
            more = (
                rng.permutation(self.bags)
                if self.chances is None
                else rng.choice(self.bags, len(self.bags), p=self.chances)
            )
            self.waiting = np.concatenate((self.waiting, more))
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken


def weights(task: Task, train: Indices, targets: np.ndarray[Any, Any], balance: str) -> Tensor:
    """Return the weight (N,) of each bag: inverse to how common its class is in the training part."""
    codes = task.codes(targets)
    if codes is None or balance != "weights":
        return torch.ones(len(targets))
    return torch.from_numpy(_rarity(codes, train)).float()


def chances(
    task: Task, train: Indices, targets: np.ndarray[Any, Any], balance: str
) -> np.ndarray[Any, Any] | None:
    """Return the chance of each training bag to be drawn, where classes are balanced by sampling."""
    codes = task.codes(targets)
    if codes is None or balance != "sampling":
        return None
    each: np.ndarray[Any, Any] = _rarity(codes, train)[train]
    each /= each.sum()
    return each


def _rarity(codes: Indices, train: Indices) -> np.ndarray[Any, Any]:
    counts = np.bincount(codes[train], minlength=int(codes.max()) + 1)
    weights: np.ndarray[Any, Any] = len(train) / ((counts > 0).sum() * np.maximum(counts, 1))
    return weights[codes]
