"""The record that other modules see: module, transform and identity; and whether patches fit it."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from wsi_mil.encoders.transform import PatchTransform
from wsi_mil.errors import ConfigError

TOLERANCE = 1.15
"""How far the mpp that an encoder sees may lie from the one its authors name, as a ratio.

256 px at 0.5 microns per pixel, resized to 224, is the commonest input of all and what the authors of UNI and
CLAM run themselves: a ratio of 1.143. Scanners' "20x" spreads over another few percent. The next mistake, a
magnification of half or double, is a ratio of 2.
"""


@dataclass(frozen=True)
class Encoder:
    """A patch encoder, ready to run.

    ``module`` takes what ``transform`` returns and gives (N, ``dim``). ``patch_px`` is its input size.
    ``mpp`` is the resolution at that input that its authors name first, ``mpps`` all that they name; None and
    empty where they name none. ``weights_digest`` identifies the tensors, whatever file they came from.
    ``castable``: a torch module that may be cast to bf16, put in channels_last and compiled; ONNX and
    TorchScript run as they are.
    """

    name: str
    module: nn.Module
    transform: PatchTransform
    dim: int
    patch_px: int
    mpp: float | None
    weights_digest: str
    mpps: tuple[float, ...] = ()
    castable: bool = True

    @property
    def device(self) -> torch.device:
        """Where it is; a module without parameters (ONNX) has no other way to say."""
        return self.transform.mean.device

    def to(self, device: torch.device) -> "Encoder":
        """Return the encoder on a device."""
        return dataclasses.replace(self, module=self.module.to(device), transform=self.transform.to(device))


def check_fit(encoder: Encoder, mpp: float, patch_px: int, allow_mismatch: bool = False) -> str:
    """Return "" when patches of ``patch_px`` pixels at ``mpp`` are what the encoder's authors prescribe.

    A patch is resized to the encoder's input, so what counts is the mpp after that, within ``TOLERANCE``. A
    patch smaller than the input by more than that has not the detail that the mpp promises. An encoder whose
    authors name no mpp takes any patch.

    Returns:
        With ``allow_mismatch``, a phrase that says what does not fit, for the files' notes.

    Raises:
        ConfigError: it does not fit, and a mismatch is not allowed.
    """
    if not encoder.mpps:
        return ""
    seen = mpp * patch_px / encoder.patch_px
    wanted = ", ".join(f"{each:g}" for each in encoder.mpps)
    if not any(1 / TOLERANCE <= seen / each <= TOLERANCE for each in encoder.mpps):
        found = f"sees {seen:.3g} microns per pixel, its authors prescribe {wanted}"
    elif patch_px * TOLERANCE < encoder.patch_px:
        found = f"sees patches of {patch_px} px enlarged to {encoder.patch_px}"
    else:
        return ""
    if allow_mismatch:
        return f"{encoder.name} {found}"
    raise ConfigError(
        f"--encoder {encoder.name}: {found} (patches of {patch_px} px at {mpp:g} are resized to its input of "
        f"{encoder.patch_px} px). Tile with --mpp {encoder.mpps[0]:g} --patch-px {encoder.patch_px}, or pass "
        "--allow-mismatch, which the files record."
    )
