"""The commands as a user types them: help, exit codes, messages."""

import os
import re
import subprocess
import sys

import pytest

from wsi_mil.cli import main
from wsi_mil.config import STAGE_CONFIGS, flag_of

STAGES = list(STAGE_CONFIGS)


@pytest.mark.parametrize("arguments", [["--help"], *([stage, "--help"] for stage in STAGES)])
def test_help_is_quick_and_names_every_flag(arguments):
    command = [sys.executable, "-m", "wsi_mil", *arguments]
    before = os.times()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    # Of the processor and not of the clock: other work on the machine is not ours.
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 0.3
    wanted = STAGES
    if len(arguments) > 1:
        fields = STAGE_CONFIGS[arguments[0]].__dataclass_fields__
        wanted = ["--config", "--print-config", *(flag_of(each) for each in fields.values())]
    assert all(word in result.stdout for word in wanted)


def test_no_heavy_library_is_imported_for_help():
    code = "import sys; from wsi_mil.cli import main; main(['--help']); print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "cv2", "timm", "sklearn", "h5py"} & set(modules.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiles"], "no command 'tiles'; there are: inspect, tile, embed, train"),
        (["tile", "--run", "r"], "--slides"),
        (["tile", "--slides", "nowhere", "--run", "r"], "--slides nowhere: no such folder or file"),
        (["tile", "--slides", "m.csv", "--run", "r"], "--slides m.csv: no such manifest"),
        (
            ["tile", "--slides", ".", "--run", "r", "--mpp", "9"],
            "--mpp 9: microns per pixel must lie between",
        ),
        (["tile", "--slides", ".", "--run", "r", "--mpp", "fine"], "--mpp"),
        (["tile", "--slides", ".", "--run", "r", "--reader", "magic"], "--reader"),
        (
            ["tile", "--slides", ".", "--run", "r", "--config", "none.toml"],
            "--config none.toml: cannot be read",
        ),
        (["tile", "--slides", ".", "--run", "r", "--unknown", "1"], "--unknown"),
        (["embed", "--run", "nowhere"], "no patches in nowhere/patches; run `wsi-mil tile` first"),
        (["train", "--run", "nowhere", "--labels", "x.csv"], "run `wsi-mil embed` first"),
        (["heatmap", "--run", "nowhere"], "run `wsi-mil train` first"),
        (["predict", "--run", "r", "--model", "m"], "--model m: no such folder; wanted a model's folder"),
        (
            ["predict", "--run", "r", "--model", "m", "--bootstrap", "9"],
            "--bootstrap 9: at least 100 samples",
        ),
    ],
)
def test_wrong_usage_is_exit_code_2_with_the_flags_words(wsi, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("slide_id,label\na,0\nb,1\n")
    code, out, err = wsi(*arguments)
    assert code == 2
    assert words in out + err
    assert "Traceback" not in out + err


def test_an_empty_folder(wsi, tmp_path):
    (tmp_path / "slides").mkdir()
    code, _, err = wsi("tile", "--slides", tmp_path / "slides", "--run", tmp_path / "run")
    assert (code, "no files; wanted slides such as .svs" in err) == (2, True)


def test_two_slides_with_the_same_id(wsi, tmp_path, make_slide):
    make_slide("x/a.svs")
    make_slide("y/a.tiff")
    code, _, err = wsi("tile", "--slides", tmp_path / "slides", "--run", tmp_path / "run")
    assert code == 2
    assert "1 slide ids are used more than once: a (" in err


def test_failed_slides_are_a_table_and_exit_code_1(wsi, tmp_path, make_slide):
    make_slide("good.svs")
    make_slide("silly.tiff", mpp=0.00499)
    (tmp_path / "slides" / "text.tiff").write_text("no slide")
    code, out, _ = wsi("tile", "--slides", tmp_path / "slides", "--run", tmp_path / "run", "--workers", 1)
    assert code == 1
    assert "2 failed" in out
    assert re.search(r"silly .*0.00499 microns per pixel, which no scanner has.*--slide-mpp", out)
    assert re.search(r"text .*cannot be opened as a slide", out)
    assert "tile: 1 done, 0 skipped, 2 failed ->" in out


def test_a_manifest_that_is_wrong_is_exit_code_1(wsi, tmp_path):
    (tmp_path / "m.csv").write_text("id,file\n1,2\n")
    code, _, err = wsi("tile", "--slides", tmp_path / "m.csv", "--run", tmp_path / "run")
    assert (code, "no column slide_id and path; found id, file" in err) == (1, True)


def test_other_settings_are_exit_code_1_and_debug_shows_the_traceback(wsi, tmp_path, make_slide):
    make_slide("a.svs")
    base = ("tile", "--slides", tmp_path / "slides", "--run", tmp_path / "run", "--workers", 1)
    assert wsi(*base)[0] == 0
    code, _, err = wsi(*base, "--mpp", 1)
    assert (code, "mpp was 0.5 and is now 1.0" in err) == (1, True)
    with pytest.raises(ValueError, match=r"mpp was 0.5"):
        main([str(each) for each in (*base, "--mpp", 1, "--debug")])
    code, out, _ = wsi(*base)
    assert (code, "0 done, 1 skipped, 0 failed" in out) == (0, True)


def test_config_file_gives_defaults_and_flags_win(wsi, tmp_path, capsys):
    path = tmp_path / "p.toml"
    path.write_text('[tile]\nslides = "s"\nrun = "r"\nmpp = 1.0\npatch_px = 128\noverwrite = true\n')
    code, _, _ = wsi("tile", "--config", path, "--mpp", "0.25", "--print-config")
    main(["tile", "--config", str(path), "--mpp", "0.25", "--print-config"])
    printed = capsys.readouterr().out
    assert code == 0
    assert "mpp = 0.25" in printed
    assert "patch_px = 128" in printed
    assert "overwrite = true" in printed
    (tmp_path / "again.toml").write_text(printed)
    main(["tile", "--config", str(tmp_path / "again.toml"), "--print-config"])
    assert capsys.readouterr().out == printed


def test_an_unknown_key_in_the_config_file_fails(wsi, tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('[tile]\nslides = "s"\nrun = "r"\nmps = 1.0\n')
    code, _, err = wsi("tile", "--config", path)
    assert (code, "unknown key 'mps' in [tile]; known: slides, run" in err) == (2, True)


def test_version(wsi):
    assert wsi("--version")[:2] == (0, "wsi-mil 0.1.0 ")


def test_help_is_running_text(wsi, monkeypatch):
    """A text of several lines in the source is one paragraph: its lines are as wide as the terminal."""
    code, out, _ = wsi("train", "--help")
    assert code == 0
    assert "any number of labels, joined by ';', or 'none'. ordinal: a grade" in re.sub(r"\s*│\s*", " ", out)
    monkeypatch.setenv("COLUMNS", "80")
    main_help = subprocess.run(
        [sys.executable, "-m", "wsi_mil", "train", "--help"], capture_output=True, text=True, check=True
    ).stdout
    lines = re.search(r"What a label is(.*?)--classes", main_help, re.DOTALL)[1].splitlines()
    assert all(len(line.strip("│ ")) > 30 for line in lines[1:-2]), lines


def test_a_place_on_the_command_line_replaces_the_files(wsi, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[cluster]\nscheduler = "tcp://a:1"\n[embed]\nrun = "r"\n')
    command = ("embed", "--config", path, "--print-config")
    assert 'scheduler = "tcp://a:1"' in wsi(*command)[1]
    for other in (("--dask", "local"), ("--dask=none",), ("--scheduler-file", "f"), ("--scheduler_file=f",)):
        code, out, err = wsi(*command, *other)
        assert code == 0, err
        assert "scheduler =" not in out
