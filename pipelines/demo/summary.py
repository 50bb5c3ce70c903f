"""Print what a demo run reached: scores with intervals, whether attention finds the planted regions, times.

    python -m pipelines.demo.summary demo/run demo/truth

A patch counts as planted when at least half of its area lies inside the outline. The planted-region score of
a slide is the area under the ROC of its patches' attention against that; only slides with a planted region
have one, and each is scored with the model of the fold that never saw it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import scipy.stats
import shapely
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from wsi_mil import store


def planted_auroc(heatmap: store.Heatmap, truth: Path) -> float | None:
    """Return the AUROC of attention against the outlines in ``truth`` (GeoJSON, level-0 pixels)."""
    outlines = shapely.from_geojson(truth.read_text(encoding="utf-8"))
    region = shapely.union_all(shapely.get_parts(outlines)) if not outlines.is_empty else outlines
    size = heatmap.geometry.patch_size_l0
    x, y = heatmap.coords.T
    patches = shapely.box(x, y, x + size, y + size)
    inside = shapely.area(shapely.intersection(patches, region)) >= size**2 / 2
    if inside.all() or not inside.any():
        return None
    return float(roc_auc_score(inside, heatmap.attention))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--model", default="gated-attention")
    arguments = parser.parse_args()
    run, model = arguments.run, arguments.model
    scores = json.loads((store.model_folder(run, model) / "metrics.json").read_text(encoding="utf-8"))
    encoder = scores["identity"]["encoder"]

    planted = {}
    for truth in sorted(arguments.truth.glob("*.geojson")):
        folder = store.heatmap_folder(run, model, truth.stem)
        value = planted_auroc(store.read_heatmap(folder / "heatmap.zarr"), truth)
        if value is not None:
            planted[truth.stem] = value
    values = np.array(list(planted.values()))
    interval = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval

    table = Table(title=f"{run}: {scores['n_slides']} slides of {scores['n_patients']} patients, {encoder}")
    for column in ("", "value", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for key, words in (("auroc", "cross-validated AUROC"), ("balanced_accuracy", "balanced accuracy")):
        each = scores["scores"][key]
        table.add_row(
            f"{words} (patients)", f"{each['value']:.3f}", f"{each['low']:.3f} to {each['high']:.3f}"
        )
    table.add_row(
        f"planted regions found: mean AUROC of {len(values)} slides",
        f"{values.mean():.3f}",
        f"{interval.low:.3f} to {interval.high:.3f}",
    )
    worst = min(planted, key=lambda name: planted[name])
    table.add_row(f"  the worst of them ({worst})", f"{planted[worst]:.3f}", "")
    table.add_section()
    for stage in ("tile", "embed", "train", "heatmap", "report"):
        record = store.read_stage(run, stage)
        if record:
            table.add_row(f"{stage}, seconds", f"{record['seconds']:.1f}", "")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"heatmaps: {store.heatmap_folder(run, model, '<slide_id>')}/overlay.jpg", markup=False)
    best = max(planted, key=lambda name: planted[name])
    console.print(f"for one:  {store.heatmap_folder(run, model, best) / 'overlay.jpg'}", markup=False)
    if (run / "report.html").exists():
        console.print(f"report:   {run / 'report.html'}", markup=False)


if __name__ == "__main__":
    main()
