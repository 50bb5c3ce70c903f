import os
import time

import pytest

from wsi_mil import parallel
from wsi_mil.errors import SlideError


def work(task):
    kind, value = task
    if kind == "slide error":
        raise SlideError("a.svs: cannot be read")
    if kind == "bug":
        raise ZeroDivisionError("oops")
    if kind == "crash":
        os._exit(11)
    if kind == "skip":
        return None
    time.sleep(0.01)
    return {"patches": value}


TASKS = {f"s{i}": ("ok", i) for i in range(6)} | {
    "bad": ("slide error", 0), "bug": ("bug", 0), "there": ("skip", 0), "last": ("ok", 9),
}  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_slide_never_ends_a_run(workers, capfd):
    outcomes = parallel.map_slides(work, TASKS, title="t", workers=workers)
    assert [o.slide_id for o in outcomes] == list(TASKS), "in the order of the tasks"
    by_id = {o.slide_id: o for o in outcomes}
    assert by_id["last"].facts == {"patches": 9}
    assert by_id["there"].status == "skipped"
    assert by_id["bad"].reason == "a.svs: cannot be read"
    assert by_id["bug"].reason == "ZeroDivisionError: oops"
    assert "in work" in by_id["bug"].traceback, "the traceback is kept"
    assert "failed bad: a.svs" in capfd.readouterr().err.replace("\n", " ")


def test_a_slide_that_kills_its_process_is_named_and_the_others_finish():
    tasks = {f"s{i}": ("ok", i) for i in range(8)} | {"poison": ("crash", 0)} | {"z": ("ok", 1)}
    outcomes = {o.slide_id: o for o in parallel.map_slides(work, tasks, title="t", workers=2)}
    assert {k for k, o in outcomes.items() if o.status == "failed"} == {"poison"}
    assert "the process that worked on it died" in outcomes["poison"].reason
    assert sum(o.status == "done" for o in outcomes.values()) == 9


def test_no_tasks_is_no_work():
    assert parallel.map_slides(work, {}, title="t") == []
