"""Calibration that is fitted on other rows than it is judged on, and the points of curves."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from wsi_mil import metrics


def overconfident(n, classes, factor, seed=0):
    """Logits whose softmax is the truth when divided by ``factor``, and codes drawn from it."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (n, classes))
    codes = np.array([rng.choice(classes, p=p) for p in softmax(honest, axis=1)])
    return honest * factor, codes


def test_reliability_of_two_classes_is_that_of_scikit_learn():
    logits, codes = overconfident(300, 2, 2)
    p = metrics.probabilities("classification", logits)
    found = metrics.reliability(codes, p)
    observed, predicted = calibration_curve(codes, p[:, 1], n_bins=10)
    np.testing.assert_allclose(found.observed_K, observed)
    np.testing.assert_allclose(found.predicted_K, predicted)
    assert found.count_K.sum() == 300


def test_ece_by_hand():
    p = np.array([[0.75, 0.25], [0.75, 0.25], [0.05, 0.95], [0.0, 1.0]])
    # Bin 2: 0.25 predicted, half is true. Last bin: 0.975 predicted, all is true.
    assert metrics.ece(np.array([0, 1, 1, 1]), p) == pytest.approx((2 * 0.25 + 2 * 0.025) / 4)
    three = np.array([[0.6, 0.3, 0.1], [0.2, 0.65, 0.15]])
    assert metrics.ece(np.array([0, 2]), three) == pytest.approx(abs(0.625 - 0.5))


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_a_temperature_undoes_what_was_too_sure(factor):
    logits, codes = overconfident(4000, 3, factor)
    assert metrics.fit_temperature(logits, codes) == pytest.approx(factor, rel=0.08)


def test_a_temperature_has_the_least_loss_of_a_fine_grid():
    logits, codes = overconfident(60, 3, 2.5, seed=3)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    chances = softmax(logits[None] / grid[:, None, None], axis=2)
    wanted = np.stack([1 / (np.bincount(codes, minlength=3)[codes] + 3)] * 3, axis=1)  # Platt's targets
    wanted[np.arange(60), codes] += 1 - wanted.sum(axis=1)
    losses = -(wanted * np.log(chances)).sum(axis=2).mean(axis=1)
    assert metrics.fit_temperature(logits, codes) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


def test_a_temperature_stays_in_its_bounds():
    logits = np.array([[0.5, -0.5], [-0.5, 0.5]])
    assert metrics.fit_temperature(logits / 1000, np.array([0, 1])) == pytest.approx(0.05, rel=1e-3)
    assert metrics.fit_temperature(logits, np.array([1, 0])) == pytest.approx(20, rel=1e-3)
    with pytest.raises(ValueError, match="at least one row"):
        metrics.fit_temperature(logits[:0], np.array([], int))


@pytest.mark.parametrize("rows", [4, 20, 100])
def test_few_rows_that_are_all_right_do_not_make_certainty(rows):
    codes = np.arange(rows) % 2
    logits = np.stack((1 - codes, codes), axis=1) * 2.0
    p = metrics.probabilities("classification", logits, metrics.fit_temperature(logits, codes))
    np.testing.assert_allclose(p[np.arange(rows), codes], (rows / 2 + 1) / (rows / 2 + 2), atol=1e-4)


def test_labels_and_grades_have_temperatures_too():
    rng = np.random.default_rng(1)
    honest = rng.normal(0, 1.5, (3000, 4))
    labels = (rng.random(honest.shape) < metrics.probabilities("multilabel", honest)).astype(float)
    assert metrics.fit_temperature(honest * 2, labels, task="multilabel") == pytest.approx(2, rel=0.1)
    above = rng.normal(0, 2, (3000, 1)) + np.array([1.5, 0.0, -1.5])
    p = metrics.probabilities("ordinal", above)
    assert p.shape == (3000, 4)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(p[:, 2:].sum(axis=1), 1 / (1 + np.exp(-above[:, 1])))
    grades = np.array([rng.choice(4, p=each) for each in p])
    assert metrics.fit_temperature(above * 2, grades, task="ordinal") == pytest.approx(2, rel=0.1)


def test_no_row_has_a_part_in_its_own_temperature():
    logits, codes = overconfident(200, 3, 3)
    folds = np.arange(200) % 4
    scaled = metrics.crossfitted_temperature(logits, codes, folds)
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    changed = codes.copy()
    changed[folds == 2] = (codes[folds == 2] + 1) % 3
    again = metrics.crossfitted_temperature(logits, changed, folds)
    np.testing.assert_array_equal(again[folds == 2], scaled[folds == 2])
    assert not np.allclose(again[folds != 2], scaled[folds != 2])
    assert (scaled.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert metrics.ece(codes, scaled) < metrics.ece(codes, metrics.probabilities("classification", logits))
    assert metrics.log_loss(codes, scaled) < metrics.log_loss(codes, softmax(logits, axis=1))
    with pytest.raises(ValueError, match="at least one row"):
        metrics.crossfitted_temperature(logits, codes, np.zeros(200, int))


def test_repeats_do_not_leak_a_patient_into_its_temperature():
    logits, codes = overconfident(60, 3, 3)
    twice, both = np.concatenate([logits, logits]), np.concatenate([codes, codes])
    folds = np.r_[np.arange(60) % 3, 3 + np.arange(60) // 20]
    patients = [f"p{i % 60}" for i in range(120)]
    scaled = metrics.crossfitted_temperature(twice, both, folds, patients_N=patients)
    own = [i for i in range(120) if patients[i] in {patients[j] for j in np.flatnonzero(folds == 1)}]
    changed = both.copy()
    changed[own] = (changed[own] + 1) % 3
    again = metrics.crossfitted_temperature(twice, changed, folds, patients_N=patients)
    np.testing.assert_array_equal(again[folds == 1], scaled[folds == 1])
    without = metrics.crossfitted_temperature(twice, changed, folds)
    assert not np.allclose(without[folds == 1], scaled[folds == 1])


def scored(n=200, seed=0):
    rng = np.random.default_rng(seed)
    positive = np.arange(n) % 3 == 0
    return positive, (0.4 * positive + rng.random(n)).round(2)


def test_curves_have_the_areas_of_scikit_learn():
    positive, score = scored()
    roc = metrics.roc_points(positive, score)
    assert roc[0].tolist() == [0, 0]
    assert roc[-1].tolist() == [1, 1]
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(sk.roc_auc_score(positive, score))
    pr = metrics.pr_points(positive, score)
    assert pr[0].tolist() == [0, 1]
    assert pr[-1].tolist() == [1, positive.mean()]
    steps = np.diff(pr[:, 0]) * pr[1:, 1]
    assert steps.sum() == pytest.approx(sk.average_precision_score(positive, score))
    for curve in (metrics.roc_points, metrics.pr_points):
        with pytest.raises(ValueError, match="positive and negative rows"):
            curve(np.ones(3, bool), np.arange(3.0))


def test_the_band_holds_the_curve_and_narrows_with_patients():
    positive, score = scored(600)
    patients = [f"p{i}" for i in range(600)]
    band = metrics.roc_band(positive, score, patients, samples=300, seed=0)
    roc = metrics.roc_points(positive, score)
    at = np.interp(band.false_G, roc[:, 0], roc[:, 1])
    inside = (band.low_G <= at) & (at <= band.high_G)
    assert inside[5:-5].all()
    assert (band.low_G <= band.high_G).all()
    assert band.high_G[-1] == band.low_G[-1] == 1
    few = metrics.roc_band(positive[:60], score[:60], patients[:60], samples=300, seed=0)
    assert (few.high_G - few.low_G)[10:90].mean() > 2 * (band.high_G - band.low_G)[10:90].mean()


def test_each_resampled_curve_has_its_weighted_height():
    # With one resample the band is its curve: compared with scikit-learn's under the same weights.
    positive, score = scored(80, 1)
    patients = [f"p{i // 2}" for i in range(80)]
    band = metrics.roc_band(positive, score, patients, samples=1, seed=9)
    weights = metrics.bootstrap.resampler(patients, 9)(1)[:, 0]
    false, true, _ = sk.roc_curve(positive, score, sample_weight=weights, drop_intermediate=False)
    wanted = [true[false == f].max() if f in false else np.interp(f, false, true) for f in band.false_G]
    np.testing.assert_allclose(band.low_G, wanted)
    np.testing.assert_array_equal(band.low_G, band.high_G)
