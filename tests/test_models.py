"""The models against the paper's equations, written out in float64, and against what pooling must not see."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_mil import models, store
from wsi_mil.errors import FormatError

MODELS = ["gated-attention", "attention", "mean", "max"]
IDENTITY = {"encoder": "e", "weights_digest": "w", "dim": 6, "mpp": 0.5, "patch_px": 224}


def head(model="gated-attention", members=2, **more):
    return {
        "model": model, "identity": IDENTITY, "hidden_dim": 5, "attention_dim": 4, "dropout": 0.5,
        "classes": ["a", "b", "c"], "members": members,
    } | more  # fmt: skip


def trained(model, members=2, seed=0):
    """A model whose every tensor is random, as after training (w starts at 0)."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        tensors = models.tensors(models.build(head(model, members)))
    tensors = {name: rng.normal(0, 0.7, each.shape).astype(np.float32) for name, each in tensors.items()}
    tensors["std_D"] = np.abs(tensors["std_D"]) + 0.5
    return models.restore(tensors, head(model, members)), tensors


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def by_the_paper(model, t, x, members):
    """Equations (7), (8), (9) of Ilse et al., patch by patch in float64; mean over the members."""
    t = {name: value.astype(np.float64) for name, value in t.items()}
    x = (x.astype(np.float64) - t["mean_D"]) / t["std_D"]
    probability, attention = 0, 0
    for m in range(members):
        at = {k.removeprefix(f"members.{m}."): v for k, v in t.items() if k.startswith(f"members.{m}.")}
        h = [np.maximum(at["hidden.weight"] @ x_k + at["hidden.bias"], 0) for x_k in x]
        if model in ("gated-attention", "attention"):
            scores = []
            for h_k in h:
                gate = 1 / (1 + np.exp(-at["pool.U.weight"] @ h_k)) if model == "gated-attention" else 1
                scores.append(float(at["pool.w.weight"][0] @ (np.tanh(at["pool.V.weight"] @ h_k) * gate)))
            a = softmax(np.array(scores))
        elif model == "mean":
            a = np.full(len(h), 1 / len(h))
        else:
            a = np.zeros(len(h))
            for j in range(len(h[0])):
                column = [h_k[j] for h_k in h]
                winners = np.flatnonzero(np.array(column) == max(column))
                a[winners] += 1 / len(winners) / len(h[0])
        z = np.max(h, axis=0) if model == "max" else sum(a_k * h_k for a_k, h_k in zip(a, h, strict=True))
        probability = probability + softmax(at["classify.weight"] @ z + at["classify.bias"]) / members
        attention = attention + a / members
    return probability, attention


def predict(model, x):
    with torch.inference_mode():
        out = model(torch.from_numpy(x)[None], torch.ones(1, len(x), dtype=torch.bool))
    return out.logits_BC.softmax(1)[0].numpy(), out.attention_BN[0].numpy()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("members", [1, 3])
def test_agrees_with_the_equations(name, members):
    model, tensors = trained(name, members)
    x = np.random.default_rng(1).normal(0, 2, (9, 6)).astype(np.float32)
    for got, wanted in zip(predict(model, x), by_the_paper(name, tensors, x, members), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_the_order_of_patches_does_not_matter(name, seed, n):
    model, _ = trained(name)
    rng = np.random.default_rng(seed)
    x, order = rng.normal(size=(n, 6)).astype(np.float32), rng.permutation(n)
    p, a = predict(model, x)
    p_mixed, a_mixed = predict(model, x[order])
    np.testing.assert_allclose(p_mixed, p, atol=1e-6)
    np.testing.assert_allclose(a_mixed, a[order], atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name):
    model, _ = trained(name)
    rng = np.random.default_rng(2)
    x_BND = torch.from_numpy(rng.normal(size=(3, 8, 6)).astype(np.float32))
    lengths = [8, 1, 5]
    mask_BN = torch.arange(8) < torch.tensor(lengths)[:, None]
    x_BND[~mask_BN] = 1e4  # anything may stand there
    with torch.inference_mode():
        together = model(x_BND, mask_BN)
    assert together.logits_BC.shape == (3, 3)
    assert not together.attention_BN[~mask_BN].any()
    torch.testing.assert_close(together.attention_BN.sum(1), torch.ones(3))
    for b, n in enumerate(lengths):
        p, a = predict(model, x_BND[b, :n].numpy())
        np.testing.assert_allclose(together.logits_BC[b].softmax(0).numpy(), p, atol=1e-6)
        np.testing.assert_allclose(together.attention_BN[b, :n].numpy(), a, atol=1e-6)


def test_attention_starts_as_the_mean():
    torch.manual_seed(0)
    model = models.build(head("gated-attention")).eval()
    _, a = predict(model, np.random.default_rng(3).normal(size=(7, 6)).astype(np.float32))
    np.testing.assert_allclose(a, 1 / 7, atol=1e-7)


def test_tied_maxima_share_the_attention():
    h_BNH = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.5, 0.0], [9.0, 9.0]]])
    z_BH, a_BN = models.MaxPool()(h_BNH, torch.tensor([[True, True, True, False]]))
    assert z_BH.tolist() == [[1.0, 0.0]]
    torch.testing.assert_close(a_BN, torch.tensor([[5 / 12, 5 / 12, 2 / 12, 0.0]]))


def test_a_bag_without_patches_is_refused():
    model, _ = trained("mean")
    with pytest.raises(ValueError, match="without patches"):
        model(torch.zeros(2, 3, 6), torch.tensor([[True, True, True], [False, False, False]]))


def test_a_constant_feature_is_centred_and_not_blown_up():
    model = models.build(head("mean")).eval()
    model.set_standardisation(np.arange(6.0), np.array([2, 0, 1e-9, 1, 1, 1]))
    x = torch.arange(6.0) + 1
    torch.testing.assert_close(model.standardise(x), torch.tensor([0.5, 1, 1, 1, 1, 1]))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_from_disk(name, tmp_path):
    model, _ = trained(name)
    path = tmp_path / "fold_0.safetensors"
    store.write_fold(path, models.tensors(model), head(name))
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


def test_identity_names_the_first_field_that_differs():
    models.check_identity(head(), dict(IDENTITY), "a.h5")
    with pytest.raises(FormatError, match=r"a\.h5: .* features of mpp 0\.5, these are of mpp 0\.25"):
        models.check_identity(head(), IDENTITY | {"mpp": 0.25, "patch_px": 256}, "a.h5")
    with pytest.raises(FormatError, match=r"stain None.*stain 'x'"):
        models.check_identity(head(), IDENTITY | {"stain": "x"}, "a.h5")
