"""An encoder at work on a device: batches of patches in, features out, the device never idle in between.

Comes in: uint8 patches. Goes out: float16 features, in the order in which the batches came. It knows the
device's ways (pinned memory, streams, memory that runs out) and nothing of slides.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    pieces: tuple[NDArray[np.uint8], ...]
    seconds: float
    began: Any = None


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
        self.seconds = 0.0
        """For how long the device has worked on what was collected."""
        if device.type == "cpu":
            keep_memory()
        # A batch that fills the queue must not wait for a slot whose result was not collected yet.
        self.depth = 1 if device.type == "cpu" else _ON_THEIR_WAY
        self.module = in_precision(self.encoder, precision, fp32_layers)
        if compiled:
            self.module = self._compile()

    def submit(self, *pieces: NDArray[np.uint8]) -> None:
        """Begin with a batch, in pieces (n, height, width, 3); at most ``depth`` may be under way.

        The pieces are read until its ``result`` was collected.
        """
        start = time.perf_counter()
        pending = _Pending(torch.empty(0), None, sum(map(len, pieces)), pieces, 0.0)
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
            features = self._halved(np.concatenate(pending.pieces))
        seconds = pending.seconds + time.perf_counter() - start
        timed = pending.began is not None and pending.ready is not None
        self.seconds += pending.began.elapsed_time(pending.ready) / 1000 if timed else seconds
        return features.copy(), seconds

    def _begin(self, pending: _Pending) -> None:
        if pending.count > self.batch_size:  # made before memory ran out
            pending.features = torch.from_numpy(self._in_parts(np.concatenate(pending.pieces)))
            return
        try:
            if self.device.type == "cuda":
                pending.began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                pending.began.record()
            features_ND = self._forward(self._on_device(pending.pieces))
            if self.device.type == "cuda":
                host = torch.empty(features_ND.shape, dtype=torch.float16, pin_memory=True)
                host.copy_(features_ND, non_blocking=True)
                pending.features = host
                pending.ready = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                pending.ready.record()
            else:
                pending.features = features_ND.cpu()
        except torch.OutOfMemoryError:
            pending.features = torch.from_numpy(self._halved(np.concatenate(pending.pieces)))

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
        return self._in_parts(patches)

    def _in_parts(self, patches: NDArray[np.uint8]) -> NDArray[np.float16]:
        size = self.batch_size
        parts = []
        try:
            for k in range(0, len(patches), size):
                part = patches[k : k + size]
                parts.append(self._forward(self._on_device((part,)))[: len(part)].cpu().numpy())
        except torch.OutOfMemoryError:
            return self._halved(patches)
        return np.concatenate(parts)

    @torch.inference_mode()
    def _forward(self, x_NHWC: Tensor) -> Tensor:
        features_ND: Tensor = self.module(self.encoder.transform(x_NHWC))
        return features_ND.to(torch.float16)

    def _on_device(self, pieces: Sequence[NDArray[np.uint8]]) -> Tensor:
        # Always a whole batch: with another size the libraries compute in another way, and a patch would not
        # have the same features in the last batch of a run as in the midst of another run.
        count = max(self.batch_size, sum(map(len, pieces)), 2)
        if self.device.type == "cpu" and len(pieces) == 1 and len(pieces[0]) == count:
            return torch.from_numpy(pieces[0])
        shape = (count, *pieces[0].shape[1:])
        filled = torch.empty(shape, dtype=torch.uint8, device=self.device)
        first = 0
        for each in pieces:
            # From memory that is pinned the device fetches it by itself, while this process goes on.
            filled[first : first + len(each)].copy_(torch.from_numpy(each), non_blocking=True)
            first += len(each)
        filled[first:] = filled[:1]
        return filled

    @contextmanager
    def pinned(self, memory: NDArray[np.uint8]) -> Iterator[None]:
        """Pin ``memory`` for the block, so that a GPU copies batches that lie in it without this process."""
        if self.device.type != "cuda":
            yield
            return
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        error = int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
        if error:
            self._say(f"the readers' memory cannot be pinned (CUDA error {error}): copying takes longer")
        try:
            yield
        finally:
            if not error:
                torch.cuda.synchronize(self.device)
                runtime.cudaHostUnregister(memory.ctypes.data)

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
