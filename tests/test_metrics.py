"""Folds that never part a patient, and scores with intervals that scikit-learn agrees with."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

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


def probabilities(rng, n, classes):
    p = rng.dirichlet(np.ones(classes), n).round(1) + 0.01  # rounded: ties
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(0)
    codes, p = rng.integers(0, classes, 60), probabilities(rng, 60, classes)
    score = p[:, 1] if classes == 2 else p
    assert metrics.auroc(codes, p) == pytest.approx(roc_auc_score(codes, score, multi_class="ovr"))
    assert metrics.balanced_accuracy(codes, p) == balanced_accuracy_score(codes, p.argmax(1))


@pytest.mark.parametrize("classes", [2, 3])
def test_weighted_scores_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(1)
    codes, p = rng.integers(0, classes, 60), probabilities(rng, 60, classes)
    weights = rng.integers(0, 4, (5, 60)).astype(float)
    auroc = metrics._weighted_auroc(codes, p, weights)
    accuracy = metrics._weighted_balanced_accuracy(codes, p.argmax(1), classes, weights)
    for w, a, b in zip(weights, auroc, accuracy, strict=True):
        used = w > 0
        columns = [1] if classes == 2 else range(classes)
        wanted = [roc_auc_score(codes[used] == c, p[used, c], sample_weight=w[used]) for c in columns]
        assert a == pytest.approx(np.mean(wanted))
        assert b == pytest.approx(balanced_accuracy_score(codes, p.argmax(1), sample_weight=w))


def test_no_score_without_a_class():
    p = np.full((3, 2), 0.5)
    assert metrics.auroc(np.array([1, 1, 1]), p) is None
    assert metrics.balanced_accuracy(np.array([1, 1, 1]), p) is None
    with pytest.raises(ValueError, match="a class has no row"):
        metrics.with_intervals(np.array([1, 1, 1]), p, list("abc"), samples=100, seed=0)


def test_intervals_hold_the_value_and_widen_with_clusters():
    rng = np.random.default_rng(2)
    codes = np.tile([0, 1], 100)
    right = np.clip(0.35 + 0.3 * codes + rng.normal(0, 0.25, 200), 0.01, 0.99)
    p = np.stack([1 - right, right], axis=1)
    alone = metrics.with_intervals(codes, p, [f"s{i}" for i in range(200)], samples=500, seed=0)
    # Ten copies of each of 20 rows are 20 patients' worth of evidence, and no more.
    rows = np.repeat(np.arange(20), 10)
    copies = metrics.with_intervals(codes[rows], p[rows], [f"p{i}" for i in rows], samples=500, seed=0)
    once = metrics.with_intervals(codes[:20], p[:20], [f"p{i}" for i in range(20)], samples=500, seed=0)
    for score in (*alone.values(), *copies.values()):
        assert score.low <= score.value <= score.high
    assert copies["auroc"] == once["auroc"]
    assert copies["auroc"].high - copies["auroc"].low > 1.5 * (alone["auroc"].high - alone["auroc"].low)


def test_resamples_that_lack_a_class_are_drawn_again():
    codes = np.array([0, 0, 0, 1])  # a third of the resamples miss the only positive patient
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.5, 0.5]])
    scores = metrics.with_intervals(codes, p, list("abcd"), samples=300, seed=0)
    assert 0 <= scores["auroc"].low <= scores["auroc"].high <= 1


def test_2000_samples_of_60_slides_are_quick():
    rng = np.random.default_rng(3)
    codes, p = np.tile([0, 1], 30), probabilities(rng, 60, 2)
    start = time.perf_counter()
    metrics.with_intervals(codes, p, [f"p{i // 3}" for i in range(60)], samples=2000, seed=0)
    assert time.perf_counter() - start < 2


def test_a_patient_is_the_mean_of_its_slides():
    p = np.array([[0.8, 0.2], [0.1, 0.9], [0.4, 0.6]])
    codes, mean, names = metrics.by_patient(np.array([1, 0, 1]), p, ["z", "a", "z"])
    assert names == ["a", "z"]
    assert codes.tolist() == [0, 1]
    np.testing.assert_allclose(mean, [[0.1, 0.9], [0.6, 0.4]])
