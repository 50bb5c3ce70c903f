"""wsi-mil inspect: facts of generated slides are what was written, and every planted fault is found."""

import json
import re
import shlex
import shutil

import imagecodecs
import numpy as np
import pytest
import tifffile

from pipelines.pyramid import write_pyramid
from tests.conftest import break_blocks
from tests.test_remote import server  # noqa: F401
from tests.test_resolution import APERIO, write
from tests.tiffs import texture, write_scn, write_tiff
from wsi_mil import inspect, manifest
from wsi_mil.config import InspectConfig
from wsi_mil.errors import ConfigError, LabelError


def look(*slides, **options):
    return inspect.inspect_slides(InspectConfig(slides=slides, **options))


def one(path, **options):
    return inspect.inspect_slide(path, **options)


def table_of(path, page=0):
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[page].dataoffsets, tiff.pages[page].databytecounts


def test_the_facts_of_an_aperio_slide_are_those_that_were_written(tmp_path):
    profile = imagecodecs.cms_profile("adobergb")
    path = write_tiff(tmp_path / "a.svs", texture(700, 500), kind="jpeg-422", block=(240, 240), icc=profile)
    found = one(path)
    assert (found.slide_id, found.path, found.bytes) == ("a", str(path), path.stat().st_size)
    assert (found.reader, found.vendor, found.width, found.height) == ("openslide", "aperio", 700, 500)
    assert (found.mpp, found.mpp_source, found.objective) == (0.5, "openslide.mpp-x", 20)
    assert found.mpp_statements[0] == "0.5 (openslide.mpp-x)"
    assert found.icc_profile == "Adobe RGB (compatible)"
    (level,) = found.levels
    assert (level.block_width, level.block_height, level.blocks) == (240, 240, 3 * 3)
    assert (level.compression, level.empty, level.beyond) == ("JPEG", 0, 0)
    assert (found.compression, found.fast_path, found.bounds) == ("JPEG", True, None)
    assert not found.problems
    assert not found.remarks


def test_levels_have_their_true_downsamples(tmp_path):
    write_pyramid(tmp_path / "a.tiff", texture(2033, 1525), 0.25, compression="deflate", factor=2)
    found = one(tmp_path / "a.tiff")
    assert [each.downsample for each in found.levels] == [1, 2, 4]
    assert [(each.width, each.height) for each in found.levels] == [(2033, 1525), (1016, 762), (508, 381)]
    assert [each.blocks for each in found.levels] == [8 * 6, 4 * 3, 2 * 2]
    assert len(found.probes) == 4 + 2, "the last block of level 0 is at a corner"


@pytest.mark.parametrize("kind", ["lzw", "deflate", "none", "webp", "jp2k-rgb"])
def test_the_compression_has_its_name(tmp_path, kind):
    path = write_tiff(tmp_path / ("a.svs" if "jp2k" in kind else "a.tiff"), texture(300, 300), kind=kind)
    names = {"lzw": "LZW", "webp": "WebP", "jp2k-rgb": "JPEG 2000"}
    found = one(path)
    assert (found.compression, found.fast_path) == (names.get(kind, kind), True)


def test_where_the_scan_does_not_fill_the_slide_its_bounds_are_probed(tmp_path):
    found = one(write_scn(tmp_path / "a.scn", texture(700, 500), offset=(1000, 2000), glass=(4000, 6000)))
    assert (found.vendor, found.width, found.height) == ("leica", 4000, 6000)
    assert found.bounds == (1000, 2000, 700, 500)
    assert (found.compression, found.levels[0].block_width) == ("deflate", 256)
    assert (found.fast_path, found.fast_path_reason) == (False, "leica slides have no plain grid of blocks")
    corners = {(each.x, each.y) for each in found.probes[:4]}
    assert corners == {(1000, 2000), (1636, 2000), (1000, 2436), (1636, 2436)}
    assert not found.problems


@pytest.mark.parametrize("lost", [1, 0.3, 0.6])
def test_a_file_that_was_cut_off_is_found_without_reading_all_of_it(tmp_path, lost):
    """The directory stands in front of the pixels, so that the cut file still opens."""
    path = tmp_path / "a.tiff"
    tifffile.imwrite(
        path, texture(1500, 1200), tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None,
        resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    offsets, counts = table_of(path)
    size = path.stat().st_size
    left = size - 1 if lost == 1 else round(size * (1 - lost))
    path.write_bytes(path.read_bytes()[:left])
    beyond = sum(offset + count > left for offset, count in zip(offsets, counts, strict=True))
    found = one(path)
    assert found.levels[0].beyond == beyond > 0
    assert found.problems[0] == (
        f"the file is cut off: {beyond} of level 0 blocks lie beyond its end. Copy it again."
    )
    assert not found.fast_path


def test_a_damaged_last_block_is_named(tmp_path):
    write_pyramid(tmp_path / "a.tiff", texture(2000, 1600), 0.5, factor=2)
    offsets, counts = table_of(tmp_path / "a.tiff", page=1)
    with (tmp_path / "a.tiff").open("r+b") as file:
        file.seek(offsets[-1])
        file.write(bytes(counts[-1]))
    found = one(tmp_path / "a.tiff")
    assert [(each.name, each.level) for each in found.probes if each.reason] == [("last block", 1)]
    assert "1 of 6 probes cannot be read (last block of level 1): level 1 cannot be read" in found.problems[0]


def test_a_file_that_lost_its_table_of_blocks_is_not_a_black_slide(tmp_path):
    """tiffslide opens it and shows black everywhere."""
    write_pyramid(tmp_path / "a.tiff", texture(2048, 2048), 0.5, compression="none", block=128)
    content = (tmp_path / "a.tiff").read_bytes()
    (tmp_path / "a.tiff").write_bytes(content[:1000])
    (problem,) = one(tmp_path / "a.tiff").problems
    assert "cannot be opened as a slide" in problem
    assert re.search(r"tiffslide: lists \d+ blocks, not 256: cut off, or damaged", problem)


def test_a_level_of_empty_blocks_is_a_problem(tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(500, 500), kind="deflate", empty=frozenset(range(4)))
    assert one(path).problems == ("there is nothing in level 0: all blocks are empty. Copy it again.",)


def test_a_slide_that_opens_and_has_nothing_in_it(make_slide):
    path = make_slide("a.svs")
    break_blocks(path)
    (problem,) = one(path).problems
    assert "it opens, and nothing in it can be read" in problem


def test_the_resolution_that_is_refused_is_a_problem_and_everything_else_is_still_said(tmp_path):
    found = one(write(tmp_path / "a.svs", f"{APERIO}|MPP = 0.5", (40_000, 40_000)))
    assert (found.mpp, found.mpp_source, found.objective) == (None, "", 20)
    assert "contradicts itself" in found.problems[0]
    assert "--slide-mpp" in found.problems[0]
    assert found.fast_path
    given = one(tmp_path / "a.svs", slide_mpp=0.25)
    assert (given.mpp, given.mpp_source, given.problems) == (0.25, "given", ())
    assert "0.25 um per pixel was given; the file says 0.5" in given.remarks[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"description": APERIO}, "does not say its microns per pixel"),
        ({"resolution": (96, 96), "unit": "INCH"}, "96 per inch, are a screen's"),
        ({"resolution": (20_000, 20_000), "unit": "NONE"}, "does not say its microns per pixel"),
        ({"resolution": (20_000, 10_000)}, "pixels are not square (0.5 x 1 um"),
        ({"resolution": (2_004_008, 2_004_008)}, "0.00499 microns per pixel, which no scanner has"),
    ],
)
def test_every_refused_resolution_says_what_to_do(tmp_path, options, words):
    name = "a.svs" if "description" in options else "a.tiff"
    (problem,) = one(write(tmp_path / name, **options)).problems
    assert words in problem
    assert "--slide-mpp" in problem
    assert "manifest" in problem


def test_remarks_of_slides_that_work(tmp_path, make_slide):
    coarse = one(make_slide("coarse.tiff", mpp=1.0))
    assert coarse.remarks == ("it is coarser than tile's 0.5 um per pixel: give tile --mpp 1 or coarser",)
    assert one(tmp_path / "slides" / "coarse.tiff", mpp=1.0).remarks == ()
    (problem,) = one(tmp_path / "slides" / "coarse.tiff", mpp=0.5).problems
    assert "its 1 um per pixel are coarser than --mpp 0.5" in problem
    small = one(write_tiff(tmp_path / "small.tiff", texture(255, 300)))
    assert "no patch of 128 um (tile's default) fits on it" in small.remarks[0]
    other = one(write(tmp_path / "x.svs", f"{APERIO}|MPP = 0.25"), slide_mpp=0.25)
    assert "objective is said to be 20x, and 0.25 um per pixel are those of about 40x" in other.remarks[-1]
    dark = one(write_tiff(tmp_path / "dark.tiff", np.full((600, 600, 3), 9, np.uint8), kind="deflate"))
    assert dark.remarks == ("its background is dark: fluorescence, or an empty scan",)
    empty = one(write_tiff(tmp_path / "e.tiff", texture(700, 700), kind="deflate", empty=frozenset({3, 4})))
    assert empty.remarks == ("2 of 9 blocks are empty, which reads as background",)
    assert empty.levels[0].empty == 2


def test_icc_srgb_needs_a_profile(tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(300, 300), kind="deflate")
    (problem,) = one(path, icc="srgb").problems
    assert "has no ICC profile" in problem
    assert not one(path).problems


def test_what_does_not_open_says_why(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"not a slide at all")
    found = one(tmp_path / "a.svs")
    assert "cannot be opened as a slide (openslide: " in found.problems[0]
    assert found.levels == ()
    assert one(tmp_path / "none.svs").problems == ("no such file.",)


@pytest.fixture
def folder(tmp_path):
    """Slides with every fault that a cohort as such may have."""
    slides = tmp_path / "slides"
    (slides / "more").mkdir(parents=True)
    write_tiff(slides / "good.svs", texture(600, 500), kind="jpeg-422")
    shutil.copy(slides / "good.svs", slides / "copy.svs")
    write_tiff(slides / "twice.svs", texture(600, 500, seed=1), kind="jpeg-422")
    write_tiff(slides / "more" / "twice.tiff", texture(600, 500, seed=2), kind="deflate")
    (slides / "text.svs").write_text("no slide")
    (slides / "notes.txt").write_text("no slide, and none that claims to be one")
    return slides


def test_a_folder_is_a_table_and_what_is_wrong_is_the_exit_code(wsi, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    code, out, _ = wsi("inspect", folder)
    assert code == 1
    assert "FAILS: text: cannot be opened as a slide" in out
    assert "FAILS: twice: 2 slides have this id" in out
    assert f"remark: the same file under several names: copy ({folder / 'copy.svs'}), good" in out
    assert "1 files are no slides" in out
    assert "inspect: 4 of 5 slides in order, 1 will fail, 1 ids used more than once" in out
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == before, "writes nothing"
    assert wsi("inspect", folder / "good.svs")[0] == 0
    code, out, _ = wsi("inspect", folder / "good.svs", folder / "more", "--pattern", "*.svs")
    assert code == 2, "nothing in more/ passes the pattern"


def test_json_is_all_of_it(wsi, folder, capsys):
    from wsi_mil.cli import main

    assert main(["inspect", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["format_version"], found["wrong"]) == ("wsi-mil inspection", 1, 2)
    assert [each["slide_id"] for each in found["slides"]] == ["copy", "good", "twice", "text", "twice"]
    assert sorted(found["used_twice"]) == ["twice"]
    assert found["not_slides"] == [str(folder / "notes.txt")]
    good = found["slides"][1]
    assert good == inspect.inspect_slide(folder / "good.svs").to_json() | {"seconds": good["seconds"]} | {
        "levels": good["levels"], "probes": good["probes"], "mpp_statements": good["mpp_statements"],
        "remarks": [], "problems": [],
    }  # fmt: skip


def test_labels_are_reconciled_both_ways_with_hints(wsi, folder):
    labels = folder.parent / "labels.csv"
    labels.write_text("slide_id,time,event\ngood,1,1\ncopy.svs,2,0\nTwice,3,1\ngone,4,0\n")
    code, out, _ = wsi("inspect", folder, "--labels", labels)
    assert code == 1
    assert "labels: 1 slides have one" in out
    assert "FAILS: label copy.svs: no such slide; is it copy? (a slide_id is the file name without" in out
    assert "FAILS: label Twice: no such slide; is it twice? (they differ in case, blanks or marks)" in out
    assert re.search(r"FAILS: label gone: no such slide [^;]", out)
    assert "3 slides have no label: copy, text, twice" in out
    cohort = look(folder / "good.svs", labels=labels)
    assert cohort.wrong == 3
    labels.write_text("name,label\na,1\n")
    with pytest.raises(LabelError, match="no column slide_id; found 'name', 'label'"):
        look(folder, labels=labels)
    labels.write_text("slide_id,label\na,1\na,2\n,3\n")
    with pytest.raises(LabelError, match="1 rows have no slide_id: line 4"):
        look(folder, labels=labels)


@pytest.mark.parametrize(
    ("label", "slide", "why"),
    [
        ("a1.svs", "a1", "file name without folder and extension"),
        ("site/a1.svs", "a1", "file name without folder and extension"),
        ("A 1", "a_1", "case, blanks or marks"),
        ("7", "007", "leading zeros"),
        ("TCGA-AB-1234", "TCGA-AB-1234-01Z-00-DX1.ABC", "goes on after it"),
        ("P1_HE_rescan", "P1_HE", "goes on after the slide's name"),
        ("P1", "P10", None),
        ("P11", "P12", None),
    ],
)
def test_a_near_miss_is_a_hint_and_other_numbers_are_not(label, slide, why):
    found = manifest.reconcile([label, "both"], [slide, "both", "zzz"])
    assert (found.both, found.without_slide, found.without_label) == (
        1,
        (label,),
        tuple(sorted([slide, "zzz"])),
    )
    if why is None:
        assert not found.near
    else:
        assert found.near[label][0] == slide
        assert why in found.near[label][1]


def test_a_hint_needs_one_candidate():
    assert not manifest.reconcile(["P1"], ["P1-a", "P1-b"]).near


def test_a_manifest_gives_ids_and_mpp_and_may_name_what_is_not_there(folder):
    path = folder / "m.csv"
    path.write_text("slide_id,path,mpp\none,good.svs,0.25\ngone,nowhere.svs,\n")
    cohort = look(path)
    first, second = cohort.slides
    assert (first.slide_id, first.mpp, first.mpp_source) == ("one", 0.25, "given")
    assert second.problems == ("no such file.",)
    assert cohort.wrong == 1


def test_wrong_usage(wsi, tmp_path):
    for arguments, words in (
        ([tmp_path / "none"], "none: no such folder or file"),
        ([tmp_path / "m.csv"], "m.csv: no such manifest"),
        ([], "SLIDES: name a folder, a slide, a manifest or a URL"),
        ([tmp_path, "--mpp", "9"], "--mpp 9: microns per pixel must lie between"),
    ):
        code, out, err = wsi("inspect", *arguments)
        assert code == 2
        assert words in out + err
        assert "--slides" not in err
    with pytest.raises(ConfigError):
        InspectConfig(slides=())


def test_any_number_of_workers_sees_the_same(folder):
    def plain(cohort):
        found = cohort.to_json()
        return [each | {"seconds": 0} for each in found.pop("slides")], found

    assert plain(look(folder, workers=2)) == plain(look(folder, workers=1))


def test_slides_behind_a_url_cost_a_small_part_of_them(server):  # noqa: F811
    path = server.folder / "a.tiff"
    write_pyramid(path, texture(2048, 2048), 0.5, compression="none", factor=4, block=128)
    local, size = one(path), path.stat().st_size
    server.asked.clear()
    found = one(f"{server.url}/a.tiff")
    fetched = sum(count for _, count in server.asked)
    assert (found.reader, found.mpp, found.fast_path) == ("tiffslide", 0.5, True)
    assert [(e.width, e.blocks, e.downsample) for e in found.levels] == [
        (e.width, e.blocks, e.downsample) for e in local.levels
    ]
    assert not found.problems
    assert fetched < size / 4, "a dozen blocks of 50 kB, all of the smallest level, and the directories"
    (server.folder / "cut.tiff").write_bytes(path.read_bytes()[:1000])
    cohort = look(f"{server.url}/")
    assert [each.slide_id for each in cohort.failing] == ["cut"]
    assert "nothing at this URL" in one(f"{server.url}/none.tiff").problems[0]


def test_the_readmes_command_runs(wsi, folder, monkeypatch):
    from tests.test_docs import block

    (folder.parent / "labels.csv").write_text("slide_id,label\ngood,1\ncopy,0\n")
    for path in ("text.svs", "twice.svs"):
        (folder / path).unlink()
    monkeypatch.chdir(folder.parent)
    (line,) = block("inspect").strip().splitlines()
    program, *arguments = shlex.split(line, comments=True)
    assert (program, wsi(*arguments)[0]) == ("wsi-mil", 0)
