"""Slides behind a URL, from a real HTTP server that serves ranges, on this machine."""

import http.server
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tiffs import texture, write_tiff
from wsi_mil import blocks, embed, geometry, store, tile
from wsi_mil.blocks.source import RemoteFile, coalesce
from wsi_mil.config import EmbedConfig, TileConfig
from wsi_mil.errors import SlideError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import open_slide


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ranges; remembers each range; may be slow, short or without ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.endswith("/"):
            super().do_GET()
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        time.sleep(self.server.delay)
        if found and self.server.ranges:
            first, last = (int(each) for each in found.groups())
            self.server.asked.append((first, last - first + 1))
            size = len(data)
            data, status = data[first : last + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(len(data)))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(data)

    def do_HEAD(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    made = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: RangeHandler(*a, directory=str(folder))
    )
    made.folder, made.asked, made.delay, made.ranges = folder, [], 0.0, True
    made.url = f"http://127.0.0.1:{made.server_address[1]}"
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def plan(slide):
    return PatchGeometry.plan(
        width_l0=slide.width_l0, height_l0=slide.height_l0, mpp_l0=slide.mpp_l0, mpp=0.5, patch_px=100
    )


def test_patches_of_a_remote_slide_are_those_of_the_file(server):
    path = write_tiff(server.folder / "a.svs", texture(1500, 1300), kind="jpeg-422")
    with open_slide(path) as slide:
        coords = geometry.grid_l0(plan(slide))
        expected = np.concatenate([b.patches for b in blocks.stream(slide, coords, plan(slide))])
    with open_slide(f"{server.url}/a.svs") as slide:
        assert (slide.reader, slide.mpp_l0) == ("tiffslide", 0.5)
        notes = []
        server.asked.clear()
        got = list(blocks.stream(slide, coords, plan(slide), batch_size=16, note=notes.append))
    assert not notes
    assert (np.concatenate([b.patches for b in got]) == expected).all()


def test_neighbouring_blocks_are_one_request_and_none_is_fetched_twice(server):
    path = write_tiff(server.folder / "a.tiff", texture(2048, 2048), kind="jpeg-420")
    with open_slide(f"{server.url}/a.tiff") as slide:
        coords = geometry.grid_l0(plan(slide))
        list(blocks.stream(slide, coords[:1], plan(slide)))  # the directory, and the comparison
        server.asked.clear()
        list(blocks.stream(slide, coords, plan(slide), batch_size=64))
    fetched = sum(count for _, count in server.asked)
    assert len(server.asked) < 24, "64 blocks"
    assert fetched < 2.2 * path.stat().st_size, "the directory and the comparison read some of it again"


def test_requests_are_on_their_way_while_patches_are_read(server):
    write_tiff(server.folder / "a.tiff", texture(2048, 2048), kind="jpeg-420")
    server.delay = 0.05
    url = f"{server.url}/a.tiff"
    far_apart = [(8 + 100_000 * k, 1000) for k in range(8)]
    remote = RemoteFile(url)
    start = time.perf_counter()
    for each in far_apart:
        remote.read(*each)
    one_by_one = time.perf_counter() - start
    start = time.perf_counter()
    remote.expect(far_apart)
    ahead = [remote.read(*each) for each in far_apart]
    assert time.perf_counter() - start < 0.6 * one_by_one
    assert ahead == [remote.read(*each) for each in far_apart]
    remote.close()


def test_coalescing_reads_over_small_gaps_and_splits_large_requests():
    assert coalesce([]) == []
    assert coalesce([(0, 10), (10, 10), (5000, 10)]) == [[(0, 10), (10, 10), (5000, 10)]]
    assert coalesce([(0, 10), (10**6, 10)]) == [[(0, 10)], [(10**6, 10)]]
    many = [(k * 2**20, 2**20) for k in range(10)]
    assert [len(group) for group in coalesce(many)] == [4, 4, 2]


def test_nothing_there_no_ranges_and_no_server_are_slide_errors(server):
    write_tiff(server.folder / "a.tiff", texture(512, 512))
    with pytest.raises(SlideError, match="nothing at this URL"):
        open_slide(f"{server.url}/b.tiff")
    with pytest.raises(SlideError, match=r"or no server answers \(.*9"):
        open_slide("http://127.0.0.1:9/a.tiff")
    with pytest.raises(SlideError, match="OpenSlide reads local files only"):
        open_slide(f"{server.url}/a.tiff", "openslide")
    server.ranges = False
    with pytest.raises(OSError, match="instead of 100 at byte 8: the file ends early, or its server ignores"):
        RemoteFile(f"{server.url}/a.tiff").read(8, 100)


def test_a_manifest_of_urls_is_tiled_and_embedded(server, make_slide, tmp_path):
    path = make_slide("a.svs")
    (server.folder / "a.svs").write_bytes(path.read_bytes())
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"slide_id,path\nremote,{server.url}/a.svs\nlocal,{path}\n")
    run = tmp_path / "run"
    assert not tile.run(TileConfig(slides=manifest, run=run, workers=1)).failed
    remote, local = (store.read_patches(run / "patches" / f"{name}.h5") for name in ("remote", "local"))
    assert remote.slide_path == f"{server.url}/a.svs"
    assert len(local.coords)
    assert (remote.coords == local.coords).all()
    assert not embed.run(EmbedConfig(run=run, encoder="test_resnet", weights=tiny_weights(tmp_path))).failed
    remote, local = (
        store.read_features(run / "features" / "test_resnet" / f"{name}.h5") for name in ("remote", "local")
    )
    assert (remote.features == local.features).all()
    rows = store.read_csv(run / "embed" / "slides.csv")
    assert [row["read_by"] for row in rows] == ["blocks", "blocks"]


def test_a_url_of_a_folder_or_a_slide_is_tiled(server, make_slide, tmp_path, wsi):
    for name in ("a.svs", "b.tiff"):
        (server.folder / name).write_bytes(make_slide(name).read_bytes())
    (server.folder / "notes.txt").write_text("no slide")
    code, out, err = wsi("tile", "--slides", server.url + "/", "--run", tmp_path / "all", "--workers", "1")
    assert code == 0, out + err
    assert [p.stem for p in sorted((tmp_path / "all" / "patches").glob("*.h5"))] == ["a", "b"]
    code, out, err = wsi(
        "tile", "--slides", f"{server.url}/b.tiff", "--run", tmp_path / "one", "--workers", "1"
    )
    assert code == 0, out + err
    assert store.read_patches(tmp_path / "one" / "patches" / "b.h5").slide_path == f"{server.url}/b.tiff"
    config = tmp_path / "pipeline.toml"
    config.write_text(f'[tile]\nslides = "{server.url}/a.svs"\nrun = "{tmp_path}/toml"\nworkers = 1\n')
    assert wsi("tile", "--config", config)[0] == 0
    assert (tmp_path / "toml" / "patches" / "a.h5").exists()
    code, _, err = wsi("tile", "--slides", "s3://bucket/folder", "--run", tmp_path / "s3")
    assert code == 2
    assert "--slides s3://bucket/folder: cannot be listed" in err
    code, _, err = wsi("tile", "--slides", "http://127.0.0.1:9/x/", "--run", tmp_path / "none")
    assert code == 2
    assert "cannot be listed" in err or "none of them a slide" in err


def tiny_weights(folder):
    import safetensors.torch
    import timm
    import torch

    torch.manual_seed(0)
    path = folder / "tiny.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return path
