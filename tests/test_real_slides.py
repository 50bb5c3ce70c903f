"""The same real slide as Aperio SVS and as a DICOM pyramid, through tile, embed and heatmap."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from wsi_mil import embed, heatmap, models, store, tile
from wsi_mil.config import EmbedConfig, HeatmapConfig, TileConfig

ENCODER = "tf_efficientnet_lite0"
IDS = ("CMU-1-Small-Region", "cmu1_dicom")


@pytest.fixture(scope="module")
def run(tmp_path_factory, real_slides):
    folder = tmp_path_factory.mktemp("cmu")
    (folder / "slides").mkdir()
    shutil.copy(real_slides / f"{IDS[0]}.svs", folder / "slides")
    shutil.copytree(real_slides / IDS[1], folder / "slides" / IDS[1])
    assert not tile.run(TileConfig(slides=folder / "slides", run=folder / "run")).failed
    assert not embed.run(EmbedConfig(run=folder / "run", device="cpu")).failed
    return folder / "run"


def cosine(a, b):
    return (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_both_give_the_same_patches_and_nearly_the_same_features(run):
    svs, dicom = (store.read_features(store.features_path(run, ENCODER, each)) for each in IDS)
    assert len(svs.coords) == len(dicom.coords) > 40
    assert np.abs(svs.coords - dicom.coords).max() <= 1
    a, b = svs.features.astype(float), dicom.features.astype(float)
    # The DICOM was compressed again, in frames that cut through the JPEG grid of the SVS: fine detail of
    # single patches differs (as much as in the SVS compressed again: benchmarks/RESULTS.md), the slide not.
    assert cosine(a.mean(axis=0), b.mean(axis=0)) > 0.98
    assert np.median(cosine(a, b)) > 0.96
    shuffled = np.roll(b, 1, axis=0)
    assert np.median(cosine(a, shuffled)) < 0.7, "other patches are far away"


def test_the_heatmap_of_any_model_lies_over_the_tissue(run):
    features = store.read_features(store.features_path(run, ENCODER, IDS[0]))
    head = {
        "model": "gated-attention", "identity": features.identity, "hidden_dim": 16, "attention_dim": 8,
        "dropout": 0.0, "task": models.make_task("classification", "ab").to_head(), "members": 1,
        "branches": "shared", "fold": 0,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(head)
        torch.nn.init.normal_(model.members[0].pool.w.weight)
    folder = store.model_folder(run, "any")
    store.write_text(folder / "metrics.json", json.dumps(dict.fromkeys(
        ("config_digest", "features_digest", "labels_digest"), ""
    )))  # fmt: skip
    store.write_csv(folder / "predictions.csv", ("slide_id", "label", "fold"), [])
    store.write_fold(folder / "fold_0.safetensors", models.tensors(model), head)
    assert not heatmap.run(HeatmapConfig(run=run)).failed
    maps = [store.read_heatmap(store.heatmap_folder(run, "any", each) / "heatmap.zarr") for each in IDS]
    assert np.corrcoef(maps[0].attention, maps[1].attention)[0, 1] > 0.9, "both readers show the same map"
    overlay = cv2.imread(str(store.heatmap_folder(run, "any", IDS[0]) / "overlay.jpg"))
    assert overlay.shape[0] > 1400
