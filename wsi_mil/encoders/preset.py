"""What is known of an encoder that has a name here: one literal record, read without torch or a network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One encoder with everything pinned that changes its features.

    ``parameters`` and ``dim`` are checked against what is built by a test. ``reference`` says where the
    facts are from; ``repo`` is the model's place on the hub, where its card is.
    """

    name: str
    repo: str
    """ORG/NAME on the model hub; empty: the weights come with an installed package."""
    architecture: str
    """timm's name, without a tag."""
    dim: int
    """Features per patch."""
    parameters: int
    """Of the encoder without a classifier."""
    licence: str
    reference: str
    """Paper (arXiv, DOI) and the code that the facts were read in."""
    gated: bool | None = False
    """Whether its authors grant access to the weights one by one; None: sources disagree."""
    input_px: int = 224
    mpps: tuple[float, ...] = ()
    """Microns per pixel at the encoder's input that its authors name; empty: they name none."""
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    pooling: Literal["average", "class token", "class token + mean of patch tokens"] = "average"
    registers: int = 0
    """Register tokens, which stand after the class token and are part of no pooling."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """timm's keyword arguments; layers by name ("swiglu", "silu")."""
    cut: tuple[str, ...] = ()
    """Parts of the architecture that are taken out; a weights file may hold them."""
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    """Names of the weights on the hub, the first that is there is taken."""
    keys: Literal["timm", "dinov2"] = "timm"
    """Whose names the published tensors have: timm's, or those of transformers' DINOv2."""
