"""The config of heatmap."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_mil.config.base import Location, check_choices, check_name, check_slides, neutral, require
from wsi_mil.config.cluster import ClusterConfig
from wsi_mil.config.limits import LimitsConfig
from wsi_mil.config.share import check_share

Quantity = Literal["attention", "evidence", "probability"]
Normalize = Literal["minmax", "percentile", "none"]


@dataclass(frozen=True, kw_only=True)
class HeatmapConfig(LimitsConfig, ClusterConfig):
    """Draw what each patch had to do with a slide's prediction, from the stored features."""

    run: Path = field(metadata={"neutral": True})
    """Run folder; reads RUN/features and RUN/models/NAME, writes RUN/heatmaps/NAME/SLIDE_ID."""
    name: str | None = neutral(None)
    """Name of the model; may be left out where the run holds one."""
    slides: Location | None = neutral(None)
    """Where the slides are now, if not where they were tiled: folder, manifest CSV slide_id,path, or URL.
    Each is found by its id and checked by its fingerprint; what is not there is looked for where it was."""
    only: tuple[str, ...] = neutral(())
    """Slide ids to draw; default: every slide of the run that has features of the model's encoder."""
    show: Quantity = "attention"
    """What the pictures show. attention: the weight of a patch in the bag. evidence: attention x the patch's
    contribution to the output's logit, signed; it sums, with the bias, to the logit. probability: what the
    model says of each patch as a bag of one. All that the model has are stored, whatever is shown."""
    output_class: str | None = None
    """Which class, label, threshold (`above GRADE`) or interval the pictures show; default: the positive of
    two classes, the most probable of more."""
    normalize: Normalize = "minmax"
    """Scale of the colours: minmax is (a - min a) / (max a - min a), as in Ilse et al.; percentile is the
    rank of a patch within its slide; none is the raw values. Of signed evidence 0 stays in the middle. The
    stored values are always the raw ones."""
    smooth: float = 0.0
    """Blur the colours over so many patches (standard deviation). Cosmetic, and labelled so; values are not
    touched."""
    opacity: float = 0.6
    """Opacity of the colours over the slide where the value is highest; a third of it where it is lowest."""
    overlay_px: int = 1400
    """Longer side of the slide in the overlay picture."""
    format: Literal["jpg", "png"] = "jpg"
    """Format of the pictures."""
    top_patches: int = 12
    """How many of the highest, and of the lowest, patches to show in top_patches and bottom_patches."""
    top_part: float = 0.1
    """Part of the patches that is a top region: outlined in heatmap.geojson, and made finer by --overlap."""
    overlap: float = 0.0
    """Embed the top regions again with patches that overlap by this fraction, for a finer map of them (0 is
    not; 0.5 and 0.75 halve and quarter the step). Needs the slide and the encoder."""
    faithfulness: bool = neutral(False)
    """Measure whether the map is true: remove the highest patches first, and put them back first, against a
    random order; for each slide and for all (faithfulness.csv, faithfulness.json)."""
    draws: int = neutral(20)
    """Random orders that --faithfulness compares with."""
    seed: int = neutral(0)
    """Seed of the random orders and of the intervals over slides."""
    annotations: Path | None = neutral(None)
    """Folder with a SLIDE_ID.geojson of outlines (level-0 pixels) for each annotated slide: the map's AUROC
    and Dice against them (annotations.csv, annotations.json)."""
    weights: Path | None = neutral(None)
    """For --overlap: local file with the encoder's weights, as embed was given."""
    weights_dir: Path | None = neutral(None)
    """For --overlap: folder of encoders' weights, as embed was given."""
    workers: int = neutral(1)
    """Processes that work on slides side by side; 0 is one per core."""
    share: str = neutral("")
    """K/N: only the Kth of N shares of the slides, as a task of an array job wants it (3/16). The tables of
    the shares are joined."""
    overwrite: bool = neutral(False)
    """Draw every heatmap again, also those that other settings or another model made."""

    def __post_init__(self) -> None:
        """Check ranges; raise ConfigError in the flag's own words."""
        super().__post_init__()
        self.check_limits()
        check_choices(self)
        check_slides(self)
        check_share(self.share)
        require(
            not self.share or not (self.faithfulness or self.annotations),
            f"--share {self.share}: --faithfulness and --annotations are of all slides; ask for them "
            "in a call of its own when the shares are drawn.",
        )
        require(0 < self.opacity <= 1, f"--opacity {self.opacity}: above 0 and at most 1.")
        require(200 <= self.overlay_px <= 8192, f"--overlay-px {self.overlay_px}: must be 200 to 8192.")
        require(0 <= self.top_patches <= 100, f"--top-patches {self.top_patches}: must be 0 to 100.")
        require(0 < self.top_part <= 1, f"--top-part {self.top_part}: above 0 and at most 1.")
        require(0 <= self.overlap <= 0.9, f"--overlap {self.overlap}: must be 0 to 0.9.")
        require(0 <= self.smooth <= 10, f"--smooth {self.smooth}: must be 0 to 10 patches.")
        require(1 <= self.draws <= 1000, f"--draws {self.draws}: must be 1 to 1000.")
        require(self.workers >= 0, f"--workers {self.workers}: 0 (one per core) or more.")
        if self.name is not None:
            check_name("--name", self.name)
        if self.annotations is not None:
            require(self.annotations.is_dir(), f"--annotations {self.annotations}: no such folder.")
