"""`wsi-mil embed` killed at any moment: what is there is right, and a resume gives the same features."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest


def kill(folder, count, seed):
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kills", str(folder), str(count), str(seed)],
        cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    out, _ = process.communicate()
    print(out, f"{time.monotonic() - start:.0f} s")
    assert process.returncode == 0, out[-8000:]
    kills = re.search(r"^(\d+) kills, \d+ resumes$", out, re.MULTILINE)
    assert kills is not None
    assert int(kills[1]) >= count
    commands = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(each.read_bytes())
        except OSError:
            continue
    assert not [each for each in commands if os.fsencode(folder) in each], "no process is left"


def test_killed_and_resumed(tmp_path):
    kill(tmp_path / "kills", 3, 1)


@pytest.mark.slow
def test_killed_200_times_and_resumed(tmp_path):
    kill(tmp_path / "kills", 200, 2)
