"""The config of the tile stage."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_mil.config.base import (
    MPP_MAX,
    MPP_MIN,
    Icc,
    Location,
    check_choices,
    check_mpp,
    location,
    neutral,
    require,
)

_MPP = 0.5  # one object: who gives --mpp 0.5 gives another, and so it is known whether somebody did


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
    mpp: float = _MPP
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
    magnification: float | None = neutral(None)
    """Instead of --mpp: 20 is --mpp 0.5, that is 10 / mpp, whatever a scanner calls 20x. Only the mpp is
    stored."""
    icc: Icc = "none"
    """srgb: bring colours to sRGB through each slide's own ICC profile, here and in the stages that follow; a
    slide without one fails."""
    allow_upsampling: bool = False
    """Enlarge slides that are coarser than --mpp, which adds no detail, instead of failing them."""
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
        self._take_magnification()
        check_choices(self)
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

    def _take_magnification(self) -> None:
        """Make the magnification microns per pixel, once, and forget it."""
        given = self.magnification
        if given is None:
            return
        require(
            self.mpp is _MPP,
            f"--mpp {self.mpp:g} and --magnification {given:g}: either says the resolution; give one.",
        )
        require(
            10 / MPP_MAX <= given <= 10 / MPP_MIN,
            f"--magnification {given:g}: must lie between {10 / MPP_MAX:g} and {10 / MPP_MIN:g}.",
        )
        object.__setattr__(self, "mpp", 10 / given)
        object.__setattr__(self, "magnification", None)
