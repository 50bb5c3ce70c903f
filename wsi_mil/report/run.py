"""Write RUN/report.html from what lies in the run folder, whichever stages have run.

Comes in: a run folder. Goes out: one page that holds its pictures, asks the network for nothing and needs no
JavaScript. Names and reasons come from outside and are escaped by the template engine.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from wsi_mil import store
from wsi_mil.config import ReportConfig
from wsi_mil.errors import ConfigError
from wsi_mil.parallel import Outcome, StageResult, progress
from wsi_mil.report import figures, gather
from wsi_mil.report.figures import Confusion, Picture
from wsi_mil.report.gather import CLASSES, Model, Slide

_PICTURE_BYTES = 13_500_000
"""For all pictures together: 18 MB in base64, so that a page of 200 slides stays under 20 MB."""

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True, kw_only=True)
class _Card:
    slide: Slide
    pictures: Sequence[Picture]
    remarks: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    model: Model
    confusion: Confusion | None
    figures: Sequence[Picture]
    remarks: Sequence[str]


def run(config: ReportConfig) -> StageResult:
    """Write RUN/report.html, in place of an older one; every slide's outcome is that it is on the page.

    Raises:
        ConfigError: there is no such folder, or no stage has run there.
    """
    if not config.run.is_dir():
        raise ConfigError(f"--run {config.run}: no such folder; give the one that `wsi-mil tile` wrote to.")
    stages = gather.read_stages(config.run)
    if all(stage.status == "not run" for stage in stages):
        raise ConfigError(f"--run {config.run}: no stage has run there; run `wsi-mil tile` first.")
    output = config.run / "report.html"
    with store.stage_record(config.run, "report", config) as record:
        store.sweep(config.run)
        models = gather.read_models(config.run)
        slides = gather.read_slides(config.run, stages, models)
        sheets = [_sheet(model) for model in models]
        taken = sum(len(picture.uri) for sheet in sheets for picture in sheet.figures)
        cards = _cards(slides, max(_PICTURE_BYTES - taken, _PICTURE_BYTES // 2))
        page = _render(
            run=config.run,
            written=datetime.now(UTC),
            stages=stages,
            problems=gather.problems(stages, models),
            sheets=sheets,
            cards=cards,
        )
        store.write_text(output, page)
        record["slides"], record["bytes"] = len(slides), output.stat().st_size
    outcomes = [
        Outcome(
            slide_id=card.slide.slide_id,
            status="done",
            facts={"reason": "; ".join(card.remarks)} if card.remarks else {},
        )
        for card in cards
    ]
    return StageResult(stage="report", output=output, outcomes=outcomes)


def _sheet(model: Model) -> _Sheet:
    """Return a model with its figures; one that cannot be read is a remark."""
    pictures, remarks = [], []
    for caption, path in model.figures:
        try:
            pictures.append(figures.embed(path, caption))
        except OSError as error:
            remarks.append(f"{path.name} cannot be read: {error}")
    return _Sheet(model=model, confusion=figures.confusion(model), figures=pictures, remarks=remarks)


def _cards(slides: Sequence[Slide], most: int) -> list[_Card]:
    """Return the slides with their pictures, which have about ``most`` bytes together."""
    budget = most // max(1, sum(len(slide.pictures) for slide in slides))
    cards = []
    with progress("report", len(slides)) as report:
        for slide in slides:
            pictures, remarks = [], list(slide.remarks)
            for caption, path in slide.pictures:
                try:
                    pictures.append(figures.shrink(path, caption, budget))
                except OSError as error:
                    remarks.append(f"the picture of {caption} cannot be read: {error}")
            cards.append(_Card(slide=slide, pictures=pictures, remarks=remarks))
            report(1)
    return cards


def _render(*, run: Path, **content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,  # for every template: jinja2's own choice goes by the name and passes over .j2
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = _duration
    environment.filters["plain"] = _plain
    environment.filters["figure"] = _figure
    environment.filters["words"] = _words
    environment.globals["CLASSES"] = CLASSES
    # Paths of files in the run, as links relative to the page.
    environment.filters["link"] = lambda path: quote(path.relative_to(run).as_posix())
    return environment.get_template(_TEMPLATE).render(run=run, **content)


def _duration(seconds: float) -> str:
    """Return seconds as people say them: 0.8 s, 41 s, 4 min 3 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_WORDS = {
    "auroc": "AUROC", "auprc": "AUPRC", "balanced_accuracy": "balanced accuracy", "f1": "F1", "ece": "ECE",
    "brier": "Brier score", "log_loss": "log loss", "r2": "R²", "mae": "mean absolute error", "rmse": "RMSE",
    "c_index": "C-index", "pearson": "Pearson's r", "spearman": "Spearman's rho",
}  # fmt: skip


def _words(name: str) -> str:
    """Return what a score is called; those of single labels are called 'score:LABEL'."""
    score, _, label = name.partition(":")
    return f"{_WORDS.get(score, score)}{': ' + label if label else ''}"


def _figure(value: float | None) -> str:
    """Return a score as it is printed: three digits, more of large ones."""
    if value is None:
        return "undefined"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
