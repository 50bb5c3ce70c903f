"""Shares of an array job: together they are the whole, in any order, side by side, and twice."""

import dataclasses
import importlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wsi_mil import store
from wsi_mil.config import HeatmapConfig, TileConfig, share_of
from wsi_mil.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_shares_hold_every_item_once_and_are_alike_in_size(count):
    items = [f"s{number}" for number in range(17)]
    shares = [share_of(items, f"{k}/{count}") for k in range(1, count + 1)]
    assert sorted(itertools.chain(*shares), key=items.index) == items
    sizes = [len(each) for each in shares]
    assert max(sizes) - min(sizes) <= 1
    assert all(each == sorted(each, key=items.index) for each in shares)


def test_no_share_is_all():
    assert share_of(["a", "b"], "") == ["a", "b"]


@pytest.mark.parametrize("share", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5", "1.5/2", " 1/2", "/"])
def test_what_is_no_share_is_refused(share, tmp_path):
    with pytest.raises(ConfigError, match=r"--share .*: wanted K/N"):
        TileConfig(slides=tmp_path, run=tmp_path, share=share)
    with pytest.raises(ConfigError, match=r"--share .*: wanted K/N"):
        HeatmapConfig(run=tmp_path, share=share)


def stage(run):
    return json.loads((run / "tile" / "stage.json").read_text())


def rows(run):
    """Return the table without what differs from run to run."""
    return [{**row, "seconds": ""} for row in store.read_csv(run / "tile" / "slides.csv")]


@pytest.fixture
def slides(make_slide):
    for number in range(7):
        make_slide(
            f"s{number}.tiff", width=512, height=512, tissue=((0, 0, 512, 256 if number % 2 else 512),)
        )
    (make_slide("s3.tiff").parent / "s3.tiff").write_bytes(b"not a slide")
    return make_slide("s0.tiff", width=512, height=512, tissue=((0, 0, 512, 512),)).parent


def test_shares_side_by_side_leave_what_one_command_leaves(slides, tmp_path, wsi):
    command = ["tile", "--slides", slides, "--pattern", "*.tiff", "--workers", 1]
    assert wsi(*command, "--run", tmp_path / "whole")[0] == 1, "s3 is broken"
    shared = tmp_path / "shared"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "wsi_mil", *map(str, command), "--run", shared, "--share", f"{k}/3"],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for k in (3, 1, 2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 1, 0], outputs
    assert rows(shared) == rows(tmp_path / "whole")
    names = [path.name for path in sorted((tmp_path / "whole" / "patches").iterdir())]
    assert [path.name for path in sorted((shared / "patches").iterdir())] == names
    for path in sorted((shared / "patches").glob("*.h5")):
        ours, theirs = (
            store.read_patches(path),
            store.read_patches(tmp_path / "whole" / "patches" / path.name),
        )
        assert ours.digest == theirs.digest
    record = stage(shared)
    assert record["status"] == "done", "one bad slide does not end a share"
    assert list(record["shares"]) == ["1/3", "2/3", "3/3"]
    assert record["slides"] == 7
    assert record["patches"] == stage(tmp_path / "whole")["patches"] == 4 * 4 + 2 * 2


def test_of_shares_that_end_at_one_moment_the_last_to_write_counts_all(slides, tmp_path, monkeypatch):

    run, stage_tile = tmp_path / "run", importlib.import_module("wsi_mil.tile.run")
    write_sheet = stage_tile.write_sheet
    config = TileConfig(slides=slides, pattern="*.tiff", run=run, workers=1, share="1/2")

    def the_other_meanwhile(*arguments):
        """Between its table and its record the first share is overtaken by the whole second one."""
        monkeypatch.setattr(stage_tile, "write_sheet", write_sheet)
        stage_tile.run(dataclasses.replace(config, share="2/2"))
        return write_sheet(*arguments)

    monkeypatch.setattr(stage_tile, "write_sheet", the_other_meanwhile)
    stage_tile.run(config)
    assert (stage(run)["status"], stage(run)["slides"], stage(run)["patches"]) == ("done", 7, 4 * 4 + 2 * 2)
    page = (run / "patches" / "contact_sheet.html").read_text()
    shown = dict(re.findall(r'data-name="(s\d)".*?<p class="mute">[^<]*?(done|failed)</p>', page, re.DOTALL))
    assert shown == {f"s{number}": "failed" if number == 3 else "done" for number in range(7)}


def test_the_record_says_how_many_shares_are_done_and_forgets_another_division(slides, tmp_path, wsi):
    command = ["tile", "--slides", slides, "--pattern", "s[012].tiff", "--run", tmp_path / "run"]
    random_order = random.Random(1).sample([1, 2, 3], 3)
    for done, k in enumerate(random_order, 1):
        assert wsi(*command, "--share", f"{k}/3")[0] == 0
        wanted = "done" if done == 3 else f"{done} of 3 shares done"
        assert stage(tmp_path / "run")["status"] == wanted
    assert [row["slide_id"] for row in rows(tmp_path / "run")] == ["s0", "s1", "s2"]
    code, out, _ = wsi(*command, "--share", "1/2")
    assert (code, out.count("2 skipped")) == (0, 1), out
    assert list(stage(tmp_path / "run")["shares"]) == ["1/2"]
    assert wsi(*command)[0] == 0
    assert "shares" not in stage(tmp_path / "run")


def test_a_share_may_be_empty(slides, tmp_path, wsi):
    command = ["tile", "--slides", slides, "--pattern", "s0.tiff", "--run", tmp_path / "run"]
    assert wsi(*command, "--share", "2/2")[0] == 0
    assert not rows(tmp_path / "run")
    assert wsi(*command, "--share", "1/2")[0] == 0
    assert stage(tmp_path / "run")["status"] == "done"


def test_max_failed_lets_a_chain_of_jobs_go_on(slides, tmp_path, wsi):
    command = ["tile", "--slides", slides, "--pattern", "*.tiff", "--run", tmp_path / "run"]
    code, out, err = wsi(*command, "--max-failed", 0.2)
    assert code == 0, out + err
    assert "s3" in out, "it is named all the same"
    assert "1 failed" in out
    assert wsi(*command, "--max-failed", 0.1)[0] == 1, "1 of 7 is more"
    for wrong in ("1", "-0.1", "nan"):
        code, _, err = wsi(*command, "--max-failed", wrong)
        assert (code, "--max-failed" in err) == (2, True)


def test_max_failed_holds_for_each_stage_of_a_file(slides, tmp_path, wsi):
    settings = tmp_path / "pipeline.toml"
    settings.write_text(f'[tile]\nslides = "{slides}"\nrun = "{tmp_path / "run"}"\npattern = "s*.tiff"\n')
    code, out, err = wsi("run", settings, "--max-failed", 0.2)
    assert (code, "s3" in out) == (0, True), out + err
    assert wsi("run", settings)[0] == 1
