"""Evidence is exact: with the bias it sums to the logit, for every model where the logit is a sum."""

import itertools

import numpy as np
import pytest
import torch

from wsi_mil import models
from wsi_mil.models import make_task

DIM, N = 6, 57
TASKS = {
    "two classes": ("classification", ("normal", "tumor")),
    "four classes": ("classification", tuple("abcd")),
    "labels": ("multilabel", tuple("abc")),
    "grades": ("ordinal", ("low", "medium", "high")),
    "number": ("regression", ("value",)),
    "cox": ("survival", ("risk",)),
}
EMBEDDING = ("gated-attention", "attention", "mean", "max")
INSTANCE = ("instance-max", "instance-mean", "instance-noisy-or", "instance-lse")

CASES = [
    (name, task)
    for name, task in itertools.product(EMBEDDING + INSTANCE, TASKS)
    if name != "instance-noisy-or" or task not in ("grades", "number", "cox")  # it pools probabilities
]


def model_of(name, task, *, members=3, branches="shared", hidden=8, seed=0):
    kind, names = TASKS[task]
    head = {
        "model": name, "identity": {"dim": DIM}, "hidden_dim": hidden, "attention_dim": 4, "dropout": 0.3,
        "task": make_task(kind, names).to_head(), "members": members, "branches": branches,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.build(head)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
    model.set_standardisation(np.full(DIM, 0.3), np.full(DIM, 1.7))
    return model.eval()


def bag(n=N, seed=1):
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float16)


def member_logits(model, x, chunk=10):
    """(K, C) by the code that predicts, and not by that which explains."""
    return model._each(x, chunk)[0][:, 0].detach().double()


def expected_logit(task, logits_KC):
    """The mean over members of each logit less the mean of the others, where a softmax follows."""
    if task.activation != "softmax":
        return logits_KC.mean(0)
    rows = [
        logits_KC[:, c] - logits_KC[:, [o for o in range(logits_KC.shape[1]) if o != c]].mean(1)
        for c in range(logits_KC.shape[1])
    ]
    return torch.stack(rows).mean(1)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("name", "branches"),
    [*((name, "shared") for name in EMBEDDING), ("gated-attention", "class"), ("attention", "class")],
)
def test_evidence_and_bias_sum_to_the_logit(name, task, branches):
    model, x = model_of(name, task, branches=branches), bag()
    found = models.explain(model, x, chunk=10)
    logit = expected_logit(model.task, member_logits(model, x))
    assert found.values["evidence"].sum(1) + found.bias_C == pytest.approx(logit, abs=1e-5)
    assert found.logit_C == pytest.approx(logit, abs=1e-5)
    stored = models.as_array(found.values["evidence"])
    assert stored.sum(1, dtype=np.float64) + found.bias_C.numpy() == pytest.approx(logit.numpy(), abs=1e-5)


def test_of_two_classes_it_sums_to_the_log_odds_of_one_member():
    model, x = model_of("gated-attention", "two classes", members=1), bag()
    found = models.explain(model, x)
    p = model.task.predict(model.bag(x).logits_BC)[0]
    total = found.values["evidence"].double().sum(1) + found.bias_C
    assert total.numpy() == pytest.approx(np.log(p / (1 - p)), abs=1e-5)
    assert found.values["evidence"][0] == pytest.approx(-found.values["evidence"][1])


def test_a_hundred_thousand_patches_still_sum():
    model, x = model_of("attention", "two classes"), bag(100_000)
    found = models.explain(model, x)
    logit = expected_logit(model.task, member_logits(model, x, chunk=999))
    stored = models.as_array(found.values["evidence"])
    assert stored.sum(1, dtype=np.float64) + found.bias_C.numpy() == pytest.approx(logit.numpy(), abs=1e-5)


@pytest.mark.parametrize(("name", "task"), [each for each in CASES if each[0] in INSTANCE])
def test_evidence_of_instance_models_sums_where_there_is_such_a_sum(name, task):
    values = task in ("grades", "number", "cox")
    model, x = model_of(name, task), bag()
    found = models.explain(model, x, chunk=10)
    if name == "instance-max" or (name == "instance-mean" and values):
        logit = expected_logit(model.task, member_logits(model, x))
        assert found.values["evidence"].sum(1) + found.bias_C == pytest.approx(logit, abs=1e-5)
    else:
        assert "evidence" not in found.values
        assert name.removeprefix("instance-") in found.missing["evidence"]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_what_is_explained_is_what_is_predicted(name, task):
    model, x = model_of(name, task), bag()
    found, whole = models.explain(model, x, chunk=10), model.bag(x)
    assert found.bag_C == pytest.approx(whole.logits_BC[0].detach(), abs=1e-5)
    assert found.values["attention"] == pytest.approx(whole.attention_BCN[0].detach(), abs=1e-6)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_probability_of_a_patch_is_that_of_a_bag_of_one(name, task):
    model, x = model_of(name, task), bag(5)
    found = models.explain(model, x, chunk=2)
    if task in ("number", "cox"):
        assert "predicts a value" in found.missing["probability"]
        return
    for k in range(5):
        logits_C = model.bag(x[k : k + 1]).logits_BC[0].detach()
        two = model.task.activation == "softmax"
        assert found.values["probability"][:, k] == pytest.approx(
            logits_C.softmax(0) if two else logits_C.sigmoid(), abs=1e-5
        )


@pytest.mark.parametrize("name", ["gated-attention", "mean"])
def test_patches_outside_of_the_bag_change_nothing_in_it(name):
    model, x, more = model_of(name, "two classes"), bag(), bag(9, seed=2)
    more[0] = x[4]
    alone, found = models.explain(model, x), models.explain(model, x, more)
    for quantity, values in found.values.items():
        assert values.shape == (2, N + 9)
        assert values[:, :N] == pytest.approx(alone.values[quantity], abs=1e-6)
        assert values[:, N] == pytest.approx(values[:, 4], abs=1e-6)
    assert found.logit_C == pytest.approx(alone.logit_C, abs=1e-6)


def test_a_maximum_has_no_patches_outside_of_the_bag():
    with pytest.raises(ValueError, match="no part in a maximum"):
        models.explain(model_of("max", "two classes"), bag(), bag(2))


def test_tied_maxima_share_the_evidence():
    model, x = model_of("max", "two classes"), bag(8)
    found = models.explain(model, np.concatenate([x, x]))
    halves = found.values["evidence"].reshape(2, 2, 8)
    assert halves[:, 0] == pytest.approx(halves[:, 1])
    once = models.explain(model, x)
    assert halves.sum(1) == pytest.approx(once.values["evidence"], abs=1e-6)


def test_torchmils_models_say_what_they_lack():
    pytest.importorskip("torchmil", reason="no torchmil (an extra): evidence of its models was NOT tested")
    kind, names = TASKS["two classes"]
    head = {
        "model": "torchmil:ABMIL", "identity": {"dim": DIM}, "hidden_dim": 8, "attention_dim": 4,
        "dropout": 0.0, "task": make_task(kind, names).to_head(), "members": 2, "branches": "shared",
    }  # fmt: skip
    found = models.explain(models.build(head).eval(), bag())
    assert set(found.values) == {"attention"}
    assert set(found.missing) == {"evidence", "probability"}


@pytest.mark.parametrize(
    ("name", "task"), [*((n, "two classes") for n in (*EMBEDDING, *INSTANCE)), ("attention", "grades")]
)
def test_parts_of_a_bag_are_predicted_as_bags(name, task):
    model, x = model_of(name, task), bag(20)
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(20) for _ in range(3)])
    counts = np.array([1, 4, 20])
    found = models.of_parts(model, x, orders, counts)
    for r, order in enumerate(orders):
        for s, count in enumerate(counts):
            expected = model.task.predict(model.bag(x[order[:count]]).logits_BC)[0]
            assert found[r, s] == pytest.approx(expected, abs=1e-5)
