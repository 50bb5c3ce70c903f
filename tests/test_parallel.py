import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsi_mil import parallel
from wsi_mil.errors import SlideError
from wsi_mil.parallel import Outcome


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
    assert outcomes["poison"].reason == "its process ended with exit code 11 while starting"
    assert sum(o.status == "done" for o in outcomes.values()) == 9


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """kill -9 gives the parent no chance to end its workers; they must notice."""
    code = (
        "import sys; from tests.test_parallel import note_pid_and_wait; from wsi_mil import parallel\n"
        "tasks = {str(i): sys.argv[1] for i in range(2)}\n"
        "parallel.map_slides(note_pid_and_wait, tasks, title='t', workers=2)\n"
    )
    script = tmp_path / "main.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, script, tmp_path], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while len(list(tmp_path.glob("*.pid"))) < 2 and time.time() < deadline:
        time.sleep(0.05)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    while any(is_running(pid) for pid in workers) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)


def note_pid_and_wait(folder):
    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(120)


def is_running(pid):
    """Whether a process exists and is no zombie (nobody may be there to reap an orphan in a container)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_tasks_is_no_work():
    assert parallel.map_slides(work, {}, title="t") == []


def test_where_nobody_says_how_many_there_is_a_process_for_each_core_of_ours(monkeypatch):
    parallel.limit_cores(None)
    ours = os.sched_getaffinity(0)
    assert parallel.cpu_count() == len(ours)
    try:
        os.sched_setaffinity(0, sorted(ours)[:1])
        assert parallel.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, ours)
    monkeypatch.setattr(parallel.places, "cpu_count", lambda: 2)
    outcomes = parallel.map_slides(pid, {"a": 0, "b": 1}, title="t")
    assert os.getpid() not in {each.facts["pid"] for each in outcomes}


def pid(_task):
    return {"pid": os.getpid()}


def test_the_repr_of_a_result_is_short_whatever_its_facts_hold():
    outcome = Outcome(
        slide_id="a",
        status="done",
        seconds=1.5,
        facts={"card": "x" * 70_000, "patches": 3, "reason": "y" * 900},
    )
    result = parallel.StageResult(stage="tile", output=Path("run/patches"), outcomes=[outcome] * 4)
    assert repr(outcome) == "Outcome('a'; done; 1.50 s; facts=card, patches, reason)"
    assert repr(result) == "StageResult('tile'; 4 done, 0 skipped, 0 failed; output='run/patches')"
    failed = Outcome(slide_id="b", status="failed", reason="z" * 900, traceback="t" * 9000)
    assert len(repr(failed)) <= 400
    assert "reason='zzz" in repr(failed)
