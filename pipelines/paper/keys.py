"""Key instances: does the attention find the patches that make a bag positive?

Comes in: attention and truth of the patches of test bags. Goes out: the area under the ROC curve within bags.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.paper.runs import Outcome, auroc


@dataclass(frozen=True, kw_only=True)
class Found:
    """The mean over ``bags`` positive bags of the area within each, and its 95 % interval over bags."""

    mean: float
    low: float
    high: float
    bags: int

    def __str__(self) -> str:
        """Return it as it stands in a table."""
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f}; {self.bags} bags)"


def within_bags(outcomes: Iterable[Outcome]) -> dict[str, list[float]]:
    """Return for each positive test bag the AUROC of its attention for its key patches, once per run.

    Bags whose patches are all key, or none, have no such area.
    """
    areas: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, code, attention, key in zip(
            outcome.names, outcome.code_B, outcome.attention, outcome.key, strict=True
        ):
            if code == 1 and 0 < key.sum() < len(key):
                area = auroc(key.astype(np.int64), attention.astype(np.float64))
                assert area is not None
                areas.setdefault(name, []).append(area)
    return areas


def interval(areas: dict[str, list[float]], *, samples: int = 2000, seed: int = 0) -> Found:
    """Return the mean over bags (of a bag's mean over runs) with its percentile bootstrap interval over bags.

    Raises:
        ValueError: no bag has an area.
    """
    if not areas:
        raise ValueError("no positive bag holds both key patches and others")
    mean_B: NDArray[np.float64] = np.array([np.mean(each) for each in areas.values()])
    drawn = np.random.default_rng(seed).integers(len(mean_B), size=(samples, len(mean_B)))
    low, high = np.percentile(mean_B[drawn].mean(axis=1), [2.5, 97.5])
    return Found(mean=float(mean_B.mean()), low=float(low), high=float(high), bags=len(mean_B))
