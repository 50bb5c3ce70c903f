"""Networks that are trained together, against each alone; what is kept; going on after a kill."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_mil import models, train
from wsi_mil.config import TrainConfig
from wsi_mil.errors import TrainingError
from wsi_mil.train.fit import _seeded
from wsi_mil.train.memory import Work
from wsi_mil.train.networks import Training
from wsi_mil.train.patches import Patches

DIM = 6
CPU = torch.device("cpu")


def recipe(**more):
    return TrainConfig(
        run=Path(), labels=Path(), **({"dropout": 0.0, "epochs": 4, "learning_rate": 1e-2} | more)
    )


def head(config, members=1, task="classification", names="np"):
    made = models.make_task(task, names)
    return {
        "model": config.model, "identity": {"dim": DIM}, "hidden_dim": 8, "attention_dim": 4,
        "dropout": config.dropout, "task": made.to_head(), "members": members, "branches": config.branches,
    }  # fmt: skip


def drawn(count=16, seed=0):
    """Bags of 3 to 12 patches; the odd ones have two shifted patches."""
    rng = np.random.default_rng(seed)
    bags = []
    for i in range(count):
        x = rng.normal(size=(int(rng.integers(3, 13)), DIM))
        x[: 2 * (i % 2), :2] += 3
        bags.append((x * 2 + 5).astype(np.float16))
    return bags, np.arange(count) % 2


def jobs_of(bags, codes, config, count=5):
    patches, rows = Patches.of(bags), np.arange(len(bags))
    vals = [rows[k::count] for k in range(count)]
    task = models.task_of(head(config))
    return patches, train.make_jobs(patches, codes, rows, vals, task, 3)


@pytest.mark.parametrize("model", ["gated-attention", "max", "mean", "instance-noisy-or", "instance-lse"])
def test_networks_trained_together_are_those_trained_alone(model):
    bags, codes = drawn()
    config = recipe(model=model, feature_noise=0.0, patch_dropout=0.3, patience=2)
    patches, jobs = jobs_of(bags, codes, config)
    together = Training(patches, codes, jobs, head=head(config), config=config, device=CPU).run()
    for job, one in zip(jobs, together, strict=True):
        (alone,) = Training(patches, codes, [job], head=head(config), config=config, device=CPU).run()
        # As many steps an epoch as the largest part of the group needs: here all parts are equal but one.
        if len(job.train) == max(len(each.train) for each in jobs):
            assert one.epoch == alone.epoch
            np.testing.assert_allclose(one.val_losses, alone.val_losses[: len(one.val_losses)], atol=1e-4)
            for name, each in alone.state.items():
                torch.testing.assert_close(one.state[name], each, atol=1e-4, rtol=1e-3)


def test_the_epoch_that_is_kept_has_the_lowest_validation_loss():
    bags, codes = drawn()
    config = recipe(epochs=12, patience=3, dropout=0.2)
    patches, jobs = jobs_of(bags, codes, config)
    for each in Training(patches, codes, jobs, head=head(config), config=config, device=CPU).run():
        assert each.epoch == 1 + int(np.argmin(each.val_losses))
        assert each.val_loss == min(each.val_losses)
        assert len(each.val_losses) <= each.epoch + 3


def test_the_stored_loss_is_that_of_the_weights_kept():
    bags, codes = drawn()
    config = recipe(epochs=6, label_smoothing=0.1)
    vals = [np.array([0, 1, 2, 3]), np.array([4, 5])]
    fitted = train.fit(bags, codes, head=head(config, 2), vals=vals, config=config, seed=1)
    for member, val, loss in zip(fitted.model.members, vals, fitted.val_losses, strict=True):
        with torch.inference_mode():
            logits = [
                member.whole(lambda i=i: [fitted.model.standardise(torch.from_numpy(bags[i]))])[0]
                for i in val
            ]
        wanted = torch.nn.functional.cross_entropy(torch.cat(logits), torch.from_numpy(codes[val]))
        assert loss == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_rare_classes_count_as_much(balance):
    """With one positive bag among many the mean prediction is not that of the common class."""
    rng = np.random.default_rng(0)
    codes = np.array([1] * 2 + [0] * 18)
    bags = [rng.normal(size=(4, DIM)).astype(np.float16) for _ in codes]
    config = recipe(model="mean", balance=balance, epochs=30, label_smoothing=0.0, weight_decay=0.5)
    fitted = train.fit(bags, codes, head=head(config), vals=[np.array([], int)], config=config, seed=0)
    new = [rng.normal(size=(4, DIM)).astype(np.float16) for _ in range(200)]
    balanced = train.predict(fitted.model, new)[:, 1].mean()
    config = dataclasses.replace(config, balance="none")
    fitted = train.fit(bags, codes, head=head(config), vals=[np.array([], int)], config=config, seed=0)
    plain = train.predict(fitted.model, new)[:, 1].mean()
    assert plain < 0.2 < balanced


def test_a_loss_that_is_no_number_stops_with_epoch_and_cause():
    bags, codes = drawn()
    config = recipe(learning_rate=1e30, epochs=9)
    with pytest.raises(
        TrainingError, match=r"became (nan|inf) in epoch \d.*--learning-rate is 1e\+30; try a tenth"
    ):
        train.fit(bags, codes, head=head(config), vals=[np.array([0, 1])], config=config, seed=0)


@pytest.mark.parametrize("count", [1, 5])
def test_a_killed_training_goes_on_where_it_was_to_the_same_end(tmp_path, monkeypatch, count):
    bags, codes = drawn()
    config = recipe(dropout=0.3, epochs=8, patience=8)
    patches, jobs = jobs_of(bags, codes, config, max(count, 2))
    jobs = jobs[:count]

    def training():
        return Training(patches, codes, jobs, head=head(config), config=config, device=CPU)

    with _seeded(5, CPU):
        whole = training().run()
    monkeypatch.setattr("wsi_mil.train.memory.EVERY", 0.0)

    class KilledError(Exception):
        pass

    def kill_after(epochs):
        left = iter(range(epochs - 1))

        def report(_count):
            if next(left, None) is None:
                raise KilledError

        return report

    # Killed after the third epoch, before its state is kept, and again, in the fifth.
    for epochs in (3, 3):
        with _seeded(5, CPU), pytest.raises(KilledError):
            training().run(Work(tmp_path / "w", {"a": 1}).memory("0"), kill_after(epochs))
    done = []
    with _seeded(5, CPU):
        again = training().run(Work(tmp_path / "w", {"a": 1}).memory("0"), done.append)
    assert len(done) == 8 - 4, "the first four epochs were not made again"
    for one, other in zip(again, whole, strict=True):
        assert (one.epoch, one.val_losses, one.train_losses) == (
            other.epoch,
            other.val_losses,
            other.train_losses,
        )
        for name, each in other.state.items():
            assert torch.equal(one.state[name], each), name
    # Finished: nothing is trained again. Another record: nothing of it is used.
    training().run(Work(tmp_path / "w", {"a": 1}).memory("0"), lambda _: pytest.fail("trained again"))
    assert Work(tmp_path / "w", {"a": 2}).memory("0").load() is None


def test_large_bags_are_validated_in_chunks(monkeypatch):
    bags, codes = drawn()
    config = recipe(epochs=2)
    vals = [np.array([0, 1, 2, 3])]
    whole = train.fit(bags, codes, head=head(config), vals=vals, config=config, seed=1)
    monkeypatch.setattr("wsi_mil.train.networks.CHUNK", 2)
    parts = train.fit(bags, codes, head=head(config), vals=vals, config=config, seed=1)
    np.testing.assert_allclose(parts.val_losses, whole.val_losses, atol=1e-5)


def test_an_encoder_in_front_is_trained_with_the_bag():
    """Bags of pictures: positive ones hold a picture with a bright corner."""
    rng = np.random.default_rng(0)
    codes = np.arange(24) % 2
    bags = []
    for code in codes:
        pictures = rng.integers(0, 80, (6, 1, 8, 8), dtype=np.uint8)
        pictures[0, :, :4, :4] += np.uint8(120 * code)
        bags.append(pictures)

    class Front(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4 * 9, DIM)

        def forward(self, x_T1hw):
            h = torch.nn.functional.max_pool2d(torch.relu(self.conv(x_T1hw.float() / 255)), 2)
            return torch.relu(self.out(h.flatten(1)))

    seen = []

    def augment(x, generator):
        seen.append(x.shape)
        return x if torch.rand((), generator=generator) < 0.5 else x.flip(0)

    config = recipe(
        epochs=40, patience=40, hidden_dim=0, patch_dropout=0.0, batch_size=1, optimiser="adam",
        schedule="constant", label_smoothing=0.0, stop_on="loss+error", weight_decay=1e-4,
    )  # fmt: skip
    described = head(config) | {"hidden_dim": 0}
    val = np.arange(16, 24)
    fitted = train.fit(
        bags[:24], codes, head=described, vals=[val], config=config, seed=0, front=Front, augment=augment
    )
    assert all(shape == (6, 1, 8, 8) for shape in seen)
    assert len(seen) == 40 * 16
    p = train.predict(fitted.model, [bags[i] for i in val])
    assert ((p[:, 1] > 0.5) == codes[val]).all()
    with torch.inference_mode():
        attention = fitted.model.bag(bags[17]).attention_BCN[0, 1]
    assert int(attention.argmax()) == 0, "the picture with the corner"
    back = models.restore(models.tensors(fitted.model), fitted.head, Front)
    np.testing.assert_array_equal(train.predict(back, bags[:3]), train.predict(fitted.model, bags[:3]))
