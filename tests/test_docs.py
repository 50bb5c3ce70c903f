"""The README says what is so: its commands run, its tree and its table are the package's."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wsi_mil
from pipelines.demo.cohort import make_cohort
from wsi_mil.cli import main

ROOT = Path(wsi_mil.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """Return the code block that follows the comment <!-- name -->."""
    match = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert match, name
    return match[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the README supposes: slides/ and labels.csv."""
    return make_cohort(tmp_path_factory.mktemp("own"), slides=10, side_um=300, seed=3, workers=1).folder


def commands() -> str:
    return block("own") + block("heatmaps") + block("predict")


def copy_new_slides(folder):
    (folder / "new_slides").mkdir(exist_ok=True)
    for path in sorted((folder / "slides").iterdir())[:2]:
        shutil.copy(path, folder / "new_slides" / f"new_{path.name}")


def check_what_the_commands_left(folder, out):
    assert out.count("0 failed") == commands().count("wsi-mil")
    for pattern, count in (
        ("run/patches/*.jpg", 10),
        ("run/models/gated-attention/metrics.json", 1),
        ("run/heatmaps/gated-attention/*/overlay.jpg", 10),
        ("run/report.html", 1),
        ("new/predictions/gated-attention/predictions.csv", 1),
    ):
        assert len(list(folder.glob(pattern))) == count, pattern
        assert pattern in README


def test_the_commands_run(folder, monkeypatch, capsys):
    """Word for word, in this process: one that loads torch for each of them takes a minute (below)."""
    copy_new_slides(folder)
    monkeypatch.chdir(folder)
    for line in commands().splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "wsi-mil"
        code = main(arguments)
        assert code == 0, (line, capsys.readouterr())
        if line == block("own").splitlines()[3]:  # those of evidence take their place
            shutil.copytree(folder / "run" / "heatmaps", folder / "heatmaps")
    check_what_the_commands_left(folder, capsys.readouterr().out)


@pytest.mark.slow
def test_the_commands_run_as_they_stand(tmp_path):
    """In a shell, by the program that the package installs."""
    folder = make_cohort(tmp_path, slides=10, side_um=300, seed=3).folder
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    copy_new_slides(folder)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands()],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    check_what_the_commands_left(folder, result.stdout)


def test_the_python_does_what_the_commands_do(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    if (folder / "heatmaps").exists():  # the commands made them: one is made again, the others are the same
        shutil.rmtree(folder / "run" / "heatmaps")
        shutil.move(folder / "heatmaps", folder / "run" / "heatmaps")
        shutil.rmtree(folder / "run" / "heatmaps" / "gated-attention" / "slide_01")
    exec(compile(block("python"), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "[]"
    assert len(list(folder.glob("run/heatmaps/gated-attention/*/heatmap.zarr"))) == 10


def test_the_demos_lines_are_the_makefiles():
    makefile = (ROOT / "Makefile").read_text()
    wanted = re.search(r"^demo: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert wanted
    lines = wanted[1].replace("$(BIN)/", "").replace("$(DEMO)", "pipelines/demo/pipeline.toml")
    ours = [re.sub(r"\s+", " ", line.split("#")[0]).strip() for line in block("demo").splitlines()]
    theirs = [re.sub(r"\s+", " ", line).strip(" @") for line in lines.strip().splitlines()]
    assert ours[2:] == theirs


def test_the_tree_is_the_packages():
    tree = README.split("## Where things are")[1].split("```")[1]
    listed = set(re.findall(r"^  (\w+)(?:\.py|/)", tree, re.MULTILINE))
    there = {path.stem for path in (ROOT / "wsi_mil").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert listed == {name for name in there if not name.startswith("__")}


def test_the_table_of_calls_is_the_api():
    module, calls = "", 0
    for cells in re.findall(r"^\| (`wsi_mil\.\w+`)? ?\| (`.*?) \|", README, re.MULTILINE):
        module = cells[0].strip("`") or module
        for call in re.findall(r"`(\w+)", cells[1]):
            if not call[0].isupper():
                assert callable(getattr(importlib.import_module(module), call)), (module, call)
                calls += 1
    assert calls >= 12


def test_files_that_the_readme_points_to_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
