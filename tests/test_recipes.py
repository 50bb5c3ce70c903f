"""The recipes of public cohorts, on small files of the format of their official lists."""

import csv
import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from pipelines.camelyon16 import prepare as camelyon16
from pipelines.tcga_nsclc import prepare as tcga
from wsi_mil.config import EmbedConfig, HeatmapConfig, TileConfig, TrainConfig, from_toml
from wsi_mil.manifest import read_labels, read_manifest

ROOT = Path(__file__).parents[1]
TISSUE = ((0, 0, 512, 512),)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def command(module, *arguments):
    """Run a recipe's main() as its command line would."""
    before = sys.argv
    sys.argv = ["prepare.py", *map(str, arguments)]
    try:
        return module.main()
    finally:
        sys.argv = before


@pytest.fixture
def a_slide(make_slide):
    return make_slide("one.tiff", width=512, height=512, tissue=TISSUE)


@pytest.fixture
def camelyon(a_slide, tmp_path):
    """CAMELYON16 in small, as GigaDB has it: folders by part, a list with masks in it, a reference."""
    folder = tmp_path / "CAMELYON16"
    names = [
        "training/normal/normal_001.tif", "training/normal/normal_086.tif", "training/tumor/tumor_001.tif",
        "testing/images/test_001.tif", "testing/images/test_002.tif", "testing/images/test_049.tif",
    ]  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(a_slide, folder / name)
    digest = hashlib.md5(a_slide.read_bytes()).hexdigest()
    lines = [f"{digest} *{name}" for name in names] + [
        f"{'0' * 32} *masks/tumor_001_mask.tif",
        f"{'0' * 32} *README.md",
    ]
    (folder / "checksums.md5").write_text("\n".join(lines) + "\n")
    reference = "test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\ntest_049,Tumor,IDC,Macro\n"
    (folder / "testing" / "reference.csv").write_text(reference)
    return folder


def test_camelyon16_has_its_official_split_and_names_what_it_leaves_out(camelyon, tmp_path, capsys):
    assert command(camelyon16, camelyon, tmp_path / "out", "--md5") == 0
    out, err = capsys.readouterr()
    found = {row["slide_id"]: (row["label"], row["split"]) for row in rows(tmp_path / "out" / "labels.csv")}
    assert found == {
        "normal_001": ("normal", "train"), "tumor_001": ("tumor", "train"),
        "test_001": ("tumor", "test"), "test_002": ("normal", "test"),
    }  # fmt: skip
    assert {each.slide_id: each.path.name for each in read_manifest(tmp_path / "out" / "manifest.csv")} == {
        name: f"{name}.tif" for name in found
    }
    assert "normal_086" in err
    assert "test_049" in err
    assert "train normal    1 slides (the list: 159)" in out


def test_camelyon16_says_how_many_there_should_be():
    assert sum(camelyon16.EXPECTED.values()) == 399, "Ehteshami Bejnordi et al., JAMA 2017: 270 and 129"
    assert sum(count for (part, _), count in camelyon16.EXPECTED.items() if part == "test") == 129


def test_camelyon16_without_reference_goes_by_the_outlines(camelyon, tmp_path):
    (camelyon / "testing" / "reference.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither reference.csv nor annotations"):
        camelyon16.prepare(camelyon, tmp_path / "out")
    (camelyon / "annotations").mkdir()
    (camelyon / "annotations" / "test_001.xml").write_text("<ASAP_Annotations/>")
    counts = camelyon16.prepare(camelyon, tmp_path / "out")
    assert (counts["test", "tumor"], counts["test", "normal"]) == (1, 1)


TUMOR = "training/tumor/tumor_001.tif"


@pytest.mark.parametrize(
    ("breaks", "word"),
    [
        (lambda at: (at / TUMOR).unlink(), "1 files of the list are not there: tumor"),
        (lambda at: (at / TUMOR).write_bytes(b"cut"), "not the bytes of checksums.md5: tumor_001"),
        (lambda at: (at / "checksums.md5").unlink(), "no such file"),
        (lambda at: (at / "checksums.md5").write_text("0 *a.txt"), "lists no slide"),
        (lambda at: (at / "testing/reference.csv").write_text("test_001,Tumor\n"), "for test_002"),
        (lambda at: shutil.copytree(at / "training", at / "again"), "are there twice"),
    ],
)
def test_camelyon16_refuses_what_is_wrong_and_writes_nothing(camelyon, tmp_path, capsys, breaks, word):
    breaks(camelyon)
    assert command(camelyon16, camelyon, tmp_path / "out", "--md5") == 1
    assert word in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_container_sees_the_slides_elsewhere(camelyon, gdc):
    camelyon16.prepare(camelyon, gdc / "c16", seen_as=Path("/slides"))
    tcga.prepare(gdc / "sheet.tsv", gdc / "gdc", gdc / "out", seen_as=Path("/slides"))
    assert rows(gdc / "c16" / "manifest.csv")[0]["path"] == "/slides/training/normal/normal_001.tif"
    assert rows(gdc / "out" / "manifest.csv")[0]["path"] == f"/slides/id1/{SLIDES[0][1]}"


def test_camelyon16_in_part(camelyon, tmp_path):
    (camelyon / "training/tumor/tumor_001.tif").unlink()
    counts = camelyon16.prepare(camelyon, tmp_path / "out", partly=True)
    assert sum(counts.values()) == 3


SHEET = "File ID\tFile Name\tData Category\tData Type\tProject ID\tCase ID\tSample ID\tSample Type"
END = "38cf-40ea-8213-45c2b100ac01.svs"
SLIDES = (
    ("id1", f"TCGA-05-4244-01Z-00-DX1.d4ff32cd-{END}", "TCGA-LUAD", "TCGA-05-4244"),
    ("id2", f"TCGA-05-4244-01Z-00-DX2.11111111-{END}", "TCGA-LUAD", "TCGA-05-4244, TCGA-05-4244"),
    ("id3", f"TCGA-18-3406-01Z-00-DX1.22222222-{END}", "TCGA-LUSC", "TCGA-18-3406"),
    ("id4", f"TCGA-18-3406-01A-01-TS1.33333333-{END}", "TCGA-LUSC", "TCGA-18-3406"),
)


@pytest.fixture
def gdc(a_slide, tmp_path):
    """A cart of the GDC as gdc-client downloads it: a folder per file, a sample sheet, a manifest."""
    folder = tmp_path / "gdc"
    sheet, manifest = [SHEET], ["id\tfilename\tmd5\tsize\tstate"]
    digest = hashlib.md5(a_slide.read_bytes()).hexdigest()
    for file_id, name, project, case in SLIDES:
        (folder / file_id / "logs").mkdir(parents=True)
        (folder / file_id / "logs" / f"{name}.parcel").write_text("")
        shutil.copy(a_slide, folder / file_id / name)
        sheet.append(
            f"{file_id}\t{name}\tBiospecimen\tSlide Image\t{project}\t{case}\t{case}-01Z\tPrimary Tumor"
        )
        manifest.append(f"{file_id}\t{name}\t{digest}\t{a_slide.stat().st_size}\treleased")
    (tmp_path / "sheet.tsv").write_text("\n".join(sheet) + "\n")
    (tmp_path / "gdc_manifest.txt").write_text("\n".join(manifest) + "\n")
    return tmp_path


def test_tcga_has_cases_as_patients_and_leaves_frozen_tissue_out(gdc, capsys):
    arguments = [gdc / "sheet.tsv", gdc / "gdc", gdc / "out", "--manifest", gdc / "gdc_manifest.txt"]
    assert command(tcga, *arguments) == 0
    out, err = capsys.readouterr()
    assert "luad: 2 slides of 1 cases from 1 sites" in out
    assert "lusc: 1 slides of 1 cases from 1 sites" in out
    assert "1 files" in err
    labels = read_labels(gdc / "out" / "labels.csv", group_by="site")
    assert labels.labels == ("luad", "luad", "lusc")
    assert labels.patient_ids == ("TCGA-05-4244", "TCGA-05-4244", "TCGA-18-3406")
    assert labels.groups == ("05", "05", "18")
    assert [each.slide_id for each in read_manifest(gdc / "out" / "manifest.csv")] == list(labels.slide_ids)


LUSC = Path("gdc", "id3", SLIDES[2][1])


@pytest.mark.parametrize(
    ("breaks", "word"),
    [
        (lambda at: (at / LUSC).unlink(), "1 files of the list are not there: TCGA-18"),
        (lambda at: (at / LUSC).write_bytes(b"cut"), "not the bytes of"),
        (lambda at: (at / "sheet.tsv").unlink(), "wanted the sample sheet"),
        (lambda at: (at / "sheet.tsv").write_text("id\tfilename\tmd5\n"), "no column File ID and File Name"),
        (lambda at: replace(at / "sheet.tsv", "TCGA-LUSC", "TCGA-BRCA"), "holds TCGA-BRCA"),
        (lambda at: replace(at / "sheet.tsv", "-DX", "-BS"), "no diagnostic slide"),
    ],
)
def test_tcga_refuses_what_is_wrong_and_writes_nothing(gdc, capsys, breaks, word):
    breaks(gdc)
    arguments = [gdc / "sheet.tsv", gdc / "gdc", gdc / "out", "--manifest", gdc / "gdc_manifest.txt"]
    assert command(tcga, *arguments) == 1
    assert word in capsys.readouterr().err
    assert not (gdc / "out").exists()


def replace(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def test_the_tables_tile(gdc, camelyon, tmp_path, wsi):
    camelyon16.prepare(camelyon, tmp_path / "c16")
    tcga.prepare(gdc / "sheet.tsv", gdc / "gdc", gdc / "out")
    for recipe, folder, count in (("camelyon16", tmp_path / "c16", 4), ("tcga_nsclc", gdc / "out", 3)):
        settings = ROOT / "pipelines" / recipe / "pipeline.toml"
        run = tmp_path / f"run-{recipe}"
        code, out, err = wsi(
            "tile", "--config", settings, "--slides", folder / "manifest.csv", "--run", run, "--workers", 1
        )
        assert code == 0, out + err
        assert f"{count} done" in out


@pytest.mark.parametrize("recipe", ["camelyon16", "tcga_nsclc"])
def test_the_settings_read(recipe, tmp_path):
    path = ROOT / "pipelines" / recipe / "pipeline.toml"
    assert from_toml(TileConfig, path, slides=tmp_path, run=tmp_path).mpp == 0.5
    assert from_toml(EmbedConfig, path, run=tmp_path).encoder
    train = from_toml(TrainConfig, path, run=tmp_path, labels=tmp_path / "labels.csv")
    assert train.positive in {"tumor", "lusc"}
    from_toml(HeatmapConfig, path, run=tmp_path)
