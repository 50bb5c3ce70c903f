"""What one slide may take before it is given up: fields of every stage that reads slides."""

from dataclasses import dataclass

from wsi_mil.config.base import neutral, require


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits of a slide: it fails by name, and the others go on."""

    slide_timeout: float | None = neutral(None)
    """Give a slide up that makes no progress for so many seconds: a hanging disk, server or library. Default:
    300, 10 more for each GiB of its file and 1 for each thousand patches. Slow is no reason: only a slide of
    which nothing comes is given up. 0 is no limit."""
    slide_memory_mib: int | None = neutral(None)
    """Give a slide up whose reading takes more memory than this. Default: nine tenths of the machine's (or
    the container's) memory, shared by the processes that read, and at least 2048. 0 is no limit."""

    def check_limits(self) -> None:
        """Raise ConfigError in the flag's own words."""
        require(
            self.slide_timeout is None or self.slide_timeout >= 0,
            f"--slide-timeout {self.slide_timeout}: seconds, at least 0 (0 is no limit).",
        )
        require(
            self.slide_memory_mib is None or self.slide_memory_mib >= 0,
            f"--slide-memory-mib {self.slide_memory_mib}: MiB, at least 0 (0 is no limit).",
        )
