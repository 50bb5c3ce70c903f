"""ReLU and dropout in one: what the hidden layer of every network ends with.

Comes in: what the layer gives (T, H). Goes out: its positive part, of which while training some values are 0
and the others scaled up. On a CPU torch's own dropout draws its random numbers one by one, on one core, which
was a sixth of the processor time of a step of training.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_STEPS = 2**16


class ReluDropout(nn.Module):
    """ReLU, then dropout with probability ``p``, in steps of 1/65536 on a CPU."""

    def __init__(self, p: float) -> None:
        """Make the layer, which has no tensors."""
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return the positive part of ``x``, thinned out while training."""
        if not self.training or not self.p:
            return functional.relu(x)
        if x.device.type != "cpu":
            return functional.dropout(functional.relu(x), self.p)
        y: Tensor = _Thinned.apply(x, min(round(self.p * _STEPS), _STEPS - 1))
        return y


class _Thinned(torch.autograd.Function):
    """Keeps no mask: where the output is 0, nothing flows back, whether it was negative or dropped."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dropped: int) -> Tensor:
        """Return the positive part of ``x`` without ``dropped`` of each 65536 values."""
        words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))  # four random numbers each
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _STEPS // 2
        # As bytes: booleans are turned into numbers, and used as masks, ten times as slowly.
        return functional.relu(x).mul_(keep.view(torch.uint8).to(x.dtype)).mul_(_STEPS / (_STEPS - dropped))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        """Keep the output."""
        ctx.save_for_backward(output)
        ctx.scale = _STEPS / (_STEPS - inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient where the output is not 0."""
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0).mul_(ctx.scale), None
