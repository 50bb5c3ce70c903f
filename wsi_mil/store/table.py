"""Tables that several processes write: each adds what it knows, and keeps what others did.

Comes in: rows by slide. Goes out: RUN/<stage>/slides.csv. What the columns mean, the stages know.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wsi_mil.store.atomic import alone
from wsi_mil.store.disk import disk_errors
from wsi_mil.store.record import read_csv, write_csv


def write_rows(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]], slide_ids: Sequence[str]
) -> list[Mapping[str, object]]:
    """Write a share's rows into a stage's table; return all that it has now, in the order of ``slide_ids``.

    ``slide_ids`` are those of all shares: their rows that are there stay, and those of any other slide go. A
    slide that is skipped keeps the remark that was made when it was done.

    Raises:
        StoreError: the disk is full, or does not let us.
    """
    with disk_errors(path), alone(path):
        known: dict[str, Mapping[str, object]] = {each["slide_id"]: each for each in read_csv(path)}
        known |= {str(each["slide_id"]): _with_remark(each, known) for each in rows}
        joined = [known[slide_id] for slide_id in slide_ids if slide_id in known]
        write_csv(path, columns, ({name: each.get(name, "") for name in columns} for each in joined))
    return joined


def _with_remark(
    row: Mapping[str, object], known: Mapping[str, Mapping[str, object]]
) -> Mapping[str, object]:
    before = known.get(str(row["slide_id"]))
    if before is None or row["status"] != "skipped" or before["status"] == "failed":
        return row
    says_more = str(row["reason"]) in str(before["reason"])
    return {**row, "reason": before["reason"]} if says_more else row
