"""What the image installs is what the project asks for, and does not change with what it does not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = """
[project]
name = "x"
dependencies = ["numpy>=1", "fsspec[http]>=2"]
[project.optional-dependencies]
remote = ["s3fs>=1"]
dev = ["mypy", "s3fs>=1", "Flask_cors"]
"""
CONSTRAINTS = "# versions\nnumpy==1.2\nfsspec==3\ns3fs==1.1\nmypy==9\nflask-cors==4\nbotocore==7\n"


def write(folder, pyproject, constraints, extras):
    """Run the script; return both files' lines."""
    (folder / "p.toml").write_text(pyproject)
    (folder / "c.txt").write_text(constraints)
    command = [sys.executable, ROOT / "docker" / "requirements.py", "p.toml", "c.txt", extras]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(result.stderr)
    return [(folder / name).read_text().split("\n")[:-1] for name in ("requirements.txt", "pins.txt")]


def test_the_extras_asked_for_and_the_pins_that_may_concern_them(tmp_path):
    wanted = ["numpy>=1", "fsspec[http]>=2", "s3fs>=1"]
    found, pins = write(tmp_path, PYPROJECT, CONSTRAINTS, "remote")
    assert found == wanted
    assert pins == ["numpy==1.2", "fsspec==3", "s3fs==1.1", "botocore==7"]
    found, pins = write(tmp_path, PYPROJECT, CONSTRAINTS, "")
    assert found == wanted[:2]
    assert "s3fs==1.1" not in pins


def test_changes_elsewhere_change_nothing(tmp_path):
    before = write(tmp_path, PYPROJECT, CONSTRAINTS, "remote")
    pyproject = PYPROJECT.replace('"mypy"', '"mypy>=2", "ruff"') + "[tool.ruff]\nline-length = 99\n"
    constraints = CONSTRAINTS.replace("mypy==9", "mypy==10\nruff==1")
    assert write(tmp_path, pyproject, constraints, "remote") == before
    assert write(tmp_path, PYPROJECT, CONSTRAINTS.replace("numpy==1.2", "numpy==1.3"), "remote") != before


def test_an_extra_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no extra remtoe; there are: remote, dev"):
        write(tmp_path, PYPROJECT, CONSTRAINTS, "remtoe")


def test_the_projects_own_files_read(tmp_path):
    texts = [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    found, pins = write(tmp_path, *texts, "remote")
    assert any(each.startswith("torch>=") for each in found)
    assert any(each.startswith("torch==") for each in pins)
    assert not any(each.startswith(("ruff", "pytest", "mypy")) for each in found + pins)
