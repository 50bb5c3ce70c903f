"""One page that says what a run reached, what failed, and what each slide looks like: ``run``."""

from wsi_mil.report.run import run

__all__ = ["run"]
