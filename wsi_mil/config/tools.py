"""The configs of the commands beside the stages: run, view, inspect, encoders, verify, import, export."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_mil.config.base import (
    Icc,
    Location,
    check_choices,
    check_mpp,
    check_slides,
    location,
    neutral,
    require,
)
from wsi_mil.config.cluster import ClusterConfig
from wsi_mil.config.limits import LimitsConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig(ClusterConfig):
    """Do all stages that a TOML file has tables for, in their order; what is done is skipped."""

    pipeline: Path = field(metadata={"positional": "PIPELINE.toml", "neutral": True})
    """File with a table for each stage ([tile], [embed], [train], [heatmap], [report]) and, for a cluster to
    do the work, [cluster]."""
    run: Path | None = neutral(None)
    """Run folder, instead of those that the tables name."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Look at the run's slides in the browser, at full resolution, with their heatmaps over them."""

    run: Path = field(metadata={"neutral": True})
    """Run folder."""
    slides: Location | None = neutral(None)
    """Where the slides are now, if not where they were tiled: folder, manifest CSV slide_id,path, or URL.
    Each is found by its id and checked by its fingerprint; what is not there is looked for where it was."""
    port: int = neutral(0)
    """Port on 127.0.0.1; 0 picks a free one."""
    token: bool = neutral(True)
    """Put a secret into the address, so that other users of this machine cannot open it."""
    cache_mib: int = neutral(256)
    """Memory for parts of slides that were shown before, in MiB."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        check_slides(self)
        require(0 <= self.port <= 65535, f"--port {self.port}: 0 (a free one) to 65535.")
        require(1 <= self.cache_mib <= 65536, f"--cache-mib {self.cache_mib}: must be 1 to 65536.")


@dataclass(frozen=True, kw_only=True)
class EncodersConfig:
    """List the encoders that have a name here, and what their authors prescribe; fetch their weights."""

    json: bool = False
    """Print JSON instead of a table."""
    download: tuple[str, ...] = ()
    """Names of encoders whose weights to fetch into --weights-dir (needs a network)."""
    weights_dir: Path | None = None
    """Folder of weights, one file per encoder: what --download fills and `embed --weights-dir` reads."""

    def __post_init__(self) -> None:
        """Check that a download has a place to go to."""
        require(
            not self.download or self.weights_dir is not None,
            "--download: say where to with --weights-dir DIR.",
        )


@dataclass(frozen=True, kw_only=True)
class InspectConfig(LimitsConfig):
    """Look at slides before work begins: what they are, what is wrong with them, and what to do."""

    slides: tuple[Location, ...] = field(metadata={"positional": "SLIDES"})
    """Folders of slides (with their sub-folders), slides, manifests (CSV slide_id,path[,mpp]), or URLs."""
    json: bool = False
    """Print JSON instead of tables."""
    labels: Path | None = None
    """CSV with a column slide_id: names the labels without a slide and the slides without a label."""
    pattern: str = ""
    """Only files that match this glob, e.g. '*.svs' (folders are searched)."""
    mpp: float | None = None
    """Microns per pixel that the slides are to be tiled at: those that are coarser count as wrong."""
    slide_mpp: float | None = None
    """Level-0 microns per pixel for every slide, whatever the files say (a manifest's mpp column wins)."""
    reader: Literal["auto", "openslide", "tiffslide"] = "auto"
    """Library that reads the slides; auto is OpenSlide, and tiffslide for what OpenSlide cannot open."""
    icc: Icc = "none"
    """srgb: slides without an ICC profile that can be used count as wrong: `tile --icc srgb` fails them."""
    workers: int = 0
    """Processes that work on slides side by side; 0 is one per core, 1 is none besides this one."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        object.__setattr__(self, "slides", tuple(map(location, self.slides)))  # the command line gives text
        require(bool(self.slides), "SLIDES: name a folder, a slide, a manifest or a URL.")
        check_choices(self)
        for flag, mpp in (("--mpp", self.mpp), ("--slide-mpp", self.slide_mpp)):
            if mpp is not None:
                check_mpp(flag, mpp)
        self.check_limits()
        require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Open, count and hash every file of a run against its record; name what is wrong, and leftovers."""

    run: Path
    """Run folder."""
    repair: bool = False
    """Remove leftovers of crashes, and files that are wrong, so that the stages make them again."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Take over patches and features that another tool made."""

    tool: Literal["clam", "trident", "stamp", "slideflow", "atlaspatch", "slide2vec", "torchmil"] = field(
        metadata={"flag": "from"}
    )
    """Which tool made the files."""
    source: Path = field(metadata={"positional": "DIR", "neutral": True})
    """Folder of the other tool's files (with its sub-folders)."""
    run: Path = field(metadata={"neutral": True})
    """Run folder; features go to RUN/features/ENCODER, where patches lie to RUN/patches."""
    encoder: str | None = None
    """Name of the encoder where the files do not say it; where they hold several, which to take over."""
    slides: Location | None = neutral(None)
    """Folder of the slides, or manifest CSV slide_id,path[,mpp]: gives size and resolution where the files
    lack them. A manifest with columns width,height,mpp (level 0) needs no slide."""
    slide_mpp: float | None = None
    """Level-0 microns per pixel of all slides, where neither the files nor the slides say it."""
    mpp: float | None = None
    """Microns per pixel of the patches where the files do not say it; they may be up to 5 % off it."""
    patch_px: int | None = None
    """Side of the patches in pixels at their mpp, where the files do not say it."""
    overlap_px: int | None = None
    """Overlap of neighbouring patches in pixels at their mpp, where neither files nor coords show it."""
    workers: int = neutral(0)
    """Processes that work on slides side by side; 0 is one per core, 1 is none besides this one."""
    overwrite: bool = neutral(False)
    """Replace what other sources or settings made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        check_slides(self)
        for flag, mpp in (("--slide-mpp", self.slide_mpp), ("--mpp", self.mpp)):
            if mpp is not None:
                check_mpp(flag, mpp)
        if self.patch_px is not None:
            require(1 <= self.patch_px <= 65536, f"--patch-px {self.patch_px}: must be 1 to 65536 pixels.")
        if self.overlap_px is not None:
            require(self.overlap_px >= 0, f"--overlap-px {self.overlap_px}: must not be negative.")
        require(self.encoder is None or bool(self.encoder.strip()), "--encoder: the name is empty.")
        require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the features of a run as another tool's files."""

    tool: Literal["clam", "trident", "stamp", "pt"] = field(metadata={"flag": "to"})
    """Whose layout: CLAM's, TRIDENT's, STAMP's, or a plain tensor per slide (pt)."""
    run: Path = field(metadata={"neutral": True})
    """Run folder; reads RUN/features/ENCODER."""
    output: Path = field(metadata={"neutral": True})
    """Folder to write to."""
    encoder: str | None = None
    """Whose features; may be left out where the run holds those of one encoder."""
    workers: int = neutral(0)
    """Processes that work on slides side by side; 0 is one per core, 1 is none besides this one."""
    overwrite: bool = neutral(False)
    """Replace files that are there with other content, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")
