"""labels.csv: every way it can be wrong is named, all at once, with what to do."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_mil import manifest
from wsi_mil.errors import ConfigError, LabelError


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


@pytest.mark.parametrize(
    "name", ["Patient_ID", "patient", "case_id", "PatientID", "case", "Patient ID", "patient-id", "PATIENT",
             "case_submitter_id", "Subject", "donor_id", "patient.barcode"],
)  # fmt: skip
@pytest.mark.parametrize("task", ["classification", "survival"])
def test_patients_under_another_name_are_never_passed_over(tmp_path, name, task):
    what, value = ("time,event", "3,1") if task == "survival" else ("label", "x")
    path = write(tmp_path, f"{name},slide_id,{what}\np,a,{value}\np,b,{value}\n")
    with pytest.raises(LabelError) as raised:
        manifest.read_labels(path, task)
    assert f"no column 'patient_id', and {name!r} seems to say whose slide it is" in str(raised.value)
    assert "Rename the column to patient_id" in str(raised.value)
    beside = write(tmp_path, f"{name},slide_id,{what},patient_id\np,a,{value},q\np,b,{value},q\n")
    assert manifest.read_labels(beside, task).patient_ids == ("q", "q")


@pytest.mark.parametrize("name", ["site", "patients_age", "caseload", "slide", "staining"])
def test_other_columns_are_not_taken_for_patients(tmp_path, name):
    assert not manifest.read_labels(write(tmp_path, f"slide_id,label,{name}\na,x,1\n")).has_patients


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
        ("slide_id,label,label\na,x,y\n", r"several columns are called 'label'; wanted one each"),
        (
            "slide_id,time,event\na,1,1\n",
            r"no column label; .* Times and events are those of --task survival",
        ),
        (
            "slide_id,label,patient_id\na,x,nan\nb,y,P\nc,y,NaN\n",
            r"patient_id of 2 rows is a word for a missing value: line 2 \(a: 'nan'\), line 4 \(c: 'NaN'\)",
        ),
        ('slide_id,label\na,"' + "x" * 140_000, r"no CSV at line \d+ .*quotation mark not closed"),
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


def read(tmp_path, text, *arguments):
    return manifest.read_labels(write(tmp_path, text), *arguments)


def test_survival_reads_time_and_event(tmp_path):
    rows = "".join(
        f"{event},{i + 1}.5,s{i}\n" for i, event in enumerate(["1", "0", "True", "no", "1.0", "FALSE"])
    )
    labels = read(tmp_path, "event,time,slide_id\n" + rows, "survival")
    assert labels.task == "survival"
    assert labels.labels == (
        "1.5 event", "2.5 censored", "3.5 event", "4.5 censored", "5.5 event", "6.5 censored",
    )  # fmt: skip
    with pytest.raises(LabelError, match=r"no column time and no column event; found .*slide_id,time,event"):
        read(tmp_path, "slide_id,label\na,x\n", "survival")


def test_times_and_events_that_cannot_be_are_all_named(tmp_path):
    rows = ["a,0,1", "b,-3,0", "c,late,1", "d,5,maybe", "e,inf,1", "f,nan,2", "g,4,NA", "h,4,1"]
    with pytest.raises(LabelError) as error:
        read(tmp_path, "\n".join(["slide_id,time,event", *rows]) + "\n", "survival")
    for words in (
        "2 rows whose time is not above 0: line 2 (a: '0'), line 3 (b: '-3')",
        "1 rows whose time is no number: line 4 (c: 'late')",
        "2 rows whose event is none of 0, 1, true, false, yes, no: line 5 (d: 'maybe'), line 7 (f: '2')",
        "1 rows whose time is infinite: line 6 (e: 'inf')",
        "1 rows whose time is missing: line 7 (f: 'nan')",
        "1 rows whose event is missing: line 8 (g: 'NA')",
        "0 where it did not (censored)",
    ):
        assert words in str(error.value), words


def test_regression_wants_numbers(tmp_path):
    good = "slide_id,label\na,1\nb,-2.5\nc,1e-3\nd,.5\ne,+7.\n"
    assert read(tmp_path, good, "regression").labels == ("1", "-2.5", "1e-3", ".5", "+7.")
    rows = ["a,high", 'b,"3,5"', "c,1_000", "d,inf", "e,1e999", "f,NaN", "g,2"]
    with pytest.raises(LabelError) as error:
        read(tmp_path, "\n".join(["slide_id,label", *rows]) + "\n", "regression")
    for words in (
        "3 rows whose label is no number: line 2 (a: 'high'), line 3 (b: '3,5'), line 4 (c: '1_000')",
        "2 rows whose label is infinite: line 5 (d: 'inf'), line 6 (e: '1e999')",
        "1 rows whose label is missing: line 7 (f: 'NaN')",
        "a point before its decimals",
        "--task classification",
    ):
        assert words in str(error.value), words


def test_groups_are_of_the_column_asked_for(tmp_path):
    text = "slide_id,label,site\na,x,NA\nb,y,EU\n"
    assert read(tmp_path, text, "classification", "site").groups == ("NA", "EU")
    assert read(tmp_path, text, "classification", "site").take([1]).groups == ("EU",)
    assert read(tmp_path, text).groups is None
    with pytest.raises(ConfigError, match=r"--group-by sites: .* found 'slide_id', 'label', 'site'"):
        read(tmp_path, text, "classification", "sites")
    with pytest.raises(LabelError, match=r"1 rows have no site: line 3 \(b\)"):
        read(tmp_path, "slide_id,label,site\na,x,NA\nb,y,\n", "classification", "site")
    with pytest.raises(
        LabelError, match=r"the site of 1 rows is a word for a missing value: line 3 \(b: 'nan'\)"
    ):
        read(tmp_path, "slide_id,label,site\na,x,NA\nb,y,nan\n", "classification", "site")


@pytest.mark.parametrize(
    ("task", "header", "same", "other"),
    [
        ("regression", "slide_id,label,patient_id", ("a,1,P", "b,1.0,P"), "c,2,P"),
        ("multilabel", "slide_id,label,patient_id", ("a,x;y,P", "b,y; x,P"), "c,x,P"),
        ("ordinal", "slide_id,label,patient_id", ("a,low,P", "b,low,P"), "c,high,P"),
        ("survival", "slide_id,time,event,patient_id", ("a,3,1,P", "b,3.0,true,P"), "c,3,0,P"),
    ],
)
def test_contradictions_of_every_task(tmp_path, task, header, same, other):
    manifest.check_patients(read(tmp_path, "\n".join([header, *same]) + "\n", task))
    with pytest.raises(LabelError, match=r"1 patients have slides with different labels: P \("):
        manifest.check_patients(read(tmp_path, "\n".join([header, *same, other]) + "\n", task))


def test_a_row_per_patient(tmp_path):
    text = "slide_id,label,patient_id,split,site\na,x,Q,1,s\nb,y,P,2,t\nc,x,Q,1,u\nd,y,R,2,u\ne,y,S,2,v\n"
    labels = read(tmp_path, text, "classification", "site")
    merged, rows = manifest.by_patient(labels)
    assert merged.slide_ids == merged.patient_ids == ("P", "Q", "R", "S")
    assert rows == [[1], [0, 2], [3], [4]]
    assert merged.labels == ("y", "x", "y", "y")
    assert merged.splits == ("2", "1", "2", "2")
    assert merged.groups == ("t", "s+u", "s+u", "v")  # Q ties s and u together, for R too
    assert "1 patients have slides in several groups: Q (s, u)." in manifest.group_remark(labels)
    assert manifest.group_remark(labels.take([1, 3, 4])) == ""
    torn = read(tmp_path, text.replace("c,x,Q,1", "c,x,Q,2"))
    with pytest.raises(LabelError, match=r"1 patients, .* in several splits: Q \(1, 2\)"):
        manifest.by_patient(torn)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("PQRSTU"), st.sampled_from("abcdef")), min_size=1, max_size=30))
def test_merged_groups_never_part_a_patient_or_a_group(pairs):
    patients, groups = (tuple(each) for each in zip(*pairs, strict=True))
    ids = tuple(f"s{i}" for i in range(len(pairs)))
    labels = manifest.Labels(
        path=Path("l.csv"), slide_ids=ids, labels=("x",) * len(ids), patient_ids=patients, splits=None,
        has_patients=True, groups=groups,
    )  # fmt: skip
    merged, rows = manifest.by_patient(labels)
    assert sorted(i for each in rows for i in each) == list(range(len(pairs)))
    joined = {}
    for name, members in zip(merged.groups, rows, strict=True):
        for i in members:
            assert joined.setdefault(groups[i], name) == name
            assert groups[i] in name.split("+")
