"""The train stage on stored features whose answer is known, and everything it must refuse or say."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from sklearn.metrics import roc_auc_score

from wsi_mil import manifest, models, store, train
from wsi_mil.config import TrainConfig
from wsi_mil.errors import ConfigError, FormatError, LabelError, StaleOutputError
from wsi_mil.geometry import PatchGeometry, grid_l0

DIM = 16
GEOMETRY = PatchGeometry.plan(width_l0=2000, height_l0=2000, mpp_l0=0.5, mpp=0.5, patch_px=200)


def write_bag(run, slide_id, features, encoder="tiny", **more):
    item = store.Features(
        slide_id=slide_id,
        slide_path=Path(f"{slide_id}.svs"),
        reader="none",
        geometry=GEOMETRY,
        coords=grid_l0(GEOMETRY)[: len(features)],
        features=features.astype(np.float16),
        encoder=encoder,
        weights_digest="w0",
        patches_digest="p0",
        record={"encoder": encoder},
    )
    store.write_features(store.features_path(run, encoder, slide_id), dataclasses.replace(item, **more))


def bag(rng, positive):
    """8 to 20 patches of noise; a positive bag has a fifth of them shifted in two dimensions."""
    n = int(rng.integers(8, 21))
    x = rng.normal(size=(n, DIM))
    if positive:
        x[: max(2, n // 5), :2] += 4
    return rng.permutation(x) * 3 + 7


def make_run(folder, slides=24, per_patient=2, seed=0, labels=("normal", "tumour")):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(slides):
        patient = i // per_patient
        code = patient % len(labels)
        write_bag(folder, f"s{i:02}", bag(rng, code == len(labels) - 1))
        rows.append((f"s{i:02}", labels[code], f"P{patient:02}"))
    return write_labels(folder, rows)


def write_labels(folder, rows, header=("slide_id", "label", "patient_id")):
    path = folder / "labels.csv"
    path.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return path


def config(run, **more):
    quick: dict[str, object] = {
        "folds": 3, "epochs": 30, "members": 2, "bootstrap": 200, "hidden_dim": 16, "attention_dim": 8,
        "learning_rate": 1e-2,
    }  # fmt: skip
    return TrainConfig(run=run, labels=run / "labels.csv", device="cpu", **(quick | more))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    make_run(run)
    return run, train.run(config(run))


@pytest.fixture
def copy(trained, tmp_path):
    """The run before it was trained, to do with as a test likes."""
    shutil.copytree(trained[0] / "features", tmp_path / "features")
    shutil.copy(trained[0] / "labels.csv", tmp_path)
    return tmp_path


def test_learns_what_can_be_learnt(trained):
    run, result = trained
    assert result.output == run / "models" / "gated-attention"
    assert [each.status for each in result.outcomes] == ["done"] * 24
    metrics = json.loads((result.output / "metrics.json").read_text())
    assert metrics["scores"]["auroc"]["value"] > 0.95
    assert (
        metrics["scores"]["auroc"]["low"]
        <= metrics["scores"]["auroc"]["value"]
        <= metrics["scores"]["auroc"]["high"]
    )
    assert metrics["unit"] == "patient"
    assert (metrics["n_patients"], metrics["n_slides"]) == (12, 24)
    assert metrics["n_per_class"] == {"normal": 6, "tumour": 6}
    assert metrics["positive"] == "tumour"
    assert metrics["split"] == "kfold"
    assert len(metrics["folds"]) == 3
    assert sorted(each.name for each in result.output.iterdir()) == [
        "calibration.png", "config.toml", "fold_0.safetensors", "fold_1.safetensors", "fold_2.safetensors",
        "history.csv", "losses.png", "metrics.json", "pr.png", "predictions.csv", "roc.png", "splits.csv",
        "tensorboard",
    ]  # fmt: skip


def test_attention_finds_the_patches_that_matter(trained):
    run, result = trained
    model = models.restore(*store.read_fold(result.output / "fold_0.safetensors"))
    hits, shift = [], (7 + 4 * 3 / 2)
    for row in rows_of(result.output / "predictions.csv"):
        if row["fold"] == "0" and row["label"] == "tumour":
            x = store.read_features(store.features_path(run, "tiny", row["slide_id"])).features
            with torch.inference_mode():
                attention = model.bag(x).attention_BCN[0, 1]
            shifted = (x[:, :2] > shift).all(axis=1)
            hits.append(roc_auc_score(shifted, attention))
    assert hits
    assert np.mean(hits) > 0.9


def test_no_patient_is_on_two_sides_of_any_member(trained):
    _, result = trained
    sides = {}
    for row in rows_of(result.output / "splits.csv"):
        patient = f"P{int(row['slide_id'][1:]) // 2:02}"
        sides.setdefault((row["fold"], row["member"], patient), set()).add(row["role"])
    assert len(sides) == 3 * 2 * 12
    assert all(len(roles) == 1 for roles in sides.values())
    assert {"train", "val", "test"} == set().union(*sides.values())


def test_predictions_are_those_of_the_stored_out_of_fold_models(trained):
    run, result = trained
    tested = {
        (r["fold"], r["slide_id"]) for r in rows_of(result.output / "splits.csv") if r["role"] == "test"
    }
    rows = rows_of(result.output / "predictions.csv")
    assert [row["slide_id"] for row in rows] == [f"s{i:02}" for i in range(24)]
    assert {(row["fold"], row["slide_id"]) for row in rows} == tested
    for row in rows:
        tensors, head = store.read_fold(result.output / f"fold_{row['fold']}.safetensors")
        features = store.read_features(store.features_path(run, "tiny", row["slide_id"]))
        models.check_identity(head, features.identity, row["slide_id"])
        assert head["fold"] == int(row["fold"])
        x = torch.from_numpy(features.features)[None]
        with torch.inference_mode():
            out = models.restore(tensors, head)(x, torch.ones(x.shape[:2], dtype=torch.bool))
        probability = out.logits_BC.softmax(1)[0].tolist()
        stored = [float(row["probability_normal"]), float(row["probability_tumour"])]
        assert probability == pytest.approx(stored, abs=2e-6)
        assert row["predicted"] == ["normal", "tumour"][int(stored[1] > stored[0])]


def test_standardisation_comes_from_the_training_bags_alone(trained):
    run, result = trained
    tensors, _ = store.read_fold(result.output / "fold_1.safetensors")
    roles = {r["slide_id"]: r["role"] for r in rows_of(result.output / "splits.csv") if r["fold"] == "1"}
    means = [
        store.read_features(store.features_path(run, "tiny", slide)).features.astype(float).mean(axis=0)
        for slide, role in roles.items()
        if role != "test"
    ]
    np.testing.assert_allclose(tensors["mean_D"], np.mean(means, axis=0), rtol=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(trained, copy):
    state = torch.get_rng_state()
    again = train.run(config(copy))
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("metrics.json", "predictions.csv", "splits.csv", "roc.png", "losses.png"):
        assert (again.output / name).read_bytes() == (trained[1].output / name).read_bytes()
    other = train.run(config(copy, seed=1, name="other"))
    assert (other.output / "predictions.csv").read_bytes() != (again.output / "predictions.csv").read_bytes()


def test_trained_already_is_skipped_and_other_settings_are_refused(trained):
    run, result = trained
    path = result.output / "metrics.json"
    before = path.stat().st_mtime_ns
    again = train.run(config(run, encoder="tiny"))
    assert {each.status for each in again.outcomes} == {"skipped"}
    assert "already trained" in again.outcomes[0].reason
    assert path.stat().st_mtime_ns == before
    with pytest.raises(StaleOutputError, match=r"dropout was 0\.25 and is now 0\.5.*--overwrite"):
        train.run(config(run, dropout=0.5))
    assert json.loads((run / "train" / "stage.json").read_text())["status"] == "failed"


def test_changed_inputs_are_stale_and_overwrite_replaces(copy):
    quick = {"epochs": 1, "members": 1}
    first = train.run(config(copy, **quick))
    write_bag(copy, "s00", np.zeros((4, DIM)))
    with pytest.raises(StaleOutputError, match=r"features was '\w+' and is now '\w+'"):
        train.run(config(copy, **quick))
    again = train.run(config(copy, **quick, overwrite=True))
    assert {each.status for each in again.outcomes} == {"done"}
    (first.output / "metrics.json").write_text("{}")
    with pytest.raises(FormatError, match=r"not a model that wsi-mil wrote"):
        train.run(config(copy, **quick))
    train.run(config(copy, **quick, overwrite=True))
    assert json.loads((first.output / "metrics.json").read_text())["format"] == "wsi-mil metrics"


def test_what_does_not_fit_is_listed_and_the_rest_is_trained(copy, capsys):
    rng = np.random.default_rng(5)
    write_bag(copy, "unlabelled", bag(rng, True))
    write_bag(copy, "empty", np.zeros((0, DIM)))
    store.features_path(copy, "tiny", "broken").write_bytes(b"no HDF5")
    with (copy / "labels.csv").open("a") as file:
        file.write("lost,tumour,P90\nempty,normal,P91\nbroken,normal,P92\n")
    result = train.run(config(copy, epochs=1))
    by_id = {each.slide_id: each for each in result.outcomes}
    assert len(by_id) == 24 + 4
    assert [each.slide_id for each in result.failed] == ["broken", "empty", "lost"]
    assert "no features" in by_id["lost"].reason
    assert "0 patches" in by_id["empty"].reason
    assert "not readable as HDF5" in by_id["broken"].reason
    assert (by_id["unlabelled"].status, by_id["unlabelled"].reason) == ("skipped", "no label")
    said = capsys.readouterr().err
    assert all(name in said for name in ("lost", "empty", "broken", "unlabelled"))
    left_out = json.loads((result.output / "metrics.json").read_text())["left_out"]
    assert {each["slide_id"] for each in left_out} == {"lost", "empty", "broken", "unlabelled"}
    table = {row["slide_id"]: row for row in rows_of(copy / "train" / "slides.csv")}
    assert table["lost"]["status"] == "failed"
    assert (table["s05"]["status"], table["s05"]["patient_id"]) == ("done", "P02")


def test_features_of_two_kinds_are_refused(copy):
    other = dataclasses.replace(GEOMETRY, mpp=0.25)
    write_bag(copy, "s05", np.ones((3, DIM)), geometry=other)
    with pytest.raises(
        FormatError, match=r"s05\.h5: other features than .*s00\.h5: mpp was 0\.5 and is now 0\.25"
    ):
        train.run(config(copy))


def test_the_encoder_must_be_there_and_be_named_where_there_are_two(copy):
    with pytest.raises(ConfigError, match=r"features: no features of uni \(there are: tiny\)"):
        train.run(config(copy, encoder="uni"))
    write_bag(copy, "s00", np.ones((3, DIM)), encoder="other")
    with pytest.raises(ConfigError, match=r"holds several: other, tiny; say which with --encoder"):
        train.run(config(copy))


def test_a_patient_with_two_labels_is_refused_or_scored_per_slide(copy, capsys):
    rng = np.random.default_rng(1)
    rows = []
    for i in range(18):
        write_bag(copy, f"s{i:02}", bag(rng, i % 2))
        rows.append((f"s{i:02}", ("normal", "tumour")[i % 2], f"T{i // 4}", f"T{i // 4}"))
    write_labels(copy, rows, header=("slide_id", "label", "patient_id", "split"))
    with pytest.raises(LabelError, match=r"5 patients .*T0 \(normal, tumour\).*--label-level slide"):
        train.run(config(copy))
    result = train.run(config(copy, label_level="slide"))
    metrics = json.loads((result.output / "metrics.json").read_text())
    assert (metrics["split"], metrics["unit"]) == ("column", "slide")
    assert (len(metrics["folds"]), metrics["n_patients"], metrics["n_slides"]) == (5, 5, 18)
    assert metrics["scores"]["auroc"]["value"] > 0.8


def test_train_val_test_column_trains_one_fold(copy):
    roles = ["train"] * 14 + ["val"] * 4 + ["test"] * 6
    rows = [(f"s{i:02}", ("normal", "tumour")[i // 2 % 2], f"P{i // 2}", roles[i]) for i in range(24)]
    write_labels(copy, rows, header=("slide_id", "label", "patient_id", "split"))
    result = train.run(config(copy))
    assert len(rows_of(result.output / "predictions.csv")) == 6
    stored = rows_of(result.output / "splits.csv")
    assert {(row["slide_id"], row["role"]) for row in stored} == {(row[0], row[3]) for row in rows}
    assert train.run(config(copy, split="kfold", name="kfold")).count("done") == 24


def test_leave_one_out_without_patients_says_so(tmp_path, capsys):
    rng = np.random.default_rng(2)
    rows = []
    for i in range(6):
        write_bag(tmp_path, f"s{i}", bag(rng, i % 2))
        rows.append((f"s{i}", ("a", "b")[i % 2]))
    write_labels(tmp_path, rows, header=("slide_id", "label"))
    result = train.run(config(tmp_path, split="leave-one-out", positive="a", epochs=2))
    assert "each slide counts as its own patient" in capsys.readouterr().err
    metrics = json.loads((result.output / "metrics.json").read_text())
    assert (metrics["positive"], metrics["names"]) == ("a", ["b", "a"])
    assert [fold["n_test_patients"] for fold in metrics["folds"]] == [1] * 6
    assert metrics["folds"][0]["auroc"] is None  # one slide has no ranking


def test_too_few_patients_to_validate_take_the_last_epoch_and_say_so(tmp_path, capsys):
    make_run(tmp_path, slides=4, per_patient=1)
    result = train.run(config(tmp_path, folds=2, epochs=3))
    assert "too few training patients" in capsys.readouterr().err
    metrics = json.loads((result.output / "metrics.json").read_text())
    assert metrics["folds"][0]["epochs"] == [3, 3]
    assert metrics["folds"][0]["val_losses"] == [None, None]


def test_a_rare_class_leaves_only_some_networks_a_validation_part(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(7):
        write_bag(tmp_path, f"s{i:02}", bag(rng, i < 2))
        rows.append((f"s{i:02}", "tumour" if i < 2 else "normal", f"P{i:02}"))
    write_labels(tmp_path, rows)
    train.run(config(tmp_path, split="leave-one-out", members=2, epochs=2))
    output = tmp_path / "models" / "gated-attention"
    history = rows_of(output / "history.csv")
    with_val = {(row["fold"], row["member"]) for row in history if row["val_loss"]}
    everyone = {(row["fold"], row["member"]) for row in history}
    assert set() < with_val < everyone, "the case that this test is about"
    assert "nan" not in (output / "history.csv").read_text().casefold()
    assert (output / "losses.png").read_bytes()[:4] == b"\x89PNG"
    assert "could not be drawn" not in capsys.readouterr().err


def test_a_picture_that_cannot_be_drawn_costs_no_model(copy, capsys, monkeypatch):
    monkeypatch.setattr(train.figures, "_limits", lambda *_, **__: (np.nan, np.nan))  # set_ylim refuses it
    train.run(config(copy, name="undrawn", epochs=1, members=1))
    output = copy / "models" / "undrawn"
    there = {path.name for path in output.iterdir()}
    assert {"metrics.json", "predictions.csv", "splits.csv", "history.csv", "roc.png"} <= there
    assert "losses.png" not in there
    said = " ".join(capsys.readouterr().err.split())
    assert "losses.png could not be drawn (ValueError:" in said
    assert "the model and its tables are whole" in said


def test_without_a_validation_part_every_network_learns_from_all_training_slides(copy, capsys):
    result = train.run(config(copy, val_fraction=0.0, epochs=4))
    assert "too few" not in capsys.readouterr().err, "it was asked for"
    roles = {(row["fold"], row["slide_id"]): row["role"] for row in rows_of(result.output / "splits.csv")}
    assert set(roles.values()) == {"train", "test"}
    metrics = json.loads((result.output / "metrics.json").read_text())
    for fold in metrics["folds"]:
        assert fold["epochs"] == [4, 4]
        assert fold["val_losses"] == [None, None]
        assert fold["n_train_slides"] + fold["n_test_slides"] == 24


@pytest.mark.parametrize("model", ["attention", "mean", "max"])
def test_three_classes_with_every_pooling(tmp_path, model):
    rng = np.random.default_rng(3)
    rows = []
    for i in range(18):
        x = rng.normal(size=(8, DIM))
        x[:, i % 3] += 3
        write_bag(tmp_path, f"s{i:02}", x)
        rows.append((f"s{i:02}", "abc"[i % 3], f"P{i}"))
    write_labels(tmp_path, rows)
    result = train.run(config(tmp_path, model=model))
    assert result.output.name == model
    metrics = json.loads((result.output / "metrics.json").read_text())
    assert metrics["positive"] is None
    assert metrics["scores"]["auroc"]["value"] > 0.9
    row = rows_of(result.output / "predictions.csv")[0]
    assert sum(float(row[f"probability_{c}"]) for c in "abc") == pytest.approx(1, abs=1e-5)


def test_fit_takes_bags_in_memory_and_leaves_random_numbers_alone():
    rng = np.random.default_rng(4)
    codes = np.arange(12) % 2
    bags = [bag(rng, code) for code in codes]
    task = models.make_task("classification", ["n", "p"])
    head = {
        "model": "gated-attention", "identity": {"dim": DIM}, "hidden_dim": 8, "attention_dim": 4,
        "dropout": 0.1, "task": task.to_head(), "members": 2, "branches": "shared",
    }  # fmt: skip
    recipe = TrainConfig(run=Path(), labels=Path(), epochs=20, patch_dropout=0.5, bag_size=6, patience=3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    vals = [np.array([0, 1]), np.array([2, 3, 4, 5])]
    fitted = train.fit(bags, codes, head=head, vals=vals, config=recipe, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not fitted.model.training
    assert all(1 <= epoch <= 20 for epoch in fitted.epochs)
    probability = train.predict(fitted.model, bags)
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-6)


def test_fit_refuses_bags_without_patches_and_missing_parts():
    recipe = TrainConfig(run=Path(), labels=Path())
    head = {"members": 2}
    with pytest.raises(ValueError, match="no bag without patches"):
        train.fit([np.zeros((0, 3))], np.array([0]), head=head, vals=[], config=recipe, seed=0)
    with pytest.raises(ValueError, match="one validation part per member: 2, not 1"):
        train.fit([np.zeros((2, 3))], np.array([0]), head=head, vals=[np.array([])], config=recipe, seed=0)


def test_a_device_that_is_not_here_is_a_wrong_setting(copy):
    with pytest.raises(ConfigError, match=r"--device nonsense: not usable here"):
        train.run(dataclasses.replace(config(copy), device="nonsense"))


def test_the_ucsb_recipe_prepares_what_training_reads(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    command = [sys.executable, "-m", "pipelines.ucsb_breast.prepare", str(source), str(out)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 1
    assert done.stderr.startswith("prepare.py: ")
    assert done.stderr.count("\n") == 1
    field = np.random.default_rng(0).integers(0, 256, (768, 896, 3), dtype=np.uint8)
    cv2.imwrite(str(source / "ytma1_x.png"), field[..., ::-1])
    (source / "labels.csv").write_text("slide_id,patient_id,label\nytma1_x,ytma1,benign\n")
    subprocess.run(command, capture_output=True, check=True, cwd=root)
    labels = manifest.read_labels(out / "labels.csv")
    assert (labels.slide_ids, labels.patient_ids, labels.splits) == (("ytma1_x",), ("ytma1",), ("ytma1",))
    with tifffile.TiffFile(out / "slides" / "ytma1_x.tiff") as tiff:
        assert len(tiff.pages) > 1
        assert tiff.pages[0].is_tiled
        np.testing.assert_array_equal(tiff.pages[0].asarray(), field)  # lossless


@pytest.mark.gpu
def test_trains_on_cuda(copy):
    result = train.run(dataclasses.replace(config(copy), device="cuda"))
    assert json.loads((result.output / "metrics.json").read_text())["scores"]["auroc"]["value"] > 0.95


def test_training_on_zarr_is_training_on_hdf5(tmp_path):
    """The same scores, byte for byte, whatever kind of file holds the features."""
    make_run(tmp_path / "hdf5", slides=12, per_patient=1)
    hdf5 = store.open_features(tmp_path / "hdf5", "tiny")
    zarr = store.open_features(tmp_path / "zarr", "tiny", "zarr")
    for slide_id in hdf5.slide_ids():
        zarr.write(hdf5.read(slide_id))
    shutil.copy(tmp_path / "hdf5" / "labels.csv", tmp_path / "zarr")
    for kind in ("hdf5", "zarr"):
        assert not train.run(config(tmp_path / kind, epochs=3)).failed
    scores = [
        (tmp_path / kind / "models" / "gated-attention" / "metrics.json").read_bytes()
        for kind in ("hdf5", "zarr")
    ]
    assert scores[0] == scores[1]
