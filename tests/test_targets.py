"""Labels become targets, or are refused by the slides that hold them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_mil import manifest
from wsi_mil.config import TrainConfig
from wsi_mil.errors import LabelError


def labels_of(*texts, task="classification"):
    ids = tuple(f"s{i:02}" for i in range(len(texts)))
    return manifest.Labels(
        path=Path("l.csv"), slide_ids=ids, labels=texts, patient_ids=ids, splits=None, has_patients=False,
        task=task,
    )  # fmt: skip


def make(*texts, task="classification", **more):
    config = TrainConfig(run=Path("r"), labels=Path("l.csv"), task=task, **more)
    return manifest.make_targets(labels_of(*texts, task=task), config)


def refused(*texts, task="classification", **more):
    with pytest.raises(LabelError) as error:
        make(*texts, task=task, **more)
    return str(error.value)


def test_classes_are_sorted_and_the_positive_one_is_last():
    targets = make("y", "x", "y")
    assert (targets.task, targets.names) == ("classification", ("x", "y"))
    assert targets.values.dtype == np.int64
    assert targets.values.tolist() == [1, 0, 1]
    assert make("y", "x", "y", positive="x").names == ("y", "x")
    assert make("x", "y", "k").names == ("k", "x", "y")
    assert make("10", "9", "10").names == ("9", "10")  # numbers by value
    assert make("1", "0").values.tolist() == [1, 0]


def test_classes_in_the_order_given():
    targets = make("b", "c", "a", classes=("c", "a", "b"))
    assert targets.names == ("c", "a", "b")
    assert targets.values.tolist() == [2, 0, 1]
    assert make("a", "b", classes=("b", "a"), positive="b").names == ("a", "b")


@pytest.mark.parametrize(
    ("texts", "more", "words"),
    [
        (("x", "x"), {}, "only one label among the slides to train on, 'x' (2); wanted two"),
        (("x", "y"), {"positive": "z"}, "--positive 'z': not a label of l.csv; found 'x' (1), 'y' (1)"),
        (
            ("x", "y", "z"),
            {"positive": "x"},
            "--positive 'x': only two labels have a positive one; l.csv holds 3",
        ),
        (
            ("nan", "x", "N/A", "y"),
            {},
            "2 slides have as label a word for a missing value: s00 ('nan'), s02 ('N/A')",
        ),
        (
            ("Tumor", "tumor", "normal"),
            {},
            "probably the same: 'Tumor' (1) and 'tumor' (1). Write them alike",
        ),
        (("a  b", "a b", "c"), {}, "probably the same: 'a  b' (1) and 'a b' (1)"),
        (("0", "1", "1.0", "0.0"), {}, "probably the same: '0' (1) and '0.0' (1), '1' (1) and '1.0' (1)"),
        (
            ("0", "1", "tumour"),
            {},
            "some labels are numbers and some are words: '0' (1), '1' (1), 'tumour' (1)",
        ),
        (
            tuple(str(i) for i in range(21)),
            {},
            "21 different numbers as labels (0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 11",
        ),
        (
            ("x", "Y", "z"),
            {"classes": ("x", "y")},
            "2 slides have labels that --classes does not name: s01 ('Y')",
        ),
        (("x", "Y"), {"classes": ("x", "y")}, "Is 'Y' meant to be 'y'?"),
        (
            ("x", "y"),
            {"classes": ("x", "y", "z")},
            "none of the slides to train on has 'z' (l.csv holds 'x' (1)",
        ),
    ],
)
def test_classes_that_cannot_be(texts, more, words):
    assert words in refused(*texts, **more)


def test_what_is_refused_offers_a_way_out():
    assert "--task regression" in refused(*(f"{i}.5" for i in range(30)))
    for texts in (("nan", "x"), ("Tumor", "tumor"), ("0", "1", "tumour")):
        assert "--classes" in refused(*texts)
        assert make(*texts, classes=tuple(texts)).values.tolist() == list(range(len(texts)))
    assert make(*map(str, range(20))).names == tuple(map(str, range(20)))
    assert make("none", "some").names == ("none", "some")  # a class may be called that


def test_many_are_counted_and_ten_named():
    message = refused(*["nan"] * 13, "x")
    assert "13 slides" in message
    assert "s09 ('nan') and 3 more" in message


def test_grades_in_their_order():
    targets = make("high", "low", "high", task="ordinal", classes=("low", "mid", "high"))
    assert targets.values.tolist() == [2, 0, 2]
    assert targets.values.dtype == np.int64
    assert targets.remarks == ("l.csv: grades that no slide has: mid; the model keeps a place for each.",)
    assert make("low", "high", task="ordinal", classes=("low", "high")).remarks == ()
    grades = {"task": "ordinal", "classes": ("1", "2", "3")}
    assert "s01 ('4')" in refused("1", "4", **grades)
    assert "Is '2.0' meant to be '2'?" in refused("1", "2.0", **grades)
    assert "only one grade among the slides to train on, '2' (2)" in refused("2", "2", **grades)


def test_several_labels_of_a_slide():
    targets = make("b;a", "none", "a", "c ; b", task="multilabel")
    assert targets.names == ("a", "b", "c")
    assert targets.values.dtype == np.float64
    assert targets.values.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert make("a;b", "b", task="multilabel", classes=("b", "a")).values.tolist() == [[1, 1], [1, 0]]
    assert "every slide has b" in make("a;b", "b", task="multilabel").remarks[0]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (
            ("a;", ";b", "a;;b"),
            "3 slides with nothing before or after a ';': s00 ('a;'), s01 (';b'), s02 ('a;;b')",
        ),
        (("a;a", "b"), "1 slides that name a label twice: s00 ('a;a')"),
        (("a;none", "b"), "1 slides with 'none' beside a label: s00 ('a;none')"),
        (("a", "None"), "probably the same: 'None' (1) and 'none' (0)"),
        (("a;nan", "b"), "a word for a missing value: s00 ('nan')"),
        (("none", "none"), "has the same labels, all of them say 'none'"),
        (("a;b", "b;a"), "has the same labels, 'a' (2), 'b' (2)"),
    ],
)
def test_several_labels_that_cannot_be(texts, words):
    assert words in refused(*texts, task="multilabel")


def test_labels_that_classes_do_not_name_are_said_by_slide():
    message = refused("a", "b;x", "x", task="multilabel", classes=("a", "b"))
    assert "2 slides have labels that --classes does not name: s01 ('x'), s02 ('x')" in message
    assert "none of the slides to train on has 'c'" in refused(
        "a", "b", task="multilabel", classes=("a", "b", "c")
    )


def test_numbers_and_times():
    targets = make("1.5", "-2", "1e3", task="regression")
    assert (targets.names, targets.values.tolist()) == (("value",), [1.5, -2.0, 1000.0])
    assert "every one of the 2 slides to train on has the value 3" in refused("3", "3.0", task="regression")
    targets = make("12.5 event", "3 censored", "20 censored", task="survival")
    assert (targets.names, targets.values.tolist()) == (("risk",), [[12.5, 1], [3, 0], [20, 0]])
    assert "all 2 slides to train on are censored" in refused("1 censored", "2 censored", task="survival")
    assert "no two slides can be ranked" in refused("1 censored", "2 event", task="survival")


def test_rows_are_taken_in_the_order_asked_for():
    targets = make("12.5 event", "3 censored", "20 censored", task="survival")
    assert targets.take([2, 0]).values.tolist() == [[20, 0], [12.5, 1]]
    assert (len(targets), len(targets.take(np.array([1])))) == (3, 1)
    assert targets.take([2]).names == ("risk",)


def test_labels_of_another_task_are_a_mistake_of_the_caller():
    config = TrainConfig(run=Path("r"), labels=Path("l"), task="regression")
    with pytest.raises(ValueError, match="read for classification, and the task is regression"):
        manifest.make_targets(labels_of("1", "2"), config)


@settings(deadline=None)
@given(st.lists(st.sets(st.sampled_from(["a", "b", "c c", "d-d"])), min_size=1, max_size=12))
def test_multilabels_come_back(held):
    texts = [";".join(sorted(each)) or "none" for each in held]
    try:
        targets = make(*texts, task="multilabel")
    except LabelError:
        assert len({frozenset(each) for each in held}) == 1
        return
    back = [{name for name, one in zip(targets.names, row, strict=True) if one} for row in targets.values]
    assert back == held


@settings(deadline=None)
@given(st.lists(st.sampled_from(["x", "y", "z", "k 1"]), min_size=2, max_size=20))
def test_codes_point_at_the_labels(texts):
    if len(set(texts)) < 2:
        assert "only one label" in refused(*texts)
        return
    targets = make(*texts)
    assert [targets.names[code] for code in targets.values] == texts
