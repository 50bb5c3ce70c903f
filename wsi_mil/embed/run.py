"""Plan the embed stage, see it done by one process or several, and keep its table.

Comes in: a config. Goes out: RUN/features/<encoder>, RUN/embed/slides.csv and stage.json, and a summary of
what became of every slide.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from wsi_mil import config as configs
from wsi_mil import locate, parallel, store
from wsi_mil.config import EmbedConfig
from wsi_mil.embed import devices
from wsi_mil.embed.interrupts import held_back
from wsi_mil.embed.machine import claims_folder, elsewhere, load, readers_for, set_up, there
from wsi_mil.embed.precision import Precision
from wsi_mil.embed.source import Source
from wsi_mil.embed.table import Table
from wsi_mil.embed.tasks import EmbedTask, embed_one, get_ready
from wsi_mil.embed.work import Work
from wsi_mil.encoders import Encoder, check_fit
from wsi_mil.errors import ConfigError, FormatError, StaleOutputError
from wsi_mil.parallel import Outcome, StageResult, console
from wsi_mil.readers import Job


def run(config: EmbedConfig) -> StageResult:
    """Embed the patches of every slide of a run; one bad slide does not end it.

    Several processes, on one machine or many, may do this on one run folder at a time and share the slides.

    Raises:
        ConfigError: RUN/patches is empty, or the device or the encoder is not to be had.
        FormatError: the weights file does not fit.
        LabelError: --slides is a manifest that is wrong.
        StaleOutputError: features of other settings, weights or patches are there, and ``overwrite`` is off.
    """
    paths = _patches_paths(config)
    if not paths:
        raise ConfigError(
            f"--run {config.run}: no patches in {config.run / 'patches'}; run `wsi-mil tile` first."
        )
    with store.stage_record(config.run, "embed", config) as record:
        encoder = load(config)
        plan = make_plan(config, paths, encoder)
        record["weights_digest"] = encoder.weights_digest
        for each in plan.settled:
            if each.status == "skipped" and each.reason:
                console.print(f"left out: {each.slide_id} ({each.reason})", markup=False)
        _sweep(config, plan)
        table = Table(_table_path(config), encoder.name, plan.settled)
        run_name = f"{os.getpid()}-{time.time_ns()}"  # of this command and its processes
        try:
            with parallel.progress("embed", plan.patches, "patches") as report:
                for each in plan.settled:
                    if each.status == "failed":
                        report(each)
                listener = _Listener(table, report)
                if plan.jobs and config.devices:
                    names = tuple(f"cuda:{each}" if each.isdigit() else each for each in config.devices)
                    facts = devices.run_on(names, _work_on_device, (config, run_name), listener)
                    record.update(facts)
                    _name_the_lost(config, plan, listener)
                elif plan.jobs and config.on_cluster:
                    record.update(on_cluster(config, plan, encoder, listener, run_name))
                elif plan.jobs:
                    record.update(work(config, plan, encoder, listener, run_name))
            with store.Claims(claims_folder(config, encoder.name), f"{run_name}-over") as claims:
                claims.sweep()
        finally:
            table.save()
    return StageResult(stage="embed", output=plan.target.place, outcomes=table.outcomes())


@dataclass
class Plan:
    """What is to be done: ``jobs``, the largest first.

    ``settled`` are the outcomes of slides that need nothing or cannot be done.
    """

    target: store.FeatureStore
    jobs: list[Job]
    settled: list[Outcome]
    allowed: str
    """Words for a mismatch of encoder and patches that was allowed, or ""."""
    patch_px: int
    """Side of the largest patches."""
    finder: locate.SlideFinder
    """What finds the slides."""

    @property
    def patches(self) -> int:
        """The patches of all jobs."""
        return sum(each.count for each in self.jobs)


@dataclass
class _Listener:
    """Where news of the work go: the table and the terminal."""

    table: Table
    report: Callable[..., None]
    said: set[str] = field(default_factory=set)

    def advance(self, patches: int) -> None:
        """Move the bar."""
        self.report(patches)

    def finished(self, outcome: Outcome) -> None:
        """Take a slide's outcome."""
        self.table.add(outcome)
        self.report(outcome)
        if outcome.facts.get("reason"):
            self.say(f"{outcome.slide_id}: {outcome.facts['reason']}")

    def say(self, words: str) -> None:
        """Print something, once."""
        if words not in self.said:
            self.said.add(words)
            console.print(words, markup=False, soft_wrap=True)


def work(
    config: EmbedConfig, plan: Plan, encoder: Encoder, listener: devices.Listener, run_name: str
) -> dict[str, Any]:
    """Embed a plan's jobs in this process, sharing them with others; return facts for stage.json.

    ``listener`` is told what happens: ``advance(patches)``, ``finished(outcome)``, ``say(words)``.

    Raises:
        ConfigError: the device is not to be had, or its memory does not suffice.
    """
    start = time.perf_counter()
    engine, precision = set_up(config, encoder, lambda words: listener.say(f"embed: {words}"))
    batch_size = engine.batch_size
    _announce(encoder, plan, engine.device, precision, listener.say)

    def finished(job: Job, outcome: Outcome) -> None:
        claims.give_back(job.slide_id)
        job.forget()
        if outcome.status == "skipped":  # others did it
            outcome = elsewhere(plan.target, job.slide_id, outcome.reason)
        listener.finished(outcome)

    def is_done(job: Job) -> bool:
        return plan.target.is_done(job.slide_id, job.record, config.overwrite)

    ready = time.perf_counter()
    with held_back() as check, store.Claims(claims_folder(config, encoder.name), run_name) as claims:
        source = Source(plan.jobs, claims, is_done, finished, lambda words: listener.say(f"embed: {words}"))
        worker = Work(
            engine=engine,
            precision=precision,
            target=plan.target,
            allowed=plan.allowed,
            advance=listener.advance,
            finished=finished,
        )
        readers = readers_for(config, engine, plan.jobs, plan.patch_px)
        spent = worker.run(
            source, readers, lambda words: listener.say(f"embed: some slides are {words}"), check
        )
    listener.say(f"embed: {spent.words(str(engine.device))}")
    facts: dict[str, Any] = {
        "device": str(engine.device),
        "precision": str(precision),
        "compiled": config.compile,
    }
    facts |= {"setup_seconds": ready - start, "embed_seconds": time.perf_counter() - ready}
    facts |= spent.facts(str(engine.device))
    if engine.batch_size < batch_size:
        facts["batch_size_that_fits"] = engine.batch_size
    return facts


def on_cluster(
    config: EmbedConfig, plan: Plan, encoder: Encoder, listener: _Listener, run_name: str
) -> dict[str, Any]:
    """Embed a plan's jobs on a cluster, a task per slide; return facts for stage.json.

    Where workers offer the resource GPU only they are asked, a slide at a time each; else all are.

    Raises:
        ClusterError: the cluster is not to be had or was lost, or no worker can load the encoder.
    """
    start = time.perf_counter()
    tasks = {}
    for job in plan.jobs:
        patches = store.patches_path(config.run, job.slide_id)
        finder = plan.finder.only(job.slide_id)
        rest = job.slide_id, job.count, plan.patch_px, job.record, plan.allowed, run_name, finder
        tasks[job.slide_id] = EmbedTask(config, patches, *rest)
    place = parallel.Place(
        cluster=config, shared=config.run, alone=True, resource="GPU",
        prepare=functools.partial(get_ready, config, encoder.weights_digest),
    )  # fmt: skip
    listener.say(
        f"embed: {plan.patches} patches of {len(plan.jobs)} slides with {encoder.name} "
        f"({encoder.dim} features, weights {encoder.weights_digest})"
        + (f"; {plan.allowed}" if plan.allowed else "")
    )
    used: dict[str, set[str]] = {"device": set(), "precision": set()}
    ended = parallel.as_they_end(embed_one, tasks, title="embed", place=place, cost=lambda task: task.count)
    try:
        with closing(ended):
            for outcome in ended:
                for name, values in used.items():
                    values.update([str(outcome.facts[name])] if name in outcome.facts else [])
                listener.advance(tasks[outcome.slide_id].count)
                listener.finished(outcome)
    finally:
        plan.target.sweep()  # of workers on this machine that were killed
    return {name: sorted(values) for name, values in used.items()} | {
        "embed_seconds": time.perf_counter() - start
    }


def make_plan(config: EmbedConfig, paths: list[Path], encoder: Encoder) -> Plan:
    """Read all patches: what is stale, unreadable or does not fit is known before an hour of work.

    A file that is damaged is its slide's failure.

    Raises:
        ConfigError: the encoder does not want such patches, or ``slides`` holds none. LabelError: it is a
            manifest that is wrong. StaleOutputError: see ``run``.
    """
    target = store.open_features(config.run, encoder.name, config.store, config.store_url)
    jobs: list[Job] = []
    settled: list[Outcome] = []
    allowed, patch_px = "", 0
    finder = locate.slide_finder(config.slides)
    for path in paths:
        try:
            patches = store.read_patches(path)
            if patches.slide_id != path.stem:
                raise FormatError(
                    f"{path}: says that it is of slide {patches.slide_id}; a file's name is its slide's. "
                    "Rename it, or remove it and run `wsi-mil tile` again."
                )
        except FormatError as error:
            settled.append(Outcome(slide_id=path.stem, status="failed", reason=str(error)))
            continue
        record = configs.record(
            config, weights_digest=encoder.weights_digest, patches_digest=patches.digest, tile=patches.record
        )
        plan = patches.geometry
        allowed = check_fit(encoder, plan.mpp, plan.patch_px, config.allow_mismatch) or allowed
        try:
            if target.is_done(patches.slide_id, record, config.overwrite):
                settled.append(there(target, patches.slide_id))
            else:
                read = functools.partial(store.read_patches, path)
                job = Job(patches.slide_id, len(patches.coords), read, record, finder.only(path.stem))
                jobs.append(job)
                patch_px = max(patch_px, patches.geometry.patch_px)
        except StaleOutputError:
            raise
        except FormatError as error:
            settled.append(Outcome(slide_id=patches.slide_id, status="failed", reason=str(error)))
    present = {path.stem for path in paths}
    for row in store.read_csv(config.run / "tile" / "slides.csv"):
        if row["status"] == "failed" and row["slide_id"] not in present:
            reason = f"no patches, tile failed: {row['reason']}"
            settled.append(Outcome(slide_id=row["slide_id"], status="skipped", reason=reason))
    jobs.sort(key=lambda each: -each.count)  # the longest does not start last
    return Plan(target, jobs, settled, allowed, patch_px, finder)


def _work_on_device(
    config: EmbedConfig, run_name: str, device: str, messages: devices.Messages
) -> dict[str, Any]:
    """Do the work of one of several processes."""
    config = dataclasses.replace(config, device=device, devices=())
    encoder = load(config)
    plan = make_plan(config, _patches_paths(config), encoder)
    return work(config, plan, encoder, messages, run_name) if plan.jobs else {}


def _name_the_lost(config: EmbedConfig, plan: Plan, listener: _Listener) -> None:
    """Give every slide an outcome that died with its process before it could be told of."""
    told = {each.slide_id for each in listener.table.outcomes()}
    for job in plan.jobs:
        if job.slide_id in told:
            continue
        if plan.target.is_done(job.slide_id, job.record, config.overwrite):
            listener.finished(dataclasses.replace(there(plan.target, job.slide_id), status="done"))
        else:
            reason = "the process that worked on it died (out of memory, or a crash in a library)"
            listener.finished(Outcome(slide_id=job.slide_id, status="failed", reason=reason))


def _sweep(config: EmbedConfig, plan: Plan) -> None:
    """Remove what processes of this stage left that are gone."""
    plan.target.sweep()
    for folder in (config.run / "embed", config.run / "features"):
        store.sweep(folder)


def _patches_paths(config: EmbedConfig) -> list[Path]:
    return sorted(path for path in (config.run / "patches").glob("*.h5") if path.name[0] != ".")


def _table_path(config: EmbedConfig) -> Path:
    return config.run / "embed" / "slides.csv"


def _announce(
    encoder: Encoder, plan: Plan, device: torch.device, precision: Precision, say: Callable[[str], None]
) -> None:
    size = plan.patch_px
    resized = "" if size == encoder.patch_px else f", resized from {size} to {encoder.patch_px} px"
    say(
        f"embed: {plan.patches} patches of {len(plan.jobs)} slides with {encoder.name} "
        f"({encoder.dim} features, weights {encoder.weights_digest}) on {device} in {precision}{resized}"
        + (f"; {plan.allowed}" if plan.allowed else "")
    )
