"""pipelines/slurm against a Slurm of this machine: stages in a chain, jobs preempted, out of time and killed.

What two nodes of Slurm leave must be what one command after the other leaves: the same features, every slide
once, the same scores to the byte.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipelines.demo.cohort import make_cohort
from tests.slurm import Slurm, missing
from wsi_mil import store

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "pipelines" / "slurm"
STAGES = ("tile", "embed", "train", "heatmap", "report")
SLIDES = 12


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    why = missing()
    if why:
        pytest.fail(f"the tests of pipelines/slurm need a real Slurm: {why}")
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    cluster.environment |= {
        "PATH": f"{Path(sys.executable).parent}:{cluster.environment['PATH']}",
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WSI_MIL": f"{sys.executable} -m wsi_mil",
    }  # fmt: skip
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(autouse=True)
def _nothing_runs_on(slurm):
    yield
    slurm.run("scancel", "--user=root")
    slurm.wait(lambda: not slurm.run("squeue", "--noheader"), 60, "jobs did not end")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"), slides=SLIDES, side_um=500, seed=3)


@pytest.fixture
def pipeline(cohort, tmp_path):
    """A TOML file whose run is tmp_path/run; its encoder takes a second or two for each slide."""
    return write_pipeline(tmp_path, cohort, tmp_path / "run", "")


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """Settings of an encoder whose features are the same, bit for bit, in whatever batch a patch comes."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return f'encoder = "test_resnet"\nprecision = "fp32"\nweights = "{path}"'


def write_pipeline(folder, cohort, run, embed):
    path = folder / f"{run.name}.toml"
    tables = {
        "tile": f'slides = "{cohort.slides}"', "embed": embed, "heatmap": "", "report": "",
        "train": f'labels = "{cohort.labels}"\nfolds = 3\nmembers = 2\nepochs = 6',
    }  # fmt: skip
    path.write_text("\n".join(f'[{name}]\nrun = "{run}"\n{each}' for name, each in tables.items()) + "\n")
    return path


def wsi_mil(*arguments):
    """Run a command here, without Slurm."""
    command = [sys.executable, "-m", "wsi_mil", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def reference(cohort, exact, tmp_path_factory):
    """The run of one command after the other."""
    folder = tmp_path_factory.mktemp("reference")
    path = write_pipeline(folder, cohort, folder / "run", exact)
    for stage in STAGES[:3]:
        result = wsi_mil(stage, "--config", path)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run"


def submit(slurm, folder, pipeline, *arguments, **variables):
    """Run submit.sh in a folder and return the number of each stage's job."""
    command = f"cd {folder} && {SCRIPTS}/submit.sh {pipeline} {' '.join(map(str, arguments))}"
    printed = slurm.run("bash", "-c", command, **variables)
    return dict(line.split() for line in printed.splitlines())


def logs(folder):
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(folder.glob("*.log")))


def assert_whole(run):
    """The run holds features of every slide, verify finds nothing wrong, and kills left nothing."""
    checked = wsi_mil("verify", "--run", run)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert len(store.open_features(run, store.only_encoder(run)).slide_ids()) == SLIDES
    rows = {row["slide_id"]: row for row in store.read_csv(run / "embed" / "slides.csv")}
    assert len(rows) == SLIDES
    assert {row["status"] for row in rows.values()} <= {"done", "skipped"}
    assert not [str(path) for path in run.rglob("*") if path.name.endswith(".tmp") or ".claim-" in path.name]


def test_a_chain_of_jobs_leaves_what_commands_leave(slurm, cohort, exact, tmp_path, reference):
    run = tmp_path / "run"
    jobs = submit(slurm, tmp_path, write_pipeline(tmp_path, cohort, run, exact), 2)
    assert list(jobs) == list(STAGES)
    slurm.wait_for_state(jobs["report"], "COMPLETED", seconds=600)
    assert all(set(slurm.states(job)) == {"COMPLETED"} for job in jobs.values()), logs(tmp_path)
    assert_whole(run)
    ours, theirs = store.open_features(run, "test_resnet"), store.open_features(reference, "test_resnet")
    for slide_id in theirs.slide_ids():
        assert ours.summary(slide_id).checksums["features"] == theirs.summary(slide_id).checksums["features"]
    for name in ("metrics.json", "predictions.csv"):
        there = Path("models", "gated-attention", name)
        assert (run / there).read_bytes() == (reference / there).read_bytes(), "to the byte"
    assert len(list(run.glob("heatmaps/*/*/overlay.jpg"))) == SLIDES
    assert (run / "report.html").is_file()
    for stage in ("tile", "heatmap"):
        record = store.read_stage(run, stage)
        assert (record["status"], list(record["shares"])) == ("done", ["1/2", "2/2"]), record
        table = [row["slide_id"] for row in store.read_csv(run / stage / "slides.csv")]
        assert len(table) == len(set(table)) == SLIDES
    starts = [slurm.job(job)["StartTime"] for job in jobs.values()]
    ends = [slurm.job(job)["EndTime"] for job in jobs.values()]
    assert all(start >= end for start, end in zip(starts[1:], ends, strict=False)), "afterok"


def broken_cohort(cohort, folder):
    """A cohort with a slide that cannot be opened, as a folder of links."""
    slides = folder / "slides"
    slides.mkdir()
    for path in cohort.slides.iterdir():
        (slides / path.name).symlink_to(path)
    (slides / "broken.svs").write_bytes(b"II*\0 and nothing more")
    return slides


def test_one_bad_slide_ends_the_chain_or_not_as_one_says(slurm, cohort, exact, tmp_path):
    slides = broken_cohort(cohort, tmp_path)
    path = write_pipeline(tmp_path, cohort, tmp_path / "strict", exact)
    path.write_text(path.read_text().replace(str(cohort.slides), str(slides)))
    jobs = submit(slurm, tmp_path, path, 1)
    slurm.wait_for_state(jobs["report"], "CANCELLED", seconds=120)
    assert slurm.states(jobs["tile"]) == ["FAILED"]
    assert "broken" in logs(tmp_path)
    assert not (tmp_path / "strict" / "features").exists()
    jobs = submit(slurm, tmp_path, path, 1, MAX_FAILED="0.1")  # goes on where it was
    slurm.wait_for_state(jobs["embed"], "COMPLETED", seconds=240)
    assert slurm.states(jobs["tile"]) == ["COMPLETED"]
    (row,) = [
        row
        for row in store.read_csv(tmp_path / "strict" / "tile" / "slides.csv")
        if row["status"] == "failed"
    ]
    assert row["slide_id"] == "broken"


def sbatch(slurm, folder, *arguments, **variables):
    """Submit stage.sbatch and return the job's number."""
    return slurm.run("sbatch", "--parsable", f"--chdir={folder}", *arguments, **variables)


def wait_for_features(slurm, run, at_least):
    slurm.wait(
        lambda: len(list(run.glob("features/*/*.h5"))) >= at_least,
        180,
        f"not {at_least} slides were embedded",
    )


@pytest.fixture
def tiled(pipeline, tmp_path):
    """A run that has been tiled, whose next stage is embed."""
    result = wsi_mil("tile", "--config", pipeline)
    assert result.returncode == 0, result.stdout + result.stderr
    return tmp_path / "run"


def test_a_preempted_job_queues_again_and_goes_on(slurm, pipeline, tiled, tmp_path):
    job = sbatch(slurm, tmp_path, SCRIPTS / "stage.sbatch", "embed", "--config", pipeline, "--batch-size", 1)
    wait_for_features(slurm, tiled, 1)
    urgent = slurm.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap", "sleep 5"
    )
    slurm.wait_for_state(urgent, "COMPLETED", seconds=120)
    before = {path.name: path.stat().st_mtime_ns for path in tiled.glob("features/*/*.h5")}
    assert 1 <= len(before) < SLIDES, "it was interrupted half-way"
    assert not list(tiled.rglob("*.tmp")), "nothing half-written stays"
    slurm.wait_for_state(job, "COMPLETED", seconds=300)
    assert int(slurm.job(job)["Restarts"]) == 1
    assert "interrupted; give the same command again" in logs(tmp_path)
    for name, time_ns in before.items():
        (path,) = tiled.glob(f"features/*/{name}")
        assert path.stat().st_mtime_ns == time_ns, "what was done is not done again"
    assert_whole(tiled)


def test_a_job_that_runs_out_of_time_queues_again(slurm, pipeline, tiled, tmp_path):
    """A limit of one minute, and the signal 45 s before it: Slurm's shortest."""
    # Sixteen times the patches: a fast machine would be done before the signal comes.
    tiling = wsi_mil("tile", "--config", pipeline, "--overlap-px", "192", "--overwrite")
    assert tiling.returncode == 0, tiling.stderr
    job = sbatch(
        slurm, tmp_path, "--time=1", "--signal=TERM@45", SCRIPTS / "stage.sbatch", "embed", "--config",
        pipeline, "--batch-size", 1, MAX_RESTARTS="30",
    )  # fmt: skip
    slurm.wait(lambda: slurm.job(job)["Restarts"] == "1", 120, "it did not queue again")
    assert "queues again" in logs(tmp_path)
    assert "interrupted; give the same command again" in logs(tmp_path)
    assert not list(tiled.rglob("*.tmp")), "nothing half-written stays"
    done = {path.name: path.stat().st_mtime_ns for path in tiled.glob("features/*/*.h5")}
    slurm.run(
        "scontrol", "update", f"JobId={job}", "TimeLimit=20"
    )  # Slurm waits two minutes before it starts it
    slurm.wait_for_state(job, "COMPLETED", seconds=420)
    assert_whole(tiled)
    assert all(next(tiled.glob(f"features/*/{name}")).stat().st_mtime_ns == at for name, at in done.items())


def test_a_job_that_somebody_cancels_stays_cancelled(slurm, pipeline, tiled, tmp_path):
    job = sbatch(slurm, tmp_path, SCRIPTS / "stage.sbatch", "embed", "--config", pipeline, "--batch-size", 1)
    wait_for_features(slurm, tiled, 1)
    slurm.run("scancel", job)
    slurm.wait_for_state(job, "CANCELLED", seconds=60)
    assert slurm.job(job)["Restarts"] == "0"
    slurm.wait(lambda: not slurm.run("squeue", "--noheader"), 60, "it queues again")
    assert not list(tiled.rglob("*.tmp"))


def test_tasks_of_embed_take_over_what_a_killed_one_held(slurm, pipeline, tiled, tmp_path):
    job = sbatch(
        slurm, tmp_path, "--array=1-2", "--no-requeue", SCRIPTS / "stage.sbatch", "embed", "--config",
        pipeline, "--batch-size", 1,
    )  # fmt: skip
    wait_for_features(slurm, tiled, 2)
    slurm.run("scancel", "--signal=KILL", f"{job}_1")
    slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", seconds=300)
    assert len(list(tiled.glob("features/*/*.h5"))) >= SLIDES - 1, "the other task went on"
    again = sbatch(slurm, tmp_path, "--array=1-2", SCRIPTS / "stage.sbatch", "embed", "--config", pipeline)
    slurm.wait_for_state(again, "COMPLETED", seconds=200)
    assert_whole(tiled)


def test_dask_workers_are_jobs_that_end_with_their_stage(slurm, cohort, exact, tmp_path, reference):
    run = tmp_path / "run"
    path = write_pipeline(tmp_path, cohort, run, exact)
    command = [sys.executable, "-m", "pipelines.slurm.dask_cluster", path, "--jobs", 2, "--memory", "1GB"]
    command += ["--walltime", "00:30:00", "--interface", "lo", "--logs", tmp_path / "logs"]
    result = subprocess.run(
        [*map(str, command)], cwd=ROOT, env=slurm.environment, capture_output=True, text=True, check=False,
        timeout=900,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr + slurm.logs()
    assert_whole(run)
    ours, theirs = store.open_features(run, "test_resnet"), store.open_features(reference, "test_resnet")
    for slide_id in theirs.slide_ids():
        assert ours.summary(slide_id).checksums["features"] == theirs.summary(slide_id).checksums["features"]
    assert len(list(run.glob("heatmaps/*/*/overlay.jpg"))) == SLIDES
    names = set(slurm.run("scontrol", "show", "job", "--oneliner").split())
    for stage in ("tile", "embed", "heatmap"):
        assert f"JobName=wsi-mil-{stage}" in names, "jobs did the work"
    slurm.wait(lambda: not slurm.run("squeue", "--noheader"), 60, "workers outlived their stage")
