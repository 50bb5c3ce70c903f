"""The config of the train stage, and the names of the models that it knows."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_mil.config.base import check_choices, check_name, neutral, require
from wsi_mil.config.cluster import ClusterConfig

MODELS = (
    "gated-attention", "attention", "mean", "max",
    "instance-max", "instance-mean", "instance-noisy-or", "instance-lse",
)  # fmt: skip
"""Embedding-based models (pooling of hidden vectors), then instance-based ones (pooling of scores)."""

FOREIGN = "torchmil:"
"""What the names of torchmil's models start with."""

_FRACTIONS = ("dropout", "patch_dropout", "label_smoothing")
_COUNTS = ("attention_dim", "members", "epochs", "patience", "batch_size", "repeats", "time_bins")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ClusterConfig):
    """Train and cross-validate a multiple instance learning model on the stored features."""

    run: Path = field(metadata={"neutral": True})
    """Run folder; reads RUN/features/ENCODER, writes RUN/models/NAME."""
    labels: Path = field(metadata={"neutral": True})
    """CSV with the columns slide_id and label (survival: time and event) and, if you have them, patient_id,
    split and the one that --group-by names."""
    encoder: str | None = None
    """Whose features to train on; may be left out where the run holds those of one encoder."""
    name: str | None = neutral(None)
    """Name of the model's folder under RUN/models; default: that of --model."""
    task: Literal["classification", "multilabel", "ordinal", "regression", "survival"] = "classification"
    """What a label is. classification: one of several classes. multilabel: any number of labels, joined by
    ';', or 'none'. ordinal: a grade, one of --classes, which stand in their order. regression: a number.
    survival: a time, and an event: 1 where it came then, 0 where the patient was last seen without it."""
    classes: tuple[str, ...] = ()
    """The classes in their order (ordinal: lowest grade first); default: those that the labels hold, sorted.
    A label that is not among them is an error."""
    positive: str | None = None
    """The label counted as positive when there are two; default: the last in sorted order."""
    model: str = "gated-attention"
    """gated-attention, attention, mean, max: pooling of hidden vectors. instance-max, instance-mean,
    instance-noisy-or, instance-lse: pooling of scores of single patches. torchmil:NAME: a model of torchmil's
    (an optional extra), such as torchmil:TransMIL."""
    branches: Literal["shared", "class"] = "shared"
    """One attention for all classes, or one for each (attention models)."""
    survival_loss: Literal["cox", "discrete"] = "cox"
    """cox: partial likelihood, which ranks patients. discrete: the risk in each of --time-bins intervals."""
    time_bins: int = 4
    """Intervals of --survival-loss discrete: quantiles of the event times of the training patients."""
    label_level: Literal["patient", "slide"] = "patient"
    """Whether labels belong to patients (a patient with two labels is an error; scores are per patient) or
    to slides (a patient only keeps its slides in one fold)."""
    patient_bags: Literal["mean", "merge"] = "mean"
    """Several slides of a patient. mean: predicted one by one and averaged. merge: one bag of all patches."""
    split: Literal["auto", "kfold", "leave-one-out", "column"] = "auto"
    """kfold: stratified by label, grouped by patient. leave-one-out: each patient (or group) is a fold.
    column: the split column of the labels, which names the fold that tests the slide, or says train, val or
    test. auto: the column where there is one, else kfold."""
    folds: int = 5
    """Folds of the cross-validation (--split kfold)."""
    repeats: int = 1
    """Cross-validations, each with folds drawn anew (--split kfold); every patient is tested in each."""
    group_by: str | None = None
    """Column of the labels, such as site: slides of the same site are never both trained on and tested."""
    splits: Path | None = None
    """The splits.csv of an earlier model, to train and test on the same folds and validation parts."""
    members: int = 5
    """Networks per fold, each with another inner validation part; their predictions are averaged."""
    val_fraction: float = 0.2
    """Part of the training patients kept aside to choose a network's epoch; never a test patient. 0: none,
    and each network learns from all of them and is taken at its last epoch."""
    hidden_dim: int = 64
    """Width of the layer that each feature vector passes before pooling; 0 is no such layer."""
    attention_dim: int = 64
    """Width of the attention network (V and U in the paper)."""
    dropout: float = 0.25
    """Dropout after the hidden layer while training."""
    epochs: int = 30
    """Most epochs of a network; in one it sees as many bags as there are to train on."""
    patience: int = 10
    """Stop a network when its validation loss has not improved for this many epochs."""
    batch_size: int | None = None
    """Bags per step of training; default: 4, and 32 for Cox's likelihood, which compares those of a step."""
    bag_size: int | Literal["full"] = 2048
    """Most patches of a bag in one step of training, drawn anew each time; all of them when scoring."""
    patch_dropout: float = 0.5
    """Part of each bag's patches left out in each step of training."""
    initial_weights: Literal["mean", "uniform", "glorot"] = "mean"
    """mean: the attention starts even, so that a bag is the mean of its patches until something better is
    learnt; all else as uniform. uniform: drawn as torch does. glorot: drawn as Glorot & Bengio (2010) did,
    biases 0, as in Ilse et al."""
    feature_noise: float = 0.0
    """Deviation of the noise added to the standardised features while training."""
    label_smoothing: float = 0.1
    """How far the targets lie from 0 and 1 while training; it keeps few bags from being learnt by heart."""
    balance: Literal["weights", "sampling", "none"] = "weights"
    """weights: rare classes count more in the loss. sampling: they are drawn more often. none: neither."""
    optimiser: Literal["adamw", "adam"] = "adamw"
    """adam adds the weight decay to the gradient, as Ilse et al. had it; adamw keeps it apart."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the epochs: up for a tenth of them and down to 0 as a cosine, or always the same."""
    stop_on: Literal["loss", "loss+error"] = "loss"
    """What is lowest at the epoch that is kept: the validation loss, or that plus the share of wrong bags."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    attention_rate: float = 3.0
    """The attention learns at this multiple of the rate: patches that matter are found only by it."""
    weight_decay: float = 1e-2
    """Weight decay."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training; auto is bf16 for large steps where the hardware is fast at it. Scores are
    always computed in fp32."""
    grid: Path | None = None
    """TOML file with lists of values to choose from, inside each training part, by its validation loss."""
    permutations: int = 0
    """Cross-validations with shuffled labels, for the null distribution of the score (0: none)."""
    bootstrap: int = 2000
    """Bootstrap samples (of patients) behind each 95 % interval."""
    seed: int = 0
    """Seed of folds, initial weights, order of bags and bootstrap."""
    device: str = neutral("auto")
    """auto (CUDA, else the CPU), cpu, cuda, cuda:1, ..."""
    overwrite: bool = neutral(False)
    """Train again a model that other settings or features made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        super().__post_init__()
        object.__setattr__(self, "classes", tuple(self.classes))  # a list in Python is fine
        check_choices(self)
        require(
            self.model in MODELS or (self.model.startswith(FOREIGN) and self.model != FOREIGN),
            f"--model {self.model}: unknown; wanted {', '.join(MODELS)}, or {FOREIGN}NAME.",
        )
        require(self.folds >= 2, f"--folds {self.folds}: at least 2 are needed to test on held-out patients.")
        for name in _FRACTIONS:
            value = getattr(self, name)
            require(0 <= value < 1, f"{_flag(name)} {value}: must be at least 0 and below 1.")
        for name in _COUNTS:
            value = getattr(self, name)
            require(value is None or value >= 1, f"{_flag(name)} {value}: must be at least 1.")
        require(
            0 <= self.val_fraction <= 0.5, f"--val-fraction {self.val_fraction}: at least 0, at most 0.5."
        )
        require(
            self.val_fraction > 0 or self.grid is None,
            "--val-fraction 0: --grid chooses by the loss of a validation part, and there would be none.",
        )
        require(
            self.bag_size == "full" or self.bag_size >= 1, f"--bag-size {self.bag_size}: at least 1, or full."
        )
        for name in ("learning_rate", "attention_rate"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{_flag(name)} {value}: must be positive.")
        for name in ("hidden_dim", "weight_decay", "feature_noise", "permutations"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{_flag(name)} {value}: must not be negative.")
        require(self.bootstrap >= 100, f"--bootstrap {self.bootstrap}: at least 100 samples.")
        require(self.seed >= 0, f"--seed {self.seed}: must not be negative.")
        self._check_classes()
        self._check_task()
        self._check_splits()
        if self.name is not None:
            check_name("--name", self.name)

    def _check_classes(self) -> None:
        classes = ", ".join(map(str, self.classes))
        require(
            all(isinstance(each, str) and each and each == each.strip() for each in self.classes),
            f"--classes {classes}: wanted words, none empty and none with a blank before or after it.",
        )
        require(
            len(set(self.classes)) == len(self.classes), f"--classes {classes}: a class stands there twice."
        )
        require(
            self.task != "ordinal" or len(self.classes) >= 2,
            "--task ordinal: needs --classes with the grades from lowest to highest, two or more.",
        )
        require(
            not self.classes or self.task not in ("regression", "survival"),
            f"--classes {classes}: --task {self.task} has no classes.",
        )
        require(
            self.task != "classification" or len(self.classes) != 1,
            f"--classes {classes}: one class only; wanted all of them, two or more.",
        )
        require(
            self.task != "multilabel" or not any(each == "none" or ";" in each for each in self.classes),
            f"--classes {classes}: ';' joins labels, and 'none' says that there is none; neither can be one.",
        )
        require(
            self.positive is None or self.task == "classification",
            f"--positive {self.positive}: only --task classification has a positive label.",
        )
        require(
            self.positive is None or not self.classes or self.positive in self.classes,
            f"--positive {self.positive}: not one of --classes {classes}.",
        )

    def _check_task(self) -> None:
        require(
            self.survival_loss == "cox" or self.task == "survival",
            f"--survival-loss {self.survival_loss}: only with --task survival, not {self.task}.",
        )
        require(
            self.survival_loss == "cox" or self.time_bins >= 2,
            f"--time-bins {self.time_bins}: at least 2 intervals, or all patients look the same.",
        )
        require(
            self.branches == "shared" or self.model in ("attention", "gated-attention"),
            f"--branches class: --model {self.model} has no attention to branch.",
        )
        require(
            self.patient_bags == "mean" or self.label_level == "patient",
            "--patient-bags merge: a merged bag has one label; not with --label-level slide.",
        )

    def _check_splits(self) -> None:
        require(
            self.split in ("auto", "kfold") or self.repeats == 1,
            f"--repeats {self.repeats}: --split {self.split} has one set of folds.",
        )
        require(
            self.splits is None or (self.split == "auto" and self.repeats == 1),
            f"--splits {self.splits}: the file says who is in which fold; leave --split and --repeats out.",
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
