"""The embed stage: every patch becomes a feature vector.

Comes in: RUN/patches and the slides they point to. Goes out: RUN/features/<encoder>/<slide_id>.h5, float16,
with the coords and geometry repeated: enough for training and heatmaps. It knows neither labels nor models.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil import blocks, parallel, store
from wsi_mil import config as configs
from wsi_mil.blocks import BrokenPatch
from wsi_mil.config import EmbedConfig
from wsi_mil.device import pick_device
from wsi_mil.encoders import Encoder, load_encoder
from wsi_mil.errors import ConfigError, SlideError
from wsi_mil.parallel import Outcome, StageResult, console
from wsi_mil.slide import Slide, open_slide

_LISTED = 20  # patches that a row of the stage's table names


@dataclass(frozen=True)
class Embedding:
    """What ``embed_slide`` returns.

    ``features`` (n, D) float16; ``index`` (n,) their rows in the patches' coords, rising: all but those of
    ``broken``. ``read_wait``, ``compute``: seconds. ``read_by``: how the pixels were read.
    """

    features: NDArray[np.float16]
    index: NDArray[np.int64]
    broken: tuple[BrokenPatch, ...]
    read_wait: float
    compute: float
    read_by: str


def run(config: EmbedConfig) -> StageResult:
    """Embed the patches of every slide of a run; one bad slide does not end it.

    Raises:
        ConfigError: RUN/patches is empty, or the device or the encoder is not to be had.
        FormatError: the weights file does not fit.
        StaleOutputError: features of other settings, weights or patches are there, and ``overwrite`` is off.
    """
    paths = sorted((config.run / "patches").glob("*.h5"))
    if not paths:
        raise ConfigError(
            f"--run {config.run}: no patches in {config.run / 'patches'}; run `wsi-mil tile` first."
        )
    device = pick_device(config.device)
    encoder = load_encoder(config.encoder, config.weights).to(device)
    precision = _precision(config.precision, device)
    store.sweep(store.features_folder(config.run, encoder.name))
    with store.stage_record(config.run, "embed", config) as record:
        record |= {"device": str(device), "precision": precision, "weights_digest": encoder.weights_digest}
        # Read all patches first: what is stale or unreadable is known before an hour of work, not after it.
        tasks, outcomes = _plan(paths, config, encoder)
        total = sum(len(task.patches.coords) for task in tasks)
        _announce(encoder, tasks, total, device, precision)
        with parallel.progress("embed", total, "patches") as report:
            worker = _Worker(config, encoder, device, precision, report, said=set())
            for task in tasks:
                outcome = parallel.attempt(task.patches.slide_id, worker, task)
                report(outcome)
                outcomes.append(outcome)
        outcomes.sort(key=lambda each: each.slide_id)
        columns = (
            *("slide_id", "status", "seconds", "patches", "left_out"),
            *("read_wait", "compute", "read_by", "reason"),
        )
        store.write_csv(config.run / "embed" / "slides.csv", columns, (each.row() for each in outcomes))
    return StageResult(
        stage="embed", output=store.features_folder(config.run, encoder.name), outcomes=outcomes
    )


def embed_slide(
    slide: Slide,
    patches: store.Patches,
    encoder: Encoder,
    *,
    device: torch.device | None = None,
    precision: str = "fp32",
    batch_size: int = 32,
    workers: int = 0,
    memory_mib: int = 256,
    max_broken: float = 0.01,
    advance: Callable[[int], None] | None = None,
) -> Embedding:
    """Return the features of a slide's patches, in the order of ``patches.coords``.

    Threads read ahead while the encoder computes. ``advance`` is called with the patches of each batch.

    Raises:
        SlideError: more than ``max_broken`` of the patches cannot be read; fewer are left out, and said.
    """
    device = device or next(encoder.module.parameters()).device
    order = blocks.sweep_order(slide, patches.coords, patches.geometry, memory_mib)
    features = np.empty((len(order), encoder.dim), dtype=np.float16)
    present = np.zeros(len(order), dtype=bool)
    broken: list[BrokenPatch] = []
    notes: list[str] = []
    batches = blocks.stream(
        slide,
        patches.coords[order],
        patches.geometry,
        batch_size=batch_size,
        workers=workers,
        memory_mib=memory_mib,
        max_broken=max_broken,
        note=notes.append,
    )
    wait = compute = 0.0
    start = time.perf_counter()
    for batch in batches:
        wait, start = wait + time.perf_counter() - start, time.perf_counter()
        rows = order[batch.index]
        if len(rows):
            features[rows] = encode(encoder, batch.patches, device, precision)
        present[rows] = True
        broken += [dataclasses.replace(each, index=int(order[each.index])) for each in batch.broken]
        compute, start = compute + time.perf_counter() - start, time.perf_counter()
        if advance:
            advance(len(rows) + len(batch.broken))
    broken.sort(key=lambda each: each.index)
    index = np.flatnonzero(present)
    kept = features if len(index) == len(features) else features[index]
    return Embedding(kept, index, tuple(broken), wait, compute, notes[0] if notes else "blocks")


@torch.inference_mode()
def encode(
    encoder: Encoder, patches: NDArray[np.uint8], device: torch.device, precision: str = "fp32"
) -> NDArray[np.float16]:
    """Return (N, D) features of (N, height, width, 3) uint8 patches."""
    x = torch.from_numpy(patches).to(device, non_blocking=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        features_ND = encoder.module(encoder.transform(x))
    return features_ND.to(torch.float16).cpu().numpy()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Task:
    patches: store.Patches
    record: dict[str, Any]


@dataclass(frozen=True)
class _Worker:
    """Embed one slide and write its features: what ``parallel.attempt`` calls."""

    config: EmbedConfig
    encoder: Encoder
    device: torch.device
    precision: str
    report: Callable[..., None]
    said: set[str]

    def __call__(self, task: _Task) -> Mapping[str, Any]:
        patches, encoder = task.patches, self.encoder
        with open_slide(patches.slide_path, patches.reader, patches.geometry.mpp_l0) as slide:  # type: ignore[arg-type]
            _check_same_slide(slide, patches)
            embedding = embed_slide(
                slide,
                patches,
                encoder,
                device=self.device,
                precision=self.precision,
                batch_size=self.config.batch_size,
                workers=self.config.workers,
                memory_mib=self.config.memory_mib,
                max_broken=self.config.max_broken,
                advance=self.report,
            )
        self._say_how_it_was_read(embedding.read_by)
        features = store.Features(
            slide_id=patches.slide_id,
            slide_path=patches.slide_path,
            reader=patches.reader,
            geometry=patches.geometry,
            coords=patches.coords[embedding.index],
            features=embedding.features,
            encoder=encoder.name,
            weights_digest=encoder.weights_digest,
            patches_digest=patches.digest,
            record=task.record,
            notes={"precision": self.precision, "encoder_patch_px": encoder.patch_px},
            left_out=tuple(dataclasses.asdict(each) for each in embedding.broken),
        )
        store.write_features(store.features_path(self.config.run, encoder.name, patches.slide_id), features)
        reason = _left_out_words(embedding.broken, len(patches.coords))
        if reason:
            console.print(f"{patches.slide_id}: {reason}", markup=False, soft_wrap=True)
        return {
            "patches": len(embedding.index),
            "left_out": len(embedding.broken),
            "read_wait": round(embedding.read_wait, 2),
            "compute": round(embedding.compute, 2),
            "read_by": embedding.read_by,
            "reason": reason,
        }

    def _say_how_it_was_read(self, words: str) -> None:
        """Print why slides are read the slow way, each reason once."""
        if words != "blocks" and words not in self.said:
            self.said.add(words)
            console.print(f"embed: some slides are {words}", markup=False, soft_wrap=True)


def _left_out_words(broken: tuple[BrokenPatch, ...], count: int) -> str:
    if not broken:
        return ""
    listed = "; ".join(
        f"patch {each.index} at level-0 ({each.x_l0}, {each.y_l0}), {each.where}: {each.reason}"
        for each in broken[:_LISTED]
    )
    more = f"; and {len(broken) - _LISTED} more, all in the features file" if len(broken) > _LISTED else ""
    return f"left out {len(broken)} of {count} patches that cannot be read: {listed}{more}"


def _check_same_slide(slide: Slide, patches: store.Patches) -> None:
    tiled = patches.geometry.width_l0, patches.geometry.height_l0
    if (slide.width_l0, slide.height_l0) != tiled:
        raise SlideError(
            f"{slide.path}: is {slide.width_l0} x {slide.height_l0} pixels and was {tiled[0]} x {tiled[1]} "
            "when it was tiled: the file was replaced. Tile it again with --overwrite."
        )


def _plan(paths: list[Any], config: EmbedConfig, encoder: Encoder) -> tuple[list[_Task], list[Outcome]]:
    """Return the slides to embed, and the outcomes of those that need nothing or cannot be."""
    tasks, outcomes = [], []
    for path in paths:
        patches = store.read_patches(path)
        record = configs.record(
            config, weights_digest=encoder.weights_digest, patches_digest=patches.digest, tile=patches.record
        )
        output = store.features_path(config.run, encoder.name, patches.slide_id)
        if store.is_done(output, record, "features", config.overwrite):
            outcomes.append(Outcome(slide_id=patches.slide_id, status="skipped"))
        else:
            tasks.append(_Task(patches, record))
    present = {path.stem for path in paths}
    for row in store.read_csv(config.run / "tile" / "slides.csv"):
        if row["status"] == "failed" and row["slide_id"] not in present:
            reason = f"no patches, tile failed: {row['reason']}"
            outcomes.append(Outcome(slide_id=row["slide_id"], status="skipped", reason=reason))
            console.print(f"left out: {row['slide_id']} ({reason})", markup=False)
    return tasks, outcomes


def _announce(encoder: Encoder, tasks: list[_Task], total: int, device: torch.device, precision: str) -> None:
    if not tasks:
        return
    size = tasks[0].patches.geometry.patch_px
    resized = "" if size == encoder.patch_px else f", resized from {size} to {encoder.patch_px} px"
    console.print(
        f"embed: {total} patches of {len(tasks)} slides with {encoder.name} "
        f"({encoder.dim} features, weights {encoder.weights_digest}) on {device} in {precision}{resized}",
        markup=False,
    )


def _precision(name: str, device: torch.device) -> str:
    return name if name != "auto" else "bf16" if device.type == "cuda" else "fp32"
