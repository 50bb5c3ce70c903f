"""Write RUN/report.html from what lies in the run folder, whichever stages have run.

Comes in: a run folder. Goes out: one page that holds its pictures and asks the network for nothing. The
slides are read for one picture each, which is kept in RUN/report/thumbnails.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from wsi_mil import store
from wsi_mil.config import ReportConfig
from wsi_mil.errors import ConfigError, FormatError
from wsi_mil.locate import SlideFinder, slide_finder
from wsi_mil.parallel import Outcome, StageResult, progress
from wsi_mil.report import figures, gather
from wsi_mil.report.gather import Model, Slide
from wsi_mil.report.layers import Layer, layers
from wsi_mil.report.page import Card, Sheet, render
from wsi_mil.report.thumbnails import thumbnail

_PICTURE_BYTES = 13_500_000
"""For all pictures together: 18 MB in base64, so that a page of 200 slides stays under 20 MB."""

_HEAT_PART = 0.35  # of a slide's share; the rest is its picture
_HEAT_BYTES = 60_000  # at most, of a slide


def run(config: ReportConfig) -> StageResult:
    """Write RUN/report.html, in place of an older one; every slide's outcome is that it is on the page.

    Raises:
        ConfigError: there is no such folder, no stage has run there, or ``slides`` holds no slide.
        LabelError: ``slides`` is a manifest that is wrong.
    """
    if not config.run.is_dir():
        raise ConfigError(f"--run {config.run}: no such folder; give the one that `wsi-mil tile` wrote to.")
    stages = gather.read_stages(config.run)
    if all(stage.status == "not run" for stage in stages):
        raise ConfigError(f"--run {config.run}: no stage has run there; run `wsi-mil tile` first.")
    output = config.run / "report.html"
    finder = slide_finder(config.slides)
    with store.stage_record(config.run, "report", config) as record:
        store.sweep(config.run)
        models = gather.read_models(config.run)
        slides = gather.read_slides(config.run, stages, models)
        sheets = [_sheet(model) for model in models]
        taken = sum(len(picture.uri) for sheet in sheets for picture in sheet.figures)
        cards = _cards(config.run, slides, finder, max(_PICTURE_BYTES - taken, _PICTURE_BYTES // 2))
        page = render(
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


def _sheet(model: Model) -> Sheet:
    """Return a model with its figures; one that cannot be read is a remark."""
    pictures, remarks = [], []
    for caption, path in model.figures:
        try:
            pictures.append(figures.embed(path, caption))
        except OSError as error:
            remarks.append(f"{path.name} cannot be read: {error}")
    return Sheet(model=model, confusion=figures.confusion(model), figures=pictures, remarks=remarks)


def _cards(run: Path, slides: Sequence[Slide], finder: SlideFinder, most: int) -> list[Card]:
    """Return the slides with their pictures and layers, which have about ``most`` bytes together."""
    budget = most // max(1, len(slides))
    with progress("report", len(slides)) as report, ThreadPoolExecutor(os.cpu_count()) as pool:

        def card(slide: Slide) -> Card:
            made = _card(run, slide, finder, budget)
            report(1)
            return made

        return list(pool.map(card, slides))


def _card(run: Path, slide: Slide, finder: SlideFinder, budget: int) -> Card:
    geometry = None if slide.place is None else slide.place.geometry
    found: list[Layer] = []
    remarks, picture = [], None
    for name, heatmap in _heatmaps(slide):
        geometry = geometry or heatmap.geometry
        some, left_out = layers(
            heatmap, name, min(_HEAT_BYTES, int(budget * _HEAT_PART)) // len(slide.heatmaps)
        )
        found += some
        if left_out:
            remarks.append(
                f"heatmap of {name}: no room on the page for {', '.join(left_out)}; `wsi-mil view` shows all"
            )
    if slide.place is not None:
        path, why = thumbnail(run, slide.slide_id, slide.place, finder)
        caption = (
            f"the preview with its patches framed, because the slide cannot be read ({why})" if why else ""
        )
        left = budget - sum(len(each.uri) for each in found) * 3 // 4
        try:
            picture = figures.shrink(path, caption, left) if path is not None else None
        except OSError as error:
            remarks.append(f"the picture of tissue and patches cannot be read: {error}")
    return Card(
        slide=slide, geometry=geometry, picture=picture, layers=found, remarks=[*slide.remarks, *remarks]
    )


def _heatmaps(slide: Slide) -> Iterator[tuple[str, store.Heatmap]]:
    """Yield its heatmaps by the model's name; of one that cannot be read there is a remark already."""
    for name, folder in slide.heatmaps.items():
        try:
            yield name, store.read_heatmap(folder / "heatmap.zarr")
        except (FormatError, OSError, KeyError):
            continue
