"""Every task from labels to scores, and every way to plan, repeat, choose and resume."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_train import DIM, config, make_run, rows_of, write_bag, write_labels

from wsi_mil import models, store, train
from wsi_mil.errors import ConfigError, LabelError, StaleOutputError, TrainingError
from wsi_mil.train import memory


def scores_of(result):
    return json.loads((result.output / "metrics.json").read_text())


def make_graded_run(folder, slides=30, seed=0):
    """Slides whose patches shift with a grade of 0 to 2, in a dimension of their own; returns the grades."""
    rng = np.random.default_rng(seed)
    grades = np.arange(slides) % 3
    for i, grade in enumerate(grades):
        x = rng.normal(size=(int(rng.integers(6, 12)), DIM))
        x[:, 0] += 2.5 * grade
        write_bag(folder, f"s{i:02}", x)
    return grades


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    run = tmp_path_factory.mktemp("graded")
    return run, make_graded_run(run)


def label(graded, header, row):
    run, grades = graded
    rng = np.random.default_rng(1)
    rows = [(f"s{i:02}", *row(grade, rng), f"P{i:02}") for i, grade in enumerate(grades)]
    write_labels(run, rows, header=("slide_id", *header, "patient_id"))
    return run


@pytest.mark.parametrize("model", ["gated-attention", "instance-mean"])
def test_multilabel(graded, model):
    texts = ["none", "late", "late;end"]
    run = label(graded, ("label",), lambda grade, _: (texts[grade],))
    result = train.run(config(run, task="multilabel", model=model, name=f"multilabel-{model}"))
    scores = scores_of(result)
    assert (scores["names"], scores["leading"]) == (["end", "late"], "auroc")
    assert scores["n_per_class"] == {"end": 10, "late": 20}
    assert scores["scores"]["auroc"]["value"] > 0.95
    row = rows_of(result.output / "predictions.csv")[2]
    assert row["label"] == "late;end"
    assert {"probability_end", "probability_late"} <= row.keys()


@pytest.mark.parametrize("model", ["gated-attention", "instance-max"])
def test_ordinal(graded, model):
    run = label(graded, ("label",), lambda grade, _: (("low", "mid", "high")[grade],))
    result = train.run(
        config(run, task="ordinal", classes=("low", "mid", "high"), model=model, name=f"ordinal-{model}")
    )
    scores = scores_of(result)
    assert scores["scores"]["kappa"]["value"] > 0.8
    assert scores["n_per_class"] == {"low": 10, "mid": 10, "high": 10}


@pytest.mark.parametrize("model", ["gated-attention", "max", "instance-lse"])
def test_regression(graded, model):
    run = label(graded, ("label",), lambda grade, rng: (f"{100 + 50 * grade + rng.normal(0, 3):.3f}",))
    result = train.run(config(run, task="regression", model=model, name=f"regression-{model}", epochs=60))
    scores = scores_of(result)
    assert scores["scores"]["r2"]["value"] > 0.7
    assert "temperature" not in scores
    row = rows_of(result.output / "predictions.csv")[0]
    assert 50 < float(row["value"]) < 250, "in the units of the label"
    assert row["predicted"]


@pytest.mark.parametrize(
    ("loss", "model"), [("cox", "gated-attention"), ("discrete", "mean"), ("cox", "instance-mean")]
)
def test_survival(graded, loss, model):
    def row(grade, rng):
        time = rng.exponential(10 / 4.0**grade) + 0.01
        return f"{min(time, 15):.4f}", str(int(time < 15))

    run = label(graded, ("time", "event"), row)
    result = train.run(config(run, task="survival", survival_loss=loss, model=model, name=f"{loss}-{model}"))
    scores = scores_of(result)
    assert scores["scores"]["c_index"]["value"] > 0.65
    assert scores["n_events"] > 20
    head = store.read_fold(result.output / "fold_0.safetensors")[1]
    assert models.task_of(head).kind == loss
    assert rows_of(result.output / "predictions.csv")[0]["risk"]


def test_repeats_have_other_folds_and_all_slides(tmp_path):
    make_run(tmp_path)
    result = train.run(config(tmp_path, repeats=3, epochs=5))
    rows, scores = rows_of(result.output / "predictions.csv"), scores_of(result)
    assert len(rows) == 3 * 24
    for repeat in "012":
        assert len({row["slide_id"] for row in rows if row["repeat"] == repeat}) == 24
    assert len(scores["spread"]["auroc"]) == 3
    assert [fold["repeat"] for fold in scores["folds"]] == [0] * 3 + [1] * 3 + [2] * 3
    tested = [
        frozenset(row["slide_id"] for row in rows if (row["repeat"], row["fold"]) == (repeat, fold))
        for repeat, fold in {(row["repeat"], row["fold"]) for row in rows}
    ]
    assert len(set(tested)) > 3, "the folds are drawn anew"


def test_sites_stay_on_one_side(tmp_path):
    make_run(tmp_path)
    rows = rows_of(tmp_path / "labels.csv")
    sited = [(*row.values(), f"site{i // 4}") for i, row in enumerate(rows)]
    write_labels(tmp_path, sited, header=("slide_id", "label", "patient_id", "site"))
    result = train.run(config(tmp_path, group_by="site", epochs=2))
    sides = {}
    for row in rows_of(result.output / "splits.csv"):
        site = int(row["slide_id"][1:]) // 4
        sides.setdefault((row["fold"], row["member"], site), set()).add(row["role"])
    assert all(len(roles) == 1 for roles in sides.values())
    alone = train.run(config(tmp_path, group_by="site", split="leave-one-out", epochs=1, name="sites"))
    assert len(scores_of(alone)["folds"]) == 6
    with pytest.raises((ConfigError, LabelError), match=r"--group-by hospital.*site"):
        train.run(config(tmp_path, group_by="hospital", name="x"))


def test_saved_splits_are_taken_and_must_fit(tmp_path):
    make_run(tmp_path)
    first = train.run(config(tmp_path, epochs=2, seed=3))
    again = train.run(config(tmp_path, epochs=2, model="mean", splits=first.output / "splits.csv"))
    assert (again.output / "splits.csv").read_bytes() == (first.output / "splits.csv").read_bytes()
    assert scores_of(again)["split"] == "saved"
    cut = tmp_path / "cut.csv"
    lines = (first.output / "splits.csv").read_text().splitlines()
    cut.write_text("\n".join(line for line in lines if "s07" not in line) + "\n")
    with pytest.raises(LabelError, match=r"cut\.csv.*s07"):
        train.run(config(tmp_path, epochs=2, name="cut", splits=cut))
    with pytest.raises(ConfigError, match=r"--splits .*gone\.csv: no such file"):
        train.run(config(tmp_path, epochs=2, name="gone", splits=tmp_path / "gone.csv"))


def test_slides_of_a_patient_make_one_bag(tmp_path):
    make_run(tmp_path)
    result = train.run(config(tmp_path, patient_bags="merge"))
    rows = rows_of(result.output / "predictions.csv")
    assert len(rows) == 24
    by_patient = {}
    for row in rows:
        by_patient.setdefault(row["patient_id"], set()).add(row["probability_tumour"])
    assert all(len(values) == 1 for values in by_patient.values())
    # What is said of a patient is what the fold's model says of its slides' patches together.
    row = rows[0]
    slides = [each["slide_id"] for each in rows if each["patient_id"] == row["patient_id"]]
    tensors, head = store.read_fold(result.output / f"fold_{row['fold']}.safetensors")
    features = [store.read_features(store.features_path(tmp_path, "tiny", s)).features for s in slides]
    (said,) = train.predict(models.restore(tensors, head), [np.concatenate(features)])
    assert said[1] == pytest.approx(float(row["probability_tumour"]), abs=2e-6)
    assert scores_of(result)["scores"]["auroc"]["value"] > 0.9


def test_the_grid_chooses_on_validation_parts_and_says_what(tmp_path):
    make_run(tmp_path)
    grid = tmp_path / "grid.toml"
    grid.write_text("learning_rate = [1e-9, 1e-2]\nhidden_dim = [8, 16]\n")
    result = train.run(config(tmp_path, grid=grid))
    folds = scores_of(result)["folds"]
    assert {fold["chosen"]["learning_rate"] for fold in folds} == {1e-2}, "the other learns nothing"
    for number, fold in enumerate(folds):
        tensors, head = store.read_fold(result.output / f"fold_{number}.safetensors")
        assert head["hidden_dim"] == fold["chosen"]["hidden_dim"]
        assert tensors["members.0.hidden.weight"].shape[0] == head["hidden_dim"]
    grid.write_text("learning_rate = [1e-2]\n")
    with pytest.raises(StaleOutputError, match="grid was"):
        train.run(config(tmp_path, grid=grid))
    for text, words in [
        ("folds = [3]", "cannot vary 'folds'"), ("dropout = 0.1", "wanted a list"), ("", "empty"),
        ("dropout = [2.0]", r"--dropout 2\.0: must be"), ("x = [", "not TOML"),
        ("dropout = ['a']", "wrong type"),
    ]:  # fmt: skip
        grid.write_text(text)
        with pytest.raises(ConfigError, match=words):
            train.run(config(tmp_path, grid=grid, name="bad"))


def test_a_grid_without_a_validation_part_is_refused(tmp_path):
    make_run(tmp_path, slides=4, per_patient=1)
    grid = tmp_path / "grid.toml"
    grid.write_text("hidden_dim = [8, 16]\n")
    with pytest.raises(LabelError, match=r"--grid: fold 0 has no validation part"):
        train.run(config(tmp_path, folds=2, grid=grid))


def test_shuffled_labels_give_the_null(tmp_path):
    make_run(tmp_path)
    result = train.run(config(tmp_path, permutations=5, epochs=8, members=1))
    null = scores_of(result)["null"]
    assert len(null["values"]) == null["permutations"] == 5
    real = scores_of(result)["scores"]["auroc"]["value"]
    assert null["p"] == pytest.approx((1 + sum(v >= real for v in null["values"])) / 6, abs=1e-6)
    assert np.mean(null["values"]) < real - 0.2


def test_a_diverging_training_says_where_and_why_and_leaves_nothing(tmp_path):
    make_run(tmp_path)
    with pytest.raises(TrainingError, match=r"loss became .* in epoch \d+ .*--learning-rate"):
        train.run(config(tmp_path, learning_rate=1e30))
    assert not list((tmp_path / "models").glob("*"))
    assert json.loads((tmp_path / "train" / "stage.json").read_text())["status"] == "failed"


_TRAIN = """
import sys, wsi_mil.train.memory as memory
from pathlib import Path
memory.EVERY = 0.0
from wsi_mil import train
from wsi_mil.config import TrainConfig
run = Path(sys.argv[1])
train.run(TrainConfig(run=run, labels=run / "labels.csv", device="cpu", folds=3, epochs=40, patience=40,
                      members=2, bootstrap=200, hidden_dim=16, attention_dim=8))
"""


def test_a_training_that_was_killed_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    for name in ("whole", "killed"):
        make_run(tmp_path / name, slides=12)
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAIN, str(tmp_path / "killed")], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    work = tmp_path / "killed" / "train" / "states" / "gated-attention"
    deadline = time.monotonic() + 120
    while not list(work.glob("*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(work.glob("*.pt")), "it was killed half-way"
    assert not (tmp_path / "killed" / "models" / "gated-attention").exists()
    for name in ("killed", "whole"):  # in this process: one more that loads torch proves nothing
        monkeypatch.setattr(sys, "argv", ["", str(tmp_path / name)])
        monkeypatch.setattr(memory, "EVERY", 0.0)
        exec(compile(_TRAIN, "_TRAIN", "exec"), {})
    assert not work.exists()
    one, other = (tmp_path / run / "models" / "gated-attention" for run in ("killed", "whole"))
    for name in ("metrics.json", "predictions.csv", "history.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    (tensors, head), (wanted, wanted_head) = (
        store.read_fold(each / "fold_0.safetensors") for each in (one, other)
    )
    assert head == wanted_head
    for name, each in wanted.items():
        np.testing.assert_array_equal(tensors[name], each)


def test_history_has_every_epoch_of_every_network(tmp_path):
    make_run(tmp_path, slides=12)
    result = train.run(config(tmp_path, epochs=6, patience=2))
    with (result.output / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, fold in enumerate(scores_of(result)["folds"]):
        for member, (epoch, loss) in enumerate(zip(fold["epochs"], fold["val_losses"], strict=True)):
            mine = [r for r in rows if (r["fold"], r["member"]) == (str(number), str(member))]
            assert [int(r["epoch"]) for r in mine] == list(range(1, len(mine) + 1))
            assert float(mine[epoch - 1]["val_loss"]) == pytest.approx(loss, abs=1e-6)
