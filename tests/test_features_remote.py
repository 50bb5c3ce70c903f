"""Features in an object store: a real S3 server on this machine, and fsspec's own memory."""

import functools
import http.server
import json
import threading
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.test_features import write_in_strips
from tests.test_store import some_features
from wsi_mil import store
from wsi_mil.errors import ConfigError, FormatError, StoreError

moto = pytest.importorskip(
    "moto.server",
    reason="no S3 server (pip install 'moto[s3]' s3fs flask flask-cors): buckets were NOT tested",
)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The address of a bucket on a server that speaks S3."""
    patch = pytest.MonkeyPatch()
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        patch.setenv(name, value)
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    server.stop()
    patch.undo()


@pytest.fixture(params=["s3", "memory"])
def url(request, tmp_path):
    """An address that no other test uses."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{tmp_path.name}/net.zarr"
    return f"memory://{tmp_path.name}/net.zarr"


def keys(url: str) -> list[str]:
    fs, path = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    return sorted(name[len(path) + 1 :] for name in fs.find(path))


def test_features_lie_at_the_url_in_a_few_objects(url, tmp_path):
    run = tmp_path / "run"
    features = store.open_features(run, "net", "zarr", url)
    coords, values = write_in_strips(features, 3000, left_out=(5, 2999), batch=400)
    kept = [i for i in range(3000) if i not in {5, 2999}]
    assert keys(url) == [
        f"a b/{name}"
        for name in (
            "coords/c/0/0", "coords/zarr.json", "features/c/0/0", "features/zarr.json",
            "left_out/c/0", "left_out/zarr.json", "zarr.json",
        )
    ] + ["zarr.json"]  # fmt: skip
    again = store.open_features(run, "net")  # the pointer in the run says where
    assert (again.kind, again.place) == ("zarr", url)
    assert store.encoders_in(run) == ["net"]
    assert again.slide_ids() == ["a b"]
    item = again.read("a b")
    assert (item.features == values[kept]).all()
    assert (item.coords == coords[kept]).all()
    assert again.summary("a b").left_out == 2
    assert again.is_done("a b", {"encoder": "net"})
    again.remove("a b")
    assert again.slide_ids() == []
    assert keys(url) == ["zarr.json"]


def test_a_group_without_its_last_file_is_not_there_and_is_overwritten(url, tmp_path):
    features = store.open_features(tmp_path, "net", "zarr", url)
    features.write(replace(some_features(6), left_out=({"index": 6},)))
    fs, path = fsspec.url_to_fs(url)
    fs.rm_file(f"{path}/a b/zarr.json")  # as a process leaves it that dies before the last step
    assert features.slide_ids() == []
    assert not features.is_done("a b", {"encoder": "net"})
    with pytest.raises(FormatError, match="no such features; run `wsi-mil embed` first"):
        features.read("a b")
    features.write(some_features(4))
    assert len(features.read("a b").features) == 4
    assert not [name for name in keys(url) if "left_out" in name], "nothing of the dead one's stays"


def test_an_error_in_the_middle_leaves_no_group(url, tmp_path):
    features = store.open_features(tmp_path, "net", "zarr", url)
    item = some_features()
    with (
        pytest.raises(FormatError, match="neither embedded nor left out"),
        features.writer(item.head, item.coords) as writer,
    ):
        writer.put(np.arange(5), item.features[:5])
    assert features.slide_ids() == []


def test_an_object_that_vanished_is_not_taken_for_zeros(url, tmp_path):
    features = store.open_features(tmp_path, "net", "zarr", url)
    features.write(some_features())
    fs, path = fsspec.url_to_fs(url)
    fs.rm_file(f"{path}/a b/features/c/0/0")
    with pytest.raises(FormatError, match="not those that were written"):
        features.read("a b")


def test_a_url_belongs_to_one_encoder_and_a_run_to_one_url(url, tmp_path):
    store.open_features(tmp_path / "one", "net", "zarr", url).write(some_features())
    with pytest.raises(ConfigError, match="there lies a store of features of net, not of other"):
        store.open_features(tmp_path / "two", "other", "zarr", url)
    with pytest.raises(ConfigError, match=r"--store-url memory://x: .* lie in .*net.zarr already"):
        store.open_features(tmp_path / "one", "net", "zarr", "memory://x")
    with pytest.raises(ConfigError, match=r"--store hdf5: the run has features of net as zarr already"):
        store.open_features(tmp_path / "one", "net", "hdf5")


def test_a_bucket_that_is_not_there_is_said(s3, tmp_path):
    with pytest.raises(
        StoreError, match=r"s3://nowhere/x/a b: cannot be written .*Check the address, the bucket"
    ):
        store.open_features(tmp_path, "net", "zarr", "s3://nowhere/x").write(some_features())
    with pytest.raises(ConfigError, match=r"--store-url nosuch://x: "):
        store.open_features(tmp_path, "net", "zarr", "nosuch://x")


def test_what_a_web_server_shows_can_be_read_and_not_written(tmp_path):
    local = store.open_features(tmp_path / "made", "net", "zarr")
    local.write(some_features())
    handler = functools.partial(Quiet, directory=str(tmp_path / "made" / "features"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        features = store.open_features(
            tmp_path / "run", "net", "zarr", f"http://127.0.0.1:{server.server_port}/net.zarr"
        )
        assert (features.read("a b").features == some_features().features).all()
        assert features.slide_ids() == ["a b"]
        assert features.is_done("a b", {"encoder": "net"})
        with pytest.raises(StoreError, match="can only be read"):
            features.write(some_features())
    finally:
        server.shutdown()
        server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_the_pointer_is_small_and_plain(tmp_path):
    elsewhere = tmp_path / "large disk" / "net"
    store.open_features(tmp_path / "run", "net", "zarr", str(elsewhere)).write(some_features())
    pointer = tmp_path / "run" / "features" / "net.json"
    assert json.loads(pointer.read_text()) == {
        "format": "wsi-mil features pointer", "format_version": 1, "encoder": "net", "kind": "zarr",
        "url": str(elsewhere),
    }  # fmt: skip
    assert Path(store.open_features(tmp_path / "run", "net").place) == elsewhere
    pointer.write_text("{}")
    with pytest.raises(FormatError, match=r"net.json: should say at which URL"):
        store.open_features(tmp_path / "run", "net")


def test_a_folder_elsewhere_is_known_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("large/net", f"file://{tmp_path}/large/net"):
        features = store.open_features(Path("run"), "net", "zarr", url)
        assert features.place == tmp_path / "large" / "net"
        features.write(some_features())
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert store.open_features(tmp_path / "run", "net").slide_ids() == ["a b"]
