"""From values to the page: the template, its style and script, and how numbers are said.

Comes in: stages, sheets of models, cards of slides. Goes out: HTML that asks the network for nothing. Names
and reasons come from outside and are escaped by the template engine; the one script is the project's own, and
the page's policy lets no other run.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from wsi_mil.geometry import PatchGeometry
from wsi_mil.report.figures import Confusion, Picture
from wsi_mil.report.gather import Model, Slide
from wsi_mil.report.layers import Layer, gradient
from wsi_mil.report.verdicts import CLASSES
from wsi_mil.store import QUANTITIES

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Card:
    """A slide with its picture, the layers that lie over it, and remarks; ``geometry`` where it is known."""

    slide: Slide
    geometry: PatchGeometry | None
    picture: Picture | None
    layers: Sequence[Layer]
    remarks: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A model with its figures."""

    model: Model
    confusion: Confusion | None
    figures: Sequence[Picture]
    remarks: Sequence[str]


def render(*, run: Path, **content: Any) -> str:
    """Return the page; ``content`` is what the template names."""
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,  # for every template: jinja2's own choice goes by the name and passes over .j2
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": _duration, "plain": _plain, "figure": _figure, "words": _words}
    # Paths of files in the run, as links relative to the page.
    environment.filters["link"] = lambda path: quote(path.relative_to(run).as_posix())
    return environment.get_template("page.html.j2").render(
        run=run,
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=digest,
        gradients={name: gradient(name) for name in QUANTITIES},
        CLASSES=CLASSES,
        **_choices(content["cards"]),
        **content,
    )


def _choices(cards: Sequence[Card]) -> dict[str, Any]:
    """Return what the layers may be chosen by: models, quantities and outputs, each in their first order."""
    layers = [layer for card in cards for layer in card.layers]
    return {
        "layered": bool(layers),
        "layer_models": list(dict.fromkeys(each.model for each in layers)),
        "layer_quantities": list(dict.fromkeys(each.quantity for each in layers)),
        "layer_outputs": list(dict.fromkeys(each.output for each in layers)),
    }


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
