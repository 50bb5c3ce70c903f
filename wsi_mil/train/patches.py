"""All patches of all bags in one array, and how a step of training takes its part of them.

Comes in: features (T, D) or pixels (T, ...), and which rows are whose. Goes out: batches for several networks
at once, ragged bags one below the other. It knows no label and no network.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_mil import models

Indices = NDArray[np.int64]
Ranges = Sequence[tuple[int, int]]
Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Changes patches (T, ...) at random while training."""

_TAKEN = 2_097_152
"""Values that are taken at a time on a CPU (8 MB as float32); with fewer, threads wait more often."""

_PIECE = {"cpu": 256, "cuda": 65_536}
"""Patches whose moments are taken at a time: on a CPU they stay in its cache."""
_ON_DEVICE = 0.5
"""Part of the GPU's free memory that the patches may take."""


@dataclass(frozen=True)
class Moments:
    """Mean and deviation (D,) of features over patches."""

    mean_D: NDArray[np.float64]
    std_D: NDArray[np.float64]


class Patches:
    """The patches of all bags: bag b is the rows ``ranges[b]`` of ``values`` (T, ...), maybe a memory map."""

    def __init__(self, values: Tensor, ranges: Sequence[Ranges]) -> None:
        """Take the rows as they lie; nothing is copied."""
        self.values = values
        self.ranges = ranges
        self.lengths = np.array([sum(stop - start for start, stop in each) for each in ranges], np.int64)
        self._moments: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    @classmethod
    def of(cls, bags: Sequence[NDArray[Any] | Tensor]) -> "Patches":
        """Put copies of bags in memory together."""
        ends = np.cumsum([len(bag) for bag in bags]).tolist()
        values = torch.cat([models.as_tensor(bag) for bag in bags])
        return cls(values, [[(end - len(bag), end)] for bag, end in zip(bags, ends, strict=True)])

    def __len__(self) -> int:
        """Return the number of bags."""
        return len(self.ranges)

    @property
    def dim(self) -> int:
        """Return the number of values of a patch."""
        return self.values[0].numel()

    def to(self, device: torch.device) -> "Patches":
        """Return the patches on the device where they fit in half of its free memory, else as they are."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self.values.nbytes <= _ON_DEVICE * free:
                return Patches(self.values.to(device), self.ranges)
        return self

    def rows(self, bag: int) -> Indices:
        """Return the rows of a bag."""
        return np.concatenate([np.arange(start, stop) for start, stop in self.ranges[bag]])

    def whole(self, bag: int) -> Tensor:
        """Return all patches of a bag (N, ...): a view where they lie together."""
        parts = [self.values[start:stop] for start, stop in self.ranges[bag]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def draw(
        self, bag: int, size: int | Literal["full"], dropout: float, rng: np.random.Generator
    ) -> Indices:
        """Return the rows of a random part of a bag: (1 - ``dropout``) of it, at most ``size``."""
        length = int(self.lengths[bag])
        wanted = max(1, round(length * (1 - dropout)))
        wanted = wanted if size == "full" else min(wanted, size)
        rows = self.rows(bag)
        # Sorted: rows that lie together are read together.
        return rows if wanted == length else rows[np.sort(rng.permutation(length)[:wanted])]

    def layout(self, rows_MB: Sequence[Sequence[Indices]]) -> tuple[Indices, Indices]:
        """Return the rows (M, T) of M networks' bags, one below the other, and the bag of each (M, T).

        Where a network has fewer rows than another, the rest is some patch, and its bag is -1.
        """
        totals = [sum(len(rows) for rows in each) for each in rows_MB]
        row_MT = np.zeros((len(rows_MB), max(totals)), np.int64)
        bag_MT = np.full(row_MT.shape, -1, np.int64)
        for m, each in enumerate(rows_MB):
            row_MT[m, : totals[m]] = np.concatenate(each)
            bag_MT[m, : totals[m]] = np.repeat(np.arange(len(each)), [len(rows) for rows in each])
        return row_MT, bag_MT

    def take(self, row_MT: Indices) -> Tensor:
        """Return the patches (M, T, ...) of some rows; a view where they lie together."""
        x_MT = self._take(row_MT.reshape(-1))
        return x_MT.view(*row_MT.shape, *x_MT.shape[1:])

    def pieces(self, row_MT: Indices, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """Yield the patches (M, n, ...) of rows part by part, and which part: whole on a GPU.

        On a CPU a piece stays in its cache, and many passes over memory become one.
        """
        count = row_MT.shape[1]
        size = _TAKEN // self.dim // len(row_MT) + 1 if device.type == "cpu" else count
        for start in range(0, count, size):
            part = slice(start, start + size)
            yield part, self.take(row_MT[:, part]).to(device)

    def moments(self, bags: Indices) -> Moments:
        """Return mean and deviation over the patches of some bags; each bag weighs the same."""
        for b in bags.tolist():
            if b not in self._moments:
                self._moments[b] = self._of_bag(b)
        each = [self._moments[b] for b in bags.tolist()]
        mean_D = np.mean([bag_mean_D for bag_mean_D, _ in each], axis=0)
        # Around the mean of all, so that a feature that is constant and large has a deviation of 0.
        var_D = np.mean([bag_var_D + (bag_mean_D - mean_D) ** 2 for bag_mean_D, bag_var_D in each], axis=0)
        return Moments(mean_D, np.sqrt(var_D))

    def _take(self, rows: Indices) -> Tensor:
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and bool((np.diff(rows) == 1).all()):
            return self.values[int(rows[0]) : int(rows[-1]) + 1]
        return self.values.index_select(0, torch.from_numpy(rows).to(self.values.device))

    def _of_bag(self, bag: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and variance (D,) over the patches of a bag."""
        x_ND = self.whole(bag)
        count, mean_D, square_D = 0, np.zeros(self.dim), np.zeros(self.dim)
        piece = _PIECE.get(x_ND.device.type, _PIECE["cpu"])
        for start in range(0, len(x_ND), piece):
            # In float32 within a piece, whose mean is taken off first; in double from piece to piece.
            part = x_ND[start : start + piece].float()  # of float32 a view: it is the caller's
            mean = part.mean(dim=0)
            var = (part - mean).square_().mean(dim=0)
            var_D, at_D = (each.double().cpu().numpy() for each in (var, mean))
            size = min(piece, len(x_ND) - start)
            # Chan, Golub & LeVeque's way to put moments of parts together.
            shift_D, total = at_D - mean_D, count + size
            square_D += var_D * size + shift_D**2 * count * size / total
            mean_D, count = mean_D + shift_D * size / total, total
        return mean_D, square_D / count
