"""Walk a run's slides: RUN/heatmaps/<name>/<slide_id>/ for each, and how true the maps are.

Comes in: stored features and a trained model. Goes out: a folder per slide (``draw``), and where asked
faithfulness and agreement with annotations, per slide and for all.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsi_mil import config as configs
from wsi_mil import encoders, locate, models, parallel, store
from wsi_mil.config import HeatmapConfig
from wsi_mil.errors import ConfigError
from wsi_mil.heatmap import faithfulness
from wsi_mil.heatmap.draw import Task, draw, models_of, names
from wsi_mil.heatmap.scores import check
from wsi_mil.parallel import Outcome, StageResult, console

_FAITHFULNESS = ("deletion_area", "insertion_area", "deletion_beats", "insertion_beats")
_AGREEMENT = ("auroc", "dice", "dice_best")


def run(config: HeatmapConfig) -> StageResult:
    """Draw every slide of the run that has the model's features; one bad slide does not end the run.

    A slide of the cross-validation is drawn by the model of the fold that never saw it; any other slide by
    the mean of all folds' models, and the title says which, and whether they were trained on it.

    Raises:
        ConfigError: no model; it has no such quantity or output; ``only`` names a slide without features;
            ``slides`` holds no slide.
        FormatError: the model's files are damaged. LabelError: ``slides`` is a manifest that is wrong.
    """
    name = config.name or store.only_folder(config.run / "models", "--name", "train")
    folder = store.model_folder(config.run, name)
    tensors, head = store.read_fold(folder / "fold_0.safetensors")
    model = models.restore(tensors, head)
    check(config.show, config.output_class, model.task.output_names, models.missing(model))
    predictions = {row["slide_id"]: row for row in store.read_csv(folder / "predictions.csv")}
    encoder = str(head["identity"]["encoder"])
    all_ids = _slide_ids(config, encoder, predictions)
    slide_ids = configs.share_of(all_ids, config.share)
    finder = locate.slide_finder(config.slides)
    output = store.heatmap_folder(config.run, name, "x").parent
    store.sweep(output)
    digest = store.model_digest(folder)
    split = {row["slide_id"] for row in store.read_csv(folder / "splits.csv")}
    tasks = {
        slide_id: Task(
            slide_id, config, name, encoder, predictions.get(slide_id),
            learnt=slide_id in split and slide_id not in predictions, model_digest=digest,
            finder=finder.only(slide_id),
        )
        for slide_id in slide_ids
    }  # fmt: skip
    with store.stage_record(config.run, "heatmap", config) as record:
        record["model"] = name
        try:
            # alone: the library that draws is not for several threads
            cost = _cost(config)
            place = parallel.Place(
                workers=config.workers, cluster=config, shared=config.run, alone=True, limits=_limits(cost),
                here=bool(config.overlap) and encoders.registered(encoder) is not None,
            )  # fmt: skip
            outcomes = parallel.map_slides(draw, tasks, title="heatmap", place=place, cost=cost)
        finally:
            store.sweep(output)
        if config.faithfulness or config.annotations is not None:
            outcomes = _measured(config, output, tasks, outcomes)
        columns = ("slide_id", "status", "seconds", "patches", "drawn_by", "reason")
        table = config.run / "heatmap" / "slides.csv"
        store.write_rows(table, columns, (each.row() for each in outcomes), all_ids)
    return StageResult(stage="heatmap", output=output, outcomes=outcomes)


def _slide_ids(config: HeatmapConfig, encoder: str, predictions: Mapping[str, Any]) -> list[str]:
    present = store.open_features(config.run, encoder).slide_ids()
    _refuse_ids(config, present)
    unknown = [slide_id for slide_id in config.only if slide_id not in present]
    if unknown:
        raise ConfigError(
            f"--only {' '.join(unknown)}: no features of {encoder} in {config.run}; there are "
            f"{', '.join(present[:8]) or 'none'}{', ...' if len(present) > 8 else ''}."
        )
    chosen = list(config.only) or present
    others = [slide_id for slide_id in chosen if slide_id not in predictions]
    if others:
        console.print(
            f"{len(others)} slides were not tested and are drawn by the mean of all folds: {names(others)}",
            markup=False,
        )
    return chosen


def _refuse_ids(config: HeatmapConfig, present: list[str]) -> None:
    """Raise ConfigError where --slides has the id of a slide, as it had before --only was there."""
    given = config.slides
    if given is not None and str(given) in present and not Path(given).exists():
        raise ConfigError(
            f"--slides {given}: no such folder or file, and the id of a slide. --slides says where they are; "
            f"to draw this one only, give --only {given}."
        )


def _cost(config: HeatmapConfig) -> Callable[[Task], float]:
    """Return what says how many patches a slide has, as far as embed's table does."""
    rows = store.read_csv(config.run / "embed" / "slides.csv")
    patches = {row["slide_id"]: float(row.get("patches") or 0) for row in rows}
    return lambda task: patches.get(task.slide_id, 0.0)


def _limits(cost: Callable[[Task], float]) -> Callable[[Task, int], parallel.Limits]:
    """Return what says what a slide may take."""
    return lambda task, processes: parallel.limits_of(
        task.config.slide_timeout, task.config.slide_memory_mib, processes, patches=cost(task)
    )


def _measured(
    config: HeatmapConfig, output: Path, tasks: Mapping[str, Task], outcomes: list[Outcome]
) -> list[Outcome]:
    """Measure every map that is there, write the tables, and return the outcomes with what failed in it."""
    drawn = {each.slide_id: tasks[each.slide_id] for each in outcomes if each.status != "failed"}
    place = parallel.Place(workers=config.workers, cluster=config, shared=config.run, alone=True)
    measured = parallel.map_slides(_measure, drawn, title="heatmap: faithfulness", place=place)
    found = {each.slide_id: each for each in measured}
    rows = [dict(each.facts) for each in measured if each.status == "done"]
    about = {"shown": [config.show, config.output_class], "slides": len(rows), "seed": config.seed}
    groups = {"all": rows, "positive and correct": [row for row in rows if row["correct"] == "yes"]}
    first = ("slide_id", "label", "predicted", "output", "correct")
    if config.faithfulness:
        store.write_csv(
            output / "faithfulness.csv", (*first, *_FAITHFULNESS), _only(rows, first, _FAITHFULNESS)
        )
        curves = {row["slide_id"]: row["curves"] for row in rows}
        means = {
            group: faithfulness.cohort(some, _FAITHFULNESS, config.seed) for group, some in groups.items()
        }
        content = about | {"draws": config.draws, "fractions_removed": faithfulness.FRACTIONS.tolist()}
        store.write_text(output / "faithfulness.json", _json(content | {"cohort": means, "curves": curves}))
        _say("faithfulness", means, "deletion_area", "insertion_area")
    if config.annotations is not None:
        known = [row for row in rows if "annotated" in row]
        columns = ("patches", "annotated", *_AGREEMENT)
        store.write_csv(output / "annotations.csv", (*first, *columns), _only(known, first, columns))
        means = {
            group: faithfulness.cohort([row for row in some if "annotated" in row], _AGREEMENT, config.seed)
            for group, some in groups.items()
        }
        store.write_text(
            output / "annotations.json", _json(about | {"annotated": len(known), "cohort": means})
        )
        _say("annotations", means, "auroc", "dice")
    return [found[each.slide_id] if _failed(found, each.slide_id) else each for each in outcomes]


def _failed(found: Mapping[str, Outcome], slide_id: str) -> bool:
    return slide_id in found and found[slide_id].status == "failed"


def _measure(task: Task) -> Mapping[str, Any]:
    """Return how true the map of a slide is: figures for the tables, and curves."""
    config = task.config
    folder = store.heatmap_folder(config.run, task.name, task.slide_id)
    heatmap = store.read_heatmap(folder / "heatmap.zarr")
    prediction, output = heatmap.facts["prediction"], heatmap.shown["output"]
    predicted, label = max(prediction, key=lambda each: prediction[each]), heatmap.facts["label"] or ""
    facts: dict[str, Any] = {
        "slide_id": task.slide_id,
        "label": label,
        "predicted": predicted,
        "output": output,
        "correct": "yes" if label == predicted == output else "no",
    }
    if config.faithfulness:
        features = store.open_features(config.run, task.encoder).read(task.slide_id)
        chosen, _, _ = models_of(task)
        found = faithfulness.curves(
            chosen, features.features, heatmap.drawn, output, draws=config.draws, seed=config.seed
        )
        facts |= {name: round(value, 6) for name, value in found.figures().items()}
        facts["curves"] = {
            "deletion": found.deletion.round(6).tolist(),
            "insertion": found.insertion.round(6).tolist(),
            "random": found.random.mean(axis=0).round(6).tolist(),
        }
    path = config.annotations / f"{task.slide_id}.geojson" if config.annotations is not None else None
    if path is not None and path.exists():
        inside = faithfulness.annotated(heatmap.coords, heatmap.geometry, faithfulness.read_annotation(path))
        cut = faithfulness.cut_of(heatmap.shown["quantity"], heatmap.drawn)
        facts |= faithfulness.agreement(heatmap.drawn, inside, cut)
    return facts


def _only(rows: list[dict[str, Any]], *columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return rows with these columns only; what is None is an empty field."""
    wanted = [name for some in columns for name in some]
    return [{name: row[name] for name in wanted if row.get(name) is not None} for row in rows]


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps({"format": "wsi-mil heatmap figures", "format_version": 1, **content}, indent=1) + "\n"


def _say(what: str, means: Mapping[str, Mapping[str, Any]], *figures: str) -> None:
    for group, found in means.items():
        for name in figures:
            each = found[name]
            if each["slides"]:
                console.print(
                    f"{what}, {group}: {name} {each['mean']:.3f} ({each['low']:.3f} to {each['high']:.3f}) "
                    f"over {each['slides']} slides; above 0 on {each['above_0']:.0%}",
                    markup=False,
                )
