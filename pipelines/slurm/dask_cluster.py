"""A pipeline on Dask workers that are Slurm jobs: each stage has its own, and they end with it.

Comes in: a TOML file with a table per stage, and what a job is to have. Goes out: the run that
``wsi-mil run`` makes. Workers of ``embed`` may be other jobs (with a GPU each) than those of ``tile`` and
``heatmap``, so that no GPU waits while slides are tiled. ``train`` and ``report`` work where this is started.

    python -m pipelines.slurm.dask_cluster pipeline.toml --jobs 16 --queue main --cores 8 --memory 16GB \
        --gpu-jobs 4 --gpu-options=--gres=gpu:1

It stays until all is done: start it in a job of its own (``sbatch --wrap``), or in tmux. Given again, it
goes on.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dask_jobqueue import SLURMCluster

STAGES = ("tile", "embed", "train", "heatmap", "report")
ON_WORKERS = ("tile", "embed", "heatmap")


def main(arguments: Sequence[str] | None = None) -> int:
    given = read_arguments(arguments)
    for stage in STAGES:
        command = [sys.executable, "-m", "wsi_mil", stage, "--config", str(given.config)]
        command += ["--max-failed", str(given.max_failed)]
        if stage in ON_WORKERS:
            with workers(given, stage) as address:
                code = subprocess.run([*command, "--scheduler", address], check=False).returncode
        else:
            code = subprocess.run(command, check=False).returncode
        if code:
            print(
                f"dask_cluster: {stage} ended with {code}; what comes after it was not begun", file=sys.stderr
            )
            return code
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("config", type=Path, help="TOML file with a table per stage")
    add("--jobs", type=int, default=4, help="jobs of tile and heatmap")
    add("--cores", type=int, default=1, help="cores of a job, and the slides that it works on at a time")
    add("--memory", default="4GB", help="memory of a job")
    add("--walltime", default="04:00:00", help="time limit of a job")
    add("--queue", help="partition")
    add("--account", help="account")
    add(
        "--options", action="append", default=[], help="one more sbatch option of every job (may be repeated)"
    )
    add("--gpu-jobs", type=int, default=0, help="jobs of embed with a GPU each; 0: as tile, on CPUs")
    add("--gpu-options", action="append", default=[], help="one more option of those, such as --gres=gpu:1")
    add("--interface", help="network interface that nodes reach each other by, such as ib0")
    add("--logs", type=Path, default=Path("dask-logs"), help="folder for the workers' logs")
    add(
        "--max-failed", type=float, default=0.0, help="part of the slides that may fail without ending it all"
    )
    return parser.parse_args(arguments)


@contextmanager
def workers(given: argparse.Namespace, stage: str) -> Iterator[str]:
    """Submit a stage's jobs and yield the address of the scheduler that they report to.

    The stage waits for the first worker (--worker-wait); jobs that start later join in.
    """
    on_gpus = stage == "embed" and given.gpu_jobs > 0
    # A GPU's worker is one process with all cores; any other core is a worker of one slide.
    processes = 1 if stage == "embed" else given.cores
    with SLURMCluster(
        queue=given.queue,
        account=given.account,
        cores=given.cores,
        processes=processes,
        memory=given.memory,
        walltime=given.walltime,
        interface=given.interface,
        job_name=f"wsi-mil-{stage}",
        job_extra_directives=given.options + (given.gpu_options if on_gpus else []),
        # Slurm watches over the memory of a job. Dask would pause a worker at 80 % of it, and one that holds
        # PyTorch and an encoder would wait there for ever.
        worker_extra_args=["--memory-limit", "0", *(["--resources", "GPU=1"] if on_gpus else [])],
        log_directory=str(given.logs),
        scheduler_options={"dashboard_address": ":0"},
    ) as cluster:
        cluster.scale(jobs=given.gpu_jobs if on_gpus else given.jobs)
        yield str(cluster.scheduler_address)


if __name__ == "__main__":
    raise SystemExit(main())
