import json
import os
import re
from pathlib import Path

import pytest

from tests.conftest import without_roots_powers
from wsi_mil.errors import ConfigError, LabelError
from wsi_mil.manifest import find_slides, read_manifest


def find(folder, pattern=""):
    """Discovery with stand-ins for what OpenSlide says: it is told by the content here."""
    kinds = {b"ap": "aperio", b"mx": "mirax", b"dc": "dicom"}
    return find_slides(
        folder,
        pattern=pattern,
        suffixes=(".svs", ".tiff", ".mrxs", ".dcm"),
        detect=lambda path: kinds.get(path.read_bytes()[:2]),
        dicom_series=lambda path: path.read_bytes()[2:].decode(),
    )


def put(path, content=b"ap"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_slides_are_found_recursively_and_the_rest_is_named(tmp_path):
    put(tmp_path / "b.svs")
    put(tmp_path / "deep" / "er" / "a.tiff")
    put(tmp_path / "no_suffix")
    put(tmp_path / "broken.svs", b"??")
    put(tmp_path / "labels.csv", b"id")
    put(tmp_path / ".hidden.svs")
    put(tmp_path / "._b.svs", b"mac")
    found = find(tmp_path)
    assert [e.slide_id for e in found.entries] == ["b", "broken", "a", "no_suffix"]
    assert [p.name for p in found.others] == ["labels.csv"]


def test_a_dicom_series_in_its_folder_is_one_slide(tmp_path):
    for i in range(3):
        put(tmp_path / "case7" / f"level-{i}.dcm", b"dc1.2.3")
    assert [(e.slide_id, e.path.name) for e in find(tmp_path).entries] == [("case7", "level-0.dcm")]
    put(tmp_path / "case7" / "other.dcm", b"dc9.9.9")
    assert [e.slide_id for e in find(tmp_path).entries] == ["case7_level-0", "case7_other"]


def test_an_mrxs_with_its_folder_is_one_slide(tmp_path):
    put(tmp_path / "m.mrxs", b"mx")
    put(tmp_path / "m" / "Data0000.dat", b"x")
    put(tmp_path / "m" / "Slidedat.ini", b"x")
    found = find(tmp_path)
    assert [e.slide_id for e in found.entries] == ["m"]
    assert not found.others


def test_pattern_narrows(tmp_path):
    put(tmp_path / "a.svs")
    put(tmp_path / "a.tiff")
    assert [e.path.suffix for e in find(tmp_path, "*.tiff").entries] == [".tiff"]
    with pytest.raises(ConfigError, match=r"--pattern '\*.ndpi' lets 0 through"):
        find(tmp_path, "*.ndpi")


def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        find(tmp_path / "none")
    with pytest.raises(ConfigError, match="no files; wanted slides such as"):
        find(tmp_path)
    put(tmp_path / "a.txt", b"text")
    with pytest.raises(ConfigError, match="1 files, none of them a slide"):
        find(tmp_path)


@pytest.mark.parametrize("count", [2, 500])
def test_ids_used_twice_are_named(tmp_path, count):
    for folder in ("x", "y"):
        for i in range(count):
            put(tmp_path / folder / f"a{i:03d}.svs")
    with pytest.raises(ConfigError) as raised:
        find(tmp_path)
    said = str(raised.value)
    assert re.search(
        rf"{count} slide ids are used more than once: a000 \(.*x/a000.svs, .*y/a000.svs\), a001 \(", said
    )
    assert len(said) < 4000, "a page at most"
    assert ("and 490 more. `wsi-mil inspect` lists" in said) == (count == 500)


def write(tmp_path, text):
    path = tmp_path / "m.csv"
    path.write_text(text)
    return path


def test_a_manifest_gives_ids_paths_and_mpp(tmp_path):
    path = write(tmp_path, "\ufeffpath,mpp,slide_id,stain\nsub/a.svs,0.25,one,HE\n/abs/b.svs,,two,IHC\n")
    one, two = read_manifest(path)
    assert (one.slide_id, one.path, one.mpp) == ("one", tmp_path / "sub" / "a.svs", 0.25)
    assert (str(two.path), two.mpp) == ("/abs/b.svs", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,file\n1,a\n", "no column slide_id and path; found id, file"),
        ("", "found none"),
        ("slide_id,path\n", "lists no slides"),
        (
            "slide_id,path,mpp\na,,\nb,b.svs,fast\nc/d,c.svs,\n",
            "line 2: .*empty; line 3: mpp 'fast'.*; line 4",
        ),
        ("slide_id,path,mpp\na,a.svs,264.58\n", "mpp '264.58' is not a number from 0.05 to 5"),
    ],
)
def test_a_manifest_that_is_wrong_says_all_of_it(tmp_path, text, words):
    with pytest.raises(LabelError, match=words):
        read_manifest(write(tmp_path, text))


def test_ids_twice_in_a_manifest(tmp_path):
    with pytest.raises(ConfigError, match=r": a \(.*x.svs, .*y.svs\)"):
        read_manifest(write(tmp_path, "slide_id,path\na,x.svs\na,y.svs\n"))


def test_a_manifest_that_is_no_text(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(LabelError, match="cannot be read as a CSV"):
        read_manifest(path)


def test_links_to_nothing_pipes_and_odd_names_are_faults_by_name(tmp_path):
    put(tmp_path / "good.svs")
    (tmp_path / "gone.svs").symlink_to(tmp_path / "away" / "gone.svs")
    (tmp_path / "round.svs").symlink_to(tmp_path / "round.svs")
    (tmp_path / "gone.txt").symlink_to("nothing.txt")
    os.mkfifo(tmp_path / "pipe.svs")
    put(tmp_path / os.fsdecode(b"caf\xe9.svs"))
    put(tmp_path / os.fsdecode(b"caf\xe9.txt"), b"text")
    (tmp_path / os.fsdecode(b"d\xe9p")).mkdir()
    found = find(tmp_path)
    assert [each.slide_id for each in found.entries] == ["good"]
    faults = {each.slide_id: each.reason for each in found.faults}
    assert faults.keys() == {"gone", "round", "pipe", "caf\\xe9", "d\\xe9p/"}
    assert faults["gone"] == (
        f"a link to {tmp_path / 'away' / 'gone.svs'}, which is not there; mend or remove the link"
    )
    assert "no regular file" in faults["pipe"]
    assert "not UTF-8" in faults["caf\\xe9"]
    assert sorted(path.name for path in found.others) == ["caf\\xe9.txt", "gone.txt"]
    assert [each.slide_id for each in find(tmp_path, "g*.svs").faults] == ["gone", "d\\xe9p/"]
    json.dumps([each.path for each in found.faults]).encode()


def test_a_folder_without_permission_is_a_fault(tmp_path):
    put(tmp_path / "good.svs")
    put(tmp_path / "locked" / "a.svs")
    (tmp_path / "locked").chmod(0o000)
    try:
        with without_roots_powers():
            found = find(tmp_path)
            with pytest.raises(ConfigError, match=r"no slide that can be looked at; .*locked: a folder that"):
                find(tmp_path / "locked")
        (tmp_path / "locked").chmod(0o444)  # listed, and nothing in it can be looked at
        with without_roots_powers():
            listed = find(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert [each.slide_id for each in found.entries] == ["good"]
    assert [(each.slide_id, each.reason) for each in found.faults] == [
        ("locked/", "a folder that cannot be listed (Permission denied); change its permissions (chmod)")
    ]
    assert [(each.slide_id, each.reason) for each in listed.faults] == [
        ("a", "cannot be looked at (Permission denied)")
    ]


@pytest.mark.parametrize("where", ["below", "itself"])
def test_nothing_in_a_run_folder_of_ours_is_a_slide(tmp_path, where):
    run = tmp_path / "run" if where == "below" else tmp_path
    put(tmp_path / "a.svs")
    put(run / "heatmaps" / "m" / "a" / "heatmap.ome.tiff")
    assert len(find(tmp_path).entries) == 2, "a folder of that name is no run yet"
    put(run / "tile" / "stage.json", b"{}")
    found = find(tmp_path)
    assert [each.slide_id for each in found.entries] == ["a"]
    assert not found.faults
    assert all("of wsi-mil; nothing in it is taken for a slide" in note for note in found.notes)
    assert len(found.notes) == (1 if where == "below" else 2)


def test_links_to_folders_above_end_and_links_to_others_are_walked_once(tmp_path):
    put(tmp_path / "x" / "a.svs")
    for i in range(12):  # followed one by one they would be more ways than time allows
        (tmp_path / "x" / f"up{i}").symlink_to(tmp_path)
        (tmp_path / f"here{i}").symlink_to(".")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    elsewhere = put(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "b.svs").parent
    (tmp_path / "z").symlink_to(elsewhere)
    found = find(tmp_path)
    assert sorted(each.slide_id for each in found.entries) == ["a", "b"]
    assert len(found.notes) == 25
    assert f"{tmp_path / 'y'} is the same folder as {tmp_path / 'x'}, and is walked once." in found.notes


def test_ids_do_not_depend_on_how_the_folder_is_typed(tmp_path, monkeypatch):
    folder = put(tmp_path / "case7" / "one.dcm", b"dc1").parent
    (tmp_path / "case7" / "below").mkdir()
    (tmp_path / "link").symlink_to(folder)
    typed = {folder: folder, ".": folder, "../case7": folder, "..": folder / "below", "link": tmp_path}
    for series in (1, 2):
        if series == 2:
            put(folder / "two.dcm", b"dc2")
        wanted = ["case7"] if series == 1 else ["case7_one", "case7_two"]
        for name, cwd in typed.items():
            monkeypatch.chdir(cwd)
            assert [each.slide_id for each in find(Path(name)).entries] == wanted, name
