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
from wsi_mil.config.cluster import ClusterConfig
from wsi_mil.config.limits import LimitsConfig
from wsi_mil.config.share import check_share

_MPP = 0.5  # one object: who gives --mpp 0.5 gives another, and so it is known whether somebody did

TISSUE_KINDS = ("auto", "otsu", "hed", "fluorescence")
"""Ways to find tissue that need nothing but the slide."""


@dataclass(frozen=True, kw_only=True)
class TileConfig(LimitsConfig, ClusterConfig):
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
    context_mpp: tuple[float, ...] = field(default=(), metadata={"further": "mpp"})
    """Further resolutions, also as --mpp given again: patches of the same pixels around the same centres,
    each in a run folder of its own, RUN/mpp_1 for 1.0."""
    patch_px: int = 256
    """Side of a patch in pixels at --mpp."""
    overlap_px: int = 0
    """Overlap of neighbouring patches in pixels at --mpp."""
    min_tissue: float = 0.1
    """Keep a patch when at least this fraction of it is tissue (0 keeps every patch of the grid)."""
    max_pen: float = 0.1
    """Keep a patch when at most this fraction of it is pen (1 keeps all)."""
    qc: Literal["thumbnail", "pixels"] = "thumbnail"
    """Quality of patches that is stored beside the coords. thumbnail: tissue, pen, saturation, black and
    white, for nothing. pixels: also blur and focus, for which every patch is read once."""
    max_blur_um: float | None = None
    """Keep a patch when it is blurred by at most so many microns, whatever its stain and contrast; needs --qc
    pixels. 1.6 leaves out what is soft at 20x; look at the stored values first."""
    min_focus: float | None = None
    """Keep a patch when its focus (variance of the Laplacian) is at least this; needs --qc pixels. Its
    scale depends on stain, scanner and --mpp; --max-blur-um does not."""
    max_patches: int | None = None
    """Keep at most so many patches of a slide; default: all."""
    sample: Literal["spatial", "random"] = "spatial"
    """Which ones --max-patches keeps. spatial: evenly over the tissue. random: any."""
    seed: int = 0
    """Seed of --max-patches."""
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
    tissue: str = "auto"
    """How tissue is found. otsu: coloured stains such as H&E. hed: faint ones, as the counterstain of IHC.
    fluorescence: light on black. auto: one of these, by what the slide shows. geojson:DIR: as drawn in
    DIR/SLIDE_ID.geojson (QuPath). onnx:FILE: by a segmenter of your own."""
    tissue_classes: tuple[str, ...] = ()
    """Classes of annotations that count as tissue (--tissue geojson:DIR); default: all."""
    tissue_mpp: float = 8.0
    """Microns per pixel of the thumbnail on which tissue is found."""
    min_area_um2: float = 10_000.0
    """Tissue pieces smaller than this are dropped (square microns)."""
    max_hole_um2: float = 10_000.0
    """Holes smaller than this are filled; larger ones stay background (square microns)."""
    closing_um: float = 12.0
    """Gaps in the tissue narrower than twice this are closed (microns)."""
    save_patches: Literal["none", "zip", "webdataset"] = neutral("none")
    """Also write the pixels of a slide's patches, as PNG in RUN/patches/SLIDE_ID.zip, or in a .tar as
    webdataset reads it. Nothing here needs them."""
    workers: int = neutral(0)
    """Processes that work on slides side by side; 0 is one per core, 1 is none besides this one."""
    share: str = neutral("")
    """K/N: only the Kth of N shares of the slides, as a task of an array job wants it (3/16). The tables of
    the shares are joined."""
    overwrite: bool = neutral(False)
    """Make outputs again that other settings made, instead of stopping."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        super().__post_init__()
        self.check_limits()
        object.__setattr__(self, "slides", location(self.slides))  # the command line gives text
        self._take_magnification()
        object.__setattr__(self, "context_mpp", tuple(self.context_mpp))  # a list in Python is fine
        object.__setattr__(self, "tissue_classes", tuple(self.tissue_classes))
        check_choices(self)
        check_mpp("--mpp", self.mpp)
        if self.slide_mpp is not None:
            check_mpp("--slide-mpp", self.slide_mpp)
        require(16 <= self.patch_px <= 8192, f"--patch-px {self.patch_px}: must be 16 to 8192 pixels.")
        require(
            0 <= self.overlap_px < self.patch_px,
            f"--overlap-px {self.overlap_px}: must be at least 0 and below --patch-px ({self.patch_px}).",
        )
        for each in self.context_mpp:
            check_mpp("--context-mpp", each)
        require(
            len({self.mpp, *self.context_mpp}) == 1 + len(self.context_mpp),
            f"--mpp {self.mpp:g} and --context-mpp {', '.join(f'{each:g}' for each in self.context_mpp)}: "
            "a resolution stands there twice.",
        )
        require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")
        check_share(self.share)
        self._check_quality()
        self._check_tissue()

    def _check_quality(self) -> None:
        for name in ("min_tissue", "max_pen"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"--{name.replace('_', '-')} {value}: a fraction, 0 to 1.")
        require(
            self.min_focus is None or self.min_focus >= 0,
            f"--min-focus {self.min_focus}: must not be negative.",
        )
        require(
            self.max_blur_um is None or self.max_blur_um > 0,
            f"--max-blur-um {self.max_blur_um}: must be above 0.",
        )
        require(
            self.min_focus is None or self.qc == "pixels",
            f"--min-focus {self.min_focus}: focus is a matter of pixels; add --qc pixels.",
        )
        require(
            self.max_blur_um is None or self.qc == "pixels",
            f"--max-blur-um {self.max_blur_um}: blur is a matter of pixels; add --qc pixels.",
        )
        require(
            self.max_patches is None or self.max_patches >= 1,
            f"--max-patches {self.max_patches}: must be at least 1.",
        )
        require(self.seed >= 0, f"--seed {self.seed}: must not be negative.")

    def _check_tissue(self) -> None:
        kind, _, place = self.tissue.partition(":")
        require(
            self.tissue in TISSUE_KINDS or (kind in {"geojson", "onnx"} and bool(place)),
            f"--tissue {self.tissue}: unknown; wanted {', '.join(TISSUE_KINDS)}, geojson:DIR or onnx:FILE.",
        )
        require(
            not self.tissue_classes or kind == "geojson",
            f"--tissue-classes {' '.join(self.tissue_classes)}: only with --tissue geojson:DIR.",
        )
        require(
            self.mpp <= self.tissue_mpp <= 64,
            f"--tissue-mpp {self.tissue_mpp}: must lie between --mpp ({self.mpp}) and 64.",
        )
        require(self.min_area_um2 >= 0, f"--min-area-um2 {self.min_area_um2}: must not be negative.")
        require(self.max_hole_um2 >= 0, f"--max-hole-um2 {self.max_hole_um2}: must not be negative.")
        require(0 <= self.closing_um <= 500, f"--closing-um {self.closing_um}: must be 0 to 500 microns.")

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
