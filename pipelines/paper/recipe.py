"""How the paper trains: the settings of its appendix in the words of ``wsi_mil``.

Comes in: a method's name. Goes out: what ``wsi_mil.train.fit`` wants. It knows no data.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pipelines.paper import networks
from pipelines.paper.augment import Augment
from wsi_mil.config import TrainConfig
from wsi_mil.models import make_task
from wsi_mil.train.patches import Augment as Change

METHODS = {
    "instance-max": "instance + max",
    "instance-mean": "instance + mean",
    "max": "embedding + max",
    "mean": "embedding + mean",
    "attention": "attention",
    "gated-attention": "gated attention",
}
"""The paper's six methods: our name of the model, and what the paper calls it, in its order."""

ATTENTION_DIM = 128
INITIAL_WEIGHTS = "glorot"
"""Of pooling and classifier, as the encoder's (``networks``)."""
CLASSES = ("negative", "positive")

Precision = Literal["fp32", "bf16"]


def histology(side: int) -> "Recipe":
    """Return the recipe of breast and colon, for patches of ``side`` pixels."""
    return Recipe(
        front=functools.partial(networks.histology, side), features=networks.HISTOLOGY, augment=Augment(),
        learning_rate=1e-4, weight_decay=5e-4, epochs=100,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An encoder, its ``features``, how patches are changed in training (``augment``), and the optimiser's
    settings. ``patience`` None: all epochs, as in the paper.
    """

    front: Callable[[], nn.Module]
    features: int
    augment: Change | None
    learning_rate: float
    weight_decay: float
    epochs: int
    patience: int | None = None
    precision: Precision = "fp32"

    def head(self, method: str) -> dict[str, Any]:
        """Return the description of the model: no hidden layer of ours, for the encoder has the paper's."""
        return {
            "task": make_task("classification", CLASSES).to_head(),
            "model": method,
            "identity": {"dim": self.features},
            "hidden_dim": 0,
            "attention_dim": ATTENTION_DIM,
            "branches": "shared",
            "dropout": 0.0,
            "members": 1,
            "initial_weights": INITIAL_WEIGHTS,
        }

    def config(self, method: str) -> TrainConfig:
        """Return the paper's training: Adam, one bag a step, the epoch of lowest validation loss + error.

        All that our default recipe adds (smoothed labels, patches left out, weights of classes, a faster
        attention, stopping early) is off.
        """
        return TrainConfig(
            run=Path(), labels=Path(), model=method, hidden_dim=0, attention_dim=ATTENTION_DIM, members=1,
            dropout=0.0, patch_dropout=0.0, bag_size="full", label_smoothing=0.0, balance="none",
            optimiser="adam", schedule="constant", stop_on="loss+error", attention_rate=1.0,
            learning_rate=self.learning_rate, weight_decay=self.weight_decay, batch_size=1,
            epochs=self.epochs, patience=self.patience or self.epochs, precision=self.precision,
        )  # fmt: skip

    def settings(self, method: str) -> dict[str, Any]:
        """Return what decides a result, for the file that holds it."""
        config = self.config(method)
        names = (
            "model", "attention_dim", "optimiser", "schedule", "stop_on", "learning_rate", "weight_decay",
            "batch_size", "epochs", "patience", "precision",
        )  # fmt: skip
        return {name: getattr(config, name) for name in names} | {
            "augment": repr(self.augment),
            "initial_weights": INITIAL_WEIGHTS,
        }
