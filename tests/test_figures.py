"""Figures of a training: which a task has, and that bands and curves in them are what they say."""

import io

import numpy as np
import pytest
from PIL import Image

from wsi_mil import metrics
from wsi_mil.train import figures
from wsi_mil.train.networks import Trained


def trained(seed=0, epochs=12):
    rng = np.random.default_rng(seed)
    curves = [(rng.random(epochs) + np.linspace(1, 0, epochs)).tolist() for _ in range(2)]
    return Trained(state={}, epoch=3, val_loss=curves[1][2], train_losses=curves[0], val_losses=curves[1])


def shown(task, targets, prediction, names, **more):
    given = {"patients": [f"P{i // 2}" for i in range(len(targets))], "unit": "slide", "seed": 0} | more
    return figures.Shown(task=task, names=names, targets=targets, prediction_NP=prediction, **given)


def picture(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def has(png, colour, least=30):
    """Whether a figure has enough pixels of a colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(picture(png) - wanted).max(axis=2) < 12).sum() >= least


RNG = np.random.default_rng(0)
N = 40
CODES = np.arange(N) % 2
SCORE = np.clip(CODES * 0.4 + RNG.random(N) * 0.6, 0, 1)
BINARY = np.column_stack([1 - SCORE, SCORE])
CASES = {
    "classification": (CODES, BINARY, ("normal", "tumour"), {"roc.png", "pr.png", "calibration.png"}),
    "multilabel": (np.column_stack([CODES, 1 - CODES]), BINARY, ("a", "b"), {"roc.png", "pr.png"}),
    "ordinal": (CODES, BINARY, ("low", "high"), set()),
    "regression": (RNG.random(N), RNG.random((N, 1)), ("value",), {"scatter.png"}),
    "survival": (np.column_stack([RNG.random(N) + 1, CODES]), RNG.random((N, 1)), ("risk",), {"km.png"}),
}


@pytest.mark.parametrize("task", CASES)
def test_every_task_has_its_figures(task):
    targets, prediction, names, wanted = CASES[task]
    found = figures.draw(shown(task, targets, prediction, names), [trained(), trained(1)])
    assert set(found) == wanted | {"losses.png"}
    for name, png in found.items():
        blue = "#66aad1" if name == "scatter.png" else figures.COLOURS[0]  # its points let 40 % through
        assert has(png, blue), "the first curve, or the points, are there"
    assert has(found["losses.png"], figures.COLOURS[1])
    again = figures.draw(shown(task, targets, prediction, names), [trained(), trained(1)])
    assert again == found, "the same bytes"


def test_a_null_is_drawn_where_there_is_one():
    targets, prediction, names, _ = CASES["ordinal"]
    found = figures.draw(
        shown("ordinal", targets, prediction, names), [trained()], ("kappa", 0.9, [0.1, 0.2, 0.0], 0.25)
    )
    assert has(found["null.png"], figures.COLOURS[5])
    assert has(found["null.png"], figures.COLOURS[1])


@pytest.mark.parametrize("name", ["_hidden", "$\\frac{", "腫瘍 😀", "x" * 500, ""])
def test_names_from_outside_are_text(name):
    targets, prediction, _, _ = CASES["classification"]
    found = figures.draw(shown("classification", targets, prediction, ("a", name)), [trained()])
    assert len(found) == 4


def test_what_cannot_be_drawn_is_left_out():
    one_class = shown("classification", np.zeros(N, int), BINARY, ("a", "b"))
    assert set(figures.draw(one_class, [trained()])) == {"calibration.png", "losses.png"}
    last = Trained(state={}, epoch=2, val_loss=None, train_losses=[0.5, 0.4], val_losses=[])
    assert not has(figures.losses([last]), figures.COLOURS[1]), "nothing was validated on"
    assert has(figures.losses([last]), figures.COLOURS[0])
    both = figures.losses([last, trained()])
    assert has(both, figures.COLOURS[0]), "some folds have a validation part, others none"
    assert has(both, figures.COLOURS[1])


def test_many_classes_have_a_curve_each():
    codes = np.arange(N) % 8
    prediction = np.eye(8)[codes] * 0.5 + RNG.dirichlet(np.ones(8), N) * 0.5
    found = figures.draw(shown("classification", codes, prediction, tuple("abcdefgh")), [trained()])
    assert {"roc.png", "pr.png", "calibration.png", "losses.png"} == set(found)


def test_the_precision_band_is_that_of_resampled_patients():
    """Against resamples that are laid out row by row and scored by hand."""
    patients = [f"P{i // 2}" for i in range(N)]
    recall, low, high = metrics.pr_band(CODES == 1, SCORE, patients, samples=300, seed=4, points=11)
    draw = np.random.default_rng(4)
    names = sorted(set(patients))
    drawn = []
    for times in draw.multinomial(len(names), np.full(len(names), 1 / len(names)), size=300):
        rows = [i for name, k in zip(names, times, strict=True) for i in range(N) if patients[i] == name
                for _ in range(k)]  # fmt: skip
        truth, score = CODES[rows], SCORE[rows]
        curve = []
        for wanted in recall:
            reached = [t for t in sorted(set(score), reverse=True)
                       if (truth[score >= t]).sum() >= max(wanted * truth.sum() - 1e-9, 1e-9)]  # fmt: skip
            curve.append(truth[score >= reached[0]].mean())
        drawn.append(curve)
    expected = np.percentile(drawn, [2.5, 97.5], axis=0)
    np.testing.assert_allclose([low, high], expected, atol=1e-12)


def test_the_calibration_band_is_that_of_resampled_patients():
    patients = [f"P{i // 2}" for i in range(N)]
    low, high = metrics.reliability_band(CODES, BINARY, patients, samples=300, seed=4)
    found = metrics.reliability(CODES, BINARY)
    assert len(low) == len(found.observed_K)
    assert (low <= found.observed_K + 1e-12).all()
    assert (found.observed_K <= high + 1e-12).all()
    draw = np.random.default_rng(4)
    shares = [[] for _ in low]
    bins = sorted({min(int(p * 10), 9) for p in SCORE})
    for times in draw.multinomial(20, np.full(20, 1 / 20), size=300):
        order = [sorted(set(patients)).index(name) for name in patients]
        weight = times[order]
        for k, number in enumerate(bins):
            inside = np.minimum((SCORE * 10).astype(int), 9) == number
            if (weight * inside).sum():
                shares[k].append((weight * inside * CODES).sum() / (weight * inside).sum())
    expected = np.array([np.percentile(each, [2.5, 97.5]) for each in shares]).T
    np.testing.assert_allclose([low, high], expected, atol=1e-12)


def test_kaplan_and_meier_by_hand():
    """Times 1, 2+, 3, 3, 4+: 4/5 survive 1; of the 3 at risk at 3, two die: 4/5 x 1/3."""
    targets = np.array([[1, 1], [2, 0], [3, 1], [3, 1], [4, 0]], float)
    np.testing.assert_allclose(metrics.kaplan_meier(targets), [[0, 1], [1, 0.8], [3, 0.8 / 3]])
    assert metrics.kaplan_meier(targets[[1]]).tolist() == [[0, 1]]
    tie = np.array([[2, 1], [2, 0]], float)
    assert metrics.kaplan_meier(tie).tolist() == [[0, 1], [2, 0.5]], "who is censored then is at risk"
