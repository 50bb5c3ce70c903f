"""Which torch device a flag means, and whether it is fast at bf16.

Comes in: "auto", "cpu", "cuda:1", ... Goes out: a device that works here, or an error.
"""

import functools
import math
import time
from pathlib import Path

import torch

from wsi_mil.errors import ConfigError

_COMPARED = (torch.float32, torch.bfloat16)
_ROUNDS = 8
_WORTH = 1.25
"""So many times as fast must bf16 be: between 0.5 and 2 no CPU is known, and casts cost something."""


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


def bf16_is_fast(device: torch.device) -> bool:
    """Tell whether the device computes in bf16 faster than in fp32; of a CPU this is measured, once."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # since Ampere
    if device.type == "cpu":
        return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags()) and bf16_gain() >= _WORTH
    return False


@functools.cache
def bf16_gain() -> float:
    """Return how many times as fast as in fp32 this CPU multiplies matrices in bf16: 40 ms, then remembered.

    The processor's flags do not tell: AVX512-BF16 is twice as fast as fp32 on some (Zen 4), half as fast on
    others (Sapphire Rapids whose AMX is hidden by the hypervisor). One thread, the fastest of several each
    in turn, in processor time, so that other work on the machine changes nothing.
    """
    pairs = [(torch.ones(512, 512, dtype=t), torch.ones(512, 512, dtype=t)) for t in _COMPARED]
    seconds = [math.inf] * len(pairs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(_ROUNDS):
            for k, (a, b) in enumerate(pairs):
                start = time.thread_time()
                torch.mm(a, b)
                seconds[k] = min(seconds[k], time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds[0] / seconds[1]


def _cpu_flags() -> set[str]:
    """Return the processor's abilities as Linux lists them; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
