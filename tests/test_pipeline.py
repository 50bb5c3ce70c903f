"""`wsi-mil run PIPELINE.toml`: the stages in their order, what is done, what fails."""

import shutil

import pytest
import torch

from pipelines.demo.cohort import make_cohort
from pipelines.pyramid import write_pyramid
from tests.conftest import break_blocks, draw_slide
from tests.test_train import make_run
from wsi_mil import pipeline, store
from wsi_mil.config import RunConfig


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "slides").mkdir()
    for i in range(3):
        write_pyramid(tmp_path / "slides" / f"s{i}.tiff", draw_slide(1024, 768, ((0, 0, 512, 512),)), 0.5)
    return tmp_path


def write(folder, text, run="run"):
    path = folder / "pipeline.toml"
    text = text.replace("SLIDES", f'slides = "{folder / "slides"}"')
    path.write_text(text.replace("RUN", f'run = "{folder / run}"'))
    return path


TILE, REPORT = "[tile]\nSLIDES\nRUN\nworkers = 1\n", "[report]\nRUN\n"


def test_stages_run_in_their_order_and_skip_what_is_done(folder, wsi):
    path = write(folder, REPORT + TILE)
    code, out, err = wsi("run", path)
    assert code == 0, err
    assert out.startswith("tile: 3 done, 0 skipped, 0 failed")
    assert "report: 3 done" in out
    assert "run: tile (1 of 2)" in err
    assert (folder / "run" / "report.html").is_file()
    code, out, _ = wsi("run", path)
    assert code == 0
    assert out.startswith("tile: 0 done, 3 skipped, 0 failed")
    assert wsi("run", path, "--run", folder / "other")[0] == 0
    assert (folder / "other" / "report.html").is_file()


def test_slides_that_fail_are_left_behind_and_listed_at_the_end(folder, wsi):
    break_blocks(folder / "slides" / "s1.tiff")
    code, out, _ = wsi("run", write(folder, TILE + REPORT))
    assert code == 1
    assert "tile: 2 done, 0 skipped, 1 failed" in out
    assert (folder / "run" / "report.html").is_file(), "the others went on"
    assert "1 failed" in out.split("report:")[1]
    assert "tile: s1" in out.split("report:")[1], "named at the end, with the stage"


def test_a_stage_that_fails_as_a_whole_is_the_last(folder, wsi):
    code, out, err = wsi("run", write(folder, TILE + '[train]\nRUN\nlabels = "none.csv"\n' + REPORT))
    assert code == 1
    assert "tile: 3 done" in out
    assert "run: train failed as a whole, and what comes after it was not begun" in err
    assert "none.csv: cannot be read" in err
    assert not (folder / "run" / "report.html").exists()


def test_where_every_slide_fails_nothing_else_is_begun(folder, wsi):
    for path in (folder / "slides").iterdir():
        break_blocks(path)
    code, out, err = wsi("run", write(folder, TILE + REPORT))
    assert code == 1
    assert "3 failed" in out
    assert "run: every slide failed in tile; what comes after it was not begun" in err
    assert not (folder / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tile]\nSLIDES\nRUN\n[train]\nRUN\nfolds = 1\n", "labels"),
        ("[tile]\nSLIDES\nRUN\nmpp = 99\n[report]\nRUN\n", "--mpp 99"),
        ("[encoders]\n", "no table of a stage; wanted some of [tile], [embed]"),
        ("[tiles]\nRUN\n", "unknown table or key 'tiles'"),
        ("[run]\nRUN\n", "unknown table or key 'run'"),
        ('[cluster]\nscheduler = "here"\n[tile]\nSLIDES\nRUN\n', "--scheduler here: wanted an address"),
    ],
)
def test_what_is_wrong_anywhere_is_said_before_anything_is_done(folder, wsi, text, words):
    code, _, err = wsi("run", write(folder, text))
    assert code == 2
    assert words in err
    assert not (folder / "run").exists()


def test_a_file_that_is_not_there_and_config(folder, wsi):
    code, _, err = wsi("run", folder / "none.toml")
    assert (code, "none.toml: cannot be read" in err) == (2, True)
    code, _, err = wsi("run", "--config", write(folder, TILE))
    assert code == 2
    assert "the file stands behind the command: wsi-mil run" in err


def test_the_cluster_of_the_command_line_replaces_the_files(folder):
    path = write(folder, '[cluster]\nscheduler = "tcp://a:1"\nworker_wait = 5\n' + TILE + REPORT)
    configs = pipeline.read_configs(RunConfig(pipeline=path))
    assert (configs["tile"].scheduler, configs["tile"].worker_wait) == ("tcp://a:1", 5)
    configs = pipeline.read_configs(RunConfig(pipeline=path, dask="none"))
    assert not configs["tile"].on_cluster
    configs = pipeline.read_configs(RunConfig(pipeline=path, scheduler="tcp://b:2", worker_wait=7))
    assert (configs["tile"].scheduler, configs["tile"].worker_wait) == ("tcp://b:2", 7)


@pytest.mark.dask
def test_all_stages_on_one_cluster_of_this_machine(tmp_path, wsi):
    """From the same features with the same results as without, to the byte where as many threads compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = make_cohort(tmp_path / "own", slides=8, seed=3, side_um=400.0).folder
    text = (
        '[tile]\nSLIDES\nRUN\n[embed]\nRUN\nprecision = "fp32"\n'
        f'[train]\nRUN\nlabels = "{folder / "labels.csv"}"\nfolds = 2\nmembers = 2\nepochs = 2\n'
        'precision = "fp32"\n[heatmap]\nRUN\n[report]\nRUN\n'
    )
    code, out, err = wsi("run", write(folder, text, "here"))
    assert code == 0, out + err
    torch.set_num_threads(threads)
    for name in ("tile", "embed", "patches", "features"):
        shutil.copytree(folder / "here" / name, folder / "there" / name)
    (next((folder / "there" / "features").rglob("slide_*.h5"))).unlink()  # the cluster makes it again
    code, out, err = wsi("run", write(folder, text, "there"), "--dask", "local")
    assert code == 0, out + err
    assert "tile: 0 done, 8 skipped, 0 failed" in out
    assert "embed: 1 done, 7 skipped, 0 failed" in out
    assert "train: 8 done" in out
    assert "heatmap: 8 done" in out
    assert err.count("Dask: tcp://127.0.0.1") == 1, "one cluster for all stages"
    assert wsi("verify", "--run", folder / "there")[0] == 0


@pytest.mark.dask
def test_train_on_a_cluster_is_train(tmp_path, wsi):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    labels = make_run(tmp_path / "here", slides=16)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    grid = tmp_path / "grid.toml"
    grid.write_text("learning_rate = [1e-3, 3e-4]\n")
    settings = ("--labels", labels, "--folds", 2, "--members", 2, "--epochs", 3, "--grid", grid)
    settings += ("--precision", "fp32", "--permutations", 1)
    assert wsi("train", "--run", tmp_path / "here", *settings)[0] == 0
    torch.set_num_threads(threads)
    code, out, err = wsi("train", "--run", tmp_path / "there", *settings, "--dask", "local")
    assert code == 0, out + err
    models = [tmp_path / run / "models" / "gated-attention" for run in ("here", "there")]
    for name in ("metrics.json", "predictions.csv", "splits.csv"):
        assert (models[0] / name).read_bytes() == (models[1] / name).read_bytes(), name
    for fold in ("fold_0.safetensors", "fold_1.safetensors"):  # their header has its keys in any order
        (here, head), (there, same) = (store.read_fold(folder / fold) for folder in models)
        assert head == same
        assert here.keys() == there.keys()
        assert all((here[name] == there[name]).all() for name in here)
    assert not (tmp_path / "there" / "train" / "states").exists(), "the states are gone"
