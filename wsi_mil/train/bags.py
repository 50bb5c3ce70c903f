"""From the run folder to bags with labels: what can be trained on, and what cannot, by name.

Comes in: labels and the features of one encoder. Goes out: a ``Cohort``, and an ``Outcome`` for every slide
that is not in it. It knows no model.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from wsi_mil import config as configs
from wsi_mil import manifest, store
from wsi_mil.config import TrainConfig
from wsi_mil.errors import LabelError
from wsi_mil.parallel import Outcome, console
from wsi_mil.train.packed import pack


@dataclass(frozen=True, kw_only=True)
class Bag:
    """One slide, or all slides of a patient: rows ``ranges`` (start, stop) of the packed array, at least one.

    ``name`` is the slide id, or the patient's. ``ranges[k]`` are the rows of ``slide_ids[k]``.
    """

    name: str
    slide_ids: tuple[str, ...]
    patient_id: str
    ranges: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        """Return how many patches it has."""
        return sum(stop - start for start, stop in self.ranges)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Bags and what is to be learnt about them, row by row in the order of their names.

    ``labels`` and ``targets`` have a row per bag. ``left_out`` are the slides that are not in it, with the
    reason. ``identity`` is that of all features.
    """

    packed: store.Packed
    bags: list[Bag]
    labels: manifest.Labels
    targets: manifest.Targets
    identity: dict[str, Any]
    left_out: list[Outcome]

    @property
    def features_digest(self) -> str:
        """Digest of the values of all features, by slide."""
        return configs.digest(dict(zip(self.packed.slide_ids, self.packed.checksums, strict=True)))

    @property
    def labels_digest(self) -> str:
        """Digest of the labels, patients, splits and groups of the bags."""
        labels, none = self.labels, ("",) * len(self.bags)
        columns = [labels.slide_ids, labels.labels, labels.patient_ids, labels.splits or none]
        columns += [labels.groups] if labels.groups is not None else []
        return configs.digest({name: each for name, *each in zip(*columns, strict=True)})


def read_cohort(config: TrainConfig) -> Cohort:
    """Read the labels, and pack the features they belong to.

    Slides that cannot be trained on are listed in ``left_out``: failed where a labelled slide has no
    features, no patches or an unreadable file, skipped where features have no label.

    Raises:
        ConfigError: no features of that encoder, or of several and none named; no column --group-by.
        LabelError: the labels are wrong in themselves or do not fit the features.
        FormatError: features of different encoders, weights, mpp or patch sizes.
        StoreError: there is no room for the packed features.
    """
    labels = manifest.read_labels(config.labels, config.task, config.group_by)
    if not labels.has_patients:
        _note(f"{labels.path}: no column 'patient_id'; each slide counts as its own patient.")
    if config.label_level == "patient":
        manifest.check_patients(labels)
    features = store.open_features(config.run, config.encoder or store.only_encoder(config.run))
    place = features.place
    match = manifest.match(labels, features.slide_ids(), place)
    manifest.make_targets(match.labels, config)  # bad labels are said before anything is packed
    left_out = [
        Outcome(slide_id=each, status="failed", reason=f"no features: not in {place}.{match.hint}")
        for each in match.without_features
    ]
    left_out += [Outcome(slide_id=each, status="skipped", reason="no label") for each in match.without_label]

    packed, failed = pack(config.run, features, match.labels.slide_ids)
    left_out += [Outcome(slide_id=each, status="failed", reason=reason) for each, reason in failed.items()]
    _say(left_out)
    if packed is None:
        raise LabelError(f"{labels.path}: no slide with a label has a patch in {place}; nothing to train on.")
    used = set(packed.slide_ids)
    kept = match.labels.take(i for i, each in enumerate(match.labels.slide_ids) if each in used)
    bags, rows = _bags(config, packed, kept)
    targets = manifest.make_targets(rows, config)
    for remark in (*targets.remarks, manifest.group_remark(kept)):
        if remark:
            _note(remark)
    return Cohort(
        packed=packed, bags=bags, labels=rows, targets=targets, identity=packed.identity, left_out=left_out
    )


def _bags(
    config: TrainConfig, packed: store.Packed, labels: manifest.Labels
) -> tuple[list[Bag], manifest.Labels]:
    """Return a bag per slide, or per patient, and the labels with a row for each; both sorted by name."""
    members = [[i] for i in range(len(labels.slide_ids))]
    rows = labels
    if config.patient_bags == "merge":
        if config.splits is not None or config.split not in ("auto", "column"):
            labels = dataclasses.replace(labels, splits=None)  # not asked for: it may contradict itself
        rows, members = manifest.by_patient(labels)
    bags = [
        Bag(
            name=name,
            slide_ids=tuple(packed.slide_ids[i] for i in each),
            patient_id=patient,
            ranges=tuple(packed.ranges[i] for i in each),
        )
        for name, patient, each in zip(rows.slide_ids, rows.patient_ids, members, strict=True)
    ]
    return bags, rows


def _note(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _say(left_out: list[Outcome]) -> None:
    """List what is not trained on, one line per reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for each in left_out:
        by_reason.setdefault((each.status, each.reason), []).append(each.slide_id)
    for (status, reason), names in by_reason.items():
        _note(f"{status}: {len(names)} slides ({manifest.some(names)}): {reason}")
