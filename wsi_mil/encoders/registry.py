"""Encoders of a user's own: a name for a torch module that this package does not know."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_mil.encoders.preset import Triple
from wsi_mil.encoders.presets import PRESETS
from wsi_mil.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class OwnEncoder:
    """What ``register`` was told."""

    name: str
    build: "Callable[[], nn.Module]"
    input_px: int
    mean: Triple
    std: Triple
    mpps: tuple[float, ...]
    interpolation: str
    castable: bool


_OWN: dict[str, OwnEncoder] = {}


def register(
    name: str,
    build: "Callable[[], nn.Module]",
    *,
    input_px: int,
    mean: Triple,
    std: Triple,
    mpp: float | tuple[float, ...] = (),
    interpolation: str = "bicubic",
    castable: bool = True,
) -> None:
    """Give an encoder of your own a name, for this process: ``EmbedConfig(encoder=name)`` then finds it.

    ``build`` returns a module, with its weights, that takes (N, 3, input_px, input_px) float32, normalised
    with ``mean`` and ``std`` (of RGB in 0..1), and gives (N, D). ``mpp`` is what it was trained at, if
    patches of other resolutions are to be refused. A name that is registered again is replaced.

    Raises:
        ConfigError: the name belongs to a preset or has a colon, or a value makes no sense.
    """
    if name in PRESETS or ":" in name or not name.strip():
        raise ConfigError(f"register({name!r}): wanted a name without a colon that no preset has.")
    if interpolation not in {"bicubic", "bilinear"}:
        raise ConfigError(f"register({name!r}): interpolation {interpolation!r}; wanted bicubic or bilinear.")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or input_px < 1:
        raise ConfigError(f"register({name!r}): wanted three means, three positive stds, a positive size.")
    mpps = mpp if isinstance(mpp, tuple) else (mpp,)
    _OWN[name] = OwnEncoder(name, build, input_px, mean, std, mpps, interpolation, castable)


def registered(name: str) -> OwnEncoder | None:
    """Return what was registered under a name, or None."""
    return _OWN.get(name)
