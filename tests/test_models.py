"""The models against the paper's equations, written out in float64, and against what pooling must not see."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from wsi_mil import models, store
from wsi_mil.config import MODELS
from wsi_mil.errors import FormatError

IDENTITY = {"encoder": "e", "weights_digest": "w", "dim": 6, "mpp": 0.5, "patch_px": 224}
NAMES = {"classification": "abc", "multilabel": "abc", "ordinal": "abcd", "regression": "v", "survival": "r"}


def head(model="gated-attention", members=2, task="classification", names=None, **more):
    made = models.make_task(task, names or NAMES[task], survival_loss=more.pop("survival_loss", "cox"))
    return {
        "model": model, "identity": IDENTITY, "hidden_dim": 5, "attention_dim": 4, "dropout": 0.5,
        "task": made.to_head(), "members": members, "branches": "shared",
    } | more  # fmt: skip


def trained(model, members=2, seed=0, **more):
    """A model whose every tensor is random, as after training (w starts at 0)."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        tensors = models.tensors(models.build(head(model, members, **more)))
    tensors = {name: rng.normal(0, 0.7, each.shape).astype(np.float32) for name, each in tensors.items()}
    tensors["std_D"] = np.abs(tensors["std_D"]) + 0.5
    return models.restore(tensors, head(model, members, **more)), tensors


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def pooled(rule, p, r=5.0):
    """The probability of a bag of patches with probabilities ``p``, as the papers have it."""
    if rule == "max":
        return p.max(axis=0)
    if rule == "mean":
        return p.mean(axis=0)
    if rule == "noisy-or":
        return 1 - np.prod(1 - p, axis=0)
    return np.log(np.mean(np.exp(r * p), axis=0)) / r


def of_patches(model, at, h):
    """Equations (7), (8), (9) of Ilse et al., patch by patch in float64: logits, and attention (N, A)."""
    if model.startswith("instance-"):
        p = expit(np.stack([at["score.weight"] @ h_k + at["score.bias"] for h_k in h]))
        return logit(pooled(model.removeprefix("instance-"), p)), p
    if model in ("gated-attention", "attention"):
        scores = []
        for h_k in h:
            gate = 1 / (1 + np.exp(-at["pool.U.weight"] @ h_k)) if model == "gated-attention" else 1
            scores.append(at["pool.w.weight"] @ (np.tanh(at["pool.V.weight"] @ h_k) * gate))
        a = softmax(np.array(scores).T).T
    elif model == "mean":
        a = np.full((len(h), 1), 1 / len(h))
    else:
        a = np.zeros((len(h), 1))
        for j in range(len(h[0])):
            column = [h_k[j] for h_k in h]
            winners = np.flatnonzero(np.array(column) == max(column))
            a[winners] += 1 / len(winners) / len(h[0])
    z = np.max(h, axis=0)[None] if model == "max" else a.T @ np.stack(h)
    return (at["classify.weight"] * z).sum(axis=1) + at["classify.bias"], a


def by_the_paper(model, t, x, members):
    """The committee of a classification model: mean probability, mean attention."""
    t = {name: value.astype(np.float64) for name, value in t.items()}
    x = (x.astype(np.float64) - t["mean_D"]) / t["std_D"]
    probability, attention = 0, 0
    for m in range(members):
        at = {k.removeprefix(f"members.{m}."): v for k, v in t.items() if k.startswith(f"members.{m}.")}
        h = [np.maximum(at["hidden.weight"] @ x_k + at["hidden.bias"], 0) for x_k in x]
        logits, a = of_patches(model, at, h)
        if model.startswith("instance-") and len(logits) == 1:
            logits, a = np.array([0, logits[0]]), np.concatenate((1 - a, a), axis=1)
        probability = probability + softmax(logits) / members
        attention = attention + a / members
    return probability, np.broadcast_to(attention, (len(x), len(probability))).T


def predict(model, x):
    with torch.inference_mode():
        out = model(torch.from_numpy(x)[None], torch.ones(1, len(x), dtype=torch.bool))
    return model.task.predict(out.logits_BC)[0], out.attention_BCN[0].numpy()


@pytest.mark.parametrize("classes", ["ab", "abc"])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_the_equations(name, members, classes):
    model, tensors = trained(name, members, names=classes)
    # The product of noisy-or is 0 to 16 digits for patches that are all certain.
    scale = 0.2 if name == "instance-noisy-or" else 2
    x = np.random.default_rng(1).normal(0, scale, (9, 6)).astype(np.float32)
    probability, attention = predict(model, x)
    wanted = by_the_paper(name, tensors, x, members)
    np.testing.assert_allclose(probability, wanted[0], atol=3e-6)
    np.testing.assert_allclose(attention, wanted[1], atol=3e-6)


def test_a_branch_per_class_looks_elsewhere_for_each():
    model, tensors = trained("gated-attention", 2, branches="class")
    x = np.random.default_rng(1).normal(0, 2, (9, 6)).astype(np.float32)
    probability, attention = predict(model, x)
    wanted = by_the_paper("gated-attention", tensors, x, 2)
    np.testing.assert_allclose(probability, wanted[0], atol=3e-6)
    np.testing.assert_allclose(attention, wanted[1], atol=3e-6)
    assert np.abs(attention[0] - attention[1]).max() > 0.01
    np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("name", [each for each in MODELS if each != "instance-noisy-or"])
@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_the_order_of_patches_does_not_matter(task, name, seed, n):
    model, _ = trained(name, task=task)
    rng = np.random.default_rng(seed)
    x, order = rng.normal(size=(n, 6)).astype(np.float32), rng.permutation(n)
    p, a = predict(model, x)
    p_mixed, a_mixed = predict(model, x[order])
    np.testing.assert_allclose(p_mixed, p, atol=2e-5)
    np.testing.assert_allclose(a_mixed, a[:, order], atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name):
    model, _ = trained(name)
    rng = np.random.default_rng(2)
    x_BND = torch.from_numpy(rng.normal(size=(3, 8, 6)).astype(np.float32))
    lengths = [8, 1, 5]
    mask_BN = torch.arange(8) < torch.tensor(lengths)[:, None]
    x_BND[~mask_BN] = torch.nan  # anything may stand there
    with torch.inference_mode():
        together = model(x_BND, mask_BN)
    assert together.logits_BC.shape == (3, 3)
    assert together.attention_BCN.shape == (3, 3, 8)
    assert not together.attention_BCN.transpose(1, 2)[~mask_BN].any()
    for b, n in enumerate(lengths):
        p, a = predict(model, x_BND[b, :n].numpy())
        np.testing.assert_allclose(together.logits_BC[b].softmax(0).numpy(), p, atol=1e-6)
        np.testing.assert_allclose(together.attention_BCN[b, :, :n].numpy(), a, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 5))
def test_ragged_bags_do_not_see_each_other_nor_rows_of_no_bag(name, seed, lengths, stray):
    """What training computes on bags one below the other is what each bag alone gives."""
    model, _ = trained(name, 1)
    network, rng = model.members[0], np.random.default_rng(seed)
    bags = [torch.from_numpy(rng.normal(size=(n, 6)).astype(np.float32)) for n in lengths]
    x_TD = torch.cat([*bags, torch.from_numpy(rng.normal(0, 100, (stray, 6)).astype(np.float32))])
    bag_T = torch.tensor([b for b, n in enumerate(lengths) for _ in range(n)] + [-1] * stray)
    order = torch.from_numpy(rng.permutation(len(x_TD)))
    with torch.inference_mode():
        logits_BC, attention_TA = network(x_TD[order], bag_T[order], len(bags))
        for b, x_ND in enumerate(bags):
            alone_1C, alone_NA = network.whole(lambda x_ND=x_ND: iter([x_ND]))
            np.testing.assert_allclose(logits_BC[b], alone_1C[0], atol=2e-5)
            back_TA = torch.empty_like(attention_TA)
            back_TA[order] = attention_TA
            np.testing.assert_allclose(back_TA[bag_T == b], alone_NA, atol=2e-5)


@pytest.mark.parametrize("branches", ["shared", "class"])
@pytest.mark.parametrize("name", MODELS)
def test_a_bag_in_chunks_is_the_bag(name, branches):
    if branches == "class" and "attention" not in name:
        branches = "shared"
    model, _ = trained(name, branches=branches)
    x = np.random.default_rng(5).normal(size=(103, 6)).astype(np.float16)
    x[17] = x[88]  # tied maxima in two chunks
    with torch.inference_mode():
        whole, parts = model.bag(x), model.bag(x, chunk=10)
    torch.testing.assert_close(parts.logits_BC, whole.logits_BC, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(parts.attention_BCN, whole.attention_BCN, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", ["gated-attention", "max", "instance-max", "instance-mean", "instance-lse"])
def test_the_mean_bag_has_no_risk_and_the_order_of_risks_stays(name):
    model, _ = trained(name, 3, task="survival")
    rng = np.random.default_rng(6)
    bags = [torch.from_numpy(rng.normal(size=(n, 6)).astype(np.float32)) for n in (3, 5, 8)]

    def risks():
        with torch.inference_mode():
            return np.array([float(model.bag(bag).logits_BC[0, 0]) for bag in bags])

    before = risks()
    model.centre(bags)
    np.testing.assert_allclose(risks(), before - before.mean(), atol=1e-5)
    other, _ = trained(name, 3)
    kept = {key: value.copy() for key, value in models.tensors(other).items()}
    other.centre(bags)
    assert all((kept[key] == value).all() for key, value in models.tensors(other).items())


def test_attention_starts_as_the_mean():
    torch.manual_seed(0)
    model = models.build(head("gated-attention")).eval()
    _, a = predict(model, np.random.default_rng(3).normal(size=(7, 6)).astype(np.float32))
    np.testing.assert_allclose(a, 1 / 7, atol=1e-7)


def test_tied_maxima_share_the_attention():
    h_TH = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.0], [9.0, 9.0]])
    in_BT = torch.tensor([[True, True, True, False]])
    z_BAH, a_TA = models.MaxPool()(h_TH, in_BT)
    assert z_BAH.tolist() == [[[1.0, 0.0]]]
    torch.testing.assert_close(a_TA[:, 0], torch.tensor([5 / 12, 5 / 12, 2 / 12, 0.0]))


def test_scores_far_from_one_half_do_not_saturate():
    """Probabilities of a patch that are 0 or 1 in float32 keep their order in the bag's logit."""
    z_TO, all_of_it = torch.tensor([[40.0], [30.0]]), torch.ones(1, 2, dtype=torch.bool)
    high = {"max": 40.0, "mean": 30 + np.log(2), "noisy-or": 70.0}
    low = {"max": -30.0, "mean": -30 - np.log(2), "noisy-or": -30.0}
    for sign, wanted in ((1, high), (-1, low)):
        for rule, value in wanted.items():
            got = float(models.ScorePool(rule, "sigmoid")(sign * z_TO, all_of_it))
            assert got == pytest.approx(value, abs=0.01), (rule, sign)


def test_a_bag_without_patches_is_refused():
    model, _ = trained("mean")
    with pytest.raises(ValueError, match="without patches"):
        model(torch.zeros(2, 3, 6), torch.tensor([[True, True, True], [False, False, False]]))


def test_a_constant_feature_is_centred_and_not_blown_up():
    model = models.build(head("mean")).eval()
    model.set_standardisation(np.arange(6.0), np.array([2, 0, 1e-9, 1, 1, 1]))
    x = torch.arange(6.0) + 1
    torch.testing.assert_close(model.standardise(x), torch.tensor([0.5, 1, 1, 1, 1, 1]))


@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_from_disk(name, task, tmp_path):
    if name == "instance-noisy-or" and task in ("ordinal", "regression", "survival"):
        with pytest.raises(FormatError, match="instance-noisy-or: pools probabilities, and task"):
            models.build(head(name, task=task))
        return
    model, _ = trained(name, task=task)
    path = tmp_path / "fold_0.safetensors"
    store.write_fold(path, models.tensors(model), head(name, task=task))
    state = torch.get_rng_state()
    back = models.restore(*store.read_fold(path))
    assert torch.equal(torch.get_rng_state(), state)
    assert not back.training
    x = np.random.default_rng(4).normal(size=(5, 6)).astype(np.float32)
    for got, wanted in zip(predict(back, x), predict(model, x), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_heads_and_tensors_that_do_not_fit_are_refused():
    _, tensors = trained("mean")
    with pytest.raises(FormatError, match=r"lacks 'members'"):
        models.restore(tensors, {k: v for k, v in head("mean").items() if k != "members"})
    with pytest.raises(FormatError, match=r"model 'median': unknown; wanted gated-attention"):
        models.restore(tensors, head("median"))
    with pytest.raises(FormatError, match=r"do not fit the model 'attention'.*pool\.V\.weight"):
        models.restore(tensors, head("attention"))
    with pytest.raises(FormatError, match=r"task 'guess'; wanted one of classification"):
        models.restore(tensors, head("mean") | {"task": {"task": "guess"}})
    with pytest.raises(FormatError, match=r"does not describe its task discrete.*edges"):
        models.restore(tensors, head("mean") | {"task": {"task": "discrete", "names": ["risk"]}})


def test_identity_names_the_first_field_that_differs():
    models.check_identity(head(), dict(IDENTITY), "a.h5")
    with pytest.raises(FormatError, match=r"a\.h5: .* features of mpp 0\.5, these are of mpp 0\.25"):
        models.check_identity(head(), IDENTITY | {"mpp": 0.25, "patch_px": 256}, "a.h5")
    with pytest.raises(FormatError, match=r"stain None.*stain 'x'"):
        models.check_identity(head(), IDENTITY | {"stain": "x"}, "a.h5")


@pytest.mark.slow
def test_half_a_million_patches_in_chunks_within_four_gib():
    """Exact attention: in chunks as unchunked to 1e-5 at N = 500,000, D = 1024, within 4 GiB of memory."""

    import subprocess
    import sys

    code = """
import numpy as np, resource, torch
from wsi_mil import models
torch.manual_seed(0)
task = models.make_task("classification", "ab").to_head()
head = {"model": "gated-attention", "identity": {"dim": 1024}, "hidden_dim": 512, "attention_dim": 256,
        "dropout": 0.25, "task": task, "members": 1, "branches": "shared"}
model = models.build(head).eval()
torch.nn.init.normal_(model.members[0].pool.w.weight, std=0.5)
rng = np.random.default_rng(0)
x = np.empty((500_000, 1024), np.float16)
for i in range(0, len(x), 10_000):
    x[i:i + 10_000] = rng.standard_normal((10_000, 1024), np.float32)
with torch.inference_mode():
    out = model.bag(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # GiB

if {whole}:
    with torch.inference_mode():
        one = model.bag(x, chunk=len(x))
    print(float((one.logits_BC - out.logits_BC).abs().max()))
    print(float(((one.attention_BCN - out.attention_BCN).abs() * len(x)).max()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code.replace("{whole}", "True")], capture_output=True, text=True, check=True
    )
    peak, logits, attention = map(float, done.stdout.split())
    assert peak < 4
    assert logits < 1e-5
    assert attention < 1e-5, "relative to the mean attention"


@pytest.mark.parametrize("model", ["gated-attention", "instance-mean"])
def test_weights_of_glorot_are_drawn_where_the_head_says_so(model):
    head = {
        "task": models.make_task("classification", ("a", "b")).to_head(), "model": model, "hidden_dim": 0,
        "identity": {"dim": 600}, "attention_dim": 128, "branches": "shared", "dropout": 0.0, "members": 1,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = models.network(head | {"initial_weights": "glorot"})
    for name, each in drawn.state_dict().items():
        if name.endswith("bias"):
            assert (each == 0).all()
        else:
            bound = (6 / sum(each.shape)) ** 0.5
            assert bound * 0.9 < each.abs().max() <= bound, name
            assert float(each.std()) == pytest.approx(bound / 3**0.5, rel=0.2), name


def test_the_attention_starts_even_unless_the_head_says_otherwise():
    head = {
        "task": models.make_task("classification", ("a", "b")).to_head(), "model": "gated-attention",
        "identity": {"dim": 8}, "hidden_dim": 6, "attention_dim": 4, "branches": "shared", "dropout": 0.0,
        "members": 1,
    }  # fmt: skip
    made = {}
    with torch.random.fork_rng(devices=[]):
        for start in ("mean", "uniform"):
            torch.manual_seed(0)
            made[start] = models.network(head | {"initial_weights": start})
        torch.manual_seed(0)
        unsaid = models.network(head)
    x_TD, bag_T = torch.randn(5, 8), torch.zeros(5, dtype=torch.int64)
    assert made["mean"](x_TD, bag_T, 1)[1].flatten().tolist() == pytest.approx([0.2] * 5)
    assert made["uniform"](x_TD, bag_T, 1)[1].std() > 0
    tensors = {start: network.state_dict() for start, network in made.items()}
    differ = [n for n in tensors["mean"] if not torch.equal(tensors["mean"][n], tensors["uniform"][n])]
    assert differ == ["pool.w.weight"], "all else is drawn alike"
    assert all(torch.equal(each, tensors["mean"][name]) for name, each in unsaid.state_dict().items())
