"""The paper's experiments: patches, augmentation, networks, bags of digits, runs that go on, tables."""

import dataclasses
import functools
import gzip
import json

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from torch.nn import functional

from pipelines.breast_cancer import data as breast
from pipelines.breast_cancer import run as breast_run
from pipelines.colon_cancer import data as colon
from pipelines.colon_cancer import draw
from pipelines.colon_cancer import run as colon_run
from pipelines.mnist_bags import data as mnist
from pipelines.mnist_bags import run as mnist_run
from pipelines.paper import keys, networks, runs, tables
from pipelines.paper.augment import STAINS, Augment, restain, turn
from pipelines.paper.bags import Bag, around, codes, cut, digest, grid, white_share
from pipelines.paper.crossval import CrossValidation
from pipelines.paper.recipe import METHODS, Recipe
from wsi_mil.errors import ConfigError, FormatError, StaleOutputError
from wsi_mil.models.dropout import ReluDropout

RNG = np.random.default_rng(0)


def patches(count, side=9, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    )


# Patches


def test_a_patch_around_a_point_has_it_in_the_middle():
    field = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    centres = np.array([[40.4, 30.0], [39.6, 29.5], [13.0, 13.0]])
    got = cut(field, around(centres, 27), 27)
    assert got.shape == (3, 3, 27, 27)
    for patch, (x, y) in zip(got, [(40, 30), (40, 30), (13, 13)], strict=True):
        np.testing.assert_array_equal(patch[:, 13, 13], field[y, x])
        np.testing.assert_array_equal(patch, field[y - 13 : y + 14, x - 13 : x + 14].transpose(2, 0, 1))


def test_over_the_edge_the_field_is_mirrored():
    field = np.arange(30 * 30 * 3, dtype=np.int64).reshape(30, 30, 3).astype(np.uint8)
    (corner,) = cut(field, around(np.array([[0.0, 29.0]]), 5), 5)
    rows, columns = [27, 28, 29, 28, 27], [2, 1, 0, 1, 2]
    np.testing.assert_array_equal(corner, field[np.ix_(rows, columns)].transpose(2, 0, 1))
    with pytest.raises(ValueError, match="wholly outside a field of 30 x 30"):
        cut(field, np.array([[30, 0]]), 5)


def test_the_grid_of_a_breast_field_has_672_patches():
    corners = grid((768, 896), 32)
    assert len(corners) == 672
    np.testing.assert_array_equal(corners[[0, 1, -1]], [[0, 0], [32, 0], [864, 736]])
    assert len(grid((767, 895), 32)) == 27 * 23


def write_breast(folder, name, share):
    """A field of 8 patches: the first has ``share`` of its pixels white, the rest are grey."""
    field = np.full((64, 128, 3), 120, np.uint8)
    field[:32, :32].reshape(-1, 3)[:] = 120
    flat = np.full((32 * 32, 3), 120, np.uint8)
    flat[: round(share * 1024)] = 255
    field[:32, :32] = flat.reshape(32, 32, 3)
    cv2.imwrite(str(folder / f"{name}.png"), field)


def test_a_patch_of_three_quarters_white_is_left_out(tmp_path):
    write_breast(tmp_path, "a_benign1", 0.75)
    write_breast(tmp_path, "b_malignant1", 0.749)
    benign, malignant = breast.load(tmp_path)
    assert (benign.name, benign.positive, len(benign.patches)) == ("a_benign1", False, 7)
    assert (malignant.name, malignant.positive, len(malignant.patches)) == ("b_malignant1", True, 8)
    assert [32, 0] in benign.corner_N2.tolist()
    assert [0, 0] not in benign.corner_N2.tolist()
    np.testing.assert_allclose(white_share(malignant.patches)[0], round(0.749 * 1024) / 1024)


def test_what_is_wrong_with_breast_fields_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no \.tif or \.png"):
        breast.load(tmp_path)
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(FormatError, match=r"x\.png: the name of a field says benign or malignant"):
        breast.load(tmp_path)
    (tmp_path / "x.png").rename(tmp_path / "x_benign.png")
    (tmp_path / "x_benign.png").write_bytes(b"no image")
    with pytest.raises(FormatError, match="not an image that can be read"):
        breast.load(tmp_path)
    cv2.imwrite(str(tmp_path / "x_benign.png"), np.full((32, 32, 3), 255, np.uint8))
    with pytest.raises(FormatError, match="of every patch is white"):
        breast.load(tmp_path)


def write_colon(folder, name, **nuclei):
    """A field img<K> of 60 x 60 with nuclei given as lists of MATLAB's (x, y)."""
    (folder / name).mkdir()
    field = np.random.default_rng(int(name[3:])).integers(60, 200, (60, 60, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / name / f"{name}.bmp"), field[..., ::-1])
    for kind in colon.TYPES:
        scipy.io.savemat(folder / name / f"{name}_{kind}.mat", {"detection": np.array(nuclei.get(kind, []))})
    return field


def test_a_colon_field_is_a_bag_of_nuclei(tmp_path):
    write_colon(tmp_path, "img10", others=[[20, 20]])
    field = write_colon(tmp_path, "img2", epithelial=[[31.0, 21.0], [2, 2]], inflammatory=[[30, 40]])
    second, tenth = colon.load(tmp_path)
    assert (second.name, second.positive, second.key_N.tolist()) == ("img2", True, [True, True, False])
    assert (tenth.name, tenth.positive, tenth.key_N.tolist()) == ("img10", False, [False])
    # MATLAB's (31, 21) is pixel (30, 20).
    np.testing.assert_array_equal(second.patches[0], field[7:34, 17:44].transpose(2, 0, 1))
    assert digest([second]) != digest([dataclasses.replace(second, positive=False)])


def test_what_is_wrong_with_colon_fields_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no folder img1"):
        colon.load(tmp_path)
    write_colon(tmp_path, "img1")
    with pytest.raises(FormatError, match="no nucleus is marked"):
        colon.load(tmp_path)
    scipy.io.savemat(tmp_path / "img1" / "img1_others.mat", {"found": np.zeros((1, 2))})
    with pytest.raises(FormatError, match="wanted a variable 'detection'"):
        colon.load(tmp_path)
    (tmp_path / "img1" / "img1_others.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"img1_others\.mat: no such file"):
        colon.load(tmp_path)
    (tmp_path / "img1" / "img1.bmp").unlink()
    with pytest.raises(FileNotFoundError, match=r"img1\.bmp: no such file"):
        colon.load(tmp_path)


# Augmentation


def test_the_eight_turns_are_the_symmetries_of_a_square():
    x = patches(1)
    ways = [turn(x, torch.tensor([which])) for which in range(8)]
    seen = {each.numpy().tobytes() for each in ways}
    assert len(seen) == 8
    torch.testing.assert_close(ways[0], x)
    for way in ways:  # closed: what is turned twice is turned once
        assert {turn(way, torch.tensor([which])).numpy().tobytes() for which in range(8)} == seen
    for quarter in range(4):
        assert torch.rot90(x, quarter, (2, 3)).numpy().tobytes() in seen


def test_each_patch_is_turned_by_itself():
    x = patches(8)
    got = turn(x, torch.arange(8))
    for index in range(8):
        torch.testing.assert_close(got[index], turn(x[index : index + 1], torch.tensor([index]))[0])


def test_magnitude_1_changes_no_colour():
    every = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    for x in (patches(5), every):
        torch.testing.assert_close(restain(x, torch.ones(len(x), 2)), x.float(), atol=0.01, rtol=0)


def test_stains_are_multiplied_by_their_magnitude():
    unit = np.array(STAINS) / np.linalg.norm(STAINS, axis=1, keepdims=True)
    amounts = np.array([0.6, 0.3, 0.1])
    before = 256 * np.exp(-(amounts @ unit)) - 1
    after = 256 * np.exp(-((amounts * [1.5, 0.5, 1]) @ unit)) - 1
    got = restain(torch.from_numpy(before).float().view(1, 3, 1, 1), torch.tensor([[1.5, 0.5]]))
    np.testing.assert_allclose(got.flatten().numpy(), after, atol=0.01)


def test_augmentation_is_drawn_from_its_generator():
    x, augment = patches(20), Augment(deviation=0.1)
    first, same = (augment(x, torch.Generator().manual_seed(1)) for _ in range(2))
    torch.testing.assert_close(first, same, atol=0, rtol=0)
    other = augment(x, torch.Generator().manual_seed(2))
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 255
    turned = Augment(deviation=0.0)(x, torch.Generator().manual_seed(1))
    np.testing.assert_allclose(turned.sum((2, 3)), x.float().sum((2, 3)), rtol=1e-4)


# Networks


@pytest.mark.parametrize(("side", "inside"), [(27, 48 * 5 * 5), (32, 48 * 6 * 6)])
def test_the_network_for_histology_is_the_papers(side, inside):
    network = networks.histology(side)
    sizes = [tuple(each.shape) for name, each in network.named_parameters() if "weight" in name]
    assert sizes == [(36, 3, 4, 4), (48, 36, 3, 3), (512, inside), (512, 512)]
    assert [each.p for each in network if isinstance(each, ReluDropout)] == [0.5, 0.5]
    assert network(patches(4, side)).shape == (4, networks.HISTOLOGY)


def test_the_network_for_digits_is_the_papers():
    network = networks.digits()
    sizes = [tuple(each.shape) for name, each in network.named_parameters() if "weight" in name]
    assert sizes == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800)]
    x = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    _, first, _, _, second, _, _, _, last, _ = network
    h = functional.max_pool2d(functional.relu(first(network[0](x))), 2)  # the paper's order
    h = functional.max_pool2d(functional.relu(second(h)), 2)
    torch.testing.assert_close(network(x), functional.relu(last(h.flatten(1))))


# MNIST-bags


def fake_digits(count=400):
    rng = np.random.default_rng(3)
    digits = rng.integers(0, 10, count).astype(np.uint8)
    images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
    images[digits == mnist.TARGET, 8:20, 8:20] = 255
    return mnist.Digits(images=images, digits=digits)


def write_mnist(folder):
    for part in ("train", "t10k"):
        each = fake_digits()
        head = np.array([0x803, len(each.images), 28, 28], ">u4").tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + each.images.tobytes()))
        head = np.array([0x801, len(each.digits)], ">u4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + each.digits.tobytes())


def test_a_bag_of_digits_is_positive_where_a_nine_is_in_it():
    digits = fake_digits()
    bags = mnist.draw(digits, 200, 10, 2.0, [0], "x")
    assert [bag.positive for bag in bags] == [True, False] * 100
    assert all(bag.key_N.any() == bag.positive for bag in bags)
    where = {image.tobytes(): digit for image, digit in zip(digits.images, digits.digits, strict=True)}
    for bag in bags[:20]:
        shown = [where[patch.tobytes()] == mnist.TARGET for patch in bag.patches]
        assert shown == bag.key_N.tolist()
    sizes = np.array([len(bag.patches) for bag in bags])
    for part in (sizes[::2], sizes[1::2]):  # the size says nothing of the label
        assert abs(part.mean() - 10) < 0.7  # 3 standard errors of 100 sizes of deviation 2
        assert 1.4 < part.std() < 2.6
    assert min(len(bag.patches) for bag in mnist.draw(digits, 50, 1, 3.0, [0], "x")) == 1


def test_fewer_bags_are_the_first_of_more():
    many, few = (mnist.draw(fake_digits(), count, 10, 2.0, [5, 1], "x") for count in (20, 8))
    assert digest(many[:8]) == digest(few)
    assert digest(mnist.draw(fake_digits(), 8, 10, 2.0, [6, 1], "x")) != digest(few)


def test_idx_files_are_read_and_what_is_wrong_with_them_is_said(tmp_path):
    write_mnist(tmp_path)
    np.testing.assert_array_equal(mnist.read(tmp_path, "train").images, fake_digits().images)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(FormatError, match="t10k-labels-idx1-ubyte: not whole"):
        mnist.read(tmp_path, "t10k")
    labels.write_bytes(b"words")
    with pytest.raises(FormatError, match="not an idx file of bytes in 1 dimensions"):
        mnist.read(tmp_path, "t10k")
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte\.gz: no such file"):
        mnist.read(tmp_path, "t10k")


# Runs


def bright_bags(_folder=None, count=12):
    """Bags of 3 to 6 patches; in positive ones a patch is bright in its middle."""
    rng = np.random.default_rng(1)
    bags = []
    for number in range(count):
        size = int(rng.integers(3, 7))
        pixels = rng.integers(60, 120, (size, 3, 27, 27), dtype=np.uint8)
        key = np.zeros(size, np.bool_)
        if number % 2:
            key[0] = True
            pixels[0, :, 8:20, 8:20] = 220
        bags.append(Bag(name=f"bag{number}", patches=pixels, positive=bool(number % 2), key_N=key))
    return bags


def quick(**settings):
    recipe = Recipe(
        front=functools.partial(networks.histology, 27), features=networks.HISTOLOGY, augment=Augment(),
        learning_rate=1e-3, weight_decay=0.0, epochs=2,
    )  # fmt: skip
    return dataclasses.replace(recipe, **settings)


def experiment(tmp_path, **settings):
    return CrossValidation(recipe=quick(**settings), load=bright_bags, data=tmp_path, folds=3)


def test_folds_test_each_bag_once_and_validate_on_bags_that_they_do_not_test():
    bags = bright_bags(count=30)
    made = runs.folds(bags, 10, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.test for fold in made])), np.arange(30))
    for fold in made:
        assert not set(fold.test) & set(fold.learn)
        assert set(fold.val) < set(fold.learn)
        assert len(fold.val) == 3
        assert 0 < codes(bags)[fold.test].sum() < 3
    with pytest.raises(ConfigError, match="--folds 2: wanted 3 to 30"):
        runs.folds(bags, 2, 0)
    assert any(set(a.test) != set(b.test) for a, b in zip(made, runs.folds(bags, 10, 1), strict=True))


def test_a_run_learns_from_its_training_part_only(tmp_path):
    each = experiment(tmp_path)
    for run in each.runs_of("mean", 1):
        parts = each.parts(run)
        learnt, tested = ({bag.name for bag in some} for some in (parts.learn, parts.test))
        assert learnt | tested == {bag.name for bag in each.bags}
        assert not learnt & tested
        assert 0 < len(parts.val) < len(parts.learn)


def test_a_killed_command_goes_on(tmp_path, capsys):
    each, out = experiment(tmp_path), tmp_path / "out"
    todo = each.runs_of("gated-attention", 0)
    runs.perform(each, todo, out, workers=1, threads=1)
    before = {run.name: (out / f"{run.name}.json").read_bytes() for run in todo}
    assert len(before) == 3
    lost = out / f"{todo[1].name}.json"
    lost.unlink()
    capsys.readouterr()
    runs.perform(each, todo, out, workers=1, threads=1)
    assert capsys.readouterr().out.count("gated-attention/repetition0_fold1: AUC") == 1
    assert not list(out.rglob("*.tmp"))
    again, first = json.loads(lost.read_text()), json.loads(before[todo[1].name])
    for name in ("seconds", "cpu_seconds"):
        assert again.pop(name) > 0
        first.pop(name)
    assert again == first  # to the last digit
    assert (out / f"{todo[0].name}.json").read_bytes() == before[todo[0].name]


def test_what_other_settings_made_is_not_taken_for_a_result(tmp_path):
    each, out = experiment(tmp_path, epochs=1), tmp_path / "out"
    (first, *_) = each.runs_of("max", 0)
    runs.perform(each, [first], out, workers=1, threads=1)
    (other, *_) = experiment(tmp_path, epochs=3).runs_of("max", 0)
    with pytest.raises(StaleOutputError, match="made with epochs 1, and now it is 3"):
        runs.read(other, out)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_its_attention_is_stored(method, tmp_path):
    each = experiment(tmp_path, epochs=1)
    (run, *_) = each.runs_of(method, 0)
    outcome = runs.carry_out(each, run, tmp_path)
    stored = runs.read(run, tmp_path)
    assert stored.names == [bag.name for bag in each.parts(run).test]
    for bag, attention, kept, key in zip(
        each.parts(run).test, outcome.attention, stored.attention, stored.key, strict=True
    ):
        assert len(kept) == len(bag.patches)
        np.testing.assert_array_equal(kept, attention)
        np.testing.assert_array_equal(key, bag.key_N)
        if not method.startswith("instance"):
            assert kept.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(stored.probability_B, outcome.probability_B)


@pytest.mark.slow
def test_several_processes_give_what_one_gives(tmp_path):
    each = experiment(tmp_path)
    todo = each.runs_of("attention", 0)
    for workers in (1, 2):
        runs.perform(each, todo, tmp_path / f"{workers}", workers=workers, threads=1)
    for run in todo:
        one, two = (runs.read(run, tmp_path / f"{workers}") for workers in (1, 2))
        np.testing.assert_array_equal(one.probability_B, two.probability_B)


@pytest.mark.slow
def test_attention_finds_what_makes_a_bag_positive(tmp_path):
    each = CrossValidation(
        recipe=quick(epochs=15), load=functools.partial(bright_bags, count=40), data=tmp_path, folds=4
    )
    outcomes = [runs.carry_out(each, run, tmp_path) for run in each.runs_of("attention", 0)]
    assert tables.scores([outcomes])["pooled AUC"].mean > 0.95
    assert keys.interval(keys.within_bags(outcomes)).mean > 0.95


# Tables


def outcome(code, probability, attention=(), key=()):
    return runs.Outcome(
        settings={}, names=[f"b{i}" for i in range(len(code))], code_B=np.array(code),
        probability_B=np.array(probability), attention=[np.array(a, np.float32) for a in attention],
        key=[np.array(k, bool) for k in key], facts={},
    )  # fmt: skip


def test_decisions_are_counted():
    got = tables.decisions(np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.8, 0.2, 0.7, 0.5]))
    assert got == pytest.approx({"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "F-score": 2 / 3})
    none = tables.decisions(np.array([1, 0]), np.array([0.1, 0.1]))
    assert none == {"accuracy": 0.5, "precision": 0.0, "recall": 0.0, "F-score": 0.0}


def test_errors_are_over_repetitions_and_over_folds_where_there_is_one():
    good = outcome([0, 1], [0.2, 0.9])
    bad = outcome([0, 1], [0.9, 0.2])
    one = tables.scores([[good, bad]])
    assert (one["AUC"].mean, one["AUC"].error) == (0.5, pytest.approx(0.5))  # sd 0.7071 / sqrt 2
    assert one["pooled AUC"].mean == pytest.approx(0.5)  # of the four pairs one ties twice, one is wrong
    assert one["precision"].error is None
    two = tables.scores([[good, good], [good, bad]])
    assert (two["AUC"].mean, two["AUC"].error) == (0.75, pytest.approx(0.25))
    assert two["accuracy"].error == pytest.approx(0.25)


def test_the_table_says_what_ran_and_how_it_lies_to_the_paper():
    good = outcome([0, 1], [0.2, 0.9])
    text = tables.table({"attention": [[good] * 10], "mean": [[good] * 3]}, colon_run.PAPER, 10)
    assert text.count("not run") == 4
    assert "| **attention** | 10 folds (1 x 10) | 1.000 ± 0.000 |" in text
    assert "| **embedding + mean** | 3 folds, not all |" in text
    assert "| attention, paper | 5 x 10 | 0.904 ± 0.011 |" in text
    assert tables.verdict(0.95, (0.968, 0.010)) == "within 2 SE (-0.018, -1.8 SE)"
    assert tables.verdict(0.94, (0.968, 0.010)).startswith("BELOW 2 SE")
    assert tables.verdict(0.97, (0.968, 0.010)).startswith("above")


def test_papers_have_every_method_and_score():
    for paper in (colon_run.PAPER, breast_run.PAPER):
        assert set(paper) == set(METHODS)
        assert all(set(row) == {*tables.SCORES, "AUC"} for row in paper.values())


def test_key_instances_are_scored_within_positive_bags():
    attention = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.5, 0.5], [1.0, 0.0]]
    key = [[False, True, False], [False, True, False], [True, True], [True, False]]
    some = outcome([1, 1, 1, 0], [0.5] * 4, attention, key)
    areas = keys.within_bags([some, some])
    assert areas == {"b0": [1.0, 1.0], "b1": [0.5, 0.5]}  # b2 holds keys only, b3 is negative
    found = keys.interval(areas)
    assert (found.mean, found.bags) == (0.75, 2)
    assert 0.5 <= found.low < found.mean < found.high <= 1
    with pytest.raises(ValueError, match="no positive bag"):
        keys.interval({})


# Commands


def test_the_colon_command_prints_the_table(tmp_path, capsys):
    for number in range(1, 9):
        spots = [[15 + number, 20], [30, 30]]
        write_colon(
            tmp_path,
            f"img{number}",
            **{"epithelial" if number % 2 else "others": spots, "fibroblast": [[9, 9]]},
        )
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--methods", "attention",
             "--folds", "4", "--epochs", "1"]  # fmt: skip
    assert colon_run.main(given) == 0
    printed = capsys.readouterr().out
    assert "| **attention** | 4 folds (1 x 4) |" in printed
    assert "key instances, attention: AUROC within positive test bags" in printed
    assert colon_run.main([*given, "--table"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("| method |")
    assert colon_run.main([*given[:-1], "2"]) == 1
    assert "made with epochs 1, and now it is 2" in capsys.readouterr().err
    assert breast_run.main(["--data", str(tmp_path / "nowhere")]) == 1
    assert "holds no .tif or .png" in capsys.readouterr().err


def spot(panel, x, y):
    """The mean colour in the middle of a pixel of a field of 60 x 60 that is drawn on 500 x 500."""
    return panel[int((y + 0.5) * 500 / 60), int((x + 0.5) * 500 / 60)].mean()


def test_attention_is_drawn_onto_the_field_by_the_fold_that_never_saw_it(tmp_path, capsys):
    names = [f"img{number}" for number in range(1, 9)]
    for number, name in enumerate(names):
        write_colon(
            tmp_path, name, **{"others": [[15, 20]], "epithelial" if number % 2 else "fibroblast": [[40, 40]]}
        )
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert colon_run.main([*given, "--methods", "attention", "--folds", "4", "--epochs", "1"]) == 0
    pictures = tmp_path / "pictures"
    assert draw.main([*given, "--fields", "img2", "img3", "--pictures", str(pictures)]) == 0
    for name, keys_there in (("img2", True), ("img3", False)):
        sheet = cv2.imread(str(pictures / f"{name}.jpg")).astype(float)
        field, nuclei, truth, shown = (
            sheet[y : y + 500, x : x + 500] for y, x in ((8, 8), (8, 516), (538, 8), (538, 516))
        )
        assert spot(nuclei, 57, 5) > 250  # no nucleus: white
        assert spot(nuclei, 39, 39) < 230
        assert (spot(truth, 39, 39) < 230) == keys_there
        assert spot(truth, 10, 14) > 250  # a nucleus that is not epithelial
        assert np.abs(shown - field).mean() > 3
    capsys.readouterr()
    assert draw.main([*given, "--fields", "img9", "--pictures", str(pictures)]) == 1
    assert "--fields img9: " in capsys.readouterr().err
    assert draw.main([*given, "--method", "max", "--fields", "img1", "--pictures", str(pictures)]) == 1
    assert "no run of repetition 0 has tested img1" in capsys.readouterr().err


def test_the_mnist_command_prints_the_table(tmp_path, capsys, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setattr(mnist_run, "TESTED", 20)
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--methods", "attention",
             "--bags", "50", "--repetitions", "2", "--epochs", "1"]  # fmt: skip
    assert mnist_run.main(given) == 0
    printed = capsys.readouterr().out
    assert "| bags of 10 | 50 bags |" in printed
    assert "key instances, attention, 50 bags of 10: AUROC" in printed
    assert mnist_run.main(["--data", str(tmp_path / "nowhere")]) == 1


# The data themselves


def test_the_colon_fields_are_those_of_the_paper(real_data):
    bags = colon.load(real_data / "colon_cancer")
    assert (len(bags), sum(bag.positive for bag in bags)) == (100, 51)
    assert sum(len(bag.patches) for bag in bags) == 22_444
    assert sum(int(bag.key_N.sum()) for bag in bags) == 7_722
    lines = (real_data / "colon_cancer" / "labels.csv").read_text().split()[1:]
    listed = {name: label != "none" for name, label in (line.split(",") for line in lines)}
    assert {bag.name: bag.positive for bag in bags} == listed


def test_the_breast_fields_are_those_of_the_paper(real_data):
    bags = breast.load(real_data / "ucsb_breast")
    assert (len(bags), sum(bag.positive for bag in bags)) == (58, 26)
    sizes = [len(bag.patches) for bag in bags]
    assert max(sizes) <= 672
    assert min(sizes) < 672  # there is white in some


def test_mnist_is_whole(real_data):
    train, test = (mnist.read(real_data / "mnist", part) for part in ("train", "t10k"))
    assert (len(train.digits), len(test.digits)) == (60_000, 10_000)
    assert int((test.digits == mnist.TARGET).sum()) == 1009
