"""Write the features of a run as another tool's files, one slide at a time.

Comes in: RUN/features/<encoder>. Goes out: the files that ``store.foreign`` lays out. A file that is there
with the same content is left alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wsi_mil import parallel, store
from wsi_mil.config import ExportConfig
from wsi_mil.errors import ConfigError, StaleOutputError
from wsi_mil.parallel import StageResult
from wsi_mil.store import foreign


@dataclass(frozen=True, kw_only=True)
class _Task:
    slide_id: str
    encoder: str
    config: ExportConfig


def export_run(config: ExportConfig) -> StageResult:
    """Write every slide's features in the layout of ``config.tool``; one bad slide does not end the run.

    Raises:
        ConfigError: no features, or those of several encoders and none named.
    """
    encoder = config.encoder or store.only_encoder(config.run)
    slide_ids = store.open_features(config.run, encoder).slide_ids()
    tasks = {each: _Task(slide_id=each, encoder=encoder, config=config) for each in slide_ids}
    if not tasks:
        raise ConfigError(f"{config.run}: no features of {encoder}; run `wsi-mil embed` first.")
    with store.stage_record(config.run, "export", config) as record:
        try:
            outcomes = parallel.map_slides(_export_one, tasks, title="export", workers=config.workers)
        finally:
            for each in (config.output, *config.output.glob("*/"), *config.output.glob("*/*/")):
                store.sweep(each)  # no layout is deeper
        record["slides"] = len(outcomes)
        columns = ("slide_id", "status", "seconds", "patches", "reason")
        store.write_csv(config.run / "export" / "slides.csv", columns, (each.row() for each in outcomes))
    return StageResult(stage="export", output=config.output, outcomes=outcomes)


def _export_one(task: _Task) -> Mapping[str, Any] | None:
    features = store.open_features(task.config.run, task.encoder).read(task.slide_id)
    files = foreign.LAYOUTS[task.config.tool](features, task.config.output)
    if not files:
        return {"patches": 0, "reason": f"0 patches: {task.config.tool} has no file for such a slide"}
    if task.config.overwrite:
        todo = [each for each in files if not _is_same(each)]
    else:
        todo = [each for each in files if not each.is_done()]  # of all, before any is written
    for each in todo:
        each.write()
    return {"patches": len(features.coords)} if todo else None


def _is_same(file: foreign.ForeignFile) -> bool:
    try:
        return file.is_done()
    except StaleOutputError:
        return False
