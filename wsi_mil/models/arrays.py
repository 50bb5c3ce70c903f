"""Arrays of a caller's as tensors: neither copied nor written to.

Comes in: an array, which may be read-only (a memory map, say), or a tensor. Goes out: a tensor on the same
memory. Whoever computes with it makes new tensors and changes none in place.
"""

import warnings
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def as_tensor(values: NDArray[Any] | Tensor) -> Tensor:
    """Return the values as a tensor on the same memory; it must never be written to."""
    if isinstance(values, Tensor) or values.flags.writeable:
        return torch.as_tensor(values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.as_tensor(values)
