"""How busy is a GPU kept? End to end against the encoder alone, and what the driver says of its use.

    make bench-embed-gpu       (or: python -m benchmarks.embed_gpu --folder bench --append)

Needs a CUDA device. ResNet-50 and ViT-L with random weights (speed does not depend on them), patches of 224
of the slide of 10,000 patches and of the 200 small ones that ``benchmarks.embed`` makes. "Busy" is the mean
of ``nvidia-smi``'s utilisation, asked for ten times a second while slides are embedded.
"""

import argparse
import dataclasses
import os
import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path

import torch

from benchmarks.embed import make_runs, weights
from benchmarks.results import publish
from wsi_mil import embed, store
from wsi_mil.config import EmbedConfig
from wsi_mil.embed.engine import Engine
from wsi_mil.embed.precision import choose
from wsi_mil.encoders import load_encoder

ENCODERS = ("resnet50", "vit_large_patch16_224")


class Busy:
    """Samples the GPU's utilisation while its block runs."""

    def __enter__(self) -> "Busy":
        self.values: list[float] = []
        command = [
            "nvidia-smi",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "-lms",
            "100",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.values.append(float(line.split()[0]))

    @property
    def mean(self) -> float:
        """Percent, from when the encoder began until it ended."""
        at_work = [k for k, value in enumerate(self.values) if value > 0]
        return statistics.mean(self.values[at_work[0] : at_work[-1] + 1]) if at_work else 0.0


def alone(folder: Path, config: EmbedConfig) -> float:
    """Patches per second of the encoder on random tensors that lie on the device."""
    loaded, device = load_encoder(config.encoder, weights(folder, config.encoder)), torch.device("cuda")
    precision = choose(config.precision, loaded, device)
    engine = Engine(
        loaded, device, precision.name, batch_size=config.batch_size, compiled=config.compile,
        fp32_layers=precision.fp32_layers,
    )  # fmt: skip
    x = torch.randn(config.batch_size, 3, loaded.patch_px, loaded.patch_px, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(5):
            engine.module(x)
        torch.cuda.synchronize()
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < 5:
            engine.module(x)
            done += len(x)
        torch.cuda.synchronize()
    return done / (time.perf_counter() - start)


def end_to_end(config: EmbedConfig) -> tuple[float, float]:
    """Patches per second, and percent busy, of ``embed`` on a run."""
    shutil.rmtree(config.run / "features", ignore_errors=True)
    with Busy() as busy:
        result = embed.run(config)
    assert not result.failed, result.failed
    stage = store.read_stage(config.run, "embed")
    assert stage
    count = sum(len(store.read_patches(each).coords) for each in (config.run / "patches").glob("*.h5"))
    return count / float(stage["embed_seconds"]), busy.mean


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here")
    words = make_runs(arguments.folder)
    lines = [
        "| encoder | slides | patches/s | encoder alone | ratio (0.9) | GPU busy (90 %) |",
        "|---|---|---|---|---|---|",
    ]
    for encoder in ENCODERS:
        for name, slides in (("large", "1 of 10,000"), ("small", "200 of 50")):
            config = EmbedConfig(
                run=arguments.folder / f"run-{name}", encoder=encoder, device="cuda",
                weights=weights(arguments.folder, encoder), batch_size=arguments.batch_size,
            )  # fmt: skip
            rounds = []
            for number in range(arguments.rounds):
                limit = alone(arguments.folder, config)
                speed, busy = end_to_end(dataclasses.replace(config))
                rounds.append((speed, limit, speed / limit, busy))
                print(
                    f"{encoder}, {slides}, round {number + 1}: {speed:.0f}/s of {limit:.0f}/s, {busy:.0f} %"
                )
            speed, limit, ratio, busy = (statistics.median(each) for each in zip(*rounds, strict=True))
            lines.append(f"| {encoder} | {slides} | {speed:.0f} | {limit:.0f} | {ratio:.2f} | {busy:.0f} % |")
    head = (
        f"`make bench-embed-gpu`: slides of {words}; patches of 224, batches of {arguments.batch_size}; "
        f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores, torch {torch.__version__}."
    )
    publish("Embedding on a GPU", [head, "", *lines], append=arguments.append)


if __name__ == "__main__":
    main()
