"""Shares: which slides one of several processes works on, where nothing else hands them out."""

import re
from collections.abc import Sequence
from typing import TypeVar

from wsi_mil.config.base import require

Item = TypeVar("Item")
_SHARE = re.compile(r"(\d+)/(\d+)")


def check_share(share: str) -> None:
    """Raise ConfigError unless ``share`` is "" (all) or K/N with 1 <= K <= N."""
    match = _SHARE.fullmatch(share)
    fits = not share or (match is not None and 1 <= int(match[1]) <= int(match[2]))
    require(
        fits,
        f"--share {share}: wanted K/N, the Kth of N shares, such as 3/16; in an array job (--array=1-16) "
        "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT.",
    )


def share_of(items: Sequence[Item], share: str) -> list[Item]:
    """Return every Nth item, beginning with the Kth; all for "".

    The N shares of the same items have no item in common and hold all of them. They are dealt out one by one
    because neighbours in a folder are of one scanner and day, and take alike long.
    """
    if not share:
        return list(items)
    first, count = map(int, share.split("/"))
    return list(items[first - 1 :: count])
