"""The command `encoders`: what has a name here and what its authors prescribe; fetches weights for later.

Comes in: nothing, or names. Goes out: a table or JSON on the screen, files in a folder of weights. The facts
are those of ``wsi_mil.encoders.presets``; neither torch nor a network is needed to print them.
"""

import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wsi_mil.config import EncodersConfig
from wsi_mil.encoders import LEFT_OUT, PRESETS, Preset
from wsi_mil.encoders.preset import HALF, IMAGENET_MEAN, IMAGENET_STD, Triple
from wsi_mil.encoders.presets import BIOPTIMUS_MEAN, BIOPTIMUS_STD, LUNIT_MEAN, LUNIT_STD
from wsi_mil.errors import WsiMilError

_ACCESS = {True: "gated", False: "open", None: "unclear"}


def run(config: EncodersConfig) -> int:
    """Print the encoders, or fetch weights; return the exit code: 1 when a download failed."""
    if config.download:
        return _download(config)
    if config.json:
        print(json.dumps(facts(), indent=2))
        return 0
    # Wide enough for every column when the output is no terminal; narrower terminals fold.
    console = Console(highlight=False, soft_wrap=True, width=None if Console().is_terminal else 100)
    console.print(_table())
    console.print(_LEGEND, markup=False)
    for (mean, std), name in _NAMED.items():
        console.print(f"  {name}: {_numbers(mean)} / {_numbers(std)}", markup=False)
    console.print(_MORE, markup=False)
    for names, reason in LEFT_OUT.items():
        console.print(f"  {names}: {reason}", markup=False)
    return 0


def facts() -> dict[str, Any]:
    """Return all that is known of every preset, as plain values for JSON, and what has been left out."""
    presets = [dataclasses.asdict(each) | {"arguments": dict(each.arguments)} for each in PRESETS.values()]
    return {"encoders": presets, "left_out": LEFT_OUT}


_NAMED = {
    (IMAGENET_MEAN, IMAGENET_STD): "ImageNet",
    (HALF, HALF): "half",
    (LUNIT_MEAN, LUNIT_STD): "Lunit",
    (BIOPTIMUS_MEAN, BIOPTIMUS_STD): "H-optimus",
}

_LEGEND = """
px: input size; a patch of another size is resized to it. mpp: microns per pixel at that input that
the authors prescribe; any: they name none. NC: for non-commercial use. gated: ask the authors on the
hub, then `hf auth login`; unclear: sources disagree. --json has all facts, sources and references.

mean/std of RGB in 0..1:"""
_MORE = """
also: any timm model (timm:NAME), hf-hub:ORG/NAME, onnx:FILE, torchscript:FILE, and your own
(wsi_mil.encoders.register)

left out:"""


def _table() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("name", no_wrap=True)
    table.add_column("source", no_wrap=True)
    for name in ("dim", "px", "mpp"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("mean/std", no_wrap=True)
    table.add_column("params", justify="right")
    for name in ("licence", "access"):
        table.add_column(name, no_wrap=True)
    for each in PRESETS.values():
        table.add_row(
            Text(each.name),
            Text(_source(each)),
            str(each.dim),
            str(each.input_px),
            _range(each.mpps),
            Text(_normalisation(each)),
            _short(each.parameters),
            Text(each.licence),
            _ACCESS[each.gated],
        )
    return table


def _normalisation(preset: Preset) -> str:
    return _NAMED.get((preset.mean, preset.std)) or f"{_numbers(preset.mean)} / {_numbers(preset.std)}"


def _numbers(values: Triple) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _source(preset: Preset) -> str:
    if not preset.repo:
        return "a package"
    return preset.repo if len(preset.repo) <= 17 else f"{preset.repo.partition('/')[0]}/..."


def _range(mpps: tuple[float, ...]) -> str:
    if not mpps:
        return "any"
    return f"{min(mpps):g}-{max(mpps):g}" if len(mpps) > 1 else f"{mpps[0]:g}"


def _short(count: int) -> str:
    return f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e6:.0f} M"


def _download(config: EncodersConfig) -> int:
    """Fetch each encoder's weights; one that cannot be had does not keep the others from coming."""
    from wsi_mil.encoders.loading import download

    assert config.weights_dir is not None, "the config has checked it"
    console = Console(highlight=False, soft_wrap=True)
    failed = 0
    for name in config.download:
        try:
            path = download(name, config.weights_dir)
        except WsiMilError as error:
            failed += 1
            console.print(f"{name}: failed: {error}", markup=False)
        else:
            console.print(f"{name}: {path} ({path.stat().st_size / 1e6:,.0f} MB)", markup=False)
    return 1 if failed else 0
