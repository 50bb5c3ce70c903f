"""Print how well the attention finds epithelial nuclei in the positive colon fields.

    python -m pipelines.colon_fields.key_instances --run RUN --nuclei OUT/nuclei.csv

Every field is scored with the model of the fold that never saw it (that is how `wsi-mil heatmap` draws it).
Two scores per field, each the area under the ROC of attention:

* patches: those that hold an epithelial nucleus against those that hold none;
* nuclei: epithelial ones against all others. A nucleus has the mean attention of the patches that it lies in,
  so that overlapping patches locate it better than one patch can.

A field has a score where it holds both kinds. The table has the means over fields, with a 95 % bootstrap
interval over fields.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.stats
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from wsi_mil import store

POSITIVE = "epithelial"


def read_nuclei(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, per slide, level-0 (x, y) of its nuclei (N, 2) and whether each is epithelial (N,)."""
    rows = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["slide_id"]].append((float(row["x_l0"]), float(row["y_l0"]), row["kind"] == POSITIVE))
    tables = {slide_id: np.array(each) for slide_id, each in rows.items()}
    return {slide_id: (each[:, :2], each[:, 2] > 0) for slide_id, each in tables.items()}


def holds(heatmap: store.Heatmap, xy_K2: np.ndarray) -> np.ndarray:
    """Return (N, K): whether each patch holds each point."""
    corner_N12 = heatmap.coords[:, None]
    inside = (xy_K2[None] >= corner_N12) & (xy_K2[None] < corner_N12 + heatmap.geometry.patch_size_l0)
    return inside.all(axis=2)


def patch_score(heatmap: store.Heatmap, xy_K2: np.ndarray, key_K: np.ndarray) -> float | None:
    """Return the AUROC of attention of patches that hold a key nucleus; None where all or none do."""
    key_N = holds(heatmap, xy_K2)[:, key_K].any(axis=1)
    return _auroc(key_N, heatmap.attention)


def nucleus_score(heatmap: store.Heatmap, xy_K2: np.ndarray, key_K: np.ndarray) -> float | None:
    """Return the AUROC of the mean attention over each nucleus; None where all or none of them are key."""
    inside_NK = holds(heatmap, xy_K2)
    covered_K = inside_NK.any(axis=0)  # the grid may leave a rim of the field without patches
    inside_NK = inside_NK[:, covered_K]
    attention_K = heatmap.attention.astype(np.float64) @ inside_NK / inside_NK.sum(axis=0)
    return _auroc(key_K[covered_K], attention_K)


def _auroc(key: np.ndarray, attention: np.ndarray) -> float | None:
    return None if key.all() or not key.any() else float(roc_auc_score(key, attention))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--nuclei", type=Path, required=True, help="nuclei.csv of prepare.py")
    parser.add_argument("--name", default="gated-attention", help="the model's folder under RUN/models")
    arguments = parser.parse_args()
    nuclei = read_nuclei(arguments.nuclei)
    found: dict[str, dict[str, float]] = {"patches": {}, "nuclei": {}}
    for slide_id, (xy_K2, key_K) in nuclei.items():
        if not key_K.any():
            continue
        heatmap = store.read_heatmap(
            store.heatmap_folder(arguments.run, arguments.name, slide_id) / "heatmap.zarr"
        )
        for name, score in (("patches", patch_score), ("nuclei", nucleus_score)):
            value = score(heatmap, xy_K2, key_K)
            if value is not None:
                found[name][slide_id] = value

    table = Table(title=f"{arguments.name}: attention and epithelial nuclei, positive fields")
    for column in ("AUROC of", "fields", "mean", "95 % interval", "median", "lowest"):
        table.add_column(column, justify="left" if column == "AUROC of" else "right")
    for name, of_field in found.items():
        values = np.array(list(of_field.values()))
        interval = scipy.stats.bootstrap(
            (values,), np.mean, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        worst = min(of_field, key=lambda each: of_field[each])
        table.add_row(
            name, str(len(values)), f"{values.mean():.3f}", f"{interval.low:.3f} to {interval.high:.3f}",
            f"{np.median(values):.3f}", f"{values.min():.3f} ({worst})",
        )  # fmt: skip
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
