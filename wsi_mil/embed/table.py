"""RUN/embed/slides.csv while several processes write it: each adds what it knows and keeps what others did.

Comes in: outcomes, one by one. Goes out: the table, written now and then and at the end.
"""

import contextlib
import threading
import time
from pathlib import Path

from wsi_mil import store
from wsi_mil.errors import StoreError
from wsi_mil.parallel import Outcome

COLUMNS = (
    *("slide_id", "status", "seconds", "patches", "left_out", "read_wait", "compute", "write", "read_by"),
    *("encoder", "checksum", "reason"),
)
_EVERY_S = 30.0


class Table:
    """What became of every slide; one that was skipped keeps the figures of the run that embedded it.

    The table is of one encoder: rows of another go when it is first written.
    """

    def __init__(self, path: Path, encoder: str, outcomes: list[Outcome]) -> None:
        """Begin with slides that need nothing."""
        self._path, self._encoder = path, encoder
        self._outcomes = {each.slide_id: each for each in outcomes}
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._saved = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Take a slide's outcome; "skipped" does not replace what is known better."""
        with self._lock:
            known = self._outcomes.get(outcome.slide_id)
            if known is None or outcome.status != "skipped":
                self._outcomes[outcome.slide_id] = outcome
        if time.monotonic() - self._saved > _EVERY_S:
            with contextlib.suppress(StoreError):  # a full disk fails slides; the table is tried again
                self.save()

    def outcomes(self) -> list[Outcome]:
        """Return all outcomes by slide id."""
        with self._lock:
            return sorted(self._outcomes.values(), key=lambda each: each.slide_id)

    def save(self) -> None:
        """Write the table; rows of slides that others work on stay.

        Raises:
            StoreError: the disk is full, or does not let us.
        """
        self._saved = time.monotonic()
        with self._saving, store.disk_errors(self._path), store.alone(self._path):
            rows: dict[str, dict[str, object]] = {
                row["slide_id"]: {**row}
                for row in store.read_csv(self._path)
                if row.get("encoder") == self._encoder
            }
            for outcome in self.outcomes():
                row = {"encoder": self._encoder} | outcome.row()
                before = rows.get(outcome.slide_id)
                if outcome.status == "skipped" and before and before["checksum"] == row.get("checksum"):
                    # The same features: what was measured when they were made still holds.
                    if outcome.facts.get("elsewhere"):
                        continue  # the process that made them says it best
                    row = before | {"status": "skipped"}
                    row |= {"reason": outcome.reason} if outcome.reason else {}
                rows[outcome.slide_id] = row
            columns_only = ({name: row.get(name, "") for name in COLUMNS} for _, row in sorted(rows.items()))
            store.write_csv(self._path, COLUMNS, columns_only)
