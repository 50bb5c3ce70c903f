"""Where slides are worked on: fields that stages share, and the table ``[cluster]`` of a TOML file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsi_mil.config.base import neutral, require


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Which Dask cluster does the work, if any: nothing of it is in a digest, the results are the same."""

    scheduler: str | None = neutral(None)
    """Address of a Dask scheduler, tcp://HOST:8786, whose workers do the work. They must see the run folder
    and the slides under the same paths as this machine."""
    scheduler_file: Path | None = neutral(None)
    """The file that `dask scheduler --scheduler-file FILE` wrote, instead of --scheduler."""
    dask: Literal["none", "local"] | None = neutral(None)
    """local: start a Dask cluster on this machine for this command, a worker per core. none: no cluster, also
    where a TOML file's [cluster] names one."""
    worker_wait: int = neutral(600)
    """Seconds to wait where the scheduler has no worker (a batch queue takes its time), before giving up."""

    def __post_init__(self) -> None:
        """Check that one cluster is named; raise ConfigError in the flag's own words."""
        named = [
            flag
            for flag, given in (
                ("--scheduler", self.scheduler is not None),
                ("--scheduler-file", self.scheduler_file is not None),
                (f"--dask {self.dask}", self.dask is not None),
            )
            if given
        ]
        require(self.dask in (None, "none", "local"), f"--dask {self.dask}: unknown; wanted none, local.")
        require(len(named) < 2, f"{' and '.join(named)}: name one cluster.")
        require(
            self.scheduler is None or "://" in self.scheduler,
            f"--scheduler {self.scheduler}: wanted an address such as tcp://HOST:8786.",
        )
        require(self.worker_wait >= 1, f"--worker-wait {self.worker_wait}: at least 1 second.")

    @property
    def on_cluster(self) -> bool:
        """Whether a Dask cluster is to do the work."""
        return self.scheduler is not None or self.scheduler_file is not None or self.dask == "local"


CLUSTER_KEYS = ("scheduler", "scheduler_file", "dask", "worker_wait")
"""The fields of ``ClusterConfig``: the keys of ``[cluster]``."""
PLACE_KEYS = ("scheduler", "scheduler_file", "dask")
"""Those of which one excludes the others: where one is given, it replaces what was said before."""
