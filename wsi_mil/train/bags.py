"""From the run folder to bags with labels: what can be trained on, and what cannot, by name.

Comes in: labels and the features of one encoder. Goes out: a ``Cohort``, and an ``Outcome`` for every slide
that is not in it. It knows no model.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil import manifest, store
from wsi_mil.config import TrainConfig
from wsi_mil.errors import FormatError, LabelError
from wsi_mil.parallel import Outcome, console


@dataclass(frozen=True, kw_only=True)
class Bag:
    """One slide's features (N, D) float16, N >= 1, and the digest of their values."""

    slide_id: str
    features_ND: NDArray[np.float16]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Bags and their labels, row by row in the order of the slide ids.

    ``codes_N`` are positions in ``classes``; of two classes the positive one is the second. ``left_out`` are
    the slides that are not in it, with the reason. ``identity`` is that of all features.
    """

    bags: list[Bag]
    labels: manifest.Labels
    classes: tuple[str, ...]
    codes_N: NDArray[np.int64]
    identity: dict[str, Any]
    left_out: list[Outcome]

    @property
    def features_digest(self) -> str:
        """Digest of the values of all features."""
        return configs.digest({bag.slide_id: bag.digest for bag in self.bags})

    @property
    def labels_digest(self) -> str:
        """Digest of the labels, patients and splits of the slides in the cohort."""
        splits = self.labels.splits or ("",) * len(self.bags)
        columns = zip(self.labels.slide_ids, self.labels.labels, self.labels.patient_ids, splits, strict=True)
        return configs.digest({slide: each for slide, *each in columns})


def read_cohort(config: TrainConfig) -> Cohort:
    """Read the labels and the features they belong to.

    Slides that cannot be trained on are listed in ``left_out``: failed where a labelled slide has no
    features, no patches or an unreadable file, skipped where features have no label.

    Raises:
        ConfigError: no features of that encoder, or of several and none named.
        LabelError: the labels are wrong in themselves or do not fit the features.
        FormatError: features of different encoders, weights, mpp or patch sizes.
    """
    labels = manifest.read_labels(config.labels)
    if not labels.has_patients:
        console.print(
            f"{labels.path}: no column 'patient_id'; each slide counts as its own patient.",
            markup=False,
            soft_wrap=True,
        )
    if config.label_level == "patient":
        manifest.check_patients(labels)
    features = store.open_features(config.run, config.encoder or store.only_encoder(config.run))
    place = features.place
    match = manifest.match(labels, features.slide_ids(), place)
    left_out = [
        Outcome(slide_id=each, status="failed", reason=f"no features: not in {place}.{match.hint}")
        for each in match.without_features
    ]
    left_out += [Outcome(slide_id=each, status="skipped", reason="no label") for each in match.without_label]

    bags, identity, failed = _read_bags(features, match.labels.slide_ids)
    left_out += failed
    _say(left_out)
    if not bags:
        raise LabelError(f"{labels.path}: no slide with a label has a patch in {place}; nothing to train on.")
    used = {bag.slide_id for bag in bags}
    kept = match.labels.take(i for i, each in enumerate(match.labels.slide_ids) if each in used)
    classes = manifest.classes_of(kept, config.positive)
    codes = np.array([classes.index(label) for label in kept.labels], np.int64)
    return Cohort(
        bags=bags, labels=kept, classes=classes, codes_N=codes, identity=identity, left_out=left_out
    )


def _read_bags(
    features: store.FeatureStore, slide_ids: Sequence[str]
) -> tuple[list[Bag], dict[str, Any], list[Outcome]]:
    """Return the bags that can be used, the identity they share, and the failures of the others."""
    bags: list[Bag] = []
    failed: list[Outcome] = []
    identity: dict[str, Any] = {}
    first = ""
    for slide_id in slide_ids:
        try:
            item = features.read(slide_id)
        except FormatError as error:
            failed.append(Outcome(slide_id=slide_id, status="failed", reason=str(error)))
            continue
        if not len(item.features):
            reason = "0 patches: no tissue was found on it, so there is nothing to train on or to score"
            failed.append(Outcome(slide_id=slide_id, status="failed", reason=reason))
            continue
        if not identity:
            identity, first = item.identity, features.where(slide_id)
        difference = configs.first_difference(identity, item.identity)
        if difference is not None:
            raise FormatError(
                f"{features.where(slide_id)}: other features than {first}: {difference}. One model "
                "needs one kind; tile and embed all slides with the same settings."
            )
        digest = hashlib.sha256(np.ascontiguousarray(item.features).tobytes()).hexdigest()[:16]
        bags.append(Bag(slide_id=slide_id, features_ND=item.features, digest=digest))
    return bags, identity, failed


def _say(left_out: list[Outcome]) -> None:
    """List what is not trained on, one line per reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for each in left_out:
        by_reason.setdefault((each.status, each.reason), []).append(each.slide_id)
    for (status, reason), names in by_reason.items():
        console.print(
            f"{status}: {len(names)} slides ({manifest.some(names)}): {reason}", markup=False, soft_wrap=True
        )
