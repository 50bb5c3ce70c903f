"""labels.csv: every way it can be wrong is named, all at once, with what to do."""

import re

import pytest

from wsi_mil import manifest
from wsi_mil.errors import LabelError


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_columns_in_any_order_with_others_ignored(tmp_path):
    path = write(
        tmp_path, "note, label ,patient_id,slide_id\nx,tumour,P1, a\ny,normal,P2,b \n\n", "utf-8-sig"
    )
    labels = manifest.read_labels(path)
    assert labels.slide_ids == ("a", "b")
    assert labels.labels == ("tumour", "normal")
    assert labels.patient_ids == ("P1", "P2")
    assert labels.has_patients
    assert labels.splits is None


def test_without_patients_each_slide_is_its_own(tmp_path):
    labels = manifest.read_labels(write(tmp_path, "slide_id,label,split\na,x,train\nb,y,\n"))
    assert labels.patient_ids == ("a", "b")
    assert not labels.has_patients
    assert labels.splits == ("train", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no column slide_id and no column label; found an empty file; wanted a header slide_id,label"),
        ("slide,label\na,x\n", r"no column slide_id; found 'slide', 'label'"),
        ("slide_id;label\na;x\n", r"found 'slide_id;label'.*separated by ';' or tabs; use commas"),
        ("slide_id,label\na,\nb,x\nc,\n", r"2 rows have no label: line 2 \(a\), line 4 \(c\)"),
        ("slide_id,label\n,x\n", r"1 rows have no slide_id: line 2 \(\?\)"),
        ("slide_id,label,patient_id\na,x,\n", r"1 rows have no patient_id: line 2 \(a\)"),
        (
            "slide_id,label\na,x\na,x\nb,y\nc,x\nc,y\n",
            r"2 slide ids .* more than once: a, c\. Wanted one row",
        ),
        ("slide_id,label\na,x,y\nb\n", r"2 rows do not have the 2 fields .*: line 2 \(3\), line 3 \(1\)"),
        ("slide_id,label\n", r"a header and no rows"),
    ],
)
def test_bad_files_are_explained(tmp_path, text, message):
    with pytest.raises(LabelError, match=message):
        manifest.read_labels(write(tmp_path, text))


def test_many_problems_are_counted_and_the_first_named(tmp_path):
    rows = "".join(f"s{i:02},\n" for i in range(25))
    with pytest.raises(LabelError, match=r"25 rows have no label: .*line 11 \(s09\) and 15 more"):
        manifest.read_labels(write(tmp_path, "slide_id,label\n" + rows))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(LabelError, match=r"--labels .*none\.csv: cannot be read \(No such file"):
        manifest.read_labels(tmp_path / "none.csv")
    with pytest.raises(LabelError, match=r"not UTF-8 text .*save it as CSV UTF-8"):
        manifest.read_labels(write(tmp_path, "slide_id,label\na,böse\n", "latin-1"))


def labels_of(tmp_path, *rows, header="slide_id,label,patient_id"):
    return manifest.read_labels(write(tmp_path, "\n".join([header, *rows]) + "\n"))


def test_match_lists_what_is_left_over_on_both_sides(tmp_path):
    labels = labels_of(tmp_path, "c,x,1", "a,y,2", "b.svs,x,3", "z,y,4")
    match = manifest.match(labels, ["a", "b", "c", "extra"], "features")
    assert match.labels.slide_ids == ("a", "c")
    assert match.labels.labels == ("y", "x")
    assert match.without_features == ("b.svs", "z")
    assert match.without_label == ("b", "extra")
    assert "'b.svs' matches the features 'b' (1 such)" in match.hint


def test_a_dot_in_a_slide_id_is_not_an_extension_by_itself(tmp_path):
    labels = labels_of(tmp_path, "TCGA-01.uuid,x,1", "b.c,y,2")
    assert manifest.match(labels, ["TCGA-01.uuid", "q"], "features").hint == ""


def test_no_overlap_at_all(tmp_path):
    labels = labels_of(tmp_path, "a.svs,x,1", "b.svs,y,2")
    message = (
        r"none of its 2 slides has features in F.*Labels: a\.svs, b\.svs; features: a, b\..*'a\.svs' matches"
    )
    with pytest.raises(LabelError, match=message):
        manifest.match(labels, ["a", "b"], "F")
    with pytest.raises(LabelError, match=r"features: none"):
        manifest.match(labels, [], "F")


def test_the_positive_class_comes_last(tmp_path):
    labels = labels_of(tmp_path, "a,x,1", "b,y,2")
    assert manifest.classes_of(labels, None) == ("x", "y")
    assert manifest.classes_of(labels, "x") == ("y", "x")
    many = labels_of(tmp_path, "a,x,1", "b,y,2", "c,k,3")
    assert manifest.classes_of(many, None) == ("k", "x", "y")


@pytest.mark.parametrize(
    ("rows", "positive", "message"),
    [
        (("a,x,1", "b,x,2"), None, r"only one label .* 'x' \(2\); wanted two"),
        (("a,x,1", "b,y,2"), "tumour", r"--positive 'tumour': not a label .* found 'x' \(1\), 'y' \(1\)"),
        (("a,x,1", "b,y,2", "c,z,3"), "x", r"--positive 'x': only two labels have .* holds 3"),
    ],
)
def test_classes_that_cannot_be(tmp_path, rows, positive, message):
    with pytest.raises(LabelError, match=message):
        manifest.classes_of(labels_of(tmp_path, *rows), positive)


def test_patients_with_two_labels_are_named(tmp_path):
    labels = labels_of(tmp_path, "a,x,P", "b,y,P", "c,x,Q", "d,x,Q")
    with pytest.raises(LabelError, match=r"1 patients .*: P \(x, y\)\. .*--label-level slide"):
        manifest.check_patients(labels)
    manifest.check_patients(labels.take([0, 2, 3]))


def test_a_split_column_must_be_there_and_full(tmp_path):
    with pytest.raises(LabelError, match=r"--split column: .* no column 'split'.*--split kfold"):
        manifest.check_splits(labels_of(tmp_path, "a,x,1"))
    header = "slide_id,label,split"
    with pytest.raises(LabelError, match=re.escape("2 slides have an empty split: a, c.")):
        manifest.check_splits(labels_of(tmp_path, "a,x,", "b,y,1", "c,y,", header=header))
    assert manifest.check_splits(labels_of(tmp_path, "a,x,1", "b,y,2", header=header)) == ("1", "2")
