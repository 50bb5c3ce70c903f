"""An encoder at work on a device: batches of patches in, features out, the device never idle in between.

Comes in: uint8 patches. Goes out: float16 features, in the order in which the batches came. It knows the
device's ways (pinned memory, streams, memory that runs out) and nothing of slides.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_mil.embed.precision import in_precision
from wsi_mil.encoders import Encoder
from wsi_mil.errors import ConfigError
from wsi_mil.memory import keep_memory

_ON_THEIR_WAY = 2  # batches that the device has before the first of them is waited for


@dataclass
class _Pending:
    """A batch on the device: its features to be, how many of its rows count, and how to do it again."""

    features: Tensor
    ready: Any
    count: int
    patches: NDArray[np.uint8]
    seconds: float


class Engine:
    """Runs an encoder over batches: ``submit`` some, and collect each with ``result``, in order.

    Batches have ``batch_size`` patches or fewer; fewer are filled up, because the choice of algorithm would
    otherwise depend on the number, so that a patch has the same features in whatever company it came.
    ``say`` is called with what a user should know.
    """

    def __init__(
        self,
        encoder: Encoder,
        device: torch.device,
        precision: str,
        *,
        batch_size: int = 32,
        compiled: bool = False,
        fp32_layers: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Put the encoder on the device. ``precision``: fp32 or bf16, of all but the first ``fp32_layers``.

        Raises:
            ConfigError: the encoder cannot be compiled.
        """
        self.encoder = encoder.to(device)
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self._say = say or (lambda _: None)
        self._pending: deque[_Pending] = deque()
        self._staging: list[Tensor] = []
        if device.type == "cpu":
            keep_memory()
        # A batch that fills the queue must not wait for a slot whose result was not collected yet.
        self.depth = 1 if device.type == "cpu" else _ON_THEIR_WAY
        self.module = in_precision(self.encoder, precision, fp32_layers)
        if compiled:
            self.module = self._compile()

    def submit(self, patches: NDArray[np.uint8]) -> None:
        """Begin with a batch (n, height, width, 3); at most ``depth`` may be under way."""
        start = time.perf_counter()
        pending = _Pending(torch.empty(0), None, len(patches), patches, 0.0)
        self._begin(pending)
        pending.seconds = time.perf_counter() - start
        self._pending.append(pending)

    @property
    def under_way(self) -> int:
        """How many batches were submitted and not collected."""
        return len(self._pending)

    def result(self) -> tuple[NDArray[np.float16], float]:
        """Return the features (n, D) of the oldest batch, and the seconds that were spent on it here."""
        pending = self._pending.popleft()
        start = time.perf_counter()
        try:
            if pending.ready is not None:
                pending.ready.synchronize()
            features = pending.features[: pending.count].numpy()
        except torch.OutOfMemoryError:
            features = self._halved(pending.patches)
        return features.copy(), pending.seconds + time.perf_counter() - start

    def _begin(self, pending: _Pending) -> None:
        if pending.count > self.batch_size:  # made before memory ran out
            pending.features = torch.from_numpy(self._in_pieces(pending.patches))
            return
        try:
            features_ND = self._forward(self._on_device(pending.patches))
            if self.device.type == "cuda":
                host = torch.empty(features_ND.shape, dtype=torch.float16, pin_memory=True)
                host.copy_(features_ND, non_blocking=True)
                pending.features, pending.ready = host, torch.cuda.Event()  # type: ignore[no-untyped-call]
                pending.ready.record()
            else:
                pending.features = features_ND.cpu()
        except torch.OutOfMemoryError:
            pending.features = torch.from_numpy(self._halved(pending.patches))

    def _halved(self, patches: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Compute a batch that was too large for the memory in halves, and remember their size."""
        if self.batch_size == 1:
            raise ConfigError(
                f"--device {self.device}: out of memory with a single patch and {self.encoder.name}; "
                "free memory on it, or use another device."
            )
        self.batch_size //= 2
        self._say(f"out of memory on {self.device}: going on with batches of {self.batch_size}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._in_pieces(patches)

    def _in_pieces(self, patches: NDArray[np.uint8]) -> NDArray[np.float16]:
        size = self.batch_size
        parts = []
        try:
            for k in range(0, len(patches), size):
                part = patches[k : k + size]
                parts.append(self._forward(self._on_device(part))[: len(part)].cpu().numpy())
        except torch.OutOfMemoryError:
            return self._halved(patches)
        return np.concatenate(parts)

    @torch.inference_mode()
    def _forward(self, x_NHWC: Tensor) -> Tensor:
        features_ND: Tensor = self.module(self.encoder.transform(x_NHWC))
        return features_ND.to(torch.float16)

    def _on_device(self, patches: NDArray[np.uint8]) -> Tensor:
        # Always a whole batch: with another size the libraries compute in another way, and a patch would not
        # have the same features in the last batch of a run as in the midst of another run.
        count = max(self.batch_size, len(patches), 2)
        if self.device.type == "cuda":
            staged = self._staged((count, *patches.shape[1:]))
            staged[: len(patches)].copy_(torch.from_numpy(patches))
            return staged.to(self.device, non_blocking=True)
        if count == len(patches):
            return torch.from_numpy(patches).to(self.device)
        filled = np.empty((count, *patches.shape[1:]), dtype=np.uint8)
        filled[: len(patches)], filled[len(patches) :] = patches, patches[:1]
        return torch.from_numpy(filled).to(self.device)

    def _staged(self, shape: tuple[int, ...]) -> Tensor:
        """Return pinned memory that no batch under way is being copied from."""
        if not self._staging or tuple(self._staging[0].shape) != shape:
            # One more than are under way: a slot is written again only after its batch was collected.
            self._staging = [
                torch.zeros(shape, dtype=torch.uint8, pin_memory=True) for _ in range(self.depth + 1)
            ]
        self._staging.append(self._staging.pop(0))
        return self._staging[-1]

    def _compile(self) -> Callable[[Tensor], Tensor]:
        if not self.encoder.castable:
            raise ConfigError(f"--compile: {self.encoder.name} is no torch module that can be compiled.")
        import torch._inductor.config as inductor  # noqa: PLC0415 - slow, and only needed here

        inductor.freezing = True  # weights become constants: convolution, normalisation and ReLU in one step
        module: Callable[[Tensor], Tensor] = torch.compile(self.module, dynamic=False)
        size = self.encoder.patch_px
        self.module = module
        self._say(f"compiling {self.encoder.name} for {self.device}, about a minute")
        try:
            self._forward(
                torch.zeros((self.batch_size, size, size, 3), dtype=torch.uint8, device=self.device)
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what all of torch's compilers raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"--compile: {self.encoder.name} cannot be compiled here ({reason}). A CPU needs a C++ "
                "compiler (g++); without one leave --compile away."
            ) from error
        return module
