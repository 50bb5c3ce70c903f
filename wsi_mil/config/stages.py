"""The configs of the stages: tile, embed, train, heatmap, report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_mil.config.base import Location, check_mpp, check_name, location, neutral, require


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """Cut slides into tissue patches: one coordinates file, preview and tissue outline per slide."""

    slides: Location = field(metadata={"neutral": True})
    """Folder searched for slides (with its sub-folders), one slide, or a manifest CSV slide_id,path[,mpp]. A
    folder or slide may be a URL (https://, s3://, gs://)."""
    run: Path = field(metadata={"neutral": True})
    """Run folder; patches go to RUN/patches."""
    pattern: str = neutral("")
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
    workers: int = neutral(0)
    """Processes that work on slides side by side; 0 is one per core, 1 is none besides this one."""
    overwrite: bool = neutral(False)
    """Make outputs again that other settings made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        object.__setattr__(self, "slides", location(self.slides))  # the command line gives text
        check_mpp("--mpp", self.mpp)
        if self.slide_mpp is not None:
            check_mpp("--slide-mpp", self.slide_mpp)
        require(16 <= self.patch_px <= 8192, f"--patch-px {self.patch_px}: must be 16 to 8192 pixels.")
        require(
            0 <= self.overlap_px < self.patch_px,
            f"--overlap-px {self.overlap_px}: must be at least 0 and below --patch-px ({self.patch_px}).",
        )
        require(0 <= self.min_tissue <= 1, f"--min-tissue {self.min_tissue}: a fraction, 0 to 1.")
        require(
            self.mpp <= self.tissue_mpp <= 64,
            f"--tissue-mpp {self.tissue_mpp}: must lie between --mpp ({self.mpp}) and 64.",
        )
        require(self.min_area_um2 >= 0, f"--min-area-um2 {self.min_area_um2}: must not be negative.")
        require(self.max_hole_um2 >= 0, f"--max-hole-um2 {self.max_hole_um2}: must not be negative.")
        require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Turn every patch into a feature vector with a pretrained encoder."""

    run: Path = field(metadata={"neutral": True})
    """Run folder; reads RUN/patches, writes RUN/features/ENCODER."""
    encoder: str = "tf_efficientnet_lite0"
    """A name that `wsi-mil encoders` lists, any timm model (timm:NAME or NAME), hf-hub:ORG/NAME, onnx:FILE or
    torchscript:FILE; its own normalisation and input size are used."""
    weights: Path | None = neutral(None)
    """Local .safetensors, .pt or .pth file with the encoder's weights; nothing is downloaded then."""
    weights_dir: Path | None = neutral(None)
    """Folder of weights for sites without a network, as `wsi-mil encoders --download` fills it."""
    offline: bool = neutral(False)
    """Never ask the network for weights; what is missing is named before any slide is opened."""
    allow_mismatch: bool = neutral(False)
    """Run the encoder at another mpp or patch size than its authors prescribe; the files record it."""
    stain: Literal["none", "macenko", "reinhard"] = "none"
    """Stain normalisation of every patch before the encoder, on the device."""
    device: str = neutral("auto")
    """auto (CUDA, else Apple's MPS, else the CPU), cpu, cuda, cuda:1, ..."""
    devices: tuple[str, ...] = neutral(())
    """Several devices, one process each, that share a queue of slides: 0,1,2,3 (GPUs) or cuda:0,cpu."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder; auto is bf16 where the hardware is fast at it (GPUs, CPUs with AVX512-BF16
    or AMX) and the features stay the same, which is checked at the start; fp32 elsewhere."""
    compile: bool = neutral(False)
    """Compile the encoder with torch.compile: a minute at the start, then faster (CPUs need a compiler)."""
    batch_size: int | None = neutral(None)
    """Patches per forward pass; default: 32 on a CPU, 256 on a GPU. It is halved where the GPU's memory does
    not suffice."""
    workers: int = neutral(0)
    """Threads that read patches; 0 is one per core."""
    memory_mib: int = neutral(256)
    """Memory for reading, in MiB: decoded blocks of the slides, and the batches that wait."""
    max_broken: float = 0.01
    """Largest part of a slide's patches that may be left out, and listed, because their part of the file is
    damaged; above it the slide fails."""
    store: Literal["hdf5", "zarr"] = neutral("hdf5")
    """hdf5: a file per slide. zarr: one sharded zarr v3 store, which may lie at --store-url."""
    store_url: str | None = neutral(None)
    """Where the zarr store lies if not in the run folder: s3://bucket/name.zarr, or what fsspec knows."""
    overwrite: bool = neutral(False)
    """Make outputs again that other settings or other patches made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        devices = tuple(name for each in self.devices for name in each.split(",") if name)
        object.__setattr__(self, "devices", devices)
        require(bool(self.encoder.strip()), "--encoder: the name is empty.")
        require(
            self.batch_size is None or self.batch_size >= 1, f"--batch-size {self.batch_size}: at least 1."
        )
        require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")
        require(self.memory_mib >= 16, f"--memory-mib {self.memory_mib}: must be at least 16.")
        require(0 <= self.max_broken <= 1, f"--max-broken {self.max_broken}: a fraction, 0 to 1.")
        require(
            self.store_url is None or self.store == "zarr",
            f"--store-url {self.store_url}: only a zarr store can lie elsewhere; add --store zarr.",
        )
        require(
            not self.devices or self.device == "auto",
            f"--device {self.device} and --devices {' '.join(self.devices)}: give one of them.",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train and cross-validate a multiple instance learning model on the stored features."""

    run: Path = field(metadata={"neutral": True})
    """Run folder; reads RUN/features/ENCODER, writes RUN/models/NAME."""
    labels: Path = field(metadata={"neutral": True})
    """CSV with slide_id,label and optionally patient_id and split."""
    encoder: str | None = None
    """Whose features to train on; may be left out where the run holds those of one encoder."""
    name: str | None = neutral(None)
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
    device: str = neutral("auto")
    """auto (CUDA, else the CPU), cpu, cuda, cuda:1, ..."""
    overwrite: bool = neutral(False)
    """Train again a model that other settings or features made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        require(self.folds >= 2, f"--folds {self.folds}: at least 2 are needed to test on held-out patients.")
        for name in ("dropout", "patch_dropout", "label_smoothing"):
            value = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            require(0 <= value < 1, f"{flag} {value}: must be at least 0 and below 1.")
        require(0 < self.val_fraction <= 0.5, f"--val-fraction {self.val_fraction}: above 0, at most 0.5.")
        for name in (
            "hidden_dim", "attention_dim", "members", "epochs", "patience", "batch_size", "max_patches",
        ):  # fmt: skip
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} {value}: must be at least 1.")
        require(self.learning_rate > 0, f"--learning-rate {self.learning_rate}: must be positive.")
        require(self.weight_decay >= 0, f"--weight-decay {self.weight_decay}: must not be negative.")
        require(self.bootstrap >= 100, f"--bootstrap {self.bootstrap}: at least 100 samples.")
        if self.name is not None:
            check_name("--name", self.name)


@dataclass(frozen=True, kw_only=True)
class HeatmapConfig:
    """Draw where on each slide the model looked, from the stored features."""

    run: Path = field(metadata={"neutral": True})
    """Run folder; reads RUN/features and RUN/models/NAME, writes RUN/heatmaps/NAME/SLIDE_ID."""
    name: str | None = neutral(None)
    """Name of the model; may be left out where the run holds one."""
    slides: tuple[str, ...] = neutral(())
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
    workers: int = neutral(1)
    """Processes that work on slides side by side; 0 is one per core."""
    overwrite: bool = neutral(False)
    """Draw again what other settings or another model made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        require(0 < self.opacity <= 1, f"--opacity {self.opacity}: above 0 and at most 1.")
        require(200 <= self.overlay_px <= 8192, f"--overlay-px {self.overlay_px}: must be 200 to 8192.")
        require(0 <= self.top_patches <= 100, f"--top-patches {self.top_patches}: must be 0 to 100.")
        require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")
        if self.name is not None:
            check_name("--name", self.name)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write RUN/report.html: one self-contained page with scores, previews, heatmaps and what failed."""

    run: Path = field(metadata={"neutral": True})
    """Run folder."""
