"""Walk a run's slides and write RUN/predictions/<name>: what a model trained elsewhere says of each.

Comes in: stored features, a model and, to score by, labels. Goes out: predictions.csv with its record,
and metrics.json. One slide's failure is its own.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from wsi_mil import config as configs
from wsi_mil import manifest, models, parallel, store
from wsi_mil.config import PredictConfig
from wsi_mil.device import pick_device
from wsi_mil.errors import ConfigError, FormatError, StaleOutputError
from wsi_mil.parallel import Outcome, StageResult, console
from wsi_mil.predict import evaluate
from wsi_mil.predict.ensemble import Ensemble, predict_slide, read_ensemble
from wsi_mil.store import FeatureStore, Predictions

EVERY = 60.0
"""Seconds after which what has been predicted is on disk: all that a kill can cost."""

_COLUMNS = ("slide_id", "status", "seconds", "patches", "predicted", "trained_on", "reason")


def run(config: PredictConfig) -> StageResult:
    """Predict every slide of the run that has features of the model's encoder; one bad slide does not end it.

    Slides that were predicted by the same model from the same features are left as they are. A slide without
    patches, with damaged features or with features of another kind is a failed outcome, and so is a labelled
    slide without features.

    Raises:
        ConfigError: no model, no features of its encoder, or a setting that cannot be.
        FormatError: the model is damaged, or of an earlier version.
        LabelError: the labels are wrong in themselves, or not the model's.
        StaleOutputError: RUN/predictions/NAME was made by another model, or its scores by other labels.
    """
    with store.stage_record(config.run, "predict", config) as notes:
        ensemble = read_ensemble(config.model, pick_device(config.device))
        features = store.open_features(config.run, ensemble.encoder)
        slide_ids = features.slide_ids()
        if not slide_ids:
            raise ConfigError(f"{features.place}: no features there; run `wsi-mil embed` first.")
        known = None
        if config.labels is not None:
            known = evaluate.read_known(config, ensemble, slide_ids, features.place)
        output = store.predictions_folder(config.run, ensemble.name)
        store.sweep(output.parent)
        work = _Work(config, ensemble, features)
        notes |= {"model": ensemble.name, "device_used": str(ensemble.folds[0].mean_D.device)}
        _say(ensemble, slide_ids)
        outcomes = work.run(slide_ids)
        if known is not None:
            outcomes += _without_features(known, slide_ids)
        outcomes.sort(key=lambda each: each.slide_id)
        store.write_csv(
            config.run / "predict" / "slides.csv", _COLUMNS, [work.facts(each) for each in outcomes]
        )
        if known is not None and work.predictions.rows:
            work.score(known)
    return StageResult(stage="predict", output=output, outcomes=outcomes)


class _Work:
    """The predictions of one model on one run: those of before, and those that are added."""

    def __init__(self, config: PredictConfig, ensemble: Ensemble, features: FeatureStore) -> None:
        """Read what is there already.

        Raises:
            StaleOutputError: it was made by another model. FormatError: it is damaged.
        """
        self.config, self.ensemble, self.features = config, ensemble, features
        self.folder = store.predictions_folder(config.run, ensemble.name)
        self.predictions = Predictions(
            record=json.loads(json.dumps(ensemble.record)),
            facts={"task": ensemble.task, "names": list(ensemble.names)},
            columns=ensemble.columns,
        )
        self._changed = False
        if self.folder.exists() and not config.overwrite:
            found = store.read_predictions(self.folder)
            store.same_record(found.record, self.predictions.record, self.folder)
            self.predictions.rows.update(found.rows)
            self.predictions.features.update(found.features)

    def run(self, slide_ids: Sequence[str]) -> list[Outcome]:
        """Predict what is not there; what was done is kept also when this is interrupted."""
        outcomes, last = [], time.monotonic()
        try:
            with parallel.progress("predict", len(slide_ids)) as report:
                for slide_id in slide_ids:
                    outcome = parallel.attempt(slide_id, self._predict, slide_id)
                    outcomes.append(outcome)
                    report(outcome)
                    if time.monotonic() - last > EVERY:
                        self._write()
                        last = time.monotonic()
        finally:
            self._write()
        return outcomes

    def facts(self, outcome: Outcome) -> dict[str, object]:
        """Return an outcome's row of slides.csv, with what is said of the slide."""
        row = self.predictions.rows.get(outcome.slide_id, {})
        said = {name: row.get(name, "") for name in ("patches", "predicted", "trained_on")}
        return outcome.row() | (said if outcome.status != "failed" else {})

    def score(self, known: evaluate.Known) -> None:
        """Write the scores of the predictions beside them, unless they are there.

        Raises:
            StaleOutputError: they are there, by other labels or settings.
        """
        table = store.table_checksum(self.folder)
        record = evaluate.record(self.config, known, table)
        path = self.folder / "metrics.json"
        if path.exists() and store.same_record(_record_of(path), record, path, self.config.overwrite):
            return
        files = evaluate.evaluate(self.config, self.ensemble, known, self.predictions.rows)
        content = json.loads(files["metrics.json"])
        content |= {"config": record, "config_digest": configs.digest(record)}
        files["metrics.json"] = json.dumps(content, indent=2) + "\n"
        store.write_predictions(self.folder, self.predictions, files)
        _say_scores(content)

    def _predict(self, slide_id: str) -> Mapping[str, Any] | None:
        summary = self.features.summary(slide_id)
        models.check_identity(self.ensemble.head, summary.head.identity, slide_id)
        checksum = summary.checksums.get("features")
        if slide_id in self.predictions.rows and checksum == self.predictions.features[slide_id] is not None:
            return None
        item = self.features.read(slide_id)
        checksum = checksum or store.checksum_of(item.features)
        if slide_id in self.predictions.rows:
            if checksum == self.predictions.features[slide_id]:
                return None
            raise StaleOutputError(
                f"{slide_id}: its features are others than those that it was predicted from; "
                "predict again with --overwrite."
            )
        row = self.ensemble.row(slide_id, len(item.features), predict_slide(item.features, self.ensemble))
        self.predictions.rows[slide_id] = row
        self.predictions.features[slide_id] = checksum
        self._changed = True
        return {}

    def _write(self) -> None:
        """Write what is new; scores of fewer slides go."""
        if not self._changed:
            return
        if (self.folder / "metrics.json").exists() and self.config.labels is None:
            console.print(
                f"{self.folder / 'metrics.json'}: was of fewer slides and is removed; "
                "score again with --labels.",
                markup=False,
            )
        store.write_predictions(self.folder, self.predictions)
        self._changed = False


def _record_of(path: Any) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: cannot be read ({error!r}); score again with --overwrite.") from error


def _without_features(known: evaluate.Known, slide_ids: Sequence[str]) -> list[Outcome]:
    there = set(slide_ids)
    return [
        Outcome(slide_id=each, status="failed", reason="labelled, and has no features")
        for each in known.labels.slide_ids
        if each not in there
    ]


def _say(ensemble: Ensemble, slide_ids: Sequence[str]) -> None:
    """Say what a reader of the predictions must not overlook."""
    learnt = [each for each in slide_ids if each in ensemble.learnt]
    if learnt:
        console.print(
            f"[bold red]{len(learnt)} slides are among those that the model was trained on[/bold red] ",
            end="",
        )
        console.print(
            f"({manifest.some(learnt)}), by their ids in {ensemble.folder / 'splits.csv'}: what it says of "
            "them is no evidence of what it says of new slides. They are marked in the column trained_on.",
            markup=False,
        )
    if ensemble.merged:
        console.print(
            "The model was trained on bags of all slides of a patient; here slides are predicted one by one, "
            "and a patient is the mean of its slides.",
            markup=False,
        )


def _say_scores(content: Mapping[str, Any]) -> None:
    name = content["leading"]
    score = content["scores"][name]
    value = "undefined" if score["value"] is None else f"{score['value']:.3f}"
    if score["low"] is not None:
        value += f" ({score['low']:.3f} to {score['high']:.3f})"
    of = f"{content['n_patients']} patients, {content['n_slides']} slides"
    left_out = f"; {len(content['left_out'])} labelled slides not scored" if content["left_out"] else ""
    console.print(f"{name} {value} over {of}{left_out}", markup=False)
