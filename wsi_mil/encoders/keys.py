"""Tensors under timm's names that were published under another library's."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_RENAMED = (
    # transformers' Dinov2Model (versions 4.31 to 4.x, which wrote the files on the hub), read in its code.
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.", r"blocks.\1.\2."),
)
_PART = re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


def from_dinov2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a transformers Dinov2Model under timm's names; others keep theirs.

    timm has query, key and value in one tensor, in this order. The mask token serves training only.
    """
    named: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _PART.match(key)
        if match:
            parts.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = tensor
        elif key != "embeddings.mask_token":
            found = next((re.sub(old, new, key) for old, new in _RENAMED if re.match(old, key)), key)
            named[found] = tensor
    for key, part in parts.items():
        if part.keys() == {"query", "key", "value"}:
            named[key] = torch.cat([part["query"], part["key"], part["value"]])
    return named
