"""What a Dask cluster costs and what it stands, with real schedulers and workers on this machine.

    make bench-scale           (or: python -m benchmarks.scale --folder bench --append [--only NAME ...])

* tile, embed: 40 drawn slides by two workers and by one, and (tile) by two local processes; a round is all
  of them one after the other, a ratio is taken within a round. A worker has one thread. Wall seconds begin
  when the workers are there and have the encoder; processor seconds are those of all processes, the
  scheduler's too.
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
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results import publish
from pipelines.demo.cohort import make_cohort
from tests.clusters import DaskCluster, until
from wsi_mil import embed, parallel, store, tile, verify
from wsi_mil.config import ClusterConfig, EmbedConfig, TileConfig, VerifyConfig

SLIDES, NOOPS, KILL_EVERY_S, KILL_FOR_S = 40, 10_000, 10.0, 120.0


def slides_in(folder: Path) -> Path:
    """Draw the cohort, where it is not yet."""
    if not (folder / "slides").is_dir():
        make_cohort(folder, slides=SLIDES, seed=5, side_um=600.0)
    return folder / "slides"


def cluster(folder: Path, workers: int, *, nanny: bool = False) -> DaskCluster:
    started = DaskCluster(folder)
    started.start_scheduler()
    for _ in range(workers):
        started.start_worker(nanny=nanny)
    return started


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


def timed(call: Any, on: DaskCluster | None) -> tuple[float, float]:
    """Return wall and processor seconds of a call, with those of the cluster."""
    cpu, start = own_cpu() + (cpu_of(on) if on else 0.0), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    assert not result.failed, result.failed[:1]
    assert result.count("done") == SLIDES
    return seconds, own_cpu() + (cpu_of(on) if on else 0.0) - cpu


def bench_stage(name: str, folder: Path, rounds: int) -> list[str]:
    """Measure tile or embed by one worker, by two, and by this machine's processes."""
    slides, tiled = slides_in(folder), folder / "run-tiled"
    tile.run(TileConfig(slides=slides, run=tiled, patch_px=224, overwrite=True))
    figures: dict[str, list[tuple[float, float]]] = {}
    with cluster(folder / "one", 1) as one, cluster(folder / "two", 2) as two:
        for number in range(rounds + 1):
            for who, on in (("1 worker", one), ("2 workers", two), ("2 processes", None)):
                if name == "embed" and on is None:
                    continue
                run = folder / "run-bench"
                shutil.rmtree(run, ignore_errors=True)
                address = on.address if on else None
                if name == "tile":
                    config: Any = TileConfig(
                        slides=slides, run=run, patch_px=224, scheduler=address, workers=0 if on else 2
                    )
                    measured = timed(lambda config=config: tile.run(config), on)
                else:
                    shutil.copytree(tiled, run)
                    config = EmbedConfig(run=run, precision="fp32", scheduler=address, allow_mismatch=True)
                    measured = timed(lambda config=config: embed.run(config), on)
                if number:  # the first round loads libraries and encoders
                    figures.setdefault(who, []).append(measured)
                print(name, number, who, f"{measured[0]:.1f} s, {measured[1]:.1f} s of processor", flush=True)
    return table(name, figures)


def table(name: str, figures: dict[str, list[tuple[float, float]]]) -> list[str]:
    lines = [f"| {name}, {SLIDES} slides | seconds (each round) | processor seconds |", "|---|---|---|"]
    for who, values in figures.items():
        wall, cpu = (", ".join(f"{each[i]:.1f}" for each in values) for i in (0, 1))
        lines.append(f"| {who} | {wall} | {cpu} |")
    wanted = {"tile": 1.8, "embed": 1.7}[name]
    speed = [a[0] / b[0] for a, b in zip(figures["1 worker"], figures["2 workers"], strict=True)]
    lines += ["", f"Two workers against one: {ratio(speed)} x (wanted: {wanted} x)."]
    work = [b[1] / a[1] for a, b in zip(figures["1 worker"], figures["2 workers"], strict=True)]
    lines += [f"Processor seconds of two workers against those of one: {ratio(work)} (1 is no loss)."]
    if "2 processes" in figures:
        pairs = list(zip(figures["2 workers"], figures["2 processes"], strict=True))
        lines += [
            f"Two workers against two local processes: {ratio([a[0] / b[0] for a, b in pairs])} x the "
            f"wall seconds, {ratio([a[1] / b[1] for a, b in pairs])} x the processor seconds (wanted: at "
            "most 1.05)."
        ]
    return [*lines, ""]


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
    parser.add_argument("--only", nargs="+", choices=["tile", "embed", "noop", "killer"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--killed-slides", type=int, default=1200, help="enough for more than 2 minutes")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the clusters end with this
    folder = arguments.folder / "scale"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = arguments.only or ["tile", "embed", "noop", "killer"]
    load = os.getloadavg()[0]
    lines = [f"{os.cpu_count()} cores; load average when it began {load:.1f}.", ""]
    for name in chosen:
        if name in {"tile", "embed"}:
            lines += bench_stage(name, folder, arguments.rounds)
        else:
            lines += bench_noop(folder) if name == "noop" else bench_killer(folder, arguments.killed_slides)
    publish("A Dask cluster", lines, append=arguments.append)


if __name__ == "__main__":
    main()
