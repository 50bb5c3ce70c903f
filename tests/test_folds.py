"""Folds that never part a patient nor a group, whatever the cohort looks like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_mil import metrics
from wsi_mil.errors import LabelError

NAMES = ("a", "b")


@st.composite
def cohorts(draw):
    """Codes and patients of 8 to 40 slides in which each class has at least 3 patients."""
    classes = draw(st.integers(2, 3))
    base = [(f"p{c}{i}", c) for c in range(classes) for i in range(3)]
    patients = st.integers(0, 11)
    extra = draw(st.lists(st.tuples(patients, st.integers(0, classes - 1)), max_size=30))
    rows = draw(st.permutations(base + [(f"x{p}", c) for p, c in extra]))
    return np.array([c for _, c in rows]), [p for p, _ in rows], classes


def assert_apart(patients, *parts):
    sides = [{patients[i] for i in part} for part in parts]
    for i, side in enumerate(sides):
        for other in sides[i + 1 :]:
            assert not side & other


@settings(deadline=None, max_examples=60)
@given(cohorts(), st.integers(2, 3), st.integers(0, 2**31))
def test_no_patient_is_on_two_sides(cohort, folds, seed):
    codes, patients, classes = cohort
    made = metrics.patient_folds(codes, patients, folds, seed=seed, names="abc"[:classes])
    assert len(made) == folds
    assert sorted(np.concatenate([fold.test for fold in made]).tolist()) == list(range(len(codes)))
    for fold in made:
        assert len(fold.test) > 0
        assert_apart(patients, fold.train, fold.test)
        assert set(codes[fold.train]) == set(range(classes))
        parts = metrics.inner_parts(codes, patients, fold.train, 5, seed=seed, classes=classes)
        for val in parts:
            rest = np.setdiff1d(fold.train, val)
            assert len(val) > 0
            assert set(val) <= set(fold.train)
            assert set(codes[rest]) == set(range(classes))
            assert_apart(patients, rest, val, fold.test)
        if parts:
            assert sorted(np.concatenate(parts)) == fold.train.tolist()


@settings(deadline=None, max_examples=30)
@given(cohorts())
def test_leave_one_out_tests_each_patient_once(cohort):
    codes, patients, classes = cohort
    made = metrics.leave_one_out(codes, patients, names="abc"[:classes])
    assert [{patients[i] for i in fold.test} for fold in made] == [{p} for p in sorted(set(patients))]
    for fold in made:
        assert_apart(patients, fold.train, fold.test)


def test_folds_are_stratified_and_seeded():
    codes = np.array([0, 1] * 20)
    patients = [f"p{i}" for i in range(40)]
    once = metrics.patient_folds(codes, patients, 5, seed=3, names=NAMES)
    again = metrics.patient_folds(codes, patients, 5, seed=3, names=NAMES)
    other = metrics.patient_folds(codes, patients, 5, seed=4, names=NAMES)
    assert [f.test.tolist() for f in once] == [f.test.tolist() for f in again]
    assert [f.test.tolist() for f in once] != [f.test.tolist() for f in other]
    assert all(codes[f.test].mean() == 0.5 for f in once)


def test_too_few_patients_of_a_class_names_it_and_offers_a_number():
    codes = np.array([0] * 8 + [1] * 3)
    with pytest.raises(LabelError, match=r"--folds 5.*label 'b'.*'a': 8, 'b': 3.*11 in all.*--folds 3"):
        metrics.patient_folds(codes, [f"p{i}" for i in range(11)], 5, seed=0, names=NAMES)


def test_leave_one_out_wants_two_patients_of_each_class():
    with pytest.raises(LabelError, match=r"leave-one-out.*fold 'p0' holds no slide of label 'a'"):
        metrics.leave_one_out(np.array([0, 1, 1]), ["p0", "p1", "p2"], names=NAMES)


def test_inner_parts_shrink_with_the_patients_and_vanish():
    codes = np.array([0, 0, 0, 1, 1])
    patients = list("stuvw")
    assert len(metrics.inner_parts(codes, patients, np.arange(5), 5, seed=0, classes=2)) == 2
    assert metrics.inner_parts(codes, patients, np.array([0, 1, 3]), 5, seed=0, classes=2) == []


def test_column_with_train_val_test_is_one_fold():
    splits = ["train", "val", "test", "train", "test", "val"]
    (fold,) = metrics.column_folds(splits, np.array([0, 1, 0, 1, 1, 0]), list("abcdef"), names=NAMES)
    assert fold.train.tolist() == [0, 1, 3, 5]
    assert fold.val.tolist() == [1, 5]
    assert fold.test.tolist() == [2, 4]


def test_column_with_other_values_names_the_test_folds():
    made = metrics.column_folds(
        ["y", "x", "y", "x"], np.array([0, 1, 1, 0]), ["p", "q", "p", "r"], names=NAMES
    )
    assert [fold.test.tolist() for fold in made] == [[1, 3], [0, 2]]
    assert all(len(fold.val) == 0 for fold in made)


@pytest.mark.parametrize(
    ("splits", "patients", "message"),
    [
        (["x", "y", "x", "y"], ["p", "p", "q", "r"], r"1 patients are in more than one part \(p: x, y\)"),
        (["train", "train", "val", "val"], list("pqrs"), r"holds only train, val; wanted 'train' and 'test'"),
        (["test", "test", "train", "test"], list("pqrs"), r"part 'train' holds no slide of label 'b'"),
        (["x"] * 4, list("pqrs"), r"one part only \('x'\)"),
        (["x", "y", "x", "y"], list("pqrs"), r"training part of fold 'x' holds no slide of label 'a'"),
    ],
)
def test_columns_that_cannot_be_folds(splits, patients, message):
    with pytest.raises(LabelError, match=message):
        metrics.column_folds(splits, np.array([0, 1, 0, 1]), patients, names=NAMES)


def test_a_split_column_may_not_part_a_group():
    with pytest.raises(LabelError, match=r"1 groups are in more than one part \(s: x, y\)"):
        metrics.column_folds(list("xxyy"), np.array([0, 1, 0, 1]), list("pqrt"), groups_N=list("sssu"))


@st.composite
def grouped_cohorts(draw):
    """Strata, patients and sites of 6 to 50 rows; a patient may have slides of several sites."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 24), st.one_of(st.none(), st.integers(0, 7))),
            min_size=6,
            max_size=50,
        )
    )
    home = {patient: draw(st.integers(0, 7)) for patient in {p for _, p, _ in rows}}
    crossing = draw(st.booleans())
    sites = [f"s{home[p] if s is None or not crossing else s}" for _, p, s in rows]
    return np.array([c for c, _, _ in rows]), [f"p{p}" for _, p, _ in rows], sites


def linked(patients, sites):
    """How many sets of rows share neither a patient nor a site with another: by flooding, row after row."""
    left, count = set(range(len(patients))), 0
    while left:
        front, count = {left.pop()}, count + 1
        while front:
            names, places = {patients[i] for i in front}, {sites[i] for i in front}
            front = {i for i in left if patients[i] in names or sites[i] in places}
            left -= front
    return count


@settings(deadline=None, max_examples=60)
@given(grouped_cohorts(), st.integers(2, 4), st.integers(1, 3), st.integers(0, 2**31), st.booleans())
def test_neither_patient_nor_site_is_ever_on_two_sides(cohort, folds, repeats, seed, whole_sites):
    strata, patients, sites = cohort
    groups = sites if whole_sites else None
    if linked(patients, sites if whole_sites else patients) < folds:
        with pytest.raises(LabelError, match=f"--folds {folds}: more than the "):
            metrics.patient_folds(strata, patients, folds, seed=seed, groups_N=groups, repeats=repeats)
        return
    made = metrics.patient_folds(strata, patients, folds, seed=seed, groups_N=groups, repeats=repeats)
    again = metrics.patient_folds(strata, patients, folds, seed=seed, groups_N=groups, repeats=repeats)
    assert [fold.test.tolist() for fold in made] == [fold.test.tolist() for fold in again]
    assert [fold.repeat for fold in made] == [r for r in range(repeats) for _ in range(folds)]
    for repeat in range(repeats):
        tested = np.concatenate([fold.test for fold in made if fold.repeat == repeat])
        assert sorted(tested.tolist()) == list(range(len(strata)))
    for fold in made:
        assert sorted([*fold.train.tolist(), *fold.test.tolist()]) == list(range(len(strata)))
        parts = metrics.inner_parts(strata, patients, fold.train, 4, seed=seed, groups_N=groups)
        for ids in [patients] + ([sites] if whole_sites else []):
            assert_apart(ids, fold.train, fold.test)
            for val in parts:
                assert_apart(ids, np.setdiff1d(fold.train, val), val, fold.test)
        if parts:
            assert sorted(np.concatenate(parts).tolist()) == fold.train.tolist()


@settings(deadline=None, max_examples=60)
@given(grouped_cohorts())
def test_leaving_sites_out_tests_each_once_and_parts_no_patient(cohort):
    strata, patients, sites = cohort
    parts = linked(patients, sites)
    if parts < 2:
        with pytest.raises(LabelError, match="one part only"):
            metrics.leave_one_out(strata, patients, groups_N=sites)
        return
    made = metrics.leave_one_out(strata, patients, groups_N=sites)
    assert len(made) == parts
    assert sorted(np.concatenate([fold.test for fold in made]).tolist()) == list(range(len(strata)))
    for fold in made:
        assert_apart(patients, fold.train, fold.test)
        assert_apart(sites, fold.train, fold.test)


def test_sites_are_left_out_in_order_and_those_that_share_a_patient_together():
    sites = ["b", "a", "c", "b", "a", "d"]
    patients = ["p", "q", "r", "s", "p", "t"]  # p has slides of b and of a
    made = metrics.leave_one_out(np.zeros(6, int), patients, groups_N=sites)
    assert [fold.test.tolist() for fold in made] == [[0, 1, 3, 4], [2], [5]]
    with pytest.raises(LabelError, match=r"training part of fold 'a \+ b' holds no slide of label 'n'"):
        metrics.leave_one_out(np.array([0, 0, 1, 0, 0, 1]), patients, groups_N=sites, names=("n", "t"))


def test_repeats_are_drawn_anew_and_the_first_stays():
    strata, patients = np.array([0, 1] * 20), [f"p{i}" for i in range(40)]
    one = metrics.patient_folds(strata, patients, 5, seed=3)
    three = metrics.patient_folds(strata, patients, 5, seed=3, repeats=3)
    tests = [tuple(tuple(fold.test) for fold in three if fold.repeat == r) for r in range(3)]
    assert tests[0] == tuple(tuple(fold.test) for fold in one)
    assert len(set(tests)) == 3


def test_more_folds_than_patients_or_sites_offers_what_is_possible():
    strata, patients = np.zeros(6, int), list("aabbcd")
    with pytest.raises(LabelError, match=r"--folds 5: more than the 4 patients\. Use --folds 4 or fewer"):
        metrics.patient_folds(strata, patients, 5, seed=0)
    with pytest.raises(LabelError, match=r"more than the 2 groups that share no patient\. Use --folds 2"):
        metrics.patient_folds(strata, patients, 3, seed=0, groups_N=list("xxyyxy"))
    with pytest.raises(LabelError, match=r"1 of the 3 groups .* holds a slide of label 't'"):
        metrics.patient_folds(
            np.array([0, 0, 0, 0, 1, 1]), patients, 2, seed=0, groups_N=list("xxyyzz"), names=("n", "t")
        )


def test_training_parts_hold_what_the_task_needs():
    targets = np.array([[float(i + 1), i in (2, 7)] for i in range(12)])
    names, kinds = metrics.kinds("survival", targets, ())
    made = metrics.patient_folds(
        metrics.strata("survival", targets),
        [f"p{i}" for i in range(12)],
        4,
        seed=0,
        names=names,
        kinds_NK=kinds,
    )
    assert len(made) == 4
    assert all(targets[fold.train, 1].any() for fold in made)
    targets[7, 1] = 0
    names, kinds = metrics.kinds("survival", targets, ())
    with pytest.raises(LabelError, match="1 of the 12 patients holds a slide with an event that was seen"):
        metrics.patient_folds(
            metrics.strata("survival", targets), [f"p{i}" for i in range(12)], 4, seed=0,
            names=names, kinds_NK=kinds,
        )  # fmt: skip


def test_a_label_that_all_slides_have_leaves_no_training_part_without_it():
    targets = np.array([[1.0, i % 2] for i in range(8)])
    names, kinds = metrics.kinds("multilabel", targets, ("x", "y"))
    with pytest.raises(LabelError, match="0 of the 8 patients holds a slide without label 'x'"):
        metrics.patient_folds(
            metrics.strata("multilabel", targets), list("abcdefgh"), 2, seed=0, names=names, kinds_NK=kinds
        )


def test_strata_of_each_task():
    assert metrics.strata("ordinal", np.array([2, 0, 1])).tolist() == [2, 0, 1]
    numbers = np.array([9.0, 1.0, 5.0, 3.0, 7.0, 2.0, 8.0, 4.0])
    assert metrics.strata("regression", numbers, bins=2).tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    assert set(metrics.strata("regression", np.full(5, 3.0)).tolist()) == {0}
    survival = np.array([[1.0, 1], [2.0, 0], [8.0, 1], [9.0, 0]])
    assert metrics.strata("survival", survival, bins=2).tolist() == [2, 0, 3, 1]
    labels = np.array([[0, 1]] * 6 + [[1, 1]] * 5 + [[0, 0], [1, 0], [1, 0]])
    assert metrics.strata("multilabel", labels).tolist() == [0] * 6 + [1] * 5 + [2] * 3


def test_regression_folds_are_balanced_by_the_target():
    targets = np.random.default_rng(0).exponential(size=200)
    strata = metrics.strata("regression", targets)
    for fold in metrics.patient_folds(strata, [f"p{i}" for i in range(200)], 5, seed=0):
        assert np.bincount(strata[fold.test], minlength=4).tolist() == [10, 10, 10, 10]


SLIDES = [f"slide{i}" for i in range(8)]
PATIENTS = list("aabbccdd")


def rows_of(folds, vals):
    """What the train stage writes into splits.csv."""
    return [
        {"fold": str(number), "member": str(member), "slide_id": SLIDES[i], "role": role}
        for number, fold in enumerate(folds)
        for member, val in enumerate(vals[number])
        for role, part in (("train", np.setdiff1d(fold.train, val)), ("val", val), ("test", fold.test))
        for i in part
    ]


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_saved_folds_come_back_as_they_were(folds, repeats, members, seed):
    strata = np.zeros(8, int)
    made = metrics.patient_folds(strata, PATIENTS, folds, seed=seed, repeats=repeats)
    vals = []
    for fold in made:
        parts = metrics.inner_parts(strata, PATIENTS, fold.train, 3, seed=seed) or [np.empty(0, int)]
        vals.append([parts[member % len(parts)] for member in range(members)])
    back, back_vals = metrics.saved_folds(rows_of(made, vals), SLIDES, PATIENTS)
    for old, new in zip(made, back, strict=True):
        assert (old.train.tolist(), old.test.tolist(), old.repeat) == (
            new.train.tolist(), new.test.tolist(), new.repeat,
        )  # fmt: skip
    assert [[val.tolist() for val in each] for each in vals] == [
        [val.tolist() for val in each] for each in back_vals
    ]


def saved(change):
    folds = metrics.leave_one_out(np.zeros(8, int), PATIENTS)[:2]
    vals = [[fold.train[:2], fold.train[2:4]] for fold in folds]
    rows = rows_of(folds, vals)
    change(rows)
    return rows


def move(slide, role, fold=None):
    def change(rows):
        for row in rows:
            if row["slide_id"] == slide and (fold is None or row["fold"] == fold):
                row["role"] = role

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.clear(), r"splits.csv: no row; wanted columns fold and member"),
        (lambda rows: rows[3].update(fold="x"), r"row 4 \(invalid literal.*'x'\)"),
        (lambda rows: rows[3].pop("role"), r"row 4 \('role'\)"),
        (lambda rows: rows[0].update(role="dev"), r"row 1 \(role 'dev'\)"),
        (
            lambda rows: [row.update(slide_id="new") for row in rows if row["slide_id"] == "slide3"],
            r"1 slides are not among the slides to train on: new \(fold 0, member 0, fold 0, member 1, "
            r"fold 1, member 0 and 1 more\); 1 slides are in no part: slide3",
        ),
        (lambda rows: rows.append(dict(rows[5])), r"1 slides are in more than one row: \w+ \(fold 0, mem"),
        (move("slide7", "val", "1"), r"fold 1, member 0: 1 patients are in more .* \(d: train, val\)"),
        (move("slide0", "train", "0"), r"fold 0, member 0: 1 patients .*a: test, train"),
        (
            lambda rows: [
                row.update(role="test")
                for row in rows
                if row["member"] == "1" and row["fold"] == "0" and row["slide_id"] in ("slide6", "slide7")
            ],
            r"fold 0: its members test different slides \(slide6, slide7\)",
        ),
        (
            lambda rows: [row.update(role="val") for row in rows if row["role"] + row["fold"] == "test1"],
            r"fold 1, member 0: no slide has the role 'test'",
        ),
    ],
)  # fmt: skip
def test_saved_folds_that_do_not_fit_are_refused_by_name(change, message):
    with pytest.raises(LabelError, match=message):
        metrics.saved_folds(saved(change), SLIDES, PATIENTS)


def test_saved_folds_may_not_part_a_group_that_is_named_now():
    with pytest.raises(LabelError, match=r"groups are in more than one part \(x: test, train, val"):
        metrics.saved_folds(saved(lambda rows: None), SLIDES, PATIENTS, groups_N=["x"] * 8)


def test_saved_folds_may_say_their_repeat():
    rows = [row | {"repeat": str(int(row["fold"]) + 4)} for row in saved(lambda rows: None)]
    folds, _ = metrics.saved_folds(rows, SLIDES, PATIENTS)
    assert [fold.repeat for fold in folds] == [4, 5]
    rows[0]["repeat"] = "1"
    with pytest.raises(LabelError, match=r"fold 0 \(of repeats \[1, 4\]\)"):
        metrics.saved_folds(rows, SLIDES, PATIENTS)


def test_repeats_of_sites_of_unlike_sizes_differ():
    sites = np.repeat([f"s{i}" for i in range(9)], np.arange(2, 11))
    patients = [f"p{i}" for i in range(len(sites))]
    made = metrics.patient_folds(
        np.arange(len(sites)) % 2, patients, 3, seed=0, groups_N=list(sites), repeats=4
    )
    assert len({frozenset(tuple(fold.test) for fold in made if fold.repeat == r) for r in range(4)}) == 4
    three = metrics.patient_folds(np.zeros(3, int), list("abc"), 3, seed=0, repeats=2)  # one way only
    assert {tuple(fold.test) for fold in three[:3]} == {tuple(fold.test) for fold in three[3:]}
