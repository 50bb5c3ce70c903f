import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsi_mil.embed import source as sources
from wsi_mil.embed.source import Source
from wsi_mil.store import Claims, atomic, claims


def gone_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_behind(folder, slide_id, run="old", pid=None, host=None, turn=1, age=0.0):
    """Write the claim of a process that is not ours."""
    path = folder / f"{slide_id}.claim-{turn}"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"host": host or claims.host(), "pid": pid or gone_pid(), "run": run}
    path.write_text(json.dumps(content))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_a_slide_is_taken_once_and_given_back(tmp_path):
    with Claims(tmp_path, "one") as one, Claims(tmp_path, "two") as two:
        assert one.take("a")
        assert not one.take("a")
        assert not two.take("a")
        one.give_back("a")
        assert two.take("a")
        assert one.take("b")
    assert not list(tmp_path.glob("*claim*")), "leaving gives everything back"


def test_what_a_dead_process_holds_is_taken_over(tmp_path):
    left_behind(tmp_path, "a")
    with Claims(tmp_path, "new") as ours:
        assert ours.take("a")
        assert sorted(each.name for each in tmp_path.glob("a.*")) == ["a.claim-1", "a.claim-2"]
    assert not list(tmp_path.glob("a.*"))


def test_containers_of_one_computer_are_computers_of_their_own(tmp_path):
    """They may have one name, and each has a process of every number: theirs are not ours."""
    code = """
import os, sys, time
from pathlib import Path
from wsi_mil.store import Claims, atomic
with Claims(Path(sys.argv[1]), "theirs") as theirs, atomic.atomic_file(Path(sys.argv[1], "x")) as draft:
    draft.touch()
    assert theirs.take("a")
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", code, str(tmp_path)]
    if subprocess.run([*command[:3], "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process space of one's own may be made here: containers were NOT tested")
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    try:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert pid < os.getpid(), "a number of its own space, where few processes were before"
        with Claims(tmp_path, "ours") as ours:
            holder = ours.holder("a")
            assert holder is not None
            assert holder.host not in {atomic.host(), socket.gethostname()}
            assert holder.alive
            assert not ours.take("a")
            ours.sweep()
        atomic.sweep(tmp_path)
        assert list(tmp_path.glob(".x.*.tmp")), "the living keep theirs"
    finally:
        process.communicate()
    assert process.returncode == 0
    assert (tmp_path / "x").exists()


def test_a_process_of_the_same_command_that_died_keeps_its_slide(tmp_path):
    """The slide may be what killed it: it is not to kill the others as well."""
    left_behind(tmp_path, "a", run="this")
    with Claims(tmp_path, "this") as ours:
        assert not ours.take("a")
        holder = ours.holder("a")
        assert holder is not None
        assert not holder.alive
    with Claims(tmp_path, "the next") as later:
        assert later.take("a")


@pytest.mark.parametrize(("age", "free"), [(0.0, False), (claims.EXPIRY_S + 30, True)])
def test_claims_of_other_machines_expire(tmp_path, age, free):
    left_behind(tmp_path, "a", host="another", pid=1, age=age)
    with Claims(tmp_path, "new") as ours:
        assert ours.take("a") == free


def test_what_is_held_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_TOUCH_S", 0.05)
    with Claims(tmp_path, "one") as ours:
        ours.take("a")
        path = tmp_path / "a.claim-1"
        os.utime(path, (1000, 1000))
        deadline = time.time() + 10
        while path.stat().st_mtime < 2000 and time.time() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime > 2000


def test_names_that_hold_each_other_are_different_slides(tmp_path):
    with Claims(tmp_path, "one") as ours:
        assert ours.take("a")
        assert ours.take("a.claim-1")
        assert ours.take("a.claim-1.claim-1")


def _race(folder, name, wins):
    with Claims(folder, name) as ours:
        for k in range(60):
            if ours.take(f"s{k}"):
                wins.put((f"s{k}", name))
        wins.put(None)
        time.sleep(0.5)  # hold them until everybody has tried


def test_of_several_that_try_one_succeeds(tmp_path):
    """Half of the slides are free, half are a dead process's."""
    dead = gone_pid()
    for k in range(0, 60, 2):
        left_behind(tmp_path, f"s{k}", pid=dead)
    context = multiprocessing.get_context("fork")
    wins = context.Queue()
    processes = [context.Process(target=_race, args=(tmp_path, f"p{i}", wins)) for i in range(4)]
    for each in processes:
        each.start()
    taken, over = [], 0
    while over < 4:
        win = wins.get(timeout=60)
        if win is None:
            over += 1
        else:
            taken.append(win[0])
    for each in processes:
        each.join()
    assert sorted(taken) == sorted({f"s{k}" for k in range(60)})
    assert not list(tmp_path.glob("*claim*"))


def test_what_crashes_left_is_swept_and_the_living_keep_theirs(tmp_path):
    left_behind(tmp_path, "dead")
    left_behind(tmp_path, "dead", turn=2)
    left_behind(tmp_path, "elsewhere", host="another", pid=1)
    (tmp_path / "torn.claim-1").write_text('{"host"')
    os.utime(tmp_path / "torn.claim-1", (1000, 1000))
    (tmp_path / f".clock-{claims.host()}-{gone_pid()}").touch()
    (tmp_path / f".clock-{claims.host()}-{gone_pid()}.draft").touch()
    with Claims(tmp_path, "one") as one:
        assert one.take("mine")
        with Claims(tmp_path, "two") as two:
            two.sweep()
        assert [each.name for each in sorted(tmp_path.glob("*.claim-*"))] == [
            "elsewhere.claim-1", "mine.claim-1",
        ]  # fmt: skip
    assert [each.name for each in tmp_path.iterdir()] == ["elsewhere.claim-1"]


def test_a_claim_that_was_given_back_while_it_was_taken_over_is_not_ours(tmp_path, monkeypatch):
    """Between our look and our file another took over, gave back, and a third took the slide afresh."""
    left_behind(tmp_path, "a")
    with Claims(tmp_path, "ours") as ours, Claims(tmp_path, "third") as third:
        create = ours._create

        def late(path):
            (tmp_path / "a.claim-1").unlink()
            assert third.take("a")
            return create(path)

        monkeypatch.setattr(ours, "_create", late)
        assert not ours.take("a")
        holder = ours.holder("a")
        assert holder is not None
        assert holder.run == "third"


def test_a_claim_of_others_that_expires_while_it_is_looked_at_is_no_crash_of_ours(tmp_path, monkeypatch):
    """Alive when it cannot be taken, expired when one asks whose it is: it is taken the next time."""
    left_behind(tmp_path, "a", run="another", host="elsewhere")
    job = SimpleNamespace(slide_id="a")
    failed, took = [], Claims.take

    def take(self, slide_id):
        taken = took(self, slide_id)
        monkeypatch.setattr(claims, "EXPIRY_S", -1.0)  # a moment later it has expired
        return taken

    monkeypatch.setattr(Claims, "take", take)
    with Claims(tmp_path, "ours") as ours:
        source = Source([job], ours, lambda job: False, lambda *told: failed.append(told), lambda words: None)
        monkeypatch.setattr(sources, "_LOOK_S", 0.0)
        assert next(each for each in iter(source.take, object()) if each is not None) is job
    assert not failed
