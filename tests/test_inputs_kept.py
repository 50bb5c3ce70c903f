"""What a caller hands to a function in memory is the caller's: read, never written to, also as float32."""

import copy
import warnings

import numpy as np
import pytest
import torch

from wsi_mil import heatmap, metrics, models, train
from wsi_mil.config import TrainConfig

DTYPES = (np.float16, np.float32, np.float64)


def frozen(array):
    array.setflags(write=False)
    return array


@pytest.fixture(autouse=True)
def every_warning():
    """torch warns of read-only arrays once a process: here each time, which is an error in tests."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def bags_of(dtype, count=8, dim=4):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(5 + i, dim)) + 3 * (i % 2)).astype(dtype) for i in range(count)]


def head_of(model):
    task = models.make_task("classification", ("a", "b")).to_head()
    return {
        "model": model, "task": task, "identity": {"dim": 4}, "hidden_dim": 6, "attention_dim": 4,
        "branches": "shared", "dropout": 0.0, "members": 1,
    }  # fmt: skip


def fitted(bags, model="gated-attention", **more):
    recipe = TrainConfig(run=".", labels="l.csv", epochs=2, members=1, patience=2, precision="fp32")
    return train.fit(
        bags, np.arange(len(bags)) % 2, head=head_of(model), vals=[np.array([0, 1])], config=recipe, seed=0,
        **more,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["array", "read-only array", "tensor"])
def test_moments_and_fit_leave_bags_as_they_were(dtype, kind):
    bags = bags_of(dtype)
    before = copy.deepcopy(bags)
    given = [torch.from_numpy(each) if kind == "tensor" else each for each in bags]
    if kind == "read-only array":
        given = [frozen(each) for each in bags]
    patches = train.Patches(torch.from_numpy(np.concatenate(before)), [[(0, 5)], [(5, 11)]])
    patches.moments(np.arange(2))
    assert np.array_equal(patches.values, np.concatenate(before)), "moments wrote into the features"
    result = fitted(given)
    for each, was in zip(bags, before, strict=True):
        assert np.array_equal(each, was)
    # Trained on the values themselves: the validation loss is that of the returned model on the same bags.
    logits = train.predict(result.model, before)[:2]
    loss = -np.log(logits[[0, 1], [0, 1]]).mean()
    assert result.members[0].val_loss == pytest.approx(loss, rel=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "model", ["gated-attention", "attention", "mean", "max", "instance-max", "instance-mean"]
)
def test_prediction_and_scores_take_read_only_features(dtype, model):
    bags = [frozen(each) for each in bags_of(dtype)]
    targets = frozen(np.arange(8) % 2)
    trained = train.fit(
        bags, targets, head=head_of(model), vals=[np.array([0])], seed=0,
        config=TrainConfig(run=".", labels="l.csv", epochs=1, members=1, precision="fp32"),
    ).model  # fmt: skip
    assert train.predict(trained, bags).shape == (8, 2)
    score = heatmap.score_slide(bags[0], trained)
    assert score.attention.shape == (5,)
    orders = frozen(np.stack([np.arange(5), np.arange(5)[::-1]]))
    assert models.of_parts(trained, bags[0], orders, frozen(np.array([1, 5]))).shape == (2, 2, 2)


def test_a_front_and_an_augmentation_get_patches_of_their_own():
    bags = bags_of(np.float32)
    before = copy.deepcopy(bags)

    def augment(x_TD, generator):
        return x_TD.mul_(0)

    fitted(bags, augment=augment)
    values = train.Patches.of(bags)
    assert np.array_equal(values.values, np.concatenate(before))


def test_scores_take_read_only_arrays():
    rng = np.random.default_rng(0)
    truth = frozen(np.arange(20) % 2)
    probability = rng.random(20)
    prediction = frozen(np.column_stack([1 - probability, probability]))
    patients = [f"P{i}" for i in range(20)]
    assert metrics.score("classification", "auroc", truth, prediction) is not None
    metrics.ece(truth, prediction)
    metrics.roc_band(frozen(truth > 0), frozen(prediction[:, 1].copy()), patients, samples=20, seed=0)
    metrics.reliability_band(truth, prediction, patients, samples=20, seed=0)
    times = frozen(np.column_stack([rng.random(20) + 1, truth]))
    metrics.kaplan_meier(times)
    metrics.c_index(times, frozen(rng.random((20, 1))))
    metrics.mae(frozen(rng.random(20)), frozen(rng.random(20)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.score("survival", "c_index", times, frozen(rng.random((20, 1))))
