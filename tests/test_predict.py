"""New slides through the folds of a trained model, and everything that prediction must refuse or say."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from tests.test_train import DIM, GEOMETRY, bag, config, make_run, rows_of, write_bag, write_labels
from wsi_mil import metrics, models, predict, store, train, verify
from wsi_mil.config import PredictConfig, TrainConfig, VerifyConfig
from wsi_mil.errors import ConfigError, FormatError, LabelError, StaleOutputError

QUICK = {"members": 1, "epochs": 8, "folds": 3}


def of(new, model, **more):
    return PredictConfig(run=new, model=model, device="cpu", bootstrap=200, **more)


def make_new(folder, slides=10, seed=9, first=50):
    """Slides that no model has seen, two of a patient, odd patients positive."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(slides):
        positive = i // 2 % 2
        write_bag(folder, f"s{first + i}", bag(rng, positive))
        rows.append((f"s{first + i}", ("normal", "tumour")[positive], f"N{i // 2}"))
    return write_labels(folder, rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A trained model's folder, in a run of its own."""
    run = tmp_path_factory.mktemp("old")
    make_run(run)
    return train.run(config(run, **QUICK)).output


@pytest.fixture
def new(tmp_path):
    """The run of the new slides."""
    folder = tmp_path / "new"
    folder.mkdir()
    make_new(folder)
    return folder


def table(new, name="gated-attention"):
    return rows_of(store.predictions_folder(new, name) / "predictions.csv")


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def features(new, slide_id):
    return store.read_features(store.features_path(new, "tiny", slide_id)).features


def test_a_prediction_is_the_mean_of_the_folds_and_says_how_far_they_are_apart(model, new):
    result = predict.run(of(new, model))
    assert result.output == new / "predictions" / "gated-attention"
    assert [each.status for each in result.outcomes] == ["done"] * 10
    temperature = json.loads((model / "metrics.json").read_text())["temperature"]
    folds = [models.restore(*store.read_fold(model / f"fold_{k}.safetensors")) for k in range(3)]
    rows = table(new)
    assert list(rows[0]) == [
        "slide_id", "predicted", "probability_normal", "probability_tumour", "calibrated_normal",
        "calibrated_tumour", "std", "folds", "patches", "trained_on",
    ]  # fmt: skip
    assert [row["slide_id"] for row in rows] == [f"s{i}" for i in range(50, 60)]
    for row in rows:
        x = torch.from_numpy(features(new, row["slide_id"]))
        with torch.inference_mode():
            logits_KC = torch.cat([fold.bag(x).logits_BC for fold in folds]).double()
        raw_KC = logits_KC.softmax(1).numpy()
        said = [float(row[f"probability_{name}"]) for name in ("normal", "tumour")]
        assert said == pytest.approx(raw_KC.mean(0), abs=1e-6)
        calibrated = [float(row[f"calibrated_{name}"]) for name in ("normal", "tumour")]
        assert calibrated == pytest.approx((logits_KC / temperature).softmax(1).mean(0).numpy(), abs=1e-6)
        assert float(row["std"]) == pytest.approx(np.std(raw_KC[:, 1], ddof=1), abs=1e-6)
        assert row["predicted"] == ("normal", "tumour")[int(said[1] > said[0])]
        assert (row["folds"], row["patches"], row["trained_on"]) == ("3", str(len(x)), "no")
    stage = json.loads((new / "predict" / "stage.json").read_text())
    assert (stage["status"], stage["model"]) == ("done", "gated-attention")
    assert rows_of(new / "predict" / "slides.csv")[0]["predicted"] == rows[0]["predicted"]


def test_new_slides_are_scored_where_there_are_labels(model, new, capsys):
    predict.run(of(new, model, labels=new / "labels.csv"))
    folder = store.predictions_folder(new, "gated-attention")
    found = json.loads((folder / "metrics.json").read_text())
    codes = np.repeat(np.arange(5) % 2, 2)
    raw = np.array([[float(r["probability_normal"]), float(r["probability_tumour"])] for r in table(new)])
    patients = np.repeat([f"N{i}" for i in range(5)], 2)
    expected = metrics.with_intervals(
        "classification", *metrics.by_patient(codes, raw, patients), samples=200, seed=0
    )
    assert {name: each["value"] for name, each in found["scores"].items()} == pytest.approx(
        {name: each.value for name, each in expected.items()}, abs=1e-6
    )
    assert found["scores"]["auroc"]["low"] == pytest.approx(expected["auroc"].low, abs=1e-6)
    assert found["scores"]["auroc"]["value"] > 0.9
    assert (found["n_slides"], found["n_patients"], found["unit"]) == (10, 5, "patient")
    assert found["n_per_class"] == {"normal": 3, "tumour": 2}
    assert set(found["calibrated"]) == {"brier", "ece", "log_loss"}
    assert "auroc 1.000" in capsys.readouterr().err
    scored = rows_of(folder / "scored.csv")
    assert [(row["patient_id"], row["slides"], row["label"]) for row in scored[:2]] == [
        ("N0", "2", "normal"), ("N1", "2", "tumour"),
    ]  # fmt: skip
    assert float(scored[1]["probability_tumour"]) == pytest.approx(raw[2:4, 1].mean(), abs=1e-6)
    edit(folder / "metrics.json", format_version=2)
    assert not predict.run(of(new, model, labels=new / "labels.csv")).failed, "the same again is no fault"


def test_what_is_done_is_skipped_and_what_is_new_is_added(model, new, capsys):
    predict.run(of(new, model, labels=new / "labels.csv"))
    path = store.predictions_folder(new, "gated-attention") / "predictions.csv"
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    again = predict.run(of(new, model))
    assert {each.status for each in again.outcomes} == {"skipped"}
    assert path.stat().st_mtime_ns == time
    assert (path.parent / "metrics.json").exists()
    write_bag(new, "later", bag(np.random.default_rng(1), True))
    result = predict.run(of(new, model))
    assert (result.count("done"), result.count("skipped")) == (1, 10)
    assert path.read_bytes().splitlines()[2:] == before.splitlines()[1:]
    assert "score again with --labels" in capsys.readouterr().err
    assert not (path.parent / "metrics.json").exists(), "scores of fewer slides are not those of the table"
    assert not verify.run(VerifyConfig(run=new)).failed or all(
        "predictions" not in each.slide_id for each in verify.run(VerifyConfig(run=new)).failed
    )


def test_other_features_of_a_slide_and_other_models_are_stale(model, new, tmp_path):
    predict.run(of(new, model))
    old = table(new)
    write_bag(new, "s50", np.zeros((4, DIM)))
    result = predict.run(of(new, model))
    assert [each.slide_id for each in result.failed] == ["s50"]
    assert "features are others than those that it was predicted from" in result.failed[0].reason
    assert table(new) == old
    other = tmp_path / "gated-attention"
    shutil.copytree(model, other)
    edit(other / "metrics.json", temperature=3.0)
    with pytest.raises(StaleOutputError, match=r"temperature was .* and is now 3\.0.*--overwrite"):
        predict.run(of(new, other))
    result = predict.run(of(new, other, overwrite=True))
    assert result.count("done") == 10
    assert table(new)[1]["calibrated_tumour"] != old[1]["calibrated_tumour"]
    assert table(new)[1]["probability_tumour"] == old[1]["probability_tumour"]
    assert table(new)[0]["patches"] == "4"


def test_other_labels_are_stale(model, new):
    predict.run(of(new, model, labels=new / "labels.csv"))
    text = (new / "labels.csv").read_text()
    (new / "labels.csv").write_text(text.replace("s59,normal,N4", "").replace("s58,normal,N4", ""))
    with pytest.raises(StaleOutputError, match=r"metrics\.json: made with other settings: labels was"):
        predict.run(of(new, model, labels=new / "labels.csv"))
    predict.run(of(new, model, labels=new / "labels.csv", overwrite=True))
    found = json.loads((store.predictions_folder(new, "gated-attention") / "metrics.json").read_text())
    assert found["n_patients"] == 4


def test_one_bad_slide_fails_by_name_and_the_others_go_on(model, new):
    other = dataclasses.replace(GEOMETRY, mpp=0.25)
    write_bag(new, "fine", np.ones((3, DIM)), geometry=other)
    write_bag(new, "wide", np.ones((3, DIM + 1)))
    write_bag(new, "foreign", np.ones((3, DIM)), weights_digest="w1")
    write_bag(new, "empty", np.zeros((0, DIM)))
    store.features_path(new, "tiny", "broken").write_bytes(b"no HDF5")
    result = predict.run(of(new, model))
    reasons = {each.slide_id: each.reason for each in result.failed}
    assert set(reasons) == {"fine", "wide", "foreign", "empty", "broken"}
    assert "trained on features of mpp 0.5, these are of mpp 0.25" in reasons["fine"]
    assert "dim 16, these are of dim 17" in reasons["wide"]
    assert "weights_digest 'w0', these are of weights_digest 'w1'" in reasons["foreign"]
    assert "0 patches" in reasons["empty"]
    assert "not readable as HDF5" in reasons["broken"]
    assert len(table(new)) == 10
    assert {row["slide_id"] for row in rows_of(new / "predict" / "slides.csv") if row["reason"]} == set(
        reasons
    )


def test_features_of_another_encoder_are_refused(model, tmp_path):
    write_bag(tmp_path, "a", np.ones((3, DIM)), encoder="other")
    with pytest.raises(ConfigError, match=r"no features of tiny \(there are: other\)"):
        predict.run(of(tmp_path, model))


def test_slides_that_the_model_knows_are_marked_said_and_not_scored(model, new, capsys):
    rng = np.random.default_rng(3)
    write_bag(new, "s03", bag(rng, False))  # an id of the training
    write_bag(new, "s77", bag(rng, True))  # a new slide of a patient of the training
    with (new / "labels.csv").open("a") as file:
        file.write("s03,normal,N9\ns77,tumour,P05\nlost,tumour,N8\n")
    result = predict.run(of(new, model, labels=new / "labels.csv"))
    assert [each.slide_id for each in result.failed] == ["lost"]
    said = " ".join(capsys.readouterr().err.split())
    assert "1 slides are among those that the model was trained on (s03)" in said
    assert {row["slide_id"] for row in table(new) if row["trained_on"] == "yes"} == {"s03"}
    found = json.loads((result.output / "metrics.json").read_text())
    assert found["n_slides"] == 10
    reasons = {each["slide_id"]: each["reason"] for each in found["left_out"]}
    assert reasons == {
        "s03": "the model was trained on it",
        "s77": "the model was trained on another slide of its patient P05",
        "lost": "no prediction",
    }


def test_only_slides_that_the_model_knows_cannot_be_scored(model):
    run = model.parents[1]
    with pytest.raises(
        LabelError, match=r"none of its 24 slides can be scored \(s00: the model was trained on it"
    ):
        predict.run(of(run, model, labels=run / "labels.csv"))
    assert len(table(run)) == 24, "the predictions are there all the same"
    shutil.rmtree(run / "predictions")


def test_labels_that_are_not_the_models_are_refused_before_anything_is_predicted(model, new):
    path = new / "labels.csv"
    path.write_text(path.read_text().replace("tumour", "cancer"))
    with pytest.raises(
        LabelError, match=r"4 labels are none that the model knows: s52 \('cancer'\).*normal, tumour"
    ):
        predict.run(of(new, model, labels=path))
    assert not (new / "predictions").exists()
    path.write_text("slide_id,label,patient_id\ns50,normal,A\ns51,tumour,A\n")
    with pytest.raises(LabelError, match=r"A \(normal, tumour\)"):
        predict.run(of(new, model, labels=path))
    predict.run(of(new, model, labels=path, label_level="slide"))
    found = json.loads((store.predictions_folder(new, "gated-attention") / "metrics.json").read_text())
    assert (found["unit"], found["n_slides"], found["n_patients"]) == ("slide", 2, 1)


def test_labels_of_one_class_have_no_auroc_and_other_scores(model, new):
    (new / "labels.csv").write_text("slide_id,label\ns50,normal\ns51,normal\n")
    predict.run(of(new, model, labels=new / "labels.csv"))
    found = json.loads((store.predictions_folder(new, "gated-attention") / "metrics.json").read_text())
    assert found["scores"]["auroc"]["value"] is None
    assert found["scores"]["accuracy"]["value"] == 1
    assert found["n_per_class"] == {"normal": 2, "tumour": 0}


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("gone", ConfigError, "no such folder; wanted a model's folder, RUN/models/NAME"),
        ("no metrics", ConfigError, "has no metrics.json"),
        ("a fold", FormatError, r"fold_1.safetensors of 3 folds is missing"),
        ("of another", FormatError, r"fold_2.safetensors: of another training than"),
        (
            "version 1",
            FormatError,
            r"version 1, made by an earlier version of wsi-mil.*Train the model again",
        ),
        ("version 9", FormatError, r"version 9, this program knows 2; update wsi-mil"),
        ("cut", FormatError, r"fold_0.safetensors: not readable as safetensors"),
    ],
)
def test_what_is_no_whole_model_is_refused(model, new, tmp_path, fault, error, words):
    copy = tmp_path / "m"
    shutil.copytree(model, copy)
    if fault == "gone":
        shutil.rmtree(copy)
    elif fault == "no metrics":
        (copy / "metrics.json").unlink()
    elif fault == "a fold":
        (copy / "fold_1.safetensors").unlink()
    elif fault == "of another":
        tensors, head = store.read_fold(copy / "fold_2.safetensors")
        store.write_fold(copy / "fold_2.safetensors", tensors, head | {"config_digest": "other"})
    elif fault.startswith("version"):
        edit(copy / "metrics.json", format_version=int(fault.split()[1]))
    else:
        data = (copy / "fold_0.safetensors").read_bytes()
        (copy / "fold_0.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(error, match=words):
        predict.run(of(new, copy))
    assert not (new / "predictions").exists()


def test_a_models_files_are_as_readable_as_any(model):
    modes = {path.stat().st_mode for path in model.iterdir() if path.is_file()}
    assert len(modes) == 1, "a colleague who may read one may read all"


def test_an_interrupted_prediction_keeps_what_it_did_and_goes_on(model, new, monkeypatch):
    kind = type(store.open_features(new, "tiny"))
    read, seen = kind.read, []

    def interrupted(self, slide_id):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(slide_id)
        return read(self, slide_id)

    monkeypatch.setattr(kind, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict.run(of(new, model))
    assert json.loads((new / "predict" / "stage.json").read_text())["status"] == "interrupted"
    assert len(table(new)) == 4
    monkeypatch.undo()
    result = predict.run(of(new, model))
    assert (result.count("skipped"), result.count("done")) == (4, 6)
    whole = (store.predictions_folder(new, "gated-attention") / "predictions.csv").read_bytes()
    predict.run(of(new, model, overwrite=True))
    assert (store.predictions_folder(new, "gated-attention") / "predictions.csv").read_bytes() == whole


def task_run(folder, task, slides=24, first=0, seed=0):
    """Slides with a shift of the first feature, of which every task's label is made."""
    rng = np.random.default_rng(seed)
    rows, header = [], ["slide_id", "patient_id", "label"]
    if task == "survival":
        header = ["slide_id", "patient_id", "time", "event"]
    for i in range(slides):
        strength = i % 3
        x = rng.normal(size=(8, DIM))
        x[:, 0] += 4 * strength
        write_bag(folder, f"t{first + i:02}", x)
        label = {
            "multilabel": ("none", "a", "a;b")[strength], "ordinal": ("low", "mid", "high")[strength],
            "regression": str(strength * 100 + 5), "survival": f"{10 - 3 * strength},{int(i % 5 > 0)}",
        }[task]  # fmt: skip
        rows.append((f"t{first + i:02}", f"Q{first + i}", label))
    path = folder / "labels.csv"
    path.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("task", "columns", "score", "least"),
    [
        ("multilabel", ["probability_a", "probability_b"], "auroc", 0.75),
        ("ordinal", ["probability_low", "probability_mid", "probability_high"], "kappa", 0.5),
        ("regression", ["value"], "r2", 0.3),
        ("survival", ["risk"], "c_index", 0.65),
    ],
)
def test_every_task_is_predicted_and_scored(tmp_path, task, columns, score, least):
    old, new = tmp_path / "old", tmp_path / "new"
    more = {"classes": ("low", "mid", "high")} if task == "ordinal" else {}
    labels = task_run(old, task)
    recipe = TrainConfig(
        run=old, labels=labels, task=task, device="cpu", folds=2, members=1, epochs=40, bootstrap=200,
        hidden_dim=16, attention_dim=8, learning_rate=1e-2, **more,
    )  # fmt: skip
    model = train.run(recipe).output
    labels = task_run(new, task, slides=12, first=50, seed=1)
    result = predict.run(of(new, model, labels=labels))
    assert not result.failed
    rows = table(new)
    assert list(rows[0]) == ["slide_id", "predicted", *columns, "std", "folds", "patches", "trained_on"]
    found = json.loads((result.output / "metrics.json").read_text())
    assert (found["leading"], found["task"]) == (score, task)
    assert found["scores"][score]["value"] > least
    strongest = rows[2]
    if task == "multilabel":
        held = [name for name in "ab" if float(strongest[f"probability_{name}"]) > 0.5]
        assert strongest["predicted"] == ";".join(held)
        assert "a" in held
    elif task == "ordinal":
        assert strongest["predicted"] == "high"
    elif task == "survival":
        assert strongest["predicted"] == ""
        assert float(strongest["risk"]) > float(rows[0]["risk"]), "who dies sooner is at higher risk"
    if task == "regression":
        assert 100 < float(strongest["value"]) < 250, "in the units of the label"


def test_one_fold_has_no_spread(tmp_path):
    make_run(tmp_path / "old")
    roles = [*["train"] * 12, *["val"] * 6, *["test"] * 6]
    rows = [(f"s{i:02}", ("normal", "tumour")[i // 2 % 2], f"P{i // 2}", roles[i]) for i in range(24)]
    write_labels(tmp_path / "old", rows, header=("slide_id", "label", "patient_id", "split"))
    model = train.run(config(tmp_path / "old", **QUICK)).output
    predict.run(of(tmp_path / "old", model))
    rows = table(tmp_path / "old")
    assert {row["std"] for row in rows} == {""}
    learnt = {row["slide_id"] for row in rows if row["trained_on"] == "yes"}
    assert learnt == {f"s{i:02}" for i in range(18)}, "those of the test part are new to it"
    result = predict.run(of(tmp_path / "old", model, labels=tmp_path / "old" / "labels.csv"))
    assert json.loads((result.output / "metrics.json").read_text())["n_slides"] == 6
    assert all(not each.slide_id.startswith("predictions") for each in verified(tmp_path / "old").failed)


def verified(run):
    return verify.run(VerifyConfig(run=run))


@pytest.mark.parametrize("fault", ["table", "number", "record", "scores", "no record"])
def test_verify_finds_damaged_predictions_and_repairs_them(model, new, fault):
    predict.run(of(new, model, labels=new / "labels.csv"))
    folder = store.predictions_folder(new, "gated-attention")

    def wrong():
        return [each.reason for each in verified(new).failed if each.slide_id.startswith("predictions")]

    assert wrong() == []
    if fault == "table":
        path = folder / "predictions.csv"
        path.write_text(path.read_text().replace("s53,tumour", "s53,normal"))
    elif fault == "number":
        found = store.read_predictions(folder)
        found.rows["s50"]["std"] = "nan"
        store.write_predictions(folder, found)
    elif fault == "scores":
        (folder / "metrics.json").write_text("{")
    elif fault == "record":
        edit(folder / "predict.json", config={})
    else:
        (folder / "predict.json").unlink()
    (reason,) = wrong()
    expected = {
        "table": "checksum differs", "number": "not a number: the row of s50", "record": "config_digest",
        "scores": "no JSON", "no record": "cannot be read",
    }  # fmt: skip
    assert expected[fault] in reason
    assert "wsi-mil predict" in reason
    verify.run(VerifyConfig(run=new, repair=True))
    assert not folder.exists()
    assert "predict/slides.csv says that 10 slides are predicted" in wrong()[0]
    predict.run(of(new, model))
    assert wrong() == []


def test_the_command_says_what_it_did(model, new, wsi):
    code, out, err = wsi("predict", "--run", new, "--model", model, "--labels", new / "labels.csv")
    assert (code, "predict: 10 done, 0 skipped, 0 failed" in out) == (0, True)
    assert "auroc" in err
    code, _, err = wsi("predict", "--run", new, "--model", new)
    assert (code, "has no metrics.json; wanted a model's folder" in err) == (2, True)


def test_the_same_bytes_again(model, new, tmp_path):
    shutil.copytree(new, tmp_path / "again")
    for run in (new, tmp_path / "again"):
        predict.run(of(run, model, labels=new / "labels.csv"))
    for name in ("predictions.csv", "predict.json", "metrics.json", "scored.csv"):
        one, two = (
            store.predictions_folder(run, "gated-attention") / name for run in (new, tmp_path / "again")
        )
        assert one.read_bytes() == two.read_bytes()


def test_zarr_features_are_predicted_as_hdf5_ones(model, new, tmp_path):
    hdf5 = store.open_features(new, "tiny")
    zarr = store.open_features(tmp_path / "zarr", "tiny", "zarr")
    for slide_id in hdf5.slide_ids():
        zarr.write(hdf5.read(slide_id))
    for run in (new, tmp_path / "zarr"):
        predict.run(of(run, model))
    assert table(new) == table(tmp_path / "zarr")
