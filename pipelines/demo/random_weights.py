"""Save the default encoder with untrained weights: the control of the demo (make demo-random-weights)."""

import argparse
from pathlib import Path

import safetensors.torch
import timm
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help=".safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    arguments.path.parent.mkdir(parents=True, exist_ok=True)
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    safetensors.torch.save_file(module.state_dict(), arguments.path)


if __name__ == "__main__":
    main()
