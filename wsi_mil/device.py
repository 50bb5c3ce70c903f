"""Which torch device a flag means.

Comes in: "auto", "cpu", "cuda:1", ... Goes out: a device that works here, or an error.
"""

import torch

from wsi_mil.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Return the torch device for a flag; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ConfigError: no such device, or it is not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: not usable here ({reason}); use auto or cpu.") from error
    return device
