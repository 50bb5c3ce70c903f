"""One frozen dataclass per stage: the flags, the TOML keys and the Python arguments are the same fields.

Comes in: keyword arguments, or a TOML file with one table per stage. Goes out: a checked config, its TOML,
its record (the fields that change results) and the digest of that record. It knows no file format but TOML
and imports nothing heavy, so that ``wsi-mil --help`` is quick.
"""

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from wsi_mil.errors import ConfigError

MPP_MIN, MPP_MAX = 0.05, 5.0
"""Microns per pixel outside this range are a wrong tag (a 72-dpi default, a factor of 100), not a scanner."""

Json = Any
Location = str | Path
"""Where a slide is: a path, or a URL (https://, s3://, gs://, ...) as text."""
Config = TypeVar("Config")


def _neutral(default: Any) -> Any:
    """Mark a field that changes how the work is done and not what comes out; it is not in the digest."""
    return field(default=default, metadata={"neutral": True})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """Cut slides into tissue patches: one coordinates file, preview and tissue outline per slide."""

    slides: Location = field(metadata={"neutral": True})
    """Folder searched for slides (with its sub-folders), one slide, or a manifest CSV slide_id,path[,mpp]. A
    folder or slide may be a URL (https://, s3://, gs://)."""
    run: Path = field(metadata={"neutral": True})
    """Run folder; patches go to RUN/patches."""
    pattern: str = _neutral("")
    """Only files that match this glob, e.g. '*.svs' (a folder is searched)."""
    mpp: float = 0.5
    """Microns per pixel of the patches (0.5 is '20x', 0.25 is '40x'); reached exactly, by resampling."""
    patch_px: int = 256
    """Side of a patch in pixels at --mpp."""
    overlap_px: int = 0
    """Overlap of neighbouring patches in pixels at --mpp."""
    min_tissue: float = 0.1
    """Keep a patch when at least this fraction of it is tissue (0 keeps every patch of the grid)."""
    slide_mpp: float | None = None
    """Level-0 microns per pixel for every slide, whatever the files say (the manifest's mpp column wins)."""
    reader: Literal["auto", "openslide", "tiffslide"] = "auto"
    """Library that reads the slides; auto is OpenSlide, and tiffslide for what OpenSlide cannot open."""
    tissue_mpp: float = 8.0
    """Microns per pixel of the thumbnail on which tissue is found."""
    min_area_um2: float = 10_000.0
    """Tissue pieces smaller than this are dropped (square microns)."""
    max_hole_um2: float = 10_000.0
    """Holes smaller than this are filled; larger ones stay background (square microns)."""
    workers: int = _neutral(0)
    """Processes that work on slides side by side; 0 is one per core, 1 is none besides this one."""
    overwrite: bool = _neutral(False)
    """Make outputs again that other settings made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        object.__setattr__(self, "slides", location(self.slides))  # the command line gives text
        _check_mpp("--mpp", self.mpp)
        if self.slide_mpp is not None:
            _check_mpp("--slide-mpp", self.slide_mpp)
        _require(16 <= self.patch_px <= 8192, f"--patch-px {self.patch_px}: must be 16 to 8192 pixels.")
        _require(
            0 <= self.overlap_px < self.patch_px,
            f"--overlap-px {self.overlap_px}: must be at least 0 and below --patch-px ({self.patch_px}).",
        )
        _require(0 <= self.min_tissue <= 1, f"--min-tissue {self.min_tissue}: a fraction, 0 to 1.")
        _require(
            self.mpp <= self.tissue_mpp <= 64,
            f"--tissue-mpp {self.tissue_mpp}: must lie between --mpp ({self.mpp}) and 64.",
        )
        _require(self.min_area_um2 >= 0, f"--min-area-um2 {self.min_area_um2}: must not be negative.")
        _require(self.max_hole_um2 >= 0, f"--max-hole-um2 {self.max_hole_um2}: must not be negative.")
        _require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Turn every patch into a feature vector with a pretrained encoder."""

    run: Path = field(metadata={"neutral": True})
    """Run folder; reads RUN/patches, writes RUN/features/ENCODER."""
    encoder: str = "tf_efficientnet_lite0"
    """A timm model by name, or hf-hub:ORG/NAME; its own normalisation and input size are used."""
    weights: Path | None = _neutral(None)
    """Local .safetensors, .pt or .pth file with the encoder's weights; nothing is downloaded then."""
    device: str = _neutral("auto")
    """auto (CUDA, else Apple's MPS, else the CPU), cpu, cuda, cuda:1, ..."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder; auto is bf16 on CUDA and fp32 elsewhere."""
    batch_size: int = _neutral(32)
    """Patches per forward pass."""
    workers: int = _neutral(0)
    """Threads that read patches; 0 is one per core."""
    memory_mib: int = _neutral(256)
    """Memory for reading, in MiB: decoded blocks of the slide, and the batches that wait."""
    max_broken: float = 0.01
    """Largest part of a slide's patches that may be left out, and listed, because their part of the file is
    damaged; above it the slide fails."""
    overwrite: bool = _neutral(False)
    """Make outputs again that other settings or other patches made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        _require(bool(self.encoder.strip()), "--encoder: the name is empty.")
        _require(self.batch_size >= 1, f"--batch-size {self.batch_size}: must be at least 1.")
        _require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")
        _require(self.memory_mib >= 16, f"--memory-mib {self.memory_mib}: must be at least 16.")
        _require(0 <= self.max_broken <= 1, f"--max-broken {self.max_broken}: a fraction, 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train and cross-validate a multiple instance learning model on the stored features."""

    run: Path = field(metadata={"neutral": True})
    """Run folder; reads RUN/features/ENCODER, writes RUN/models/NAME."""
    labels: Path = field(metadata={"neutral": True})
    """CSV with slide_id,label and optionally patient_id and split."""
    encoder: str | None = None
    """Whose features to train on; may be left out where the run holds those of one encoder."""
    name: str | None = _neutral(None)
    """Name of the model's folder under RUN/models; default: that of --model."""
    model: Literal["gated-attention", "attention", "mean", "max"] = "gated-attention"
    """Pooling over the patches of a bag."""
    folds: int = 5
    """Folds of the cross-validation (--split kfold)."""
    split: Literal["auto", "kfold", "leave-one-out", "column"] = "auto"
    """kfold: stratified by label, grouped by patient. leave-one-out: each patient is a fold. column: the
    split column of the labels, which names the fold that tests the slide, or says train, val or test. auto:
    the column where there is one, else kfold."""
    label_level: Literal["patient", "slide"] = "patient"
    """Whether labels belong to patients (a patient with two labels is an error; scores are per patient) or
    to slides (a patient only keeps its slides in one fold)."""
    positive: str | None = None
    """The label counted as positive when there are two; default: the last in sorted order."""
    hidden_dim: int = 64
    """Width of the layer that each feature vector passes before pooling."""
    attention_dim: int = 64
    """Width of the attention network (V and U in the paper)."""
    dropout: float = 0.25
    """Dropout after the hidden layer while training."""
    members: int = 5
    """Networks per fold, each with another inner validation part; their predictions are averaged."""
    val_fraction: float = 0.2
    """Part of the training patients kept aside to choose a network's epoch; never a test patient."""
    epochs: int = 30
    """Most epochs of a network; the learning rate rises for a tenth of them, then falls to 0 (cosine)."""
    patience: int = 10
    """Stop a network when its validation loss has not improved for this many epochs."""
    batch_size: int = 4
    """Bags per step of training."""
    max_patches: int = 2048
    """Most patches of a bag in one step of training, drawn anew each time; all of them when scoring."""
    patch_dropout: float = 0.5
    """Part of each bag's patches left out in each step of training."""
    label_smoothing: float = 0.1
    """How far the targets lie from 0 and 1 while training; it keeps few bags from being learnt by heart."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    bootstrap: int = 2000
    """Bootstrap samples (of patients) behind each 95 % interval."""
    seed: int = 0
    """Seed of folds, initial weights, order of bags and bootstrap."""
    device: str = _neutral("auto")
    """auto (CUDA, else the CPU), cpu, cuda, cuda:1, ..."""
    overwrite: bool = _neutral(False)
    """Train again a model that other settings or features made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        _require(
            self.folds >= 2, f"--folds {self.folds}: at least 2 are needed to test on held-out patients."
        )
        for name in ("dropout", "patch_dropout", "label_smoothing"):
            value = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            _require(0 <= value < 1, f"{flag} {value}: must be at least 0 and below 1.")
        _require(0 < self.val_fraction <= 0.5, f"--val-fraction {self.val_fraction}: above 0, at most 0.5.")
        for name in (
            "hidden_dim", "attention_dim", "members", "epochs", "patience", "batch_size", "max_patches",
        ):  # fmt: skip
            value = getattr(self, name)
            _require(value >= 1, f"--{name.replace('_', '-')} {value}: must be at least 1.")
        _require(self.learning_rate > 0, f"--learning-rate {self.learning_rate}: must be positive.")
        _require(self.weight_decay >= 0, f"--weight-decay {self.weight_decay}: must not be negative.")
        _require(self.bootstrap >= 100, f"--bootstrap {self.bootstrap}: at least 100 samples.")
        if self.name is not None:
            check_name("--name", self.name)


@dataclass(frozen=True, kw_only=True)
class HeatmapConfig:
    """Draw where on each slide the model looked, from the stored features."""

    run: Path = field(metadata={"neutral": True})
    """Run folder; reads RUN/features and RUN/models/NAME, writes RUN/heatmaps/NAME/SLIDE_ID."""
    name: str | None = _neutral(None)
    """Name of the model; may be left out where the run holds one."""
    slides: tuple[str, ...] = _neutral(())
    """Slide ids to draw; default: every slide of the run that has features of the model's encoder."""
    normalize: Literal["minmax", "percentile"] = "minmax"
    """Scale of the colours: minmax is (a - min a) / (max a - min a), as in Ilse et al.; percentile is the
    rank of a patch within its slide. The stored values are always the raw ones."""
    opacity: float = 0.6
    """Opacity of the colours over the slide where the value is highest; a third of it where it is lowest."""
    overlay_px: int = 1400
    """Longer side of the slide in the overlay picture."""
    top_patches: int = 12
    """How many of the highest patches to show in top_patches.jpg."""
    workers: int = _neutral(1)
    """Processes that work on slides side by side; 0 is one per core."""
    overwrite: bool = _neutral(False)
    """Draw again what other settings or another model made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        _require(0 < self.opacity <= 1, f"--opacity {self.opacity}: above 0 and at most 1.")
        _require(200 <= self.overlay_px <= 8192, f"--overlay-px {self.overlay_px}: must be 200 to 8192.")
        _require(0 <= self.top_patches <= 100, f"--top-patches {self.top_patches}: must be 0 to 100.")
        _require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")
        if self.name is not None:
            check_name("--name", self.name)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write RUN/report.html: one self-contained page with scores, previews, heatmaps and what failed."""

    run: Path = field(metadata={"neutral": True})
    """Run folder."""


STAGE_CONFIGS: dict[str, type] = {
    "tile": TileConfig,
    "embed": EmbedConfig,
    "train": TrainConfig,
    "heatmap": HeatmapConfig,
    "report": ReportConfig,
}


def location(text: str | Path) -> Location:
    """Return a URL as it is and anything else as a path."""
    return text if isinstance(text, Path) or "://" in text else Path(text)


def check_name(flag: str, name: str) -> None:
    """Raise ConfigError where ``name`` cannot be a folder's name."""
    _require(
        bool(name) and name not in {".", ".."} and not set(name) & set('/\\\0:*?"<>|'),
        f"{flag} {name!r}: must be usable as a folder's name (no slashes).",
    )


def _check_mpp(flag: str, mpp: float) -> None:
    _require(
        MPP_MIN <= mpp <= MPP_MAX,
        f"{flag} {mpp:g}: microns per pixel must lie between {MPP_MIN} and {MPP_MAX} "
        "(0.5 is about '20x', 0.25 about '40x').",
    )


def record(config: object, **more: Json) -> dict[str, Json]:
    """Return the fields that change results, as plain JSON values, with ``more`` of the caller's."""
    fields = dataclasses.fields(config)  # type: ignore[arg-type]
    kept = {f.name: getattr(config, f.name) for f in fields if not f.metadata.get("neutral")}
    plain: dict[str, Json] = json.loads(json.dumps(kept | more, default=str))
    return plain


def digest(record: Mapping[str, Json]) -> str:
    """Return 16 hexadecimal digits (SHA-256) of a record, independent of the order of its keys."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def first_difference(old: Mapping[str, Json], new: Mapping[str, Json]) -> str | None:
    """Return a phrase that names the first field in which two records differ, or None."""
    for key in [*new, *(k for k in old if k not in new)]:
        if old.get(key) != new.get(key):
            return f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
    return None


def toml_values(path: Path, stage: str) -> dict[str, Json]:
    """Return the keys of the table ``[stage]`` of a TOML file.

    One file may hold the tables of all stages; every table and every key of this stage's must be known.

    Raises:
        ConfigError: the file is missing or no TOML, or holds an unknown table or key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not TOML ({error}).") from error
    for table in content:
        _require(
            table in STAGE_CONFIGS,
            f"--config {path}: unknown table or key '{table}' at the top; settings go below a table: "
            + ", ".join(f"[{name}]" for name in STAGE_CONFIGS)
            + ".",
        )
    values = content.get(stage, {})
    known = [f.name for f in dataclasses.fields(STAGE_CONFIGS[stage])]
    for key in values:
        _require(
            key in known, f"--config {path}: unknown key '{key}' in [{stage}]; known: {', '.join(known)}."
        )
    return dict(values)


def from_toml(config_class: type[Config], path: Path, **overrides: Json) -> Config:
    """Return a config from its table in a TOML file; ``overrides`` win over the file.

    Raises:
        ConfigError: as ``toml_values``, or a value has the wrong type, or a required field is missing.
    """
    stage = next(name for name, known in STAGE_CONFIGS.items() if known is config_class)
    values = toml_values(path, stage) | overrides
    for each in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if each.name in values:
            values[each.name] = _typed(values[each.name], str(each.type), f"{path}: [{stage}] {each.name}")
    try:
        return config_class(**values)
    except TypeError as error:
        raise ConfigError(f"--config {path}: [{stage}] {error}.") from error


def _typed(value: Json, annotation: str, where: str) -> Json:
    """Turn TOML's types into the field's (Path, tuple, float) and refuse what does not fit."""
    if "Path" in annotation and isinstance(value, str):
        return location(value) if "str" in annotation else Path(value)
    if "tuple" in annotation and isinstance(value, list | tuple):
        return tuple(value)
    if "float" in annotation and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected: dict[str, type | tuple[type, ...]] = {
        "Literal": str, "bool": bool, "int": int, "float": float, "str": str, "Path": Path,
    }  # fmt: skip
    for word, kind in expected.items():
        if word in annotation:
            fits = isinstance(value, kind) and not (isinstance(value, bool) and word != "bool")
            _require(fits or (value is None and "None" in annotation), f"{where} = {value!r}: wanted {word}.")
            break
    return value


def to_toml(config: object) -> str:
    """Return the config as TOML under its stage's table; fields that are None are left out."""
    stage = next(name for name, known in STAGE_CONFIGS.items() if type(config) is known)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    plain = {
        key: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
        for key, v in values.items()
        if v is not None
    }
    return tomli_w.dumps({stage: plain})
