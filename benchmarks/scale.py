"""What a Dask cluster costs and what it stands, with real schedulers and workers on this machine.

    make bench-scale           (or: python -m benchmarks.scale --folder bench --append [--only NAME ...])

* tile, embed: 40 drawn slides by two workers and by one; a round is both, one after the other, a ratio is
  taken within a round. A worker has one core, which it cannot leave: its libraries' threads would help a
  single worker to the core of the second. Wall seconds begin when the workers are there and have the encoder,
  and are of the whole command; processor seconds are those of all processes, the scheduler's too.
* overhead: the same slides by this process, and by one worker that runs already; and by the command with two
  local processes and with ``--dask local``, the start of everything included.
* noop: 10,000 slides that are nothing; memory of the client and the scheduler on the way.
* killer: a random worker is killed every 10 s for 2 minutes while slides are tiled; then verify looks.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results import publish
from pipelines.demo.cohort import make_cohort
from tests.clusters import ENVIRONMENT, DaskCluster, until
from wsi_mil import embed, parallel, store, tile, verify
from wsi_mil.config import ClusterConfig, EmbedConfig, TileConfig, VerifyConfig

SLIDES, NOOPS, KILL_EVERY_S, KILL_FOR_S = 40, 10_000, 10.0, 120.0
CHOICES = ("tile", "embed", "overhead", "noop", "killer")
CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Measured:
    """Wall and processor seconds, and the part of the machine's processors that other people's work took."""

    wall: float
    cpu: float
    others: float


def slides_in(folder: Path) -> Path:
    """Draw the cohort, where it is not yet."""
    if not (folder / "slides").is_dir():
        make_cohort(folder, slides=SLIDES, seed=5, side_um=600.0)
    return folder / "slides"


def cluster(folder: Path, workers: int, *, nanny: bool = False) -> DaskCluster:
    """Start a scheduler and workers of a core each."""
    started = DaskCluster(folder)
    started.start_scheduler()
    for number in range(workers):
        core = CORES[number % len(CORES)]
        started.start_worker("--memory-limit", "0", nanny=nanny, prefix=("taskset", "-c", str(core)))
    return started


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep this process to the core that a single worker has."""
    os.sched_setaffinity(0, CORES[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def cpu_of(cluster: DaskCluster) -> float:
    """Return the processor seconds of a cluster's processes so far."""
    total = 0.0
    for each in (cluster.scheduler, *cluster.workers):
        for process in [psutil.Process(each.pid), *psutil.Process(each.pid).children(recursive=True)]:
            times = process.cpu_times()
            total += times.user + times.system
    return total


def own_cpu() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(each.ru_utime + each.ru_stime for each in map(resource.getrusage, kinds))


def busy() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice  # guests are in user, too


def timed(call: Callable[[], Any], on: DaskCluster | None = None) -> Measured:
    """Measure a call, with the processes of its cluster."""
    cpu, all_, start = own_cpu() + (cpu_of(on) if on else 0.0), busy(), time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    cpu, all_ = own_cpu() + (cpu_of(on) if on else 0.0) - cpu, busy() - all_
    return Measured(seconds, cpu, max(all_ - cpu, 0.0) / seconds / (os.cpu_count() or 1))


def all_done(result: parallel.StageResult) -> None:
    assert not result.failed, result.failed[:1]
    assert result.count("done") == SLIDES


def measure(
    name: str, rounds: int, contenders: dict[str, Callable[[], Measured]]
) -> dict[str, list[Measured]]:
    """Let them work in turns, every second time from the end; the first round loads and is not told."""
    figures: dict[str, list[Measured]] = {who: [] for who in contenders}
    for number in range(rounds + 1):
        for who in list(contenders)[:: 1 if number % 2 else -1]:
            each = contenders[who]()
            if number:
                figures[who].append(each)
            words = f"{each.wall:.1f} s, {each.cpu:.1f} s of processor, others had {each.others:.0%}"
            print(name, number, who, words, flush=True)
    return figures


def tile_by(folder: Path, on: DaskCluster | None) -> Measured:
    """Tile by a cluster or in this process."""
    run = folder / "run-bench"
    shutil.rmtree(run, ignore_errors=True)
    config = TileConfig(
        slides=slides_in(folder), run=run, patch_px=224, scheduler=on.address if on else None,
        workers=0 if on else 1,
    )  # fmt: skip
    return timed(lambda: all_done(tile.run(config)), on)


def tile_by_command(folder: Path, *flags: str) -> Measured:
    """Tile by the command as people give it."""
    run = folder / "run-bench"
    shutil.rmtree(run, ignore_errors=True)
    words = ["tile", "--slides", slides_in(folder), "--run", run, "--patch-px", 224, "--workers", 2, *flags]
    command = [sys.executable, "-m", "wsi_mil", *map(str, words)]
    measured = timed(
        lambda: subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    )  # fmt: skip
    assert len(list((run / "patches").glob("*.h5"))) == SLIDES
    return measured


def embed_by(folder: Path, on: DaskCluster) -> Measured:
    run = folder / "run-bench"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "run-tiled", run)
    config = EmbedConfig(run=run, precision="fp32", scheduler=on.address, allow_mismatch=True)
    return timed(lambda: all_done(embed.run(config)), on)


def bench_stage(name: str, folder: Path, rounds: int) -> list[str]:
    """Measure tile or embed by one worker and by two."""
    if name == "embed":
        slides, run = slides_in(folder), folder / "run-tiled"
        tile.run(TileConfig(slides=slides, run=run, patch_px=224, overwrite=True))
    by = {"tile": tile_by, "embed": embed_by}[name]
    with cluster(folder / "one", 1) as one, cluster(folder / "two", 2) as two:
        contenders = {"1 worker": lambda: by(folder, one), "2 workers": lambda: by(folder, two)}
        figures = measure(name, rounds, contenders)
    wanted = {"tile": 1.8, "embed": 1.7}[name]
    walls = ratios(figures, "1 worker", "2 workers", "wall")
    work = ratios(figures, "2 workers", "1 worker", "cpu")
    return [
        *table(name, figures),
        f"Two workers against one: {ratio(walls)} x (wanted: {wanted} x).",
        f"Processor seconds of two workers against those of one: {ratio(work)} (1 is no loss).",
        "",
    ]


def bench_overhead(folder: Path, rounds: int) -> list[str]:
    """Measure what Dask adds to tile: to a process that runs already, and to the command."""

    def here() -> Measured:
        with on_one_core():
            return tile_by(folder, None)

    contenders = {
        "this process": here,
        "1 Dask worker": lambda: tile_by(folder, on),
        "the command, 2 local processes": lambda: tile_by_command(folder),
        "the command, --dask local, 2 workers": lambda: tile_by_command(folder, "--dask", "local"),
    }
    with cluster(folder / "overhead", 1) as on:
        figures = measure("overhead", rounds, contenders)
    one, worker, processes, local = contenders
    starts = [b.cpu - a.cpu for a, b in zip(figures[processes], figures[local], strict=True)]
    lines = table("tile", figures)
    for what, a, b in ((worker, worker, one), ("--dask local", local, processes)):
        cpu, wall = ratios(figures, a, b, "cpu"), ratios(figures, a, b, "wall")
        lines.append(
            f"{what} against {b}: {ratio(cpu)} x the processor seconds, {ratio(wall)} x the seconds."
        )
    return [
        *lines,
        "Wanted: at most 1.05. --dask local starts a scheduler and two processes that watch over workers: "
        f"{ratio(starts)} processor seconds more for the command, however many slides there are.",
        "",
    ]


def table(name: str, figures: dict[str, list[Measured]]) -> list[str]:
    lines = [f"| {name}, {SLIDES} slides | seconds (each round) | processor seconds |", "|---|---|---|"]
    for who, values in figures.items():
        walls, cpus = (", ".join(f"{getattr(each, kind):.1f}" for each in values) for kind in ("wall", "cpu"))
        lines.append(f"| {who} | {walls} | {cpus} |")
    others = [each.others for values in figures.values() for each in values]
    return [*lines, "", f"Other processes had {ratio(others)} of the machine meanwhile."]


def ratios(figures: dict[str, list[Measured]], a: str, b: str, kind: str) -> list[float]:
    pairs = zip(figures[a], figures[b], strict=True)
    return [getattr(one, kind) / getattr(other, kind) for one, other in pairs]


def ratio(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def noop(_task: int) -> dict[str, int]:
    return {}


def bench_noop(folder: Path) -> list[str]:
    """Schedule slides that are nothing; watch the memory of the client and the scheduler."""
    memory: dict[str, list[float]] = {"client": [], "scheduler": []}
    with cluster(folder / "noop", 2) as on:
        place = parallel.Place(cluster=ClusterConfig(scheduler=on.address))
        processes = {"client": psutil.Process(), "scheduler": psutil.Process(on.scheduler.pid)}
        tasks = {f"s{i:05d}": i for i in range(NOOPS)}
        cpu, start, ended = own_cpu() + cpu_of(on), time.perf_counter(), 0
        for _ in parallel.as_they_end(noop, tasks, title="noop", place=place):
            ended += 1
            if ended % (NOOPS // 10) == 0:
                for name, process in processes.items():
                    memory[name].append(process.memory_info().rss / 2**20)
        seconds, cpu = time.perf_counter() - start, own_cpu() + cpu_of(on) - cpu
    assert ended == NOOPS
    growth = ", ".join(f"{name} {each[0]:.0f} to {each[-1]:.0f} MiB" for name, each in memory.items())
    return [
        f"{NOOPS:,} slides that are nothing on two workers: {seconds:.0f} s (wanted: under 60), {cpu:.0f} s "
        f"of processor in all processes. Memory after a tenth and at the end: {growth}.".replace("'", "")
        .replace("{", "")
        .replace("}", ""),
        "",
    ]


def bench_killer(folder: Path, count: int) -> list[str]:
    """Kill a random worker every 10 s while slides are tiled again and again, until 2 minutes are over."""
    slides, rng = slides_in(folder), random.Random(0)
    many, run = folder / "many.csv", folder / "run-killed"
    shutil.rmtree(run, ignore_errors=True)
    paths = sorted(path.absolute() for path in slides.iterdir())
    rows = [f"k{i:04d},{paths[i % len(paths)]}" for i in range(count)]
    many.write_text("slide_id,path\n" + "\n".join(rows) + "\n")
    kills, over = 0, threading.Event()
    with cluster(folder / "killed", 2, nanny=True) as on:
        command = [sys.executable, "-m", "wsi_mil", "tile", "--slides", many, "--run", run]
        client = subprocess.Popen(
            [*map(str, command), "--scheduler", on.address], stdout=subprocess.PIPE,
            stderr=(folder / "killed.log").open("w"), text=True,
        )  # fmt: skip
        until(lambda: len(list((run / "patches").glob("*.h5"))) > 5, seconds=120)
        start = time.monotonic()
        while time.monotonic() - start < KILL_FOR_S and client.poll() is None:
            over.wait(KILL_EVERY_S)
            below = [psutil.Process(each.pid).children(recursive=True) for each in on.workers]
            workers = [
                child.pid for each in below for child in each if "spawn_main" in " ".join(child.cmdline())
            ]
            if workers:
                os.kill(rng.choice(workers), signal.SIGKILL)
                kills += 1
        seconds_killed = time.monotonic() - start
        out, _ = client.communicate(timeout=1200)
    counts = out.strip().splitlines()[-1]
    rows_done = [row["slide_id"] for row in store.read_csv(run / "tile" / "slides.csv")]
    files = len(list((run / "patches").glob("*.h5")))
    again = (folder / "killed.log").read_text().count("tried again")
    checked = verify.run(VerifyConfig(run=run))
    return [
        f"{kills} workers killed in {seconds_killed:.0f} s while {count} slides were tiled: `{counts}`, exit "
        f"code {client.returncode}; {files} files, {len(set(rows_done))} slides in the table, each once: "
        f"{len(rows_done) == len(set(rows_done)) == count}; {again} times slides were tried again; verify: "
        f"{checked.count('done')} whole, {len(checked.failed)} wrong.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--append", action="store_true", help="add the table to benchmarks/RESULTS.md")
    parser.add_argument("--only", nargs="+", choices=CHOICES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--killed-slides", type=int, default=1200, help="enough for more than 2 minutes")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the clusters end with this
    folder = arguments.folder / "scale"
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("taskset") is None:
        sys.exit("taskset: not found; it keeps a worker on its core (Debian: util-linux)")
    load = os.getloadavg()[0]
    lines = [f"{os.cpu_count()} cores; load average when it began {load:.1f}.", ""]
    for name in arguments.only or CHOICES:
        if name in {"tile", "embed"}:
            lines += bench_stage(name, folder, arguments.rounds)
        elif name == "overhead":
            lines += bench_overhead(folder, arguments.rounds)
        else:
            lines += bench_noop(folder) if name == "noop" else bench_killer(folder, arguments.killed_slides)
    publish("A Dask cluster", lines, append=arguments.append)


if __name__ == "__main__":
    main()
