"""The logs of a training, read back by TensorBoard's own reader."""

import subprocess
import sys

import pytest

from wsi_mil.train.networks import Trained
from wsi_mil.train.tensorboard import write_logs


def trained(train, val, epoch=2):
    kept = val[epoch - 1] if val else None
    return Trained(state={}, epoch=epoch, val_loss=kept, train_losses=train, val_losses=val)


FOLDS = [
    [trained([0.9, 0.5, 0.25], [0.8, 0.6, 0.7]), trained([1.0, 0.75], [0.5, 0.25])],
    [trained([0.5, 0.125], [])],
]
CONTENT = {
    "leading": "auroc",
    "scores": {
        "auroc": {"value": 0.75, "low": 0.5, "high": 1.0}, "ece": {"value": None, "low": None, "high": None},
    },
    "folds": [{"fold": 0, "auroc": 0.625}, {"fold": 1, "auroc": None}],
    "spread": {"auroc": [0.75, 0.875]},
}  # fmt: skip


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = {
        name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]
    }
    texts = {
        name.removesuffix("/text_summary"): events.Tensors(name)[0].tensor_proto.string_val[0].decode()
        for name in events.Tags()["tensors"]
    }
    return scalars, texts


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder, FOLDS, CONTENT, "[train]\nepochs = 3\n```\n")
    return folder


def test_every_network_has_its_losses(logs):
    assert sorted(each.name for each in logs.iterdir()) == [
        "fold_0_member_0", "fold_0_member_1", "fold_1_member_0", "scores",
    ]  # fmt: skip
    scalars, _ = read(logs / "fold_0_member_0")
    assert scalars == {
        "loss/train": [(1, pytest.approx(0.9)), (2, 0.5), (3, 0.25)],
        "loss/val": [(1, pytest.approx(0.8)), (2, pytest.approx(0.6)), (3, pytest.approx(0.7))],
        "loss/kept": [(2, pytest.approx(0.6))],
    }
    assert read(logs / "fold_1_member_0")[0] == {"loss/train": [(1, 0.5), (2, 0.125)]}


def test_scores_and_settings_are_there(logs):
    scalars, texts = read(logs / "scores")
    assert scalars == {
        "score/auroc": [(0, 0.75)], "score/auroc/low": [(0, 0.5)], "score/auroc/high": [(0, 1.0)],
        "fold/auroc": [(0, 0.625)], "repeat/auroc": [(0, 0.75), (1, 0.875)],
    }  # fmt: skip
    assert texts["settings"] == "    [train]\n    epochs = 3\n    ```\n"
    assert "| auroc | 0.7500 | 0.5000 | 1.0000 |" in texts["scores"]
    assert "| ece |  |  |  |" in texts["scores"]


def test_nothing_imports_it_before_it_is_needed():
    code = "import sys, wsi_mil.train, wsi_mil.predict; print('tensorboard' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
