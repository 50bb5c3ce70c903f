"""Kill `wsi-mil embed` again and again: one warm process that forks children, which run the command.

    python -m tests.kills FOLDER COUNT SEED

Draws some small slides in FOLDER, embeds them undisturbed, and then until COUNT kills have come before
the end: a child is killed at a random moment or before a random file operation, or two one after the other;
verify looks at what is left, and another child resumes. Prints a line per resume and exits with 1 at the
first thing that is not as it should be.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
import safetensors.torch
import timm
import torch

from pipelines.pyramid import write_pyramid
from tests.conftest import draw_slide
from wsi_mil import cli, embed, store, tile, verify  # noqa: F401 - loaded before the first fork
from wsi_mil.config import TileConfig, VerifyConfig

ENCODER = "test_resnet"
SLIDES = 8
EVENTS = {
    "open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime",
    "os.scandir", "shutil.rmtree", "fcntl.flock",
}  # fmt: skip


def make_run(folder):
    """Draw slides, tile them, write weights; return the run."""
    (folder / "slides").mkdir(parents=True)
    for i in range(SLIDES):
        width, height = 512 + 256 * (i % 4), 512 + 256 * (i % 3)
        tissue = () if i == 7 else ((0, 0, width, height),)
        write_pyramid(folder / "slides" / f"s{i}.tiff", draw_slide(width, height, tissue), 0.5)
    torch.manual_seed(0)
    weights = timm.create_model(ENCODER, num_classes=0).state_dict()
    safetensors.torch.save_file(weights, folder / "tiny.safetensors")
    tile.run(TileConfig(slides=folder / "slides", run=folder / "tiled", workers=1))
    return folder / "tiled"


def command(run, kind, *more):
    weights = run.parent / "tiny.safetensors"
    words = (
        "embed",
        "--run",
        run,
        "--encoder",
        ENCODER,
        "--weights",
        weights,
        "--device",
        "cpu",
        "--store",
        kind,
    )
    return [*map(str, words), "--workers", "1", "--batch-size", "4", *more]


def forked(function, log):
    """Call a function in a child of its own; return the child's id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setpgid(0, 0)
        out = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def embed_child(arguments, counted=None, at=None, how=signal.SIGKILL):
    """Run the command; write how many file operations it did, or die before the one numbered ``at``."""
    seen = 0

    def hook(event, _):
        nonlocal seen
        if event in EVENTS:
            seen += 1
            if seen == at:
                os.kill(os.getpid(), how)

    if counted or at:
        sys.addaudithook(hook)
    code = cli.main(arguments)
    if counted:
        counted.write_text(json.dumps(seen))
    return code


def wait_for(pid, seconds=120.0):
    """Return a child's exit code, negative for a signal."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"process {pid} hung")
        time.sleep(0.005)


def features_of(run, kind):
    found = store.open_features(run, ENCODER, kind)
    read = {slide_id: found.read(slide_id) for slide_id in found.slide_ids()}
    return {slide_id: (each.features, each.coords, each.record) for slide_id, each in read.items()}


def temporary(run):
    """Return what no run should hold after a resume."""
    names = [str(path.relative_to(run)) for path in run.rglob("*")]
    return [name for name in names if ".tmp" in name or ".claim-" in name or ".clock-" in name]


def problems(run):
    result = verify.run(VerifyConfig(run=run))
    return [(each.slide_id, each.facts.get("problem"), each.reason) for each in result.failed]


def look_and_resume(run, kind, reference, arguments, clean, overwrite, max_broken):
    """Look at what a kill left, resume, and look again. Runs in a child."""
    allowed = {"leftover"} | ({"missing", "checksum"} if overwrite else set())
    found = problems(run)
    assert not [each for each in found if each[1] not in allowed], found
    if clean:
        assert not temporary(run), temporary(run)
    before = features_of(run, kind)
    for slide_id, (features, coords, _) in before.items():
        assert np.array_equal(features, reference[slide_id][0]), slide_id
        assert np.array_equal(coords, reference[slide_id][1]), slide_id
    code = cli.main(arguments)
    assert code == 0, code
    after = features_of(run, kind)
    assert after.keys() == reference.keys(), sorted(after)
    for slide_id, (features, coords, record) in after.items():
        assert features.dtype == reference[slide_id][0].dtype
        assert np.array_equal(features.view(np.uint16), reference[slide_id][0].view(np.uint16)), slide_id
        assert np.array_equal(coords, reference[slide_id][1]), slide_id
        assert record["max_broken"] == max_broken, record
    assert not problems(run), problems(run)
    assert not temporary(run), temporary(run)
    rows = {row["slide_id"]: row for row in store.read_csv(run / "embed" / "slides.csv")}
    assert rows.keys() == reference.keys(), sorted(rows)
    for slide_id, row in rows.items():
        assert row["status"] in {"done", "skipped"}, row
        assert int(row["patches"]) == len(reference[slide_id][1]), row
        assert row["checksum"].startswith("blake2b-128:"), row
    return 0


def undisturbed(tiled, kind, log):
    """Embed a copy of the run; return it, the seconds, and how many file operations there were."""
    whole, counted = tiled.with_name(f"whole-{kind}"), tiled.with_name(f"counted-{kind}")
    shutil.copytree(tiled, whole)
    start = time.monotonic()
    pid = forked(lambda: embed_child(command(whole, kind), counted), log)
    assert wait_for(pid) == 0, log.read_text()
    return whole, time.monotonic() - start, json.loads(counted.read_text())


def killed(rng, arguments, how, seconds, operations, log):
    """Start the command and kill it, by the clock or at a file operation; return its exit code."""
    by_time, moment, at = rng.random() < 0.4, rng.uniform(0, seconds), rng.randrange(1, operations + 1)
    pid = forked(lambda: embed_child(arguments, None, None if by_time else at, how), log)
    if by_time:
        time.sleep(moment)
        os.kill(pid, how)
    return wait_for(pid)


def once(rng, number, tiled, wholes, log):
    """Kill, look and resume; return what was done in words, and how many kills came before the end."""
    kind = ("hdf5", "zarr")[number % 2]
    how = signal.SIGTERM if rng.random() < 0.25 else signal.SIGKILL
    overwrite = rng.random() < 0.25
    max_broken = 0.02 if overwrite else 0.01
    whole, seconds, operations = wholes[kind]
    run = tiled.with_name("run")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole if overwrite else tiled, run)
    arguments = command(run, kind, "--max-broken", str(max_broken), *(["--overwrite"] if overwrite else []))
    codes = [killed(rng, arguments, how, seconds, operations, log) for _ in range(rng.choice((1, 1, 2)))]
    assert set(codes) <= {-9, -15, 130, 0}, (codes, log.read_text()[-3000:])
    done = len(list((run / "features").glob("*/s*")))
    words = f"{number} {kind} {how.name} {codes} {done} done{' overwriting' if overwrite else ''}"
    print(f"{words}, {len(temporary(run))} left over", flush=True)
    clean = all(code in {130, 0} for code in codes)
    pid = forked(
        lambda: look_and_resume(
            run, kind, features_of(whole, kind), arguments, clean, overwrite, max_broken
        ), log,
    )  # fmt: skip
    assert wait_for(pid, 300) == 0, (words, log.read_text()[-6000:])
    return f"{kind} {how.name} {codes}{' overwriting' if overwrite else ''}", sum(code != 0 for code in codes)


def main(folder, count, seed):
    folder.mkdir(parents=True)
    log, tiled = folder / "log", folder / "tiled"
    pid = forked(lambda: make_run(folder) and 0, log)  # this process keeps without threads
    assert wait_for(pid, 300) == 0, log.read_text()
    wholes = {kind: undisturbed(tiled, kind, log) for kind in ("hdf5", "zarr")}
    print("undisturbed:", {kind: each[1:] for kind, each in wholes.items()}, flush=True)
    rng = random.Random(seed)
    tally: Counter[str] = Counter()
    kills = resumes = 0
    while kills < count:
        words, hit = once(rng, resumes, tiled, wholes, log)
        kills, resumes = kills + hit, resumes + 1
        tally[words] += 1
    for words, times in sorted(tally.items()):
        print(f"{times:4} x {words}")
    print(f"{kills} kills, {resumes} resumes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
