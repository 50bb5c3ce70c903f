"""The store of features: one contract for every kind, streaming, checksums."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.test_store import some_features, some_patches
from wsi_mil import store
from wsi_mil.errors import ConfigError, FormatError, StaleOutputError

KINDS = ["hdf5", "zarr"]


@pytest.fixture(params=KINDS)
def features(request, tmp_path) -> store.FeatureStore:
    return store.open_features(tmp_path / "run", "net", request.param)


def write_in_strips(features, n, dim=8, seed=0, left_out=(), batch=7):
    """Stream random features in columns of a grid, as blocks of a slide come; return what was put."""
    head = replace(some_features().head, dim=dim)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, dim)).astype(np.float32)
    order = np.array([i for i in rng.permutation(n) if i not in left_out], np.int64)
    coords = np.stack([np.arange(n), 2 * np.arange(n)], axis=1)
    with features.writer(head, coords) as writer:
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            writer.put(rows, values[rows])
        if left_out:
            writer.leave_out(
                [
                    {"index": i, "x_l0": i, "y_l0": 2 * i, "where": "level 0", "reason": "zeros"}
                    for i in left_out
                ]
            )
    return coords, values.astype(np.float16)


@pytest.mark.parametrize("n", [0, 1, 6, 700])
def test_rows_in_any_order_become_the_patches_order(features, n):
    coords, values = write_in_strips(features, n)
    item = features.read("a b")
    assert features.slide_ids() == ["a b"]
    assert (item.coords == coords).all()
    assert (item.features == values).all()
    assert item.features.dtype == np.float16
    assert item.features.shape == (n, 8)
    assert item.head == some_features().head


def test_left_out_rows_are_taken_out_and_said(features):
    coords, values = write_in_strips(features, 900, left_out=(880, 0, 17))
    item = features.read("a b")
    kept = [i for i in range(900) if i not in {0, 17, 880}]
    assert (item.features == values[kept]).all()
    assert (item.coords == coords[kept]).all()
    assert [each["index"] for each in item.left_out] == [0, 17, 880]
    assert item.left_out[1] == {"index": 17, "x_l0": 17, "y_l0": 34, "where": "level 0", "reason": "zeros"}
    summary = features.summary("a b")
    assert (summary.patches, summary.left_out, summary.head) == (897, 3, item.head)
    assert set(summary.checksums) == {"attributes", "coords", "features", "left_out"}


def test_all_rows_left_out_is_a_valid_file(features):
    write_in_strips(features, 3, left_out=(0, 1, 2))
    item = features.read("a b")
    assert item.features.shape == (0, 8)
    assert len(item.left_out) == 3


def test_whole_features_round_trip_and_replace(features):
    first, second = some_features(6), replace(some_features(6), features=np.ones((6, 8), np.float16))
    for each in (first, second):
        features.write(each)
        found = features.read("a b")
        assert (found.features == each.features).all()
        assert found.head == each.head
    features.remove("a b")
    features.remove("a b")
    assert features.slide_ids() == []
    with pytest.raises(FormatError, match="run `wsi-mil embed` first"):
        features.read("a b")


def test_a_missing_row_a_double_one_and_a_wrong_one_are_named(features):
    item = some_features(6)
    coords, values = item.coords, item.features
    with (
        pytest.raises(FormatError, match=r"2 of 6 patches were neither .* patch 4 at \[512, 512\]"),
        features.writer(item.head, coords) as writer,
    ):
        writer.put(np.arange(4), values[:4])
    with (  # noqa: PT012
        pytest.raises(FormatError, match=r"patch 1 at \[512, 0\] \(level-0 x, y\) was given twice"),
        features.writer(item.head, coords) as writer,
    ):
        writer.put(np.arange(4), values[:4])
        writer.leave_out([{"index": 1}])
    for rows, match in (([0, 0], "patch 0 at .* twice"), ([0, 6], "no patch 6; there are 6")):
        with pytest.raises(FormatError, match=match), features.writer(item.head, coords) as writer:
            writer.put(np.array(rows), values[:2])
    with (
        pytest.raises(FormatError, match=r"shape \(2, 5\) for 2 patches; wanted \(2, 8\)"),
        features.writer(item.head, coords) as writer,
    ):
        writer.put(np.arange(2), values[:2, :5])
    with (
        pytest.raises(FormatError, match="holds features of net; those of a b are of other"),
        features.writer(replace(item.head, encoder="other"), coords),
    ):
        pass
    assert features.slide_ids() == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_what_is_no_number_is_refused_at_once_by_its_patch(features, bad):
    item = some_features(6)
    values = item.features.astype(np.float32)
    values[2, 1] = bad
    rows = np.array([5, 4, 3])
    with (
        pytest.raises(FormatError, match=r"1 patches .* patch 3 at \[0, 512\] \(level-0 x, y\); embed with"),
        features.writer(item.head, item.coords) as writer,
    ):
        writer.put(rows, values[:3])
    assert features.slide_ids() == []


def test_an_error_leaves_nothing(features, tmp_path):
    item = some_features(6)
    with pytest.raises(KeyboardInterrupt), features.writer(item.head, item.coords) as writer:  # noqa: PT012
        writer.put(np.arange(6), item.features)
        raise KeyboardInterrupt
    assert features.slide_ids() == []
    assert [p for p in (tmp_path / "run").rglob("*") if p.is_file()] == []


def test_resume_is_by_record(features):
    assert not features.is_done("a b", {"encoder": "net"})
    features.write(some_features())
    assert features.is_done("a b", {"encoder": "net"})
    with pytest.raises(StaleOutputError, match=r"encoder was 'net' and is now 'other'.*--overwrite"):
        features.is_done("a b", {"encoder": "other"})
    assert not features.is_done("a b", {"encoder": "other"}, overwrite=True)


def test_large_slides_go_through_a_file_without_a_name(features, monkeypatch, tmp_path):
    from wsi_mil.store import spool

    monkeypatch.setattr(spool, "IN_MEMORY", 1000)
    monkeypatch.setattr(spool, "_BLOCK", 16 * 100)
    coords, values = write_in_strips(features, 5000, left_out=(4999, 8, 2500), batch=32)
    kept = [i for i in range(5000) if i not in {8, 2500, 4999}]
    item = features.read("a b")
    assert (item.features == values[kept]).all()
    assert (item.coords == coords[kept]).all()
    names = [path.name for path in (tmp_path / "run" / "features").rglob("*")]
    assert not [name for name in names if name.startswith((".", "tmp"))]


def test_checksums_are_of_the_values(tmp_path):
    """Computed here from FORMATS.md's words alone."""
    import hashlib

    item = some_features(7)
    store.write_features(tmp_path / "f.h5", item)

    def blake(data: bytes) -> str:
        return "blake2b-128:" + hashlib.blake2b(data, digest_size=16).hexdigest()

    with h5py.File(tmp_path / "f.h5") as file:
        for name, kind in (("features", "<f2"), ("coords", "<i8")):
            assert file[name].attrs["checksum"] == blake(file[name][:].astype(kind).tobytes())
        attributes = {
            owner: {
                name: value.item() if isinstance(value, np.generic) else value
                for name, value in file[owner or "/"].attrs.items()
                if name != "attributes_checksum"
            }
            for owner in ("", "coords", "features")
        }
        text = json.dumps(attributes, sort_keys=True, separators=(",", ":")).encode()
        assert file.attrs["attributes_checksum"] == blake(text)


def test_changed_features_are_not_read(tmp_path):
    path = tmp_path / "f.h5"
    store.write_features(path, some_features())
    with h5py.File(path, "a") as file:
        file["features"][2, 3] = 5
    with pytest.raises(FormatError, match=r"not those that were written .*checksum"):
        store.read_features(path)


def test_files_written_before_checksums_still_open(tmp_path):
    path = tmp_path / "f.h5"
    store.write_features(path, some_features())
    with h5py.File(path, "a") as file:
        del file.attrs["attributes_checksum"]
        for name in file:
            del file[name].attrs["checksum"]
    assert (store.read_features(path).features == some_features().features).all()
    store.write_patches(path, some_patches())
    with h5py.File(path, "a") as file:
        del file.attrs["attributes_checksum"], file.attrs["slide_fingerprint"]
    assert store.read_patches(path).slide_fingerprint == ""


def test_a_fingerprint_is_kept_and_is_no_part_of_the_digest(tmp_path):
    patches = replace(some_patches(), slide_fingerprint="blake2b:12")
    store.write_patches(tmp_path / "p.h5", patches)
    assert store.read_patches(tmp_path / "p.h5").slide_fingerprint == "blake2b:12"
    assert patches.digest == some_patches().digest


def test_which_features_a_run_holds(tmp_path):
    assert store.encoders_in(tmp_path) == []
    with pytest.raises(ConfigError, match=r"features: no features of net \(there are: none\)"):
        store.open_features(tmp_path, "net")
    named = replace(some_features(), encoder="hf-hub:org/name")
    store.open_features(tmp_path, "hf-hub:org/name", "hdf5").write(named)
    assert store.encoders_in(tmp_path) == ["hf-hub:org/name"]
    for name in ("hf-hub:org/name", "hf-hub_org_name"):
        assert store.open_features(tmp_path, name).slide_ids() == ["a b"]


def test_two_kinds_at_once_are_refused(tmp_path):
    hdf5 = store.open_features(tmp_path, "net", "hdf5")
    hdf5.write(some_features())
    with pytest.raises(
        ConfigError, match=r"--store zarr: the run has features of net as hdf5 already, in .*net"
    ):
        store.open_features(tmp_path, "net", "zarr")
    shutil.copytree(tmp_path, tmp_path / "other")
    hdf5.remove("a b")
    store.open_features(tmp_path, "net", "zarr").write(some_features())
    assert store.open_features(tmp_path, "net").kind == "zarr", "an empty folder is nothing"
    (tmp_path / "other" / "features" / "net" / "a b.h5").rename(Path(hdf5.place) / "a b.h5")
    for kind in (None, "hdf5", "zarr"):
        with pytest.raises(
            ConfigError, match=r"holds features of net twice: .*net and .*net\.zarr\. Keep one"
        ):
            store.open_features(tmp_path, "net", kind)
    assert store.encoders_in(tmp_path) == ["net"]


def test_hidden_names_are_no_slides(tmp_path):
    features = store.open_features(tmp_path, "net", "hdf5")
    features.write(some_features())
    folder = Path(features.place)
    (folder / ".a b.h5.host-1.tmp").write_text("half")
    (folder / ".c.h5").write_text("hidden")
    assert features.slide_ids() == ["a b"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_half_a_million_patches_never_sit_in_memory(tmp_path, kind):
    """1.28 GB of features grow the process by less than a tenth of that."""
    code = (
        "import sys, resource, numpy as np\n"
        "from pathlib import Path\n"
        "from dataclasses import replace\n"
        "from wsi_mil import store\n"
        "from tests.test_store import some_features\n"
        "features = store.open_features(Path(sys.argv[1]), 'net', sys.argv[2])\n"
        "n, dim = 500_000, 1280\n"
        "coords = np.arange(2 * n).reshape(n, 2)\n"
        "features.write(some_features())\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with features.writer(replace(some_features().head, slide_id='big', dim=dim), coords) as writer:\n"
        "    for start in range(0, n, 500):\n"
        "        rows = np.arange(start, start + 500)[::-1]\n"
        "        writer.put(rows, np.repeat((rows % 1000)[:, None], dim, 1).astype(np.float32))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), kind], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) * 1024 < 128e6, f"grew by {int(result.stdout) / 1024:.0f} MiB"
    summary = store.open_features(tmp_path, "net").summary("big")
    assert (summary.patches, summary.head.dim) == (500_000, 1280)


def test_features_of_normalised_stains_are_another_kind():
    plain = some_features()
    stained = replace(plain, record=plain.record | {"stain": "macenko"})
    assert "stain" not in plain.identity
    assert replace(plain, record=plain.record | {"stain": "none"}).identity == plain.identity
    assert stained.identity == plain.identity | {"stain": "macenko"}
