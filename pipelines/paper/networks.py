"""The networks of the paper's appendix that stand in front of the bag: patches -> features.

Comes in: patches (T, channels, side, side) of 0 to 255, whatever their type. Goes out: features (T, D), on
which the project's own models pool and classify. ReLU stands after each pooling instead of before it: the
maximum is the same, on a quarter of the values.
"""

import torch
from torch import Tensor, nn

from wsi_mil.models.dropout import ReluDropout

HISTOLOGY = 512
"""Features of the network for histology."""
DIGITS = 500
"""Features of the network for digits."""

DROPOUT = 0.5
"""The paper says dropout and no rate."""

_MNIST_MEAN, _MNIST_DEVIATION = 0.1307, 0.3081


class Colours(nn.Module):
    """Values of 0 to 255 on -1 to 1, the channels of a pixel side by side: a CPU's convolutions like it."""

    def forward(self, x_T3HW: Tensor) -> Tensor:
        """Return float32 of -1 to 1."""
        return (x_T3HW.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


class Greys(nn.Module):
    """The digits' values with the mean and deviation of MNIST's training part."""

    def forward(self, x_T1HW: Tensor) -> Tensor:
        """Return float32."""
        return (x_T1HW.float() / 255 - _MNIST_MEAN) / _MNIST_DEVIATION


def histology(side: int) -> nn.Module:
    """Make the network for breast (32) and colon (27): conv(4)-36, pool, conv(3)-48, pool, fc-512 twice.

    With ReLU after each, and dropout after the last two.
    """
    left = ((side - 3) // 2 - 2) // 2
    return _initialised(
        nn.Sequential(
            Colours(),
            nn.Conv2d(3, 36, 4), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(36, 48, 3), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48 * left**2, HISTOLOGY), ReluDropout(DROPOUT),
            nn.Linear(HISTOLOGY, HISTOLOGY), ReluDropout(DROPOUT),
        )
    )  # fmt: skip


def digits() -> nn.Module:
    """Make the network for 28 x 28 digits: conv(5)-20, pool, conv(5)-50, pool, fc-500, ReLU after each."""
    return _initialised(
        nn.Sequential(
            Greys(),
            nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(),
            nn.Linear(50 * 4**2, DIGITS), nn.ReLU(),
        )
    )  # fmt: skip


def _initialised(network: nn.Sequential) -> nn.Sequential:
    """Draw the weights as the paper did (Glorot & Bengio 2010, uniform), and no biases."""
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network.to(memory_format=torch.channels_last)
