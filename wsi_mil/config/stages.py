"""The configs of the stages but tile, train and heatmap: embed, predict, report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_mil.config.base import Location, check_slides, neutral, require
from wsi_mil.config.cluster import ClusterConfig
from wsi_mil.config.limits import LimitsConfig


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(LimitsConfig, ClusterConfig):
    """Turn every patch into a feature vector with a pretrained encoder."""

    run: Path = field(metadata={"neutral": True})
    """Run folder; reads RUN/patches, writes RUN/features/ENCODER."""
    slides: Location | None = neutral(None)
    """Where the slides are now, if not where they were tiled: folder, manifest CSV slide_id,path, or URL.
    Each is found by its id and checked by its fingerprint; what is not there is looked for where it was."""
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
    """Arithmetic of the encoder; auto is bf16 where the hardware is fast at it (GPUs since Ampere; a CPU
    is measured) and the features stay the same, which is checked at the start; fp32 elsewhere."""
    compile: bool = neutral(False)
    """Compile the encoder with torch.compile: a minute at the start, then faster (CPUs need a compiler)."""
    batch_size: int | None = neutral(None)
    """Patches per forward pass; default: 32 on a CPU, 256 on a GPU. It is halved where the GPU's memory does
    not suffice."""
    workers: int = neutral(0)
    """Threads with which each reader reads its slide; 0 is what --readers leaves of the cores."""
    readers: int = neutral(0)
    """Processes that read slides, each one at a time; 0 is one per core that is left for each GPU, or one per
    four cores where a CPU computes. Each takes about 100 MiB and --memory-mib; their patches wait in a ring
    of memory, on a GPU 10 MiB for each 64 patches of 224 pixels, some 8 per device and 2 per reader."""
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
        super().__post_init__()
        self.check_limits()
        check_slides(self)
        devices = tuple(name for each in self.devices for name in each.split(",") if name)
        object.__setattr__(self, "devices", devices)
        require(bool(self.encoder.strip()), "--encoder: the name is empty.")
        require(
            self.batch_size is None or self.batch_size >= 1, f"--batch-size {self.batch_size}: at least 1."
        )
        require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")
        require(self.readers >= 0, f"--readers {self.readers}: 0 (chosen from cores and devices) or more.")
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
        require(
            not self.devices or not self.on_cluster,
            f"--devices {' '.join(self.devices)}: a cluster's workers have a device each; leave it out.",
        )


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Predict new slides by the mean of a trained model's folds; score them where there are labels."""

    run: Path = field(metadata={"neutral": True})
    """Run folder of the new slides; reads RUN/features, writes RUN/predictions/NAME (that of --model)."""
    model: Path = field(metadata={"neutral": True})
    """Folder of the trained model, such as OTHER/models/gated-attention; it says whose features are read."""
    labels: Path | None = neutral(None)
    """CSV with slide_id, label (survival: time and event) and optionally patient_id, to score predictions by.
    Slides that the model was trained on, and slides of its patients, are not scored."""
    label_level: Literal["patient", "slide"] | None = None
    """Whether scores are over patients (the mean of their slides) or slides; default: as in training."""
    bootstrap: int = 2000
    """Bootstrap samples (of patients) behind each 95 % interval of a score."""
    seed: int = 0
    """Seed of the bootstrap."""
    device: str = neutral("auto")
    """auto (CUDA, else Apple's MPS, else the CPU), cpu, cuda, cuda:1, ..."""
    overwrite: bool = neutral(False)
    """Predict again what another model, other features or other labels made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        require(self.bootstrap >= 100, f"--bootstrap {self.bootstrap}: at least 100 samples.")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write RUN/report.html: one self-contained page with scores, previews, heatmaps and what failed."""

    run: Path = field(metadata={"neutral": True})
    """Run folder."""
    slides: Location | None = neutral(None)
    """Where the slides are now, if not where they were tiled: folder, manifest CSV slide_id,path, or URL.
    Each is found by its id and checked by its fingerprint; what is not there is looked for where it was."""

    def __post_init__(self) -> None:
        """Check what --slides is."""
        check_slides(self)
