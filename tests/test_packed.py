"""Features packed for training: one array, made once, made again when the features are others."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks.train_cohort import evict, resident
from tests.conftest import mounted
from tests.test_train import DIM, GEOMETRY, config, write_bag, write_labels
from wsi_mil import store
from wsi_mil.errors import FormatError, LabelError, StoreError
from wsi_mil.train import read_cohort
from wsi_mil.train.packed import pack, tensor_of

KINDS = ("hdf5", "zarr")


def some(seed, n=5):
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float16)


def make_run(run, kind="hdf5", slides=4):
    """Slides s0, s1, ... with 5, 6, ... patches."""
    features = store.open_features(run, "tiny", kind)
    for i in range(slides):
        write_bag(run, f"s{i}", some(i, 5 + i))
        if kind == "zarr":
            features.write(store.read_features(store.features_path(run, "tiny", f"s{i}")))
            store.features_path(run, "tiny", f"s{i}").unlink()
    if kind == "zarr":
        store.features_folder(run, "tiny").rmdir()
    return features


def written(run):
    return store.bags_folder(run, "tiny").stat().st_ino  # a folder that was put in place has another number


def contents(packed):
    return {slide_id: packed.bag(i).tobytes() for i, slide_id in enumerate(packed.slide_ids)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_slide_is_a_view_of_one_array_in_the_order_asked_for(tmp_path, kind):
    features = make_run(tmp_path, kind)
    packed, failed = pack(tmp_path, features, ["s2", "s0", "s3"])
    assert failed == {}
    assert packed.slide_ids == ("s2", "s0", "s3")
    assert (packed.array.shape, packed.array.dtype) == ((7 + 5 + 8, DIM), np.float16)
    for i, slide in enumerate((2, 0, 3)):
        np.testing.assert_array_equal(packed.bag(i), some(slide, 5 + slide))
        assert np.shares_memory(packed.bag(i), packed.array)
        assert packed.rows(i) == slice(*packed.ranges[i])
    assert packed.identity == features.read("s0").identity
    with pytest.raises(ValueError, match="read-only"):
        packed.array[0] = 0
    index = json.loads((store.bags_folder(tmp_path, "tiny") / "index.json").read_text())
    assert (index["format"], index["format_version"], index["shape"]) == ("wsi-mil bags", 1, [20, DIM])
    raw = np.fromfile(store.bags_folder(tmp_path, "tiny") / "features.f16", "<f2").reshape(-1, DIM)
    np.testing.assert_array_equal(raw, packed.array)


def test_it_is_made_once_and_again_when_features_change(tmp_path):
    features = make_run(tmp_path)
    pack(tmp_path, features, ["s0", "s1", "s2"])
    first = written(tmp_path)
    assert pack(tmp_path, features, ["s2", "s1"])[0].slide_ids == ("s2", "s1")
    assert written(tmp_path) == first
    write_bag(tmp_path, "s1", some(99, 3))
    packed, _ = pack(tmp_path, features, ["s0", "s1", "s2"])
    assert written(tmp_path) != first
    np.testing.assert_array_equal(packed.bag(1), some(99, 3))
    np.testing.assert_array_equal(packed.bag(2), some(2, 7))


def test_slides_that_another_training_packed_stay(tmp_path):
    """Two tasks whose labels are of different slides do not pack in turns."""
    features = make_run(tmp_path)
    pack(tmp_path, features, ["s0", "s1"])
    pack(tmp_path, features, ["s2"])
    held = store.read_packed(tmp_path, "tiny")
    assert set(held.slide_ids) == {"s0", "s1", "s2"}
    both = written(tmp_path)
    pack(tmp_path, features, ["s0", "s1"])
    pack(tmp_path, features, ["s2"])
    assert written(tmp_path) == both
    store.features_path(
        tmp_path, "tiny", "s0"
    ).unlink()  # is not kept: nothing says any more that it is right
    write_bag(tmp_path, "s1", some(7))
    packed, _ = pack(tmp_path, features, ["s3"])
    assert set(store.read_packed(tmp_path, "tiny").slide_ids) == {"s2", "s3"}
    np.testing.assert_array_equal(packed.bag(0), some(3, 8))


def test_what_another_training_maps_stays_what_it_was(tmp_path):
    features = make_run(tmp_path)
    before, _ = pack(tmp_path, features, ["s0", "s1"])
    held = contents(before)
    write_bag(tmp_path, "s0", some(50))
    after, _ = pack(tmp_path, features, ["s0", "s1"])
    assert contents(before) == held
    assert contents(after)["s0"] == some(50).tobytes()


def test_other_weights_are_packed_anew(tmp_path):
    features = make_run(tmp_path, slides=2)
    pack(tmp_path, features, ["s0", "s1"])
    for i in range(2):
        write_bag(tmp_path, f"s{i}", some(i, 5 + i), weights_digest="w1")  # the same values, as it happens
    assert pack(tmp_path, features, ["s0", "s1"])[0].identity["weights_digest"] == "w1"


def test_two_kinds_of_features_are_refused_before_anything_is_packed(tmp_path):
    features = make_run(tmp_path)
    write_bag(tmp_path, "s3", some(3), geometry=dataclasses.replace(GEOMETRY, mpp=0.25))
    with pytest.raises(
        FormatError, match=r"s3\.h5: other features than .*s0\.h5: mpp was 0\.5 and is now 0\.25"
    ):
        pack(tmp_path, features, ["s0", "s1", "s3"])
    assert not store.bags_folder(tmp_path, "tiny").exists()


def damage(run, slide_id):
    """Change a value, and leave the checksum that says what was there."""
    with h5py.File(store.features_path(run, "tiny", slide_id), "r+") as file:
        file["features"][0, 0] += 1


def test_slides_that_cannot_be_used_are_named_and_do_not_pack_the_others_again(tmp_path):
    features = make_run(tmp_path)
    write_bag(tmp_path, "empty", np.zeros((0, DIM)))
    store.features_path(tmp_path, "tiny", "broken").write_bytes(b"no HDF5")
    damage(tmp_path, "s3")
    wanted = ["broken", "empty", "s0", "s1", "s3"]
    packed, failed = pack(tmp_path, features, wanted)
    assert packed.slide_ids == ("s0", "s1")
    assert set(failed) == {"broken", "empty", "s3"}
    assert "0 patches" in failed["empty"]
    assert "not readable as HDF5" in failed["broken"]
    assert "not those that were written" in failed["s3"]
    first = written(tmp_path)
    assert pack(tmp_path, features, wanted)[1] == failed
    assert written(tmp_path) == first
    assert pack(tmp_path, features, ["empty", "s3"])[0] is None
    assert written(tmp_path) == first


def test_features_without_a_checksum_are_looked_at_each_time(tmp_path):
    features = make_run(tmp_path, slides=2)
    with h5py.File(store.features_path(tmp_path, "tiny", "s0"), "r+") as file:
        del file["features"].attrs["checksum"]
    pack(tmp_path, features, ["s0", "s1"])
    first = written(tmp_path)
    pack(tmp_path, features, ["s0", "s1"])
    assert written(tmp_path) == first
    damage(tmp_path, "s0")
    packed, _ = pack(tmp_path, features, ["s0", "s1"])
    np.testing.assert_array_equal(packed.bag(0), features.read("s0").features)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


FAULTS = {
    "no index": lambda folder: (folder / "index.json").unlink(),
    "no features": lambda folder: (folder / "features.f16").unlink(),
    "cut off": lambda folder: (folder / "features.f16").write_bytes(bytes(10)),
    "no JSON": lambda folder: (folder / "index.json").write_text("{"),
    "no object": lambda folder: (folder / "index.json").write_text("[]"),
    "newer": lambda folder: change(folder, format_version=2),
    "another format": lambda folder: change(folder, format="wsi-mil model"),
    "rows that overlap": lambda folder: change(folder, slides=overlapping(folder)),
    "fewer rows": lambda folder: change(folder, shape=[3, DIM]),
}


def change(folder, **more):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def overlapping(folder):
    slides = json.loads((folder / "index.json").read_text())["slides"]
    return [slides[0], slides[1] | {"start": 1}, *slides[2:]]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_damaged_is_named_by_verify_and_made_again_by_training(tmp_path, fault):
    features = make_run(tmp_path)
    slides = features.slide_ids()
    good, _ = pack(tmp_path, features, slides)
    wanted = contents(good)
    folder = store.bags_folder(tmp_path, "tiny")
    assert problems(tmp_path) == []
    FAULTS[fault](folder)
    with pytest.raises(FormatError):
        store.read_packed(tmp_path, "tiny")
    (found,) = problems(tmp_path)
    assert Path(found.file).parent == folder
    assert found.kind == ("wrong format" if fault == "newer" else "unreadable")
    assert "wsi-mil train" in found.what_to_do()
    packed, _ = pack(tmp_path, features, slides)
    assert contents(packed) == wanted
    assert problems(tmp_path) == []


def problems(run):
    verification = store.Verification(run)
    for check in verification.checks:
        check()
    return [each for each in verification.problems if each.kind != "missing"]  # there are no patches here


def test_a_flipped_bit_is_found_by_verify_and_repaired(tmp_path):
    features = make_run(tmp_path)
    pack(tmp_path, features, features.slide_ids())
    folder = store.bags_folder(tmp_path, "tiny")
    assert str(folder) in store.Verification(tmp_path).files
    flip(folder / "features.f16", 5 * DIM * 2 + 4)  # of s1
    (found,) = problems(tmp_path)
    assert (found.file, found.kind) == (str(folder / "features.f16"), "checksum")
    assert "features of s1" in found.detail
    # A flipped slide is read again, not copied, when others are packed beside it.
    write_bag(tmp_path, "s9", some(9))
    packed, _ = pack(tmp_path, features, features.slide_ids())
    np.testing.assert_array_equal(packed.bag(1), some(1, 6))
    assert problems(tmp_path) == []
    flip(folder / "features.f16", 0)
    (found,) = problems(tmp_path)
    assert found.repair()
    assert problems(tmp_path) == []
    assert not folder.exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    (tmp_path / "disk").mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path / "disk") as disk:
        features = store.open_features(tmp_path, "tiny", "hdf5")
        for i in range(8):
            wide = np.random.default_rng(i).normal(size=(100, 1000)).astype(np.float16)
            write_bag(tmp_path, f"s{i}", wide)
        with pytest.raises(
            StoreError, match=r"bags/tiny: cannot be written: the disk is full \(it needs 1.6 MB"
        ):
            pack(disk, features, features.slide_ids())
        assert [path for path in disk.rglob("*") if path.is_file()] == []


def test_a_killed_packing_leaves_what_verify_names_and_the_next_one_sweeps(tmp_path):
    features = make_run(tmp_path)
    code = (
        "import sys, time, numpy as np; from pathlib import Path; from wsi_mil import store\n"
        "def slides():\n"
        "    yield 's0', np.zeros((5, 16), np.float16)\n"
        "    print('go', flush=True)\n"
        "    time.sleep(60)\n"
        "store.write_packed(Path(sys.argv[1]), 'tiny', {'dim': 16}, slides())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout.readline() == b"go\n"
        parent = store.bags_folder(tmp_path, "tiny").parent
        assert problems(tmp_path) == []  # it lives
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(0.01)
    assert [each.kind for each in problems(tmp_path)] == ["leftover"]
    pack(tmp_path, features, ["s0"])
    assert [path.name for path in parent.iterdir()] == ["tiny"]
    assert problems(tmp_path) == []


def test_nothing_to_pack_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="not one patch"):
        store.write_packed(tmp_path, "tiny", {"dim": 3}, [("a", np.zeros((0, 3), np.float16))])
    with pytest.raises(FormatError, match=r"a: features of shape \(2, 4\); wanted \(N, 3\)"):
        store.write_packed(tmp_path, "tiny", {"dim": 3}, [("a", np.zeros((2, 4), np.float16))])
    assert not store.bags_folder(tmp_path, "tiny").exists()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_what_is_packed_comes_back(tmp_path_factory, lengths, data):
    run = tmp_path_factory.mktemp("run")
    bags = {
        f"s{i}": data.draw(arrays.arrays(np.uint16, (n, 3))).view(np.float16)
        for i, n in enumerate([*lengths, 1])
    }
    packed = store.write_packed(run, "tiny", {"dim": 3}, bags.items())
    assert contents(packed) == {slide_id: bag.tobytes() for slide_id, bag in bags.items()}
    some_ids = data.draw(st.lists(st.sampled_from(sorted(bags)), unique=True))
    assert contents(packed.take(some_ids)) == {slide_id: bags[slide_id].tobytes() for slide_id in some_ids}


# The cohort: bags with labels.


def features_of(cohort, i):
    return np.concatenate([cohort.packed.array[start:stop] for start, stop in cohort.bags[i].ranges])


def test_a_bag_per_slide(tmp_path):
    make_run(tmp_path)
    write_labels(tmp_path, [("s3", "y", "P"), ("s0", "x", "Q"), ("s1", "y", "P")])
    cohort = read_cohort(config(tmp_path))
    assert [bag.name for bag in cohort.bags] == ["s0", "s1", "s3"] == list(cohort.labels.slide_ids)
    assert [bag.slide_ids for bag in cohort.bags] == [("s0",), ("s1",), ("s3",)]
    assert [bag.patient_id for bag in cohort.bags] == ["Q", "P", "P"]
    assert [len(bag) for bag in cohort.bags] == [5, 6, 8]
    assert cohort.targets.values.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(features_of(cohort, 2), some(3, 8))
    assert [(each.slide_id, each.reason) for each in cohort.left_out] == [("s2", "no label")]


def test_the_slides_of_a_patient_are_one_bag(tmp_path):
    make_run(tmp_path)
    write_bag(tmp_path, "s1", np.zeros((0, DIM)))
    rows = [("s3", "y", "P"), ("s0", "x", "Q"), ("s1", "y", "P"), ("s2", "y", "P")]
    write_labels(tmp_path, rows)
    cohort = read_cohort(config(tmp_path, patient_bags="merge"))
    assert [bag.name for bag in cohort.bags] == ["P", "Q"]
    assert cohort.bags[0].slide_ids == ("s2", "s3")
    assert [len(bag) for bag in cohort.bags] == [7 + 8, 5]
    np.testing.assert_array_equal(features_of(cohort, 0), np.concatenate([some(2, 7), some(3, 8)]))
    assert cohort.targets.values.tolist() == [1, 0]
    assert [each.slide_id for each in cohort.left_out] == ["s1"]
    split = read_cohort(config(tmp_path))
    assert split.features_digest == cohort.features_digest
    assert split.labels_digest != cohort.labels_digest


def test_splits_that_part_a_patient_matter_only_where_they_are_used(tmp_path):
    make_run(tmp_path)
    rows = [(f"s{i}", "xxyy"[i], f"P{i // 2}", str(i)) for i in range(4)]
    write_labels(tmp_path, rows, header=("slide_id", "label", "patient_id", "split"))
    with pytest.raises(LabelError, match=r"2 patients, .* several splits: P0 \(0, 1\), P1 \(2, 3\)"):
        read_cohort(config(tmp_path, patient_bags="merge"))
    assert len(read_cohort(config(tmp_path, patient_bags="merge", split="kfold")).bags) == 2


def test_bad_labels_are_said_before_anything_is_packed(tmp_path):
    make_run(tmp_path)
    write_labels(tmp_path, [("s0", "nan", "P"), ("s1", "x", "Q"), ("s2", "y", "R")])
    with pytest.raises(LabelError, match=r"1 slides have as label a word for a missing value: s0 \('nan'\)"):
        read_cohort(config(tmp_path))
    assert not store.bags_folder(tmp_path, "tiny").exists()


def test_remarks_are_said(tmp_path, capsys):
    make_run(tmp_path)
    rows = [("s0", "low", "P", "a"), ("s1", "low", "P", "b"), ("s2", "high", "Q", "a")]
    write_labels(tmp_path, rows, header=("slide_id", "label", "patient_id", "site"))
    cohort = read_cohort(config(tmp_path, task="ordinal", classes=("low", "mid", "high"), group_by="site"))
    said = capsys.readouterr().err
    assert "grades that no slide has: mid" in said
    assert "1 patients have slides in several groups: P (a, b)" in said
    assert cohort.labels.groups == ("a", "b", "a")


def test_survival_from_the_file_to_the_cohort(tmp_path):
    make_run(tmp_path)
    rows = [("s0", "12.5", "1", "P"), ("s1", "3", "0", "Q"), ("s2", "20", "no", "R")]
    write_labels(tmp_path, rows, header=("slide_id", "time", "event", "patient_id"))
    cohort = read_cohort(config(tmp_path, task="survival"))
    assert cohort.labels.labels == ("12.5 event", "3 censored", "20 censored")
    assert cohort.targets.values.tolist() == [[12.5, 1], [3, 0], [20, 0]]


def test_a_tensor_of_what_is_packed_is_the_same_memory(tmp_path):
    features = make_run(tmp_path)
    packed, _ = pack(tmp_path, features, ["s0", "s1"])
    tensor = tensor_of(packed)  # torch warns of what cannot be written, and warnings are errors here
    assert tensor.data_ptr() == packed.array.ctypes.data
    np.testing.assert_array_equal(tensor.numpy(), packed.array)


def test_the_file_is_read_ahead_of_its_use_where_it_fits(tmp_path, monkeypatch):
    features = make_run(tmp_path)
    packed, _ = pack(tmp_path, features, ["s0", "s1"])
    file = store.bags_folder(tmp_path, "tiny") / "features.f16"
    evict([file])
    if resident(file) > 0:
        pytest.skip("this file system keeps its files in memory (tmpfs): reading ahead was not tested")
    reading = packed.read_ahead()
    assert reading is not None
    reading.join()
    assert resident(file) == 1

    file.unlink()
    gone = packed.read_ahead()
    assert gone is not None
    gone.join()  # whoever needs the file says what is wrong with it
    monkeypatch.setattr("os.sysconf", lambda _: 1)
    assert packed.read_ahead() is None, "more than half of the memory"
