"""The viewer's server is asked over HTTP; what the page makes of it is tested in test_browser_view.py."""

import dataclasses
import http.client
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from pipelines.pyramid import write_pyramid
from tests.conftest import draw_slide
from tests.tiffs import texture, write_scn
from wsi_mil import heatmap, store, tile
from wsi_mil.config import TileConfig, ViewConfig
from wsi_mil.errors import ConfigError, FormatError, SlideError
from wsi_mil.geometry import PatchGeometry, grid_l0
from wsi_mil.slide import open_slide
from wsi_mil.view import tiles
from wsi_mil.view.handles import Handles
from wsi_mil.view.run import open_viewer

ODD = "a b #1?% ü 😀 ..&\"'<b>"


def add_heatmap(run, slide_id, geometry, coords, name="m", outputs=("normal", "tumor"), seed=0, **changes):
    """Write raw values of every quantity, drawn at random, and return the heatmap."""
    rng = np.random.default_rng(seed)
    drawn = rng.random((3, len(outputs), len(coords)), dtype=np.float32)
    values = {"attention": drawn[0] / drawn[0].sum(axis=1, keepdims=True), "evidence": 2 * drawn[1] - 1}
    found = store.Heatmap(
        **{
            "slide_id": slide_id, "geometry": geometry, "coords": coords, "outputs": outputs,
            "values": values | {"probability": drawn[2]}, "facts": {"drawn_by": "fold 0"}, "record": {},
            "shown": {"quantity": "attention", "output": outputs[-1]},
        }
        | changes
    )  # fmt: skip
    folder = store.heatmap_folder(run, name, slide_id)
    folder.mkdir(parents=True, exist_ok=True)
    store.write_heatmap(folder / "heatmap.zarr", found)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with two slides and their run: one has an odd name and a heatmap; and files that are none."""
    folder = tmp_path_factory.mktemp("view")
    (folder / "slides").mkdir()
    for name in ("plain", ODD):
        write_pyramid(folder / "slides" / f"{name}.tiff", draw_slide(tissue=((256, 256, 1280, 1024),)), 0.5)
    run = folder / "run"
    assert not tile.run(TileConfig(slides=folder / "slides", run=run, workers=1)).failed
    (run / "patches" / "secret.txt").write_text("secret\n")
    (folder / "secret.h5").write_text("secret\n")
    patches = store.read_patches(store.patches_path(run, ODD))
    add_heatmap(run, ODD, patches.geometry, patches.coords)
    predictions = store.model_folder(run, "m") / "predictions.csv"
    predictions.parent.mkdir(parents=True)
    predictions.write_text("slide_id,label,predicted\nplain,normal,tumor\n")
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the run to change; its slides are the module's."""
    shutil.copytree(whole / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def served(whole):
    """A server that runs, without a token."""
    yield from serve(ViewConfig(run=whole / "run", token=False))


def at(run, slide_id, path):
    """Let the run say that a slide lies at ``path``."""
    patches = store.read_patches(store.patches_path(run, slide_id))
    store.write_patches(store.patches_path(run, slide_id), dataclasses.replace(patches, slide_path=path))


def serve(config):
    with open_viewer(config) as viewer:
        thread = threading.Thread(target=viewer.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield viewer
        finally:
            viewer.shutdown()
            thread.join()


def ask(viewer, path, host=None, method="GET"):
    """Return (status, type, body) of one request; ``path`` goes over the wire as it is."""
    connection = http.client.HTTPConnection(*viewer.server_address, timeout=20)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def asked(viewer, path):
    status, headers, body = ask(viewer, path)
    assert status == 200, body
    return json.loads(body) if headers["Content-Type"] == "application/json" else body


def picture(body):
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)


def test_the_page_and_its_files_are_served_with_headers_that_let_nothing_else_in(served):
    for name, kind in (("", "text/html"), ("app.js", "text/javascript"), ("view.css", "text/css")):
        status, headers, body = ask(served, f"/{name}")
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert (headers["Cache-Control"], headers["Referrer-Policy"]) == ("no-store", "no-referrer")
        assert b"http://" not in body, "the page asks nobody else"
        assert b"https://" not in body


def test_the_slides_of_the_run_are_listed_with_what_was_predicted(served):
    rows = {row["id"]: row for row in asked(served, "/slides.json")}
    assert sorted(rows) == sorted(["plain", ODD])
    assert rows["plain"]["verdicts"] == {"m": {"label": "normal", "predicted": "tumor"}}
    assert (rows["plain"]["heatmaps"], rows[ODD]["heatmaps"]) == ([], ["m"])


def test_a_slide_says_its_size_patches_outline_and_heatmaps(served):
    info = asked(served, f"/slides/{quote(ODD, safe='')}/info.json")
    assert (info["width"], info["height"], info["mpp"], info["problem"]) == (2048, 1536, 0.5, "")
    assert info["coarsest"] == 3, "256 * 2**3 pixels are the longer side"
    assert info["patch"] == {"size": 256.0, "px": 256, "mpp": 0.5}
    points = np.concatenate([np.array(ring) for ring in info["outline"]])
    assert points.min(axis=0) == pytest.approx([256, 256], abs=40)
    assert points.max(axis=0) == pytest.approx([1280, 1024], abs=40)
    (about,) = info["heatmaps"]
    assert about["quantities"] == ["attention", "evidence", "probability"]
    assert about["outputs"] == ["normal", "tumor"]
    assert (about["size"], about["stride"], about["on_grid"], about["dense"]) == (256.0, 256.0, True, 0)
    assert asked(served, "/slides/plain/info.json")["heatmaps"] == []


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_square_is_what_the_slide_has_there(served, whole, depth):
    path = whole / "slides" / "plain.tiff"
    step = 256 * 2**depth
    with open_slide(path) as slide:
        columns, rows = tiles.counts(slide.width_l0, slide.height_l0, depth)
        assert (columns, rows) == (-(-2048 // step), -(-1536 // step))
        for column, row in {(0, 0), (columns - 1, rows - 1)}:
            shown = picture(asked(served, f"/slides/plain/square/{depth}/{column}/{row}"))
            expected = slide.read(column * step, row * step, 256, 0.5 * 2**depth)
            assert abs(shown - expected).mean() < 3, "JPEG alone lies between them"
    for beyond in (f"{depth}/{columns}/0", f"{depth}/0/{rows}", "4/0/0", "99/0/0", "0/0", "0/0/-1", "0/0/x"):
        assert ask(served, f"/slides/plain/square/{beyond}")[0] == 404


def test_values_and_patches_are_those_of_the_file(served, whole):
    base = f"/slides/{quote(ODD, safe='')}"
    stored = store.read_heatmap(store.heatmap_folder(whole / "run", "m", ODD) / "heatmap.zarr")
    coords = np.frombuffer(asked(served, f"{base}/heat/m/coords"), "<i4").reshape(-1, 2)
    assert (coords == stored.coords).all()
    for name, values in stored.values.items():
        sent = np.frombuffer(asked(served, f"{base}/heat/m/{name}"), "<f4").reshape(2, -1)
        assert (sent == values).all()
    slide_path = whole / "slides" / f"{ODD}.tiff"
    number = len(coords) // 2
    with open_slide(slide_path) as slide:
        expected = slide.read(*coords[number].tolist(), 128, 1.0)
    shown = picture(asked(served, f"{base}/patch/m/{number}/128"))
    assert abs(shown - expected).mean() < 4
    for wrong in ("heat/m/entropy", "heat/other/attention", "heat/..%2Fm/coords", "heat/m", "patch/m",
                  f"patch/m/{len(coords)}/128", "patch/m/0/4", "patch/m/0/100000"):  # fmt: skip
        assert ask(served, f"{base}/{wrong}")[0] == 404, wrong


def test_patches_between_those_of_the_grid_come_last(run):
    patches = store.read_patches(store.patches_path(run, "plain"))
    dense = {name: np.full((2, 3), 0.25, np.float32) for name in store.QUANTITIES}
    add_heatmap(
        run,
        "plain",
        patches.geometry,
        patches.coords,
        dense_coords=patches.coords[:3] + 128,
        dense_values=dense,
    )
    for viewer in serve(ViewConfig(run=run, token=False)):
        coords = np.frombuffer(asked(viewer, "/slides/plain/heat/m/coords"), "<i4").reshape(-1, 2)
        values = np.frombuffer(asked(viewer, "/slides/plain/heat/m/attention"), "<f4").reshape(2, -1)
        assert (coords[-3:] == patches.coords[:3] + 128).all()
        assert (values[:, -3:] == 0.25).all()
        assert values.shape[1] == len(coords) == len(patches.coords) + 3


def test_a_slide_whose_scan_begins_elsewhere_is_where_its_patches_are(tmp_path):
    """Offset bounds: squares and patches count from the corner of the glass, as coords do."""
    width, height = 2048, 1536
    path = write_scn(tmp_path / "a.scn", texture(1600, 1200), offset=(300, 200), glass=(width, height))
    geometry = PatchGeometry.plan(width_l0=width, height_l0=height, mpp_l0=0.5, mpp=0.5, patch_px=256)
    coords = grid_l0(geometry)
    patches = store.Patches(
        slide_id="a", slide_path=path, reader="openslide", mpp_source="given", geometry=geometry,
        coords=coords, tissue_fraction=np.ones(len(coords), np.float32), record={},
    )  # fmt: skip
    store.write_patches(store.patches_path(tmp_path, "a"), patches)
    add_heatmap(tmp_path, "a", geometry, coords)
    number = 2 * geometry.grid_shape_rc[1] + 3
    x, y = coords[number].tolist()
    for viewer in serve(ViewConfig(run=tmp_path, token=False)):
        patch = picture(asked(viewer, f"/slides/a/patch/m/{number}/256"))
        square = picture(asked(viewer, f"/slides/a/square/0/{x // 256}/{y // 256}"))
    expected = texture(1600, 1200)[y - 200 : y + 56, x - 300 : x - 44].astype(int)
    assert (patch == square).all()
    shifts = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    best = min((abs(patch - np.roll(expected, by[::-1], (0, 1))).mean(), by) for by in shifts)
    assert best[1] == (0, 0)


NOTHING = [
    "/..", "/../run/patches/secret.txt", "/%2e%2e/secret.h5", "/static/../server.py", "/server.py", "/run.py",
    "/slides/../../secret/info.json", "/slides/..%2F..%2Fsecret/info.json", "/slides/plain", "/slides/plain/",
    "/slides/%2Fetc%2Fpasswd/info.json", "/slides/secret.txt/info.json", "/slides/secret/info.json",
    "/slides//info.json", "/slides/plain/info.json/x", "/slides/plain/../../secret.h5",
    "/slides/plain%00/info.json",
    "/slides/plain.h5/info.json", "//etc/passwd", "/slides/plain\\..\\..\\secret/info.json", "/.git/config",
    "/slides/%ff%fe/info.json", "/index.html/", "/slides.json/..", "/patches/plain.jpg",
]  # fmt: skip


@pytest.mark.parametrize("path", NOTHING)
def test_nothing_but_the_runs_slides_is_served(served, path):
    status, headers, body = ask(served, path)
    assert status == 404
    assert b"secret\n" not in body
    assert headers["Content-Type"] == "application/json", "a message of the server's own"


def test_only_getting_is_possible(served):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(served, "/slides.json", method=method)[0] == 501


def test_other_sites_that_lead_here_are_refused(served):
    port = served.server_address[1]
    for host, status in (
        (f"127.0.0.1:{port}", 200), (f"localhost:{port}", 200), ("localhost:9", 200), (f"[::1]:{port}", 200),
        (f"evil.example:{port}", 403), ("evil.example", 403), (f"127.0.0.1.evil.example:{port}", 403),
    ):  # fmt: skip
        assert ask(served, "/slides.json", host=host)[0] == status, host


def test_the_token_opens_and_nothing_else_does(run):
    for viewer in serve(ViewConfig(run=run)):
        assert viewer.server_address[0] == "127.0.0.1"
        assert len(viewer.token) >= 20
        assert ask(viewer, f"/{viewer.token}/slides.json")[0] == 200
        status, headers, _ = ask(viewer, f"/{viewer.token}")
        assert (status, headers["Location"]) == (302, f"/{viewer.token}/")
        for wrong in ("/", "/slides.json", "/x/slides.json", f"/{viewer.token}x/", f"/{viewer.token[:-1]}/",
                      "/%C3%BC/", f"/?token={viewer.token}"):  # fmt: skip
            status, _, body = ask(viewer, wrong)
            assert status == 403, wrong
            assert b"token" in body
    with open_viewer(ViewConfig(run=run)) as other:
        assert other.token != viewer.token


def test_a_slide_that_is_gone_still_has_its_heatmap(run, tmp_path):
    at(run, ODD, tmp_path / "gone.tiff")
    base = f"/slides/{quote(ODD, safe='')}"
    for viewer in serve(ViewConfig(run=run, token=False)):
        info = asked(viewer, f"{base}/info.json")
        assert "no such file" in info["problem"]
        assert (info["width"], info["height"], len(info["heatmaps"])) == (2048, 1536, 1)
        status, _, body = ask(viewer, f"{base}/square/0/0/0")
        assert status == 404
        assert "no such file" in json.loads(body)["error"]
        assert ask(viewer, f"{base}/heat/m/attention")[0] == 200
        store.patches_path(run, ODD).unlink()
    for viewer in serve(ViewConfig(run=run, token=False)):
        info = asked(viewer, f"{base}/info.json")
        assert "no file of the run says where the slide lies" in info["problem"]
        assert info["width"] == 2048


def test_another_slide_under_the_same_name_is_not_shown(run, make_slide):
    at(run, "plain", make_slide("plain.tiff", width=1024, height=1024, tissue=()))
    for viewer in serve(ViewConfig(run=run, token=False)):
        problem = asked(viewer, "/slides/plain/info.json")["problem"]
        assert "plain.tiff: its bytes are not those that were tiled: the file was replaced" in problem
    path = store.patches_path(run, "plain")
    store.write_patches(path, dataclasses.replace(store.read_patches(path), slide_fingerprint=""))
    for viewer in serve(ViewConfig(run=run, token=False)):  # as imported: nothing but the size is known
        problem = asked(viewer, "/slides/plain/info.json")["problem"]
        assert "1024 x 1024 pixels, and the patches were cut from a slide of 2048 x 1536" in problem


def test_a_heatmap_that_cannot_be_read_is_said_and_the_slide_is_shown(run):
    (store.heatmap_folder(run, "m", ODD) / "heatmap.zarr" / "zarr.json").write_text("{")
    for viewer in serve(ViewConfig(run=run, token=False)):
        info = asked(viewer, f"/slides/{quote(ODD, safe='')}/info.json")
        assert info["problem"] == ""
        assert "no heatmap there" in info["heatmaps"][0]["problem"]
        store.patches_path(run, "plain").write_bytes(b"")
        status, _, body = ask(viewer, "/slides/plain/info.json")
        assert status == 404
        assert "plain.h5" in json.loads(body)["error"]


def test_a_heatmap_drawn_anew_is_seen(run):
    patches = store.read_patches(store.patches_path(run, ODD))
    for viewer in serve(ViewConfig(run=run, token=False)):
        address = f"/slides/{quote(ODD, safe='')}/heat/m/attention"
        before = asked(viewer, address)
        assert asked(viewer, address) == before
        other = add_heatmap(run, ODD, patches.geometry, patches.coords, seed=1)
        after = np.frombuffer(asked(viewer, address), "<f4").reshape(2, -1)
        assert (after == other.values["attention"]).all()


def test_many_threads_get_the_same_pixels_as_one(served, monkeypatch):
    paths = [f"/slides/plain/square/0/{column}/{row}" for column in range(8) for row in range(6)]
    alone = {path: asked(served, path) for path in paths}
    monkeypatch.setattr(served, "kept", tiles.Kept(1 << 20))
    got, faults = {}, []

    def client(seed):
        order = np.random.default_rng(seed).permutation(len(paths))
        try:
            for i in order.tolist():
                got[seed, paths[i]] = asked(served, paths[i])
        except (AssertionError, OSError) as error:
            faults.append(error)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert len(got) == 8 * len(paths)
    assert all(body == alone[path] for (_, path), body in got.items())


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come about")


def test_a_page_that_went_away_costs_no_reading(served, monkeypatch, capfd):
    reads, read = [], tiles.read_square
    monkeypatch.setattr(served, "kept", tiles.Kept(1 << 20))
    monkeypatch.setattr(tiles, "read_square", lambda *each: reads.append(each[1:]) or read(*each))
    blocked = threading.Event()
    for _ in range(served.readers._max_workers):  # nobody may read for now
        served.readers.submit(blocked.wait)
    connection = socket.create_connection(served.server_address)
    connection.sendall(b"GET /slides/plain/square/0/0/0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_until(lambda: served.readers._work_queue.qsize() == 1)
    connection.close()
    blocked.set()
    asked(served, "/slides/plain/square/0/1/1")
    assert reads == [(0, 1, 1)]
    assert capfd.readouterr().err == ""


def test_bytes_are_kept_up_to_a_bound():
    kept, made = tiles.Kept(100), []

    def get(key, size=40):
        return kept.get(key, lambda: made.append(key) or bytes(size))

    for key in "aabab":
        get(key)
    assert made == ["a", "b"]
    get("c")  # a was used longest ago, and goes
    assert kept.size == 80
    get("b")
    get("a")
    assert made == ["a", "b", "c", "a"]
    get("huge", 1000)
    assert kept.size <= 100


class Closing:
    """A slide as far as handles know one."""

    def __init__(self, log, key):
        self.log, self.key = log, key

    def close(self):
        self.log.append(self.key)


def test_few_slides_stay_open_and_none_is_closed_while_it_is_read():
    handles, closed = Handles(2), []

    def use(key):
        return handles.use(key, lambda: Closing(closed, key))

    with use("a"):
        for key in "bcd":
            with use(key):
                pass
        assert "a" not in closed
        assert len(closed) == 2
    with pytest.raises(SlideError), handles.use("bad", lambda: (_ for _ in ()).throw(SlideError("gone"))):
        pass
    with use("bad") as slide:
        assert slide.key == "bad", "it is tried again"
    handles.close()
    assert sorted(closed) == ["a", "b", "bad", "c", "d"]


@pytest.mark.parametrize(
    ("size", "pyramid", "last"),
    [((256, 256), True, 0), ((257, 100), True, 1), ((40_000, 30_000), True, 8), ((40_000, 30_000), False, 3)],
)
def test_an_overview_of_a_slide_without_small_levels_is_not_read(size, pyramid, last):
    class Plan:
        width_l0, height_l0 = size
        downsamples = (1.0, 4.0, 16.0, 64.0) if pyramid else (1.0,)

        def level_scale(self, level):
            return 1 / self.downsamples[level], 1 / self.downsamples[level]

    assert tiles.coarsest(Plan()) == last


def test_the_colours_are_those_of_the_overlay(served):
    colours = asked(served, "/palettes.json")
    steps = np.arange(256, dtype=np.float32) / 255
    for name, found in colours.items():
        expected = heatmap.render.colours_of(steps, signed=name == "evidence").astype(int)
        assert abs(np.array(found) - expected).max() <= 1, name
    assert set(colours) == set(store.QUANTITIES)


def test_wrong_settings_are_said_in_the_flags_words(tmp_path, run):
    for config, words in (
        ({"run": tmp_path / "none"}, "none: no such folder"),
        ({"run": tmp_path}, r"no slides there; run `wsi-mil tile` first"),
        ({"run": run, "port": 70_000}, r"--port 70000: 0 \(a free one\) to 65535"),
        ({"run": run, "cache_mib": 0}, "--cache-mib 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_viewer(ViewConfig(**config))
    with (
        open_viewer(ViewConfig(run=run)) as first,
        pytest.raises(ConfigError, match="--port 0 takes a free one"),
    ):
        open_viewer(ViewConfig(run=run, port=first.server_address[1]))


def test_a_slide_that_was_not_tiled_and_has_no_heatmap_is_none_of_the_runs(run):
    with open_viewer(ViewConfig(run=run)) as viewer:
        store.patches_path(run, "plain").unlink()
        with pytest.raises(FormatError, match=r"plain: neither .*plain\.h5 nor a heatmap"):
            viewer.slides.describe("plain")


def test_the_grid_of_a_slide_need_not_start_with_its_patches(tmp_path):
    """A heatmap without patches or slide: its own geometry says how large the slide is."""
    geometry = PatchGeometry.plan(width_l0=5000, height_l0=4000, mpp_l0=0.25, mpp=0.5, patch_px=256)
    run = tmp_path / "run"
    add_heatmap(run, "x", geometry, np.array([[512, 1024]]))
    with open_viewer(ViewConfig(run=run)) as viewer:
        info = viewer.slides.describe("x")
    assert (info["width"], info["height"], info["mpp"]) == (5000, 4000, 0.25)
    assert info["heatmaps"][0]["patches"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_to_look_and_ends_when_it_is_told(whole, number):
    command = [sys.executable, "-m", "wsi_mil", "view", "--run", str(whole / "run")]
    before = sorted(path for path in (whole / "run").rglob("*"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == "2 slides, 1 with a heatmap. Open:\n"
        with urllib.request.urlopen(lines[2].strip() + "slides.json") as answer:
            assert len(json.loads(answer.read())) == 2
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert sorted(path for path in (whole / "run").rglob("*")) == before, "nothing is written"
