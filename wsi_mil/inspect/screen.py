"""Print what was found: everything of one slide, or a row of each of many and what is wrong with them."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wsi_mil.inspect.cohort import Cohort
from wsi_mil.inspect.facts import Inspection

_WIDE = 150  # columns where the output is no terminal
_SHOWN = 20  # names in a list


def show(cohort: Cohort) -> None:
    """Print a cohort on standard output."""
    console = Console(highlight=False, soft_wrap=True, width=None if Console().is_terminal else _WIDE)
    if len(cohort.slides) == 1:
        _show_one(console, cohort.slides[0])
    else:
        console.print(_table(cohort.slides))
        _show_words(console, cohort)
    for line in _about_all(cohort):
        console.print(line, markup=False)
    count, failing = len(cohort.slides), len(cohort.failing)
    end = f"inspect: {count - failing} of {count} slides in order, {failing} will fail"
    lost = len(cohort.labels.without_slide) if cohort.labels else 0
    end += f", {len(cohort.used_twice)} ids used more than once" if cohort.used_twice else ""
    end += f", {lost} labels without a slide" if lost else ""
    console.print(end, markup=False)


def _show_one(console: Console, found: Inspection) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in _facts(found):
        table.add_row(name, Text(value))
    console.print(table)
    if found.levels:
        console.print()
        console.print(_levels(found))
    for word, lines in (("PROBLEM", found.problems), ("remark", found.remarks)):
        for line in lines:
            console.print(f"{word}: {line}", markup=False)


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    yield "slide", f"{found.slide_id}   {found.path}"
    if not found.levels:
        return
    yield "read by", f"{found.reader}, as {found.vendor or 'a format without a name'}{_bytes(found)}"
    yield "size", f"{found.width} x {found.height} pixels{_area(found)}"
    mpp = f"{found.mpp:.6g} um per pixel, from {found.mpp_source}" if found.mpp else "not usable, see below"
    yield "resolution", mpp
    yield "the file says", "; ".join(found.mpp_statements) or "nothing of its resolution"
    yield "objective", f"{found.objective:g}x (nominal)" if found.objective else "not said"
    yield "pixels", _blocks(found)
    yield "ICC profile", found.icc_profile or "none"
    bounds = found.bounds
    yield (
        "bounds",
        f"{bounds[2]} x {bounds[3]} at ({bounds[0]}, {bounds[1]})" if bounds else "the whole slide",
    )
    yield "fast path", "yes" if found.fast_path else f"no: {found.fast_path_reason}"
    good = sum(not each.reason for each in found.probes)
    yield "probes", f"{good} of {len(found.probes)} read (corners, last block of each level)"


def _levels(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("level", "width", "height", "downsample", "um per pixel", "block", "blocks", "empty"):
        table.add_column(name, justify="right")
    table.add_column("fast path")
    for number, each in enumerate(found.levels):
        table.add_row(
            str(number),
            str(each.width),
            str(each.height),
            f"{each.downsample:.6g}",
            f"{found.mpp * each.downsample:.5g}" if found.mpp else "?",
            f"{each.block_width} x {each.block_height}" if each.block_width else "?",
            "?" if each.blocks is None else str(each.blocks),
            "?" if each.blocks is None else str(each.empty),
            Text("no" if each.fast_path_reason else "yes"),
        )
    return table


def _table(slides: tuple[Inspection, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("slide", overflow="fold", min_width=16)
    table.add_column("format", overflow="fold")
    for name in ("size", "levels", "mpp", "lens"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("mpp from", "pixels", "ICC", "fast"):
        table.add_column(name, overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for each in slides:
        fails = Text("FAILS", "red")
        if not each.levels:
            table.add_row(Text(each.slide_id), *[""] * 9, fails)
            continue
        table.add_row(
            Text(each.slide_id),
            Text(each.vendor or each.reader),
            f"{each.width} x {each.height}",
            str(len(each.levels)),
            f"{each.mpp:.4g}" if each.mpp else "?",
            f"{each.objective:g}x" if each.objective else "",
            Text(each.mpp_source.removesuffix(".mpp-x")),
            Text(_blocks(each)),
            Text("yes" if each.icc_profile else ""),
            "yes" if each.fast_path else "no",
            fails if each.problems else Text("remark" if each.remarks else "ok"),
        )
    return table


def _show_words(console: Console, cohort: Cohort) -> None:
    for word in ("FAILS", "remark"):
        for each in cohort.slides:
            for line in each.problems if word == "FAILS" else each.remarks:
                console.print(f"{word}: {each.slide_id}: {line}", markup=False)


def _about_all(cohort: Cohort) -> Iterator[str]:
    """Yield lines about ids, same files, files that are no slides, and labels."""
    for slide_id, paths in cohort.used_twice.items():
        yield (
            f"FAILS: {slide_id}: {len(paths)} slides have this id ({', '.join(paths)}). A slide's id is its "
            "file name without extension: rename them, or give ids of your own in a manifest (slide_id,path)."
        )
    for group in cohort.same_bytes:
        yield (
            f"remark: the same file under several names: {', '.join(group)}. In a cross-validation one could "
            "be trained on and another tested."
        )
    yield from cohort.notes
    if cohort.others:
        yield f"{len(cohort.others)} files are no slides: {_some(cohort.others)}"
    labels = cohort.labels
    if labels is None:
        return
    yield f"labels: {labels.both} slides have one ({cohort.labels_path})"
    for name in labels.without_slide:
        near = labels.near.get(name)
        yield f"FAILS: label {name}: no such slide" + (f"; is it {near[0]}? ({near[1]})" if near else "")
    if labels.without_label:
        yield f"{len(labels.without_label)} slides have no label: {_some(labels.without_label)}"


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _blocks(found: Inspection) -> str:
    first = found.levels[0]
    size = f" {first.block_width} x {first.block_height}" if first.block_width else ""
    return f"{found.compression or '?'}{size}"


def _bytes(found: Inspection) -> str:
    return "" if found.bytes is None else f", {found.bytes / 1e6:,.1f} MB"


def _area(found: Inspection) -> str:
    if not (found.mpp and found.width and found.height):
        return ""
    return f", {found.width * found.mpp / 1000:.3g} x {found.height * found.mpp / 1000:.3g} mm"
