"""One slide as one task of a cluster's worker, which loads the encoder once and keeps it.

Comes in: a task. Goes out: the slide's features, and an ``Outcome``. Claims are taken as ever: the processes
of other commands, on the cluster or not, may share the run.
"""

import contextlib
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wsi_mil import parallel, store
from wsi_mil.config import EmbedConfig
from wsi_mil.embed.engine import Engine
from wsi_mil.embed.machine import claims_folder, elsewhere, load, readers_for, set_up
from wsi_mil.embed.precision import Precision
from wsi_mil.embed.source import Source
from wsi_mil.embed.work import Work
from wsi_mil.errors import ConfigError
from wsi_mil.locate import SlideFinder
from wsi_mil.parallel import Outcome, console
from wsi_mil.readers import Job

_ready: dict[str, tuple[Engine, Precision]] = {}  # one at most: the encoder of this worker


@dataclass(frozen=True)
class EmbedTask:
    """One slide: where its patches lie, how many they are, and what its features are to be made with.

    ``run_name`` is that of the command: a slide that it hands out again is taken over from the worker that
    had it.
    """

    config: EmbedConfig
    patches: Path
    slide_id: str
    count: int
    patch_px: int
    record: dict[str, Any]
    allowed: str
    run_name: str
    finder: SlideFinder


def get_ready(config: EmbedConfig, weights_digest: str) -> None:
    """Load the encoder in this process, unless it is there.

    Raises:
        ConfigError: it or the device is not to be had here, or it has other weights here.
    """
    engine, _ = _engine(config, weights_digest)
    # Of a worker on this machine that was killed: this one may be there in its stead.
    store.open_features(config.run, engine.encoder.name, config.store, config.store_url).sweep()


def embed_one(task: EmbedTask) -> Outcome:
    """Embed one slide in a worker's process, one at a time."""
    config = task.config
    engine, precision = _engine(config, str(task.record["weights_digest"]))
    target = store.open_features(config.run, engine.encoder.name, config.store, config.store_url)
    read = functools.partial(store.read_patches, task.patches)
    job = Job(task.slide_id, task.count, read, dict(task.record), task.finder)
    ended: list[Outcome] = []

    def finished(job: Job, outcome: Outcome) -> None:
        claims.give_back(job.slide_id)
        if outcome.status == "skipped":
            outcome = elsewhere(target, job.slide_id, outcome.reason)
        ended.append(outcome)

    def is_done(job: Job) -> bool:
        return target.is_done(job.slide_id, job.record, config.overwrite)

    folder = claims_folder(config, engine.encoder.name)
    with store.Claims(folder, task.run_name, handed_out=True) as claims:
        source = Source([job], claims, is_done, finished, _say)
        work = Work(
            engine=engine, precision=precision, target=target, allowed=task.allowed,
            advance=lambda _: None, finished=finished,
        )  # fmt: skip
        work.run(source, readers_for(config, engine, [job], task.patch_px), _say, lambda: None)
    (outcome,) = ended
    used = {"device": str(engine.device), "precision": str(precision)}
    return replace(outcome, facts={**outcome.facts, **used})


def _engine(config: EmbedConfig, weights_digest: str) -> tuple[Engine, Precision]:
    torch.set_num_threads(parallel.cpu_count())
    # What else the config says is of slides, and may differ between two commands.
    key = repr(
        (
            *(config.encoder, config.weights, config.weights_dir, config.stain, config.device),
            *(config.precision, config.compile, config.batch_size, weights_digest),
        )
    )
    if key not in _ready:
        _ready.clear()  # before the next is loaded: there may be no room for two
        encoder = load(config)
        if encoder.weights_digest != weights_digest:
            raise ConfigError(
                f"{config.encoder} has other weights here ({encoder.weights_digest}) than where the command "
                f"was given ({weights_digest}); give both the same --weights or --weights-dir."
            )
        _ready[key] = set_up(config, encoder, _say)
    return _ready[key]


def _say(words: str) -> None:
    with contextlib.suppress(OSError):  # a worker's log; the terminal may be gone
        console.print(f"embed: {words}", markup=False)
