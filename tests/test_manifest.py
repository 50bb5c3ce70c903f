import re

import pytest

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
