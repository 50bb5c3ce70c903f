"""Losses against their definitions, written out bag by bag, and what logits mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from wsi_mil import models


def task_of(kind, names="abc", **more):
    return models.make_task(kind, names, **more)


def loss(task, logits, targets, weights=None, smoothing=0.0):
    """Return the loss (M,) for logits (M, B, C) and the same targets (B, ...) for every network."""
    logits = torch.as_tensor(logits, dtype=torch.float32)
    encoded = task.encode(np.asarray(targets)).expand(
        len(logits), *[-1] * task.encode(np.asarray(targets)).ndim
    )
    weights = torch.ones(logits.shape[:2]) if weights is None else torch.as_tensor(weights).float()
    return task.loss(logits, encoded, weights, smoothing)


def cox_by_hand(risk, time, event):
    parts = [
        risk[i] - np.log(sum(np.exp(risk[j]) for j in range(len(time)) if time[j] >= time[i]))
        for i in range(len(time))
        if event[i]
    ]
    return -np.mean(parts) if parts else 0.0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_cox_is_the_partial_likelihood(seed, n):
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=(2, n, 1))
    targets = np.stack((rng.integers(1, 5, n).astype(float), rng.integers(0, 2, n)), axis=1)
    got = loss(task_of("survival", "r"), risk, targets)
    wanted = [cox_by_hand(each[:, 0], *targets.T) for each in risk]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_cox_does_not_see_bags_of_no_weight():
    rng = np.random.default_rng(0)
    risk, targets = rng.normal(size=(1, 6, 1)), np.stack((np.arange(1.0, 7), np.ones(6)), axis=1)
    some = loss(task_of("survival", "r"), risk, targets, [[1, 1, 1, 1, 0, 0]])
    np.testing.assert_allclose(some, loss(task_of("survival", "r"), risk[:, :4], targets[:4]), atol=1e-6)


def test_discrete_time_has_edges_at_quantiles_of_the_events():
    targets = np.array([[1.0, 1], [2, 1], [3, 1], [4, 1], [9, 0]])
    task = task_of("survival", "r", survival_loss="discrete", time_bins=4).fitted(targets)
    np.testing.assert_allclose(task.edges, (0, 1.75, 2.5, 3.25, 9))
    assert task.outputs == 4
    tied = task_of("survival", "r", survival_loss="discrete", time_bins=4).fitted(np.ones((6, 2)))
    assert tied.edges[0] == 0
    assert all(a < b for a, b in zip(tied.edges, tied.edges[1:], strict=False))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_discrete_time_is_the_likelihood_of_what_was_seen(seed):
    rng = np.random.default_rng(seed)
    targets = np.stack((rng.uniform(0.1, 9, 12), np.r_[1, 1, 1, rng.integers(0, 2, 9)]), axis=1)
    task = task_of("survival", "r", survival_loss="discrete", time_bins=3).fitted(targets)
    logits = rng.normal(size=(1, 12, task.outputs))
    h, edges, parts = expit(logits[0]), task.edges, []
    for hazard, (time, event) in zip(h, targets, strict=True):
        k = min(sum(time > e for e in edges[1:]), task.outputs - 1)  # the interval of the time
        chance = np.prod(1 - hazard[:k])
        if event:
            chance *= hazard[k]
        elif time >= (edges[k] + edges[k + 1]) / 2:
            chance *= 1 - hazard[k]
        parts.append(-np.log(chance))
    np.testing.assert_allclose(loss(task, logits, targets), [np.mean(parts)], rtol=1e-5)
    survival = task.survival(torch.from_numpy(logits[0]))
    np.testing.assert_allclose(survival, np.cumprod(1 - h, axis=1), atol=1e-6)
    np.testing.assert_allclose(
        task.predict(torch.from_numpy(logits[0]))[:, 0], -survival.sum(axis=1), atol=1e-6
    )


def test_classification_weighs_and_smooths():
    rng = np.random.default_rng(1)
    logits, codes, weights = (
        rng.normal(size=(2, 5, 3)),
        np.array([0, 1, 2, 2, 0]),
        rng.uniform(0.5, 2, (2, 5)),
    )
    got = loss(task_of("classification"), logits, codes, weights, smoothing=0.3)
    for m in range(2):
        logp = logits[m] - np.log(np.exp(logits[m]).sum(axis=1, keepdims=True))
        target = np.eye(3)[codes] * 0.7 + 0.1
        each = -(target * logp).sum(axis=1)
        assert float(got[m]) == pytest.approx((each * weights[m]).sum() / weights[m].sum(), abs=1e-5)


def test_multilabel_and_ordinal_are_binary_cross_entropies():
    rng = np.random.default_rng(2)
    logits, held = rng.normal(size=(1, 4, 3)), rng.integers(0, 2, (4, 3)).astype(float)
    p = expit(logits[0])
    wanted = -(held * np.log(p) + (1 - held) * np.log(1 - p)).mean()
    assert float(loss(task_of("multilabel"), logits, held)[0]) == pytest.approx(wanted, abs=1e-5)
    grades = np.array([0, 1, 2, 3])
    above = (grades[:, None] > np.arange(3)).astype(float)
    wanted = -(above * np.log(p) + (1 - above) * np.log(1 - p)).mean()
    assert float(loss(task_of("ordinal", "wxyz"), logits, grades)[0]) == pytest.approx(wanted, abs=1e-5)


def test_regression_is_in_the_units_of_the_target():
    targets = np.array([10.0, 20, 60])
    task = task_of("regression", ["value"]).fitted(targets)
    logits = (targets - targets.mean()) / targets.std()
    np.testing.assert_allclose(task.predict(torch.from_numpy(logits[:, None]))[:, 0], targets, rtol=1e-6)
    assert float(loss(task, logits[None, :, None], targets)[0]) == pytest.approx(0, abs=1e-10)
    assert task_of("regression", ["value"]).fitted(np.array([3.0, 3.0])).scale == 1


def test_grades_are_probabilities_in_order():
    thresholds = models.network(
        {
            "model": "mean", "identity": {"dim": 3}, "hidden_dim": 0, "attention_dim": 1, "dropout": 0.0,
            "task": task_of("ordinal", "wxyz").to_head(), "branches": "shared",
        }
    ).thresholds  # fmt: skip
    torch.nn.init.normal_(thresholds.steps, std=3)
    logits_BC = thresholds(torch.linspace(-9, 9, 50)[:, None])
    assert (logits_BC.diff(dim=1) < 0).all(), "P(y > k) falls with k"
    p = task_of("ordinal", "wxyz").predict(logits_BC)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    expected = p @ np.arange(4)
    assert (np.diff(expected) >= -1e-6).all()


@pytest.mark.parametrize(
    ("kind", "names"),
    [("classification", "abc"), ("multilabel", "abc"), ("regression", "v"), ("ordinal", "abcd")],
)
def test_a_committee_says_the_mean_of_its_members(kind, names):
    task = task_of(kind, names)
    logits_KBC = torch.from_numpy(np.random.default_rng(3).normal(0, 3, (4, 5, task.outputs)))
    wanted = np.mean([task.predict(each.sort(dim=1, descending=True)[0]) for each in logits_KBC], axis=0)
    got = task.predict(task.mean(torch.stack([each.sort(dim=1, descending=True)[0] for each in logits_KBC])))
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_task_comes_back_from_a_head():
    targets = np.array([[1.0, 1], [2, 1], [3, 0], [4, 1]])
    for kind, more in [("survival", {}), ("survival", {"survival_loss": "discrete"}), ("classification", {})]:
        task = task_of(kind, "ab", **more).fitted(targets)
        assert models.task_of({"task": task.to_head()}) == task
