"""Scores that scikit-learn agrees with, unweighted and weighted, and their intervals over patients."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from benchmarks import coverage
from wsi_mil import metrics
from wsi_mil.metrics import bootstrap, limits, weighted

TASKS = ("classification", "multilabel", "ordinal", "regression", "survival")


def probabilities(rng, n, classes):
    p = rng.dirichlet(np.ones(classes), n).round(1) + 0.01  # rounded: ties
    return p / p.sum(axis=1, keepdims=True)


def cohort(task, n, seed, *, classes=3):
    """Targets and predictions with ties, related to each other."""
    rng = np.random.default_rng(seed)
    if task in ("classification", "ordinal"):
        codes = rng.permutation(np.arange(n) % classes)
        p = probabilities(rng, n, classes) + 0.3 * np.eye(classes)[codes]
        return codes, p / p.sum(axis=1, keepdims=True)
    if task == "multilabel":
        targets = (rng.random((n, classes)) < 0.4).astype(float)
        return targets, (0.3 * targets + 0.7 * rng.random((n, classes))).round(1)
    if task == "regression":
        targets = rng.normal(5, 2, n).round(1)
        return targets, (targets + rng.normal(0, 2, n)).round(0)[:, None]
    risk = rng.normal(size=n)
    time_N = (rng.exponential(np.exp(-risk)) * 10).round(0) + 1
    return np.stack([time_N, rng.random(n) < 0.6], axis=1), risk.round(1)[:, None]


def weighted_c_index(targets, risk, w):
    """Harrell's C as its definition reads: over all pairs, one by one."""
    up = known = 0.0
    for i in range(len(w)):
        for j in range(len(w)):
            (time_i, event_i), (time_j, event_j) = targets[i], targets[j]
            if event_i and (time_i < time_j or (time_i == time_j and not event_j)):
                known += w[i] * w[j]
                up += w[i] * w[j] * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0)
    return up / known


def calibration_error(codes, p, w):
    claim, true = (p[:, 1], codes == 1) if p.shape[1] == 2 else (p.max(1), p.argmax(1) == codes)
    total = 0.0
    for k in range(10):
        held = (claim >= k / 10) & ((claim < (k + 1) / 10) | (k == 9))
        if w[held].sum():
            total += w[held].sum() * abs(np.average(claim[held], weights=w[held])
                                         - np.average(true[held], weights=w[held]))  # fmt: skip
    return total / w.sum()


def of_classes(codes, p, w):
    """The scores of a classification from scikit-learn with these sample weights."""
    codes, p, w = codes[w > 0], p[w > 0], w[w > 0]
    classes = p.shape[1]
    columns = [1] if classes == 2 else range(classes)
    said = p.argmax(1)
    average = {"average": "binary" if classes == 2 else "macro", "zero_division": 0, "sample_weight": w}
    onehot = np.eye(classes)[codes]
    apart = (p[:, 1] - codes) ** 2 if classes == 2 else ((p - onehot) ** 2).sum(1)
    return {
        "auroc": np.mean([sk.roc_auc_score(codes == c, p[:, c], sample_weight=w) for c in columns]),
        "auprc": np.mean([sk.average_precision_score(codes == c, p[:, c], sample_weight=w) for c in columns]),
        "balanced_accuracy": sk.balanced_accuracy_score(codes, said, sample_weight=w),
        "accuracy": sk.accuracy_score(codes, said, sample_weight=w),
        "f1": sk.f1_score(codes, said, **average),
        "precision": sk.precision_score(codes, said, **average),
        "recall": sk.recall_score(codes, said, **average),
        "kappa": sk.cohen_kappa_score(codes, said, sample_weight=w),
        "brier": np.average(apart, weights=w),
        "ece": calibration_error(codes, p, w),
        "log_loss": sk.log_loss(codes, p, sample_weight=w),
    }


def of_grades(codes, p, w):
    said, rows = p.argmax(1), np.repeat(np.arange(len(w)), w.astype(int))
    return {
        "kappa": sk.cohen_kappa_score(codes, said, weights="quadratic", sample_weight=w),
        "mae": sk.mean_absolute_error(codes, said, sample_weight=w),
        "balanced_accuracy": sk.balanced_accuracy_score(codes, said, sample_weight=w),
        "spearman": stats.spearmanr(codes[rows], (p @ np.arange(p.shape[1]))[rows]).statistic,
    }


def of_labels(targets, p, w):
    used = w > 0
    aurocs = [
        sk.roc_auc_score(t[used], q[used], sample_weight=w[used]) for t, q in zip(targets.T, p.T, strict=True)
    ]
    f1s = [sk.f1_score(t, q >= 0.5, sample_weight=w) for t, q in zip(targets.T, p.T, strict=True)]
    areas = [sk.average_precision_score(t, q, sample_weight=w) for t, q in zip(targets.T, p.T, strict=True)]
    return {"auroc": np.mean(aurocs), "auprc": np.mean(areas), "f1": np.mean(f1s)} | {
        f"auroc:{name}": value for name, value in zip("xyz", aurocs, strict=False)
    }


def of_numbers(targets, p, w):
    value, rows = p[:, 0], np.repeat(np.arange(len(w)), w.astype(int))
    return {
        "mae": sk.mean_absolute_error(targets, value, sample_weight=w),
        "rmse": np.sqrt(sk.mean_squared_error(targets, value, sample_weight=w)),
        "r2": sk.r2_score(targets, value, sample_weight=w),
        "pearson": stats.pearsonr(targets[rows], value[rows]).statistic,
        "spearman": stats.spearmanr(targets[rows], value[rows]).statistic,
    }


def of_times(targets, p, w):
    return {"c_index": weighted_c_index(targets, p[:, 0], w)}


REFERENCES = dict(zip(TASKS, (of_classes, of_labels, of_grades, of_numbers, of_times), strict=True))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_scikit_learn(task, classes):
    targets, p = cohort(task, 60, 0, classes=classes)
    found = metrics.scores_of(task, targets, p, names="xyz"[:classes])
    wanted = REFERENCES[task](targets, p, np.ones(60))
    assert list(found) == list(wanted)
    assert found == pytest.approx(wanted, abs=1e-12)
    leading = metrics.LEADING[task]
    assert metrics.score(task, leading, targets, p) == found[leading]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("task", TASKS)
def test_weighted_scores_are_those_of_scikit_learn(task, classes):
    targets, p = cohort(task, 60, 1, classes=classes)
    weights = np.random.default_rng(2).integers(0, 4, (60, 7)).astype(float)
    drawn = weighted.prepare(task, targets, p, names="xyz"[:classes])(weights)
    for at, w in enumerate(weights.T):
        found = {name: values[at] for name, values in drawn.items()}
        assert found == pytest.approx(REFERENCES[task](targets, p, w), abs=1e-9)


def test_the_brier_score_of_two_classes_is_that_of_scikit_learn():
    codes, p = cohort("classification", 40, 5, classes=2)
    assert metrics.brier(codes, p) == pytest.approx(sk.brier_score_loss(codes, p[:, 1]))


def test_a_certain_and_wrong_prediction_has_a_finite_log_loss():
    p = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert metrics.log_loss(np.array([1, 1]), p) == pytest.approx(sk.log_loss([1, 1], p, labels=[0, 1]))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.integers(0, 3)), min_size=2, max_size=14))
def test_c_index_is_that_of_its_definition(rows):
    targets = np.array([[t, e] for t, e, _ in rows], float)
    risk = np.array([[r] for *_, r in rows], float)
    found = metrics.c_index(targets, risk)
    try:
        assert found == pytest.approx(weighted_c_index(targets, risk[:, 0], np.ones(len(rows))))
    except ZeroDivisionError:
        assert found is None  # no pair whose order is known


def test_c_index_of_times_that_tie():
    risk = np.array([[2.0], [1.0]])
    assert metrics.c_index(np.array([[3.0, 1], [3.0, 0]]), risk) == 1.0  # the censored one outlived the event
    assert metrics.c_index(np.array([[3.0, 1], [3.0, 1]]), risk) is None
    assert metrics.c_index(np.array([[3.0, 1], [9.0, 0]]), np.ones((2, 1))) == 0.5


def test_what_rows_do_not_define_is_none():
    p = np.full((3, 2), 0.5)
    scores = metrics.scores_of("classification", np.array([1, 1, 1]), p)
    missing = {name for name, value in scores.items() if value is None}
    assert missing == {"auroc", "auprc", "balanced_accuracy", "f1", "precision", "recall"}
    assert metrics.kappa(np.array([0, 0]), np.array([[0.9, 0.1]] * 2)) is None
    assert metrics.scores_of("regression", np.array([2.0, 2.0]), np.array([[1.0], [2.0]])) == {
        "mae": 0.5, "rmse": pytest.approx(0.5**0.5), "r2": None, "pearson": None, "spearman": None,
    }  # fmt: skip
    assert metrics.scores_of("survival", np.array([[1.0, 0], [2.0, 0]]), np.ones((2, 1))) == {"c_index": None}
    scores = metrics.scores_of("multilabel", np.array([[0, 1], [0, 0]]), np.array([[0.5, 0.8], [0.1, 0.3]]))
    assert scores == {"auroc": 1.0, "auprc": 1.0, "f1": 1.0, "auroc:0": None, "auroc:1": 1.0}


def test_intervals_hold_the_value_and_widen_with_clusters():
    rng = np.random.default_rng(2)
    codes = np.tile([0, 1], 100)
    right = np.clip(0.35 + 0.3 * codes + rng.normal(0, 0.25, 200), 0.01, 0.99)
    p = np.stack([1 - right, right], axis=1)

    def intervals(rows, patients):
        return metrics.with_intervals(
            "classification", codes[rows], p[rows], [f"p{i}" for i in patients], samples=500, seed=0
        )

    alone = intervals(np.arange(200), np.arange(200))
    # Ten copies of each of 20 rows are 20 patients' worth of evidence, and no more.
    rows = np.repeat(np.arange(20), 10)
    copies, once = intervals(rows, rows), intervals(np.arange(20), np.arange(20))
    for name in ("auroc", "auprc", "balanced_accuracy", "brier", "kappa"):
        for score in (alone[name], copies[name]):
            assert score.low <= score.value <= score.high
        assert (copies[name].low, copies[name].high) == pytest.approx((once[name].low, once[name].high))
    assert copies["auroc"].high - copies["auroc"].low > 1.5 * (alone["auroc"].high - alone["auroc"].low)


@pytest.mark.parametrize("task", TASKS)
def test_intervals_of_every_task_hold_the_value_and_are_the_same_again(task):
    targets, p = cohort(task, 120, 4)
    patients = [f"p{i // 2}" for i in range(120)]
    once = metrics.with_intervals(task, targets, p, patients, samples=200, seed=5)
    assert once == metrics.with_intervals(task, targets, p, patients, samples=200, seed=5)
    assert once != metrics.with_intervals(task, targets, p, patients, samples=200, seed=6)
    values = metrics.scores_of(task, targets, p)
    assert list(once) == list(values)
    for name, interval in once.items():
        assert interval.value == values[name]
        if name == "ece":  # biased upwards, the more so in a resample: no interval
            assert (interval.low, interval.high, interval.method) == (None, None, None)
            continue
        assert interval.samples == (200 if interval.method == bootstrap.PERCENTILE else 0)
        assert interval.low <= interval.value <= interval.high


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    # Scores of positives are shifted by 1: the true AUROC is that of N(1, 2) above 0.
    truth = stats.norm.cdf(1 / 2**0.5)
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        codes = np.tile([0, 1], 40)
        score = stats.norm.cdf(codes + rng.normal(size=80))
        found = metrics.with_intervals(
            "classification", codes, np.stack([1 - score, score], 1), [f"p{i}" for i in range(80)],
            samples=200, seed=seed,
        )["auroc"]  # fmt: skip
        covered += found.low <= truth <= found.high
    assert (
        85 <= covered <= 99
    )  # 95 wanted, with a standard error of 2.2, and the percentile is a little narrow


def test_resamples_that_lack_a_class_are_drawn_again():
    codes = np.array([0, 0, 0, 1])  # a third of the resamples miss the only positive patient
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.5, 0.5]])
    scores = metrics.with_intervals("classification", codes, p, list("abcd"), samples=300, seed=0)
    assert 0 <= scores["auroc"].low <= scores["auroc"].high <= 1
    assert {score.samples for score in scores.values()} == {0, 300}  # 0: by a formula


def test_resamples_that_can_hardly_be_had_are_counted():
    # All of 8 patients have to be drawn: 8! / 8^8 = 0.24 %, so that 1000 draws give two or three.
    codes, p = np.arange(8), np.eye(8) * 0.5 + 0.0625
    scores = metrics.with_intervals("classification", codes, p, list("abcdefgh"), samples=100, seed=0)
    (drawn,) = {score.samples for score in scores.values()} - {0}
    assert drawn == scores["auprc"].samples < 20


def test_labels_without_an_auroc_are_said_and_rare_ones_are_less_certain():
    targets, p = cohort("multilabel", 40, 6)
    targets[:, 0], targets[:, 1] = 0, np.arange(40) < 1
    scores = metrics.with_intervals(
        "multilabel", targets, p, [f"p{i}" for i in range(40)], samples=400, seed=0, names="xyz"
    )
    assert scores["auroc:x"] == metrics.Interval(value=None, low=None, high=None, samples=0)
    assert scores["auroc:y"].high - scores["auroc:y"].low > scores["auroc:z"].high - scores["auroc:z"].low
    assert scores["auroc"].samples == 400
    nothing = metrics.with_intervals("multilabel", targets[:, :1], p[:, :1], ["p"] * 40, samples=100, seed=0)
    assert {(score.value, score.low, score.samples) for score in nothing.values()} == {(None, None, 0)}


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    targets, p = cohort("classification", 60, 7)
    patients = [f"p{i // 3}" for i in range(60)]
    once = metrics.with_intervals("classification", targets, p, patients, samples=100, seed=0)
    monkeypatch.setattr(bootstrap, "_CHUNK", 60 * 7)
    monkeypatch.setattr(bootstrap, "_LEAST", 1)
    assert metrics.with_intervals("classification", targets, p, patients, samples=100, seed=0) == once


@pytest.mark.parametrize("task", TASKS)
def test_2000_samples_of_60_slides_are_quick(task):
    targets, p = cohort(task, 60, 3)
    start = time.perf_counter()
    metrics.with_intervals(task, targets, p, [f"p{i // 3}" for i in range(60)], samples=2000, seed=0)
    assert time.perf_counter() - start < 2


def test_a_patient_is_the_mean_of_its_slides():
    p = np.array([[0.8, 0.2], [0.1, 0.9], [0.4, 0.6]])
    codes, mean, names = metrics.by_patient(np.array([1, 0, 1]), p, ["z", "a", "z"])
    assert names == ["a", "z"]
    assert codes.tolist() == [0, 1]
    np.testing.assert_allclose(mean, [[0.1, 0.9], [0.6, 0.4]])
    times = np.array([[3.0, 1], [5.0, 0], [3.0, 1]])
    targets, risk, _ = metrics.by_patient(times, p[:, :1], ["z", "a", "z"])
    assert targets.tolist() == [[5.0, 0.0], [3.0, 1.0]]
    np.testing.assert_allclose(risk, [[0.1], [0.6]])


def test_the_data_are_one_of_the_permutations():
    assert metrics.permutation_p(0.9, [0.4, 0.5, 0.6]) == 1 / 4
    assert metrics.permutation_p(0.5, [0.4, 0.5, 0.6]) == 3 / 4
    for value, null in ((0.5, []), (0.5, [0.4, np.nan]), (np.nan, [0.4])):
        with pytest.raises(ValueError, match="a permutation test wants"):
            metrics.permutation_p(value, null)


@pytest.mark.parametrize(("area", "slides"), [(0.8, 1), (0.95, 1), (0.8, 3)])
def test_auroc_and_balanced_accuracy_of_20_patients_are_covered(area, slides):
    found = coverage.cell(20, 0.5, area, slides, 200, 0)
    for name in ("auroc", "balanced_accuracy"):
        # 95 wanted, standard error 1.5; the percentile bootstrap had 75 to 90.
        assert found[name][0] >= 0.905


def test_all_right_and_all_wrong_have_a_width():
    patients = np.arange(20)
    codes = patients % 2
    for right in (True, False):
        low, high = limits.auroc(codes == 1, codes * (1.0 if right else -1.0), patients)
        assert (high, low < 0.9) == (1.0, True) if right else (low, high > 0.1) == (0.0, True)
        low, high = limits.share(np.full(20, right), patients)
        # statistics of Wilson's interval at k = n: n / (n + z^2)
        expected = 20 / (20 + stats.norm.ppf(0.975) ** 2)
        assert (low, high) == pytest.approx((expected, 1) if right else (0, 1 - expected))
    wilson = stats.binomtest(17, 20).proportion_ci(method="wilson")
    assert limits.share(patients < 17, patients) == pytest.approx((wilson.low, wilson.high))
