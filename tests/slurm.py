"""A Slurm of this machine for tests: munged, slurmctld and two slurmd in a folder of their own.

Needs Debian's slurmctld, slurmd, slurm-client and munge, and root (slurmd starts jobs as their users).
Nothing of an installed Slurm is read or written: configuration, keys, sockets, ports and states are this
folder's.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> str:
    """Return why no Slurm can be started here, '' where one can."""
    absent = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if absent:
        return f"no {', '.join(absent)} (apt-get install slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "only root may start a slurmd"


class Slurm:
    """A cluster of two nodes of one processor each.

    It has the partitions ``normal`` (the default) and ``urgent``: a job of ``urgent`` preempts one of
    ``normal``, which is requeued after ``grace`` seconds.
    """

    def __init__(self, folder: Path, grace: int = 20) -> None:
        self.folder = folder
        self._grace = grace
        self._processes: list[subprocess.Popen[bytes]] = []
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def start(self) -> None:
        """Start everything and wait until both nodes are idle."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._configure()
        munge = self.folder / "munge"
        self._daemon(
            "munged", "--foreground", "--force",
            f"--key-file={munge / 'key'}", f"--socket={munge / 'socket'}",
            f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}",
        )  # fmt: skip
        self.wait((munge / "socket").exists, 20, "munged has no socket")
        self._daemon("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        for node in ("node1", "node2"):
            self._daemon("slurmd", "-D", "-N", node, "-f", self.environment["SLURM_CONF"])
        self.wait(self._idle, 60, "the nodes did not come up")

    def stop(self) -> None:
        """Cancel all jobs and end everything that was started."""
        subprocess.run(["scancel", "--user=root"], env=self.environment, check=False, capture_output=True)
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, *arguments: object, **variables: str) -> str:
        """Run one of Slurm's commands (or a script that uses them) and return what it printed."""
        result = subprocess.run(
            [str(each) for each in arguments], env=self.environment | variables, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{arguments}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    def job(self, job_id: str) -> Mapping[str, str]:
        """Return what Slurm says of a job, by key, such as JobState, ExitCode, Restarts."""
        text = self.run("scontrol", "show", "job", job_id, "--oneliner").splitlines()[0]
        return dict(re.findall(r"(\w+(?::\w+)?)=(\S*)", text))

    def states(self, job_id: str) -> list[str]:
        """Return the state of a job, or of every task of an array."""
        text = self.run("scontrol", "show", "job", job_id, "--oneliner")
        return re.findall(r"JobState=(\w+)", text)

    def wait_for_state(self, job_id: str, *wanted: str, seconds: float = 120) -> None:
        """Wait until a job (all tasks of an array) is in one of the wanted states."""

        def done() -> bool:
            states = self.states(job_id)
            unwanted = {"FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL"} - set(wanted)
            assert not set(states) & unwanted, f"job {job_id}: {states}\n{self.logs()}"
            return set(states) <= set(wanted)

        self.wait(done, seconds, f"job {job_id} is not {' or '.join(wanted)}")

    def wait(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        """Wait for a condition; fail with the daemons' last words where it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{otherwise} within {seconds:.0f} s\n{self.logs()}")
            time.sleep(0.3)

    def logs(self) -> str:
        """Return the ends of all logs: of the daemons and of the jobs."""
        paths = [path for path in sorted(self.folder.rglob("*.log")) if path.is_file()]
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-2500:]}" for path in paths)

    def _idle(self) -> bool:
        result = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=self.environment, text=True, capture_output=True,
            check=False,
        )  # fmt: skip
        return result.returncode == 0 and set(result.stdout.split()) == {"idle"}

    def _daemon(self, *arguments: str) -> None:
        with (self.folder / f"{arguments[0]}{len(self._processes)}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(arguments, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
            )

    def _configure(self) -> None:
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        host = socket.gethostname()
        ports = _free_ports(3)
        node = f"NodeHostname={host} NodeAddr=127.0.0.1 CPUs=1 RealMemory=4000"
        lines = [
            "ClusterName=test", f"SlurmctldHost={host}(127.0.0.1)", f"SlurmctldPort={ports[0]}",
            "SlurmUser=root", "SlurmdUser=root", f"AuthInfo=socket={munge / 'socket'}", "MpiDefault=none",
            "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none",
            "SelectType=select/cons_tres", "SelectTypeParameters=CR_CPU", "SchedulerType=sched/backfill",
            "SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0",
            "JobAcctGatherType=jobacct_gather/none", "AccountingStorageType=accounting_storage/none",
            "ReturnToService=2", "JobRequeue=1", "KillWait=10", "MinJobAge=3600",
            "PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE",
            f"StateSaveLocation={self.folder / 'state'}", f"SlurmdSpoolDir={self.folder / 'spool-%n'}",
            f"SlurmctldPidFile={self.folder / 'slurmctld.pid'}",
            f"SlurmdPidFile={self.folder / 'slurmd-%n.pid'}",
            f"NodeName=node1 Port={ports[1]} {node}",
            f"NodeName=node2 Port={ports[2]} {node}",
            "PartitionName=normal Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE "
            f"GraceTime={self._grace}",
            "PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF",
        ]  # fmt: skip
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        for name in ("state", "spool-node1", "spool-node2"):
            (self.folder / name).mkdir()


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
