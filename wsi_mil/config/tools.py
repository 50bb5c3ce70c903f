"""The configs of the commands beside the stages: encoders, verify, import, export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsi_mil.config.base import Location, check_mpp, neutral, require


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
class VerifyConfig:
    """Open, count and hash every file of a run against its record; name what is wrong, and leftovers."""

    run: Path
    """Run folder."""
    repair: bool = False
    """Remove leftovers of crashes, and files that are wrong, so that the stages make them again."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Take over patches and features that another tool made."""

    source: Path
    """Folder of the other tool's files."""
    tool: Literal["clam", "trident", "stamp", "slideflow", "atlaspatch", "slide2vec", "torchmil"]
    """Which tool made them (--from)."""
    run: Path
    """Run folder; features go to RUN/features/ENCODER, patches to RUN/patches."""
    encoder: str | None = None
    """Name of the encoder, where the files do not say it."""
    slides: Location | None = None
    """Folder, or manifest, of the slides themselves: fills in sizes and resolution that the files lack."""
    slide_mpp: float | None = None
    """Level-0 microns per pixel of all slides, where the files do not say it."""
    patch_px: int | None = None
    """Side of the patches in pixels at the target mpp, where the files do not say it."""
    mpp: float | None = None
    """Microns per pixel of the patches, where the files do not say it."""
    overwrite: bool = neutral(False)
    """Replace files of the run that differ."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        for flag, mpp in (("--slide-mpp", self.slide_mpp), ("--mpp", self.mpp)):
            if mpp is not None:
                check_mpp(flag, mpp)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the features of a run as another tool's files."""

    tool: Literal["clam", "trident", "stamp", "pt"]
    """Whose layout (--to)."""
    run: Path
    """Run folder; reads RUN/features/ENCODER."""
    output: Path
    """Folder to write to."""
    encoder: str | None = None
    """Whose features; may be left out where the run holds those of one encoder."""
    overwrite: bool = neutral(False)
    """Replace files that are there."""
