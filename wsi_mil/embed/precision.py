"""In which arithmetic an encoder runs: bf16 where the hardware is fast at it and the features stay the same.

Comes in: an encoder and a device. Goes out: a precision that was checked. Rounding to bf16 (8 bits) is
harmless in ResNets and transformers and ruins the first layers of EfficientNets (depthwise convolutions of
few channels): cosines of 0.990 to fp32 where 0.999 is wanted. So the encoder is asked, on patches drawn here,
how many of its first layers must stay in fp32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.device import bf16_is_fast
from wsi_mil.encoders import Encoder
from wsi_mil.errors import ConfigError

WANTED = 0.9998
"""Cosine to fp32 that each drawn patch must keep; real ones then keep 0.999 (benchmarks/RESULTS.md)."""

_FRACTIONS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the layers, kept in fp32
_LAYERS = (nn.Conv2d, nn.Linear)
_PROBES = 16


@dataclass(frozen=True)
class Precision:
    """``name``: fp32 or bf16. ``fp32_layers``: so many first layers stay in fp32. ``words``: why."""

    name: Literal["fp32", "bf16"]
    fp32_layers: int = 0
    words: str = ""

    def __str__(self) -> str:
        """Return it as a phrase for the log and the files."""
        layers = f", the first {self.fp32_layers} layers in fp32" if self.fp32_layers else ""
        return f"{self.name}{layers}{f' ({self.words})' if self.words else ''}"


def choose(wanted: str, encoder: Encoder, device: torch.device) -> Precision:
    """Return the precision that ``wanted`` ("auto", "fp32", "bf16") means for an encoder on a device.

    "bf16" is taken at its word: all layers. "auto" is bf16 only where the features of drawn patches keep a
    cosine of ``WANTED`` to those in fp32, with as many layers in fp32 as that takes.

    Raises:
        ConfigError: bf16 is asked of an encoder that cannot be cast.
    """
    if not encoder.castable:
        if wanted == "bf16":
            raise ConfigError(f"--precision bf16: {encoder.name} cannot be cast; use auto or fp32.")
        return Precision("fp32")
    if wanted == "fp32" or (wanted == "auto" and not bf16_is_fast(device)):
        return Precision("fp32")
    if wanted == "bf16":
        return Precision("bf16")
    encoder = encoder.to(device)
    x = encoder.transform(torch.from_numpy(drawn_patches(encoder.patch_px)).to(device))
    with torch.inference_mode():
        reference = encoder.module(x).float()
        count = len(_layers(encoder.module))
        for fraction in _FRACTIONS:
            kept = round(fraction * count)
            features = in_precision(encoder, "bf16", kept)(x).float()
            cosine = float(functional.cosine_similarity(features, reference).min())
            if cosine >= WANTED:
                return Precision("bf16", kept, f"cosine to fp32 {cosine:.4f} on drawn patches")
    in_precision(encoder, "fp32", 0)
    return Precision("fp32", 0, f"bf16 would change the features: cosine {cosine:.4f}")


def in_precision(encoder: Encoder, precision: str, fp32_layers: int) -> Callable[[Tensor], Tensor]:
    """Return the encoder's module as a function that runs in ``precision``, its first layers in fp32."""
    module = encoder.module
    if not encoder.castable:
        return module
    for k, layer in enumerate(_layers(module)):
        vars(layer).pop("forward", None)
        if k < fp32_layers and precision == "bf16":
            layer.forward = _in_fp32(layer)
    if precision == "fp32":
        return module

    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            features: Tensor = module(x)
        return features

    return run


def drawn_patches(size_px: int) -> NDArray[np.uint8]:
    """Return (n, size, size, 3) of something like H&E: from glass with a little tissue to dense nuclei."""
    rng = np.random.default_rng(0)
    glass, stroma, nucleus = (np.array(rgb) for rgb in ((242, 240, 243), (222, 150, 190), (96, 62, 140)))
    patches = np.empty((_PROBES, size_px, size_px, 3), dtype=np.uint8)
    for k in range(_PROBES):
        tissue = _smooth(rng, size_px, size_px // 4) < 0.03 + 0.97 * k / (_PROBES - 1)
        nuclei = tissue & (_smooth(rng, size_px, max(size_px // 28, 1)) < 0.05 + 0.4 * rng.random())
        shade = 30 * (_smooth(rng, size_px, max(size_px // 64, 1)) - 0.5)
        picture = np.where(nuclei[..., None], nucleus, np.where(tissue[..., None], stroma, glass))
        noise = rng.normal(0, 3, picture.shape) + (tissue * shade)[..., None]
        patches[k] = np.clip(picture + noise, 0, 255)
    return patches


def _smooth(rng: np.random.Generator, size: int, grain: int) -> NDArray[np.float64]:
    """Return (size, size) noise of so coarse a grain, as ranks: uniform on 0..1."""
    cells = torch.from_numpy(rng.random((1, 1, size // grain + 2, size // grain + 2)))
    field = functional.interpolate(cells, (size, size), mode="bicubic", align_corners=False)[0, 0].numpy()
    ranks = field.ravel().argsort().argsort().reshape(size, size)
    values: NDArray[np.float64] = ranks / (size * size)
    return values


def _layers(module: nn.Module) -> list[nn.Module]:
    """Return convolutions and linear layers in the order in which they were made: that of the data."""
    return [each for each in module.modules() if isinstance(each, _LAYERS)]


def _in_fp32(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    forward: Any = type(layer).forward

    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = forward(layer, x.float())
        return result

    return run
