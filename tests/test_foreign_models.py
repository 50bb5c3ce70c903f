"""torchmil's models behind our contract: trained, stored, restored, and giving what torchmil itself gives."""

import importlib
import sys

import numpy as np
import pytest
import torch

from wsi_mil import models, store, train
from wsi_mil.config import TrainConfig
from wsi_mil.errors import ConfigError
from wsi_mil.models.foreign import OWN_LOSS, SUPPORTED, UNSUPPORTED

DIM = 12


def classification(*names):
    return models.make_task("classification", names or ("normal", "tumour"))


def head_of(name, task=None, **more):
    return {
        "task": (task or classification()).to_head(), "model": f"torchmil:{name}", "identity": {"dim": DIM},
        "hidden_dim": 16, "attention_dim": 8, "branches": "shared", "dropout": 0.0, "members": 1, **more,
    }  # fmt: skip


def draw_bags(count=16, seed=0, least=5):
    """Bags of up to 40 patches; in every second one a third of the patches is moved far away."""
    rng = np.random.default_rng(seed)
    bags = [rng.normal(size=(int(rng.integers(least, 41)), DIM)).astype(np.float16) for _ in range(count)]
    for bag in bags[1::2]:
        bag[: len(bag) // 3 + 1, :2] += 6
    return bags, np.arange(count) % 2


def network_of(name, seed=0, **more):
    torch.manual_seed(seed)
    return models.network(head_of(name, **more)).eval()


def test_every_model_of_torchmil_is_supported_or_refused_with_a_reason():
    theirs = importlib.import_module("torchmil.models")
    names = {name for name, each in vars(theirs).items() if isinstance(each, type)}
    assert names - {"MILModel", "MILModelWrapper"} == set(SUPPORTED) | set(UNSUPPORTED)


def fit(name, folder, epochs):
    bags, codes = draw_bags(20, least=20)
    config = TrainConfig(
        run=folder, labels=folder, model=f"torchmil:{name}", epochs=epochs, learning_rate=1e-2, members=1,
        hidden_dim=16, attention_dim=8, dropout=0.0,
    )  # fmt: skip
    return bags, train.fit(bags, codes, head=head_of(name), vals=[np.arange(4)], config=config, seed=3)


@pytest.mark.parametrize("name", SUPPORTED)
def test_it_is_trained_stored_and_restored_and_predicts_the_same(name, tmp_path):
    bags, found = fit(name, tmp_path, epochs=8)
    others, codes = draw_bags(16, seed=1, least=20)
    right = train.predict(found.model, others).argmax(axis=1) == codes
    assert right.mean() >= 0.8
    store.write_fold(tmp_path / "fold.safetensors", models.tensors(found.model), found.head)
    restored = models.restore(*store.read_fold(tmp_path / "fold.safetensors"))
    np.testing.assert_array_equal(train.predict(restored, bags), train.predict(found.model, bags))


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_same_seed_gives_the_same_model(name, tmp_path):
    first, second = (models.tensors(fit(name, tmp_path, epochs=1)[1].model) for _ in range(2))
    assert all(np.array_equal(first[each], second[each]) for each in first)


@pytest.mark.parametrize("name", SUPPORTED)
def test_logits_and_attention_are_those_of_torchmil_itself(name):
    network = network_of(name)
    x_ND = torch.randn(23, DIM)
    with torch.inference_mode():
        logits_BC, attention_T1 = network(x_ND, torch.zeros(23, dtype=torch.int64), 1)
        h_1NH = network.embed(x_ND)[None]
        theirs = network.model
        arguments = {"mask": torch.ones(1, 23, dtype=torch.bool)} if name == "DTFDMIL" else {}
        np.random.seed(0)  # noqa: NPY002 - what DTFDMIL draws from
        z_1 = theirs.predict(h_1NH, return_inst_pred=False, **arguments)
        assert logits_BC[0].tolist() == pytest.approx([0, float(z_1)], abs=1e-5)
        if name == "DTFDMIL":
            np.random.seed(0)  # noqa: NPY002
            wanted_N = theirs.predict(h_1NH, **arguments)[1][0]
        elif name in ("DSMIL", "TransMIL"):
            wanted_N = theirs(h_1NH, return_att=True)[1].flatten()
        else:
            wanted_N = theirs(h_1NH, return_att=True)[1][0].softmax(dim=0)
    assert float(wanted_N.std()) > 0
    torch.testing.assert_close(attention_T1[:, 0], wanted_N, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 40])
def test_transmil_s_row_of_attention_is_that_of_the_whole_matrix(size):
    network = network_of("TransMIL")
    x_ND = torch.randn(size, DIM)
    with torch.inference_mode():
        _, attention_T1 = network(x_ND, torch.zeros(size, dtype=torch.int64), 1)
        wanted_1N = network.model(network.embed(x_ND)[None], return_att=True)[1]
    torch.testing.assert_close(attention_T1[:, 0], wanted_1N[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", SUPPORTED)
def test_bags_have_nothing_to_do_with_each_other_nor_with_padding(name):
    network = network_of(name)
    first, second, padding = torch.randn(9, DIM), torch.randn(30, DIM), torch.randn(4, DIM)
    bag_T = torch.tensor([0] * 9 + [1] * 30 + [-1] * 4)
    with torch.inference_mode():
        logits_BC, attention_T1 = network(torch.cat((first, second, padding)), bag_T, 2)
        for b, x_ND in enumerate((first, second)):
            alone_1C, alone_N1 = network.whole(lambda x_ND=x_ND: (x_ND[:5], x_ND[5:]))
            torch.testing.assert_close(logits_BC[b : b + 1], alone_1C)
            torch.testing.assert_close(attention_T1[bag_T == b], alone_N1)
    assert not attention_T1[bag_T == -1].any()


@pytest.mark.parametrize("name", OWN_LOSS)
def test_the_own_loss_is_torchmil_s_and_reaches_every_tensor(name):
    network = network_of(name).train()
    x_TD, bag_T = torch.randn(40, DIM), torch.tensor([0] * 15 + [1] * 25)
    torch.manual_seed(5)
    losses_B = network.losses(x_TD, bag_T, 2, torch.tensor([0, 1]))
    torch.manual_seed(5)
    wanted = []
    for b in (0, 1):
        h_1NH = network.embed(x_TD[bag_T == b])[None]
        arguments = {"mask": torch.ones(h_1NH.shape[:2], dtype=torch.bool)} if name == "DTFDMIL" else {}
        np.random.seed(int(torch.randint(2**31, ())))  # noqa: NPY002
        wanted.append(
            sum(network.model.compute_loss(torch.tensor([float(b)]), h_1NH, **arguments)[1].values())
        )
    torch.testing.assert_close(losses_B, torch.stack(wanted))
    losses_B.sum().backward()
    assert [name for name, each in network.named_parameters() if each.grad is None] == []


def test_clam_s_clustering_loss_is_finite_on_patches_that_are_told_apart():
    """torchmil's own fails when some patches are far on one side and others are not."""
    network = network_of("CLAM_SB").train()
    with torch.no_grad():
        for each in network.model.inst_classifiers:
            each.module.weight.mul_(50)
    losses_B = network.losses(
        3 * torch.randn(60, DIM), torch.zeros(60, dtype=torch.int64), 1, torch.tensor([1])
    )
    assert torch.isfinite(losses_B).all()


def test_numpy_s_random_numbers_are_left_as_they_were():
    network = network_of("DTFDMIL")
    x_ND, bag_N = torch.randn(20, DIM), torch.zeros(20, dtype=torch.int64)
    np.random.seed(1)  # noqa: NPY002
    wanted = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    first = network(x_ND, bag_N, 1)[0]
    assert np.random.random() == wanted  # noqa: NPY002
    assert torch.equal(network(x_ND, bag_N, 1)[0], first)


@pytest.mark.parametrize("name", ["ABMIL", "TransMIL", "TransformerABMIL"])
@pytest.mark.parametrize("kind", ["regression", "survival"])
def test_one_output_is_a_number_or_a_risk(name, kind):
    task = models.make_task(kind, ("value",))
    network = network_of(name, task=task)
    logits_BC, _ = network(torch.randn(6, DIM), torch.zeros(6, dtype=torch.int64), 1)
    assert logits_BC.shape == (1, 1)


@pytest.mark.parametrize("name", OWN_LOSS)
def test_an_own_loss_is_for_two_classes(name):
    with pytest.raises(
        ConfigError, match=rf"torchmil:{name}.*the loss of this one is for two classes.*regression"
    ):
        network_of(name, task=models.make_task("regression", ("value",)))


def test_three_classes_are_refused():
    with pytest.raises(ConfigError, match=r"torchmil:ABMIL: .*one output.*has 3 \(a, b, c\)"):
        network_of("ABMIL", task=classification("a", "b", "c"))


def test_an_unknown_name_lists_those_that_are_there():
    with pytest.raises(ConfigError, match=r"torchmil:GATEDMIL: no model.*torchmil:ABMIL.*torchmil:TransMIL"):
        network_of("GATEDMIL")


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_cannot_be_trained_on_features_says_why(name):
    with pytest.raises(ConfigError, match=f"torchmil:{name}: not supported: it") as caught:
        network_of(name)
    assert UNSUPPORTED[name] in str(caught.value)


def test_a_hidden_layer_that_the_heads_do_not_divide():
    with pytest.raises(ConfigError, match=r"--hidden-dim 18: .*TransMIL has 4 heads"):
        network_of("TransMIL", hidden_dim=18)


def test_without_torchmil_the_error_says_how_to_install_it(monkeypatch):
    for name in [each for each in sys.modules if each.split(".")[0] == "torchmil"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmil", None)
    with pytest.raises(ConfigError, match=r"pip install 'wsi-mil\[torchmil\]'"):
        network_of("ABMIL")
