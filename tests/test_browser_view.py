"""The viewer's page, driven in a real browser: what one sees is compared with the slide and the values."""

import threading
from contextlib import contextmanager
from urllib.parse import quote

import numpy as np
import pytest

from pipelines.pyramid import write_pyramid
from tests.browsers import chromium
from tests.conftest import draw_slide
from tests.test_view import ODD, add_heatmap
from wsi_mil import store, tile
from wsi_mil.colours import colours_for
from wsi_mil.config import TileConfig, ViewConfig
from wsi_mil.slide import open_slide
from wsi_mil.view.run import open_viewer

pytestmark = pytest.mark.browser

DARK_RC = (3, 5)  # the patch of "marked" that is black
PATCH = 256


class Page:
    """The viewer's page in a browser, in the words of its parts."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url
        browser.open(url)
        self.settled()

    def camera(self):
        found = self.browser.js(
            "(({x, y, scale}) => [x, y, scale])(document.getElementById('stage').dataset)"
        )
        return np.array([float(each) for each in found])

    def settled(self):
        """Wait until all of the picture is there and nothing moves."""
        last = None

        def still():
            nonlocal last
            if self.browser.js("document.getElementById('stage').dataset.idle") != "true":
                return False
            if self.browser.js("document.getElementById('subtitle').textContent") == "opening …":
                return False
            now, before = self.camera(), last
            last = now
            return before is not None and (now == before).all()

        self.browser.until(still, "the picture")

    def choose(self, select, value):
        self.browser.find(f"#{select} option[value='{value}']").click()
        self.settled()

    def opacity(self, percent):
        self.browser.js(
            "(s => { s.value = arguments[0]; s.dispatchEvent(new Event('input')); })"
            "(document.getElementById('opacity'))",
            percent,
        )
        self.settled()

    def stage(self, path):
        """Return the canvas as it is seen, without the buttons and words that lie over it."""
        over = "['zoom', 'scale', 'message'].forEach(id => document.getElementById(id).style.visibility = "
        self.browser.js(f"{over}'hidden')")
        pixels = self.browser.screenshot(path).astype(int)
        self.browser.js(f"{over}'')")
        box = self.box()
        return pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2]]

    def box(self):
        found = self.browser.js(
            "(b => [b.left, b.top, b.width, b.height])"
            "(document.getElementById('stage').getBoundingClientRect())"
        )
        return [round(each) for each in found]

    def css(self, x, y):
        """Return where level-0 (x, y) is on the canvas, in css pixels."""
        camera, box = self.camera(), self.box()
        return (x - camera[0]) * camera[2] + box[2] / 2, (y - camera[1]) * camera[2] + box[3] / 2

    def mouse(self, kind, x, y, **more):
        box = self.box()
        self.browser.driver.execute_cdp_cmd(
            "Input.dispatchMouseEvent",
            {"type": kind, "x": box[0] + x, "y": box[1] + y, "button": "left", "clickCount": 1} | more,
        )

    def click(self, x, y):
        cx, cy = self.css(x, y)
        self.mouse("mousePressed", cx, cy)
        self.mouse("mouseReleased", cx, cy)
        self.settled()

    def drag(self, start, end):
        self.mouse("mousePressed", *start)
        for part in (0.25, 0.5, 0.75, 1):
            self.mouse("mouseMoved", *(np.array(start) + part * (np.array(end) - start)).tolist())
        self.mouse("mouseReleased", *end)
        self.settled()

    def wheel(self, x, y, delta):
        self.mouse("mouseWheel", x, y, deltaX=0, deltaY=delta, button="none")
        self.settled()


def still_hash(browser):
    """Tell whether the address has followed the view."""
    before = browser.js("location.hash")
    threading.Event().wait(0.25)
    return browser.js("location.hash") == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three slides: "marked" has one black patch, which its map marks; one is gone; one is odd."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "slides").mkdir()
    picture = draw_slide(4096, 3072, tissue=((200, 300, 3700, 2600),))
    row, column = DARK_RC
    picture[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 0
    write_pyramid(folder / "slides" / "marked.tiff", picture, 0.5)
    for name in ("gone", ODD):
        write_pyramid(folder / "slides" / f"{name}.tiff", draw_slide(tissue=((256, 256, 1280, 1024),)), 0.25)
    run = folder / "run"
    assert not tile.run(TileConfig(slides=folder / "slides", run=run, workers=1, min_tissue=0.0)).failed
    (folder / "slides" / "gone.tiff").unlink()
    for name in ("marked", "gone", ODD):
        patches = store.read_patches(store.patches_path(run, name))
        rng = np.random.default_rng(3)
        n = len(patches.coords)
        attention = rng.uniform(0, 0.5, (2, n)).astype(np.float32)
        if name == "marked":
            attention[1, dark_patch(patches.coords)] = 1.0
        values = {
            "attention": attention,
            "evidence": rng.uniform(-1, 0.5, (2, n)).astype(np.float32),
            "probability": rng.uniform(0.1, 0.9, (2, n)).astype(np.float32),
        }
        add_heatmap(run, name, patches.geometry, patches.coords, values=values)
    model = store.model_folder(run, "m")
    model.mkdir(parents=True)
    (model / "predictions.csv").write_text(
        "slide_id,label,predicted\nmarked,tumor,tumor\ngone,normal,tumor\n"
    )
    return folder


def dark_patch(coords):
    row, column = DARK_RC
    (number,) = np.flatnonzero((coords == [column * PATCH, row * PATCH]).all(axis=1))
    return int(number)


@pytest.fixture(scope="module")
def viewer(folder):
    with served(folder / "run") as found:
        yield found


@contextmanager
def served(run):
    with open_viewer(ViewConfig(run=run)) as viewer:
        thread = threading.Thread(target=viewer.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield viewer
        finally:
            viewer.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser, viewer):
    """The slide "marked"; what the page logs as an error fails the test."""
    browser.errors()
    yield Page(browser, f"{viewer.url}#slide=marked")
    assert browser.errors() == []


@pytest.fixture
def heatmap(folder):
    return store.read_heatmap(store.heatmap_folder(folder / "run", "m", "marked") / "heatmap.zarr")


def edges(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_the_slide_is_seen_whole_with_its_legend_scale_and_strip(page, heatmap, tmp_path):
    browser = page.browser
    assert browser.text("#title") == "marked"
    assert "label tumor, predicted tumor" in browser.text("#subtitle")
    values = heatmap.values["attention"][1]
    assert float(browser.text("#legend-low")) == pytest.approx(values.min(), rel=0.01)
    assert float(browser.text("#legend-high")) == pytest.approx(1.0)
    assert "attention for tumor, model m" in browser.text("#legend-text")
    assert len(browser.all("#strip li")) == 12
    # the scale bar: microns by its text, and by its width at the camera's scale
    text, width = browser.text("#scale-text"), browser.find("#scale-bar").size["width"]
    microns = float(text.split()[0]) * {"µm": 1, "mm": 1000}[text.split()[1]]
    assert width / page.camera()[2] * 0.5 == pytest.approx(microns, rel=0.02)
    page.opacity(0)
    seen = page.stage(tmp_path / "all.png")
    left, top = page.css(0, 0)
    right, bottom = page.css(4096, 3072)
    assert 0 <= left < right <= seen.shape[1]
    assert 0 <= top < bottom <= seen.shape[0]
    tissue = seen[round(page.css(0, 1500)[1]), round(page.css(1000, 0)[0])]
    assert abs(tissue - [205, 120, 170]).max() < 40


def test_the_map_lies_exactly_on_the_slide(page, heatmap, tmp_path):
    browser, dark = page.browser, dark_patch(heatmap.coords)
    row, column = DARK_RC
    browser.find("#outline").click()
    browser.find(f"#strip button[data-patch='{dark}']").click()
    page.settled()
    browser.keys("\ue00c")  # Escape: no frame around the patch
    page.opacity(0)
    black = edges(page.stage(tmp_path / "slide.png").max(axis=2) < 60)
    page.opacity(100)
    yellow = edges(abs(page.stage(tmp_path / "map.png") - [253, 231, 37]).max(axis=2) < 30)
    expected = np.array(
        [*page.css(column * PATCH, row * PATCH), *page.css((column + 1) * PATCH, (row + 1) * PATCH)]
    )
    assert abs(black - yellow).max() <= 1
    assert abs(black - expected).max() <= 1.5
    assert (black[2:] - black[:2]).min() > 100


def test_dragging_wheel_keys_and_buttons_move_and_zoom(page):
    before = page.camera()
    page.drag((500, 300), (400, 260))
    moved = page.camera()
    assert (moved[:2] - before[:2]) * before[2] == pytest.approx([100, 40], abs=2)
    assert moved[2] == before[2]
    cx, cy, box = 300, 200, page.box()

    def under():
        x, y, scale = page.camera()
        return np.array([x + (cx - box[2] / 2) / scale, y + (cy - box[3] / 2) / scale])

    point = under()
    page.wheel(cx, cy, -240)
    assert page.camera()[2] == pytest.approx(2 * moved[2], rel=0.01)
    assert under() == pytest.approx(point, abs=1)
    for key, axis, sign in (("\ue014", 0, 1), ("\ue012", 0, -1), ("\ue015", 1, 1), ("\ue013", 1, -1)):
        start = page.camera()
        page.browser.keys(key)
        page.settled()
        assert np.sign(page.camera() - start)[axis] == sign
    for action, factor in (
        (lambda: page.browser.keys("+"), 1.5), (lambda: page.browser.keys("-"), 1 / 1.5),
        (lambda: page.browser.find("#zoom-in").click(), 1.5),
        (lambda: page.browser.find("#zoom-out").click(), 1 / 1.5),
    ):  # fmt: skip
        start = page.camera()
        action()
        page.settled()
        assert page.camera()[2] / start[2] == pytest.approx(factor, rel=0.01)
    page.browser.keys("0")
    page.settled()
    assert page.camera() == pytest.approx(before, rel=0.01)


def test_class_quantity_and_normalisation_change_colours_and_legend(page, heatmap, tmp_path):
    browser, dark = page.browser, dark_patch(heatmap.coords)
    page.opacity(100)
    x, y = (heatmap.coords[dark] + PATCH / 2).tolist()
    for quantity, output, way in (
        ("attention", "normal", "minmax"), ("attention", "tumor", "none"), ("evidence", "tumor", "minmax"),
        ("evidence", "normal", "percentile"), ("probability", "normal", "none"),
        ("probability", "tumor", "minmax"),
    ):  # fmt: skip
        page.choose("quantity", quantity)
        page.choose("output", output)
        page.choose("normalize", way)
        values = heatmap.values[quantity][heatmap.outputs.index(output)].astype(float)
        low, high = {"minmax": (values.min(), values.max()), "none": (0, values.max())}.get(way, (0, 100))
        if way == "none" and 0.5 < high <= 1:  # as a probability reaches
            high = 1
        if quantity == "evidence":
            high = abs(values).max() if way != "percentile" else 100
            low = -high
        assert float(browser.text("#legend-low")) == pytest.approx(low, rel=0.01, abs=1e-6)
        assert float(browser.text("#legend-high").split()[0]) == pytest.approx(high, rel=0.01)
        assert output in browser.text("#legend-text")
        if way == "percentile":
            continue
        shade = (values[dark] - low) / (high - low)
        strength = abs(2 * shade - 1) if quantity == "evidence" else shade
        opaque = (1 + 2 * strength) / 3
        colour = np.array(colours_for(quantity)(shade)[:3]) * 255
        column, row = (round(each) for each in page.css(x, y))
        seen = page.stage(tmp_path / "a.png")[row, column]
        assert abs(seen - opaque * colour).max() < 12, (quantity, output, way)  # over black


def test_a_patch_that_is_clicked_tells_its_values_and_neighbours(page, heatmap):
    browser, dark = page.browser, dark_patch(heatmap.coords)
    x, y = heatmap.coords[dark].tolist()
    page.click(x + 30, y + 200)
    assert f"patch {dark} at x {x}, y {y}" in browser.text("#patch-place")
    table = [
        [cell.text for cell in row.find_elements("css selector", "th, td")]
        for row in browser.all("#patch-values tr")
    ]
    assert len(table) == 1 + 6
    for name, value, percentile, rank in table[1:]:
        quantity, output = name.split(", ")
        values = heatmap.values[quantity][heatmap.outputs.index(output)]
        assert float(value) == pytest.approx(values[dark], rel=0.01)
        above = int((values > values[dark]).sum())
        assert rank == f"{above + 1} of {len(values)}"
        assert float(percentile) == pytest.approx(
            100 * (values < values[dark]).sum() / (len(values) - 1), abs=1
        )
    browser.until(lambda: browser.js("document.getElementById('patch-picture').naturalWidth") == 256)
    around = browser.all("#neighbours > *")
    assert len(around) == 9
    right = int(np.flatnonzero((heatmap.coords == [x + PATCH, y]).all(axis=1))[0])
    assert float(around[5].text) == pytest.approx(heatmap.values["attention"][1][right], rel=0.01)
    around[5].click()
    browser.until(lambda: f"patch {right} at" in browser.text("#patch-place"))
    page.click(4000, 3050)  # no patch there: tissue ends before
    browser.keys("\ue00c")
    assert not browser.find("#patch-body").is_displayed()


def test_the_strip_is_in_order_and_flies_there(page, heatmap):
    browser, values = page.browser, heatmap.values["attention"][1]
    order = np.argsort(-values, kind="stable")
    shown = [int(each.get_attribute("data-patch")) for each in browser.all("#strip button")]
    assert shown == order[:12].tolist()
    browser.all("#strip button")[3].click()
    page.settled()
    assert page.camera()[:2] == pytest.approx(heatmap.coords[order[3]] + PATCH / 2, abs=1)
    assert f"patch {order[3]} at" in browser.text("#patch-place")
    browser.find("#strip-order").click()
    shown = [int(each.get_attribute("data-patch")) for each in browser.all("#strip button")]
    assert shown == np.argsort(values, kind="stable")[:12].tolist()
    browser.find("#strip-order").click()


def test_a_link_restores_the_view(page, viewer):
    browser = page.browser
    page.click(1500, 1000)
    page.choose("quantity", "evidence")
    page.choose("output", "normal")
    page.choose("normalize", "percentile")
    page.opacity(35)
    browser.find("#outline").click()
    page.wheel(200, 200, -300)
    browser.until(lambda: still_hash(browser))
    camera, link = page.camera(), browser.js("location.href")
    assert link.startswith(viewer.url)
    browser.open("about:blank")
    again = Page(browser, link)
    assert again.camera() == pytest.approx(camera, rel=1e-3)
    chosen = [
        browser.js(f"document.getElementById('{name}').value")
        for name in ("quantity", "output", "normalize", "opacity")
    ]
    assert chosen == ["evidence", "normal", "percentile", "35"]
    assert not browser.find("#outline").is_selected()
    assert browser.find("#patch-body").is_displayed()
    for nonsense in (
        "#slide=none",
        "#slide=marked&x=nan&z=1e9&quantity=entropy&patch=99999999&opacity=7",
        "#%%%",
    ):
        odd = Page(browser, f"{viewer.url}{nonsense}")
        assert len(browser.all("#strip li")) == 12, nonsense
        assert odd.camera()[2] > 0


def test_keys_switch_what_is_shown(page):
    browser = page.browser

    def value(name):
        return browser.js(f"document.getElementById('{name}').value")

    browser.keys("h")
    assert not browser.find("#heat").is_selected()
    browser.keys("h", "o")
    assert browser.find("#heat").is_selected()
    assert not browser.find("#outline").is_selected()
    browser.keys("o", "]")
    assert value("opacity") == "70"
    browser.keys("[", "[", "q", "c", "m")
    browser.until(lambda: (value("opacity"), value("quantity"), value("output"), value("normalize"))
                  == ("50", "evidence", "normal", "percentile"))  # fmt: skip
    browser.keys("?")
    assert browser.find("#help").is_displayed()
    browser.find("#help button").click()
    browser.keys("s")
    assert not browser.find("#panel").is_displayed()
    browser.keys("s")


def test_the_list_is_searched_and_stepped_through(page):
    browser = page.browser
    assert len(browser.all("#slides li")) == 3
    browser.find("#search").send_keys("NORMAL")
    assert [each.get_attribute("data-id") for each in browser.all("#slides button")] == ["gone"]
    assert "wrong" in browser.find("#slides button").text
    browser.find("#search").clear()
    browser.find("#search").send_keys(" ")
    browser.find("#next").click()
    page.settled()
    assert browser.text("#title") == sorted(["marked", "gone", ODD])[0]
    assert browser.text("#title") == ODD


def test_a_slide_that_is_gone_is_grey_and_says_so(browser, viewer, folder, tmp_path):
    page = Page(browser, f"{viewer.url}#slide=gone")
    assert "without its picture" in browser.text("#message")
    assert "no such file" in browser.text("#message")
    page.opacity(0)
    browser.find("#outline").click()
    seen = page.stage(tmp_path / "grey.png")
    row, column = seen.shape[0] // 2, seen.shape[1] // 2
    assert np.ptp(seen[row - 100 : row + 100, column - 100 : column + 100].reshape(-1, 3), axis=0).max() == 0
    grey = seen[row, column]
    page.opacity(100)
    assert abs(page.stage(tmp_path / "map.png")[row, column] - grey).max() > 30
    assert len(browser.all("#strip .grey")) == 12


def test_a_slide_is_seen_whole_also_when_the_window_changes(browser, viewer):
    page = Page(browser, f"{viewer.url}#slide={quote(ODD)}")

    def inside():
        (left, top), (right, bottom) = page.css(0, 0), page.css(2048, 1536)
        return min(left, top, page.box()[2] - right, page.box()[3] - bottom) >= 0

    assert inside()
    browser.keys("l", "s")
    browser.js("document.getElementById('stage-box').style.maxHeight = '150px'")
    browser.until(lambda: page.box()[3] == 150 and inside(), "a smaller picture")
    browser.js("document.getElementById('stage-box').style.maxHeight = ''")
    browser.keys("l", "s")
    assert browser.errors() == []


def test_two_fingers_zoom_about_their_middle(viewer, tmp_path):
    with chromium(390, 800, touch=True) as phone:
        page = Page(phone, f"{viewer.url}#slide=marked")
        assert not phone.find("#panel").is_displayed(), "a narrow screen starts with the slide"
        box, before = page.box(), page.camera()

        def touch(kind, *points):
            phone.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {
                "type": kind,
                "touchPoints": [
                    {"x": box[0] + x, "y": box[1] + y, "id": i} for i, (x, y) in enumerate(points)
                ],
            })  # fmt: skip

        touch("touchStart", (150, 300), (250, 300))
        for apart in (60, 80, 100):
            touch("touchMove", (200 - apart, 300), (200 + apart, 300))
        touch("touchEnd")
        page.settled()
        assert page.camera()[2] / before[2] == pytest.approx(2, rel=0.05)
        touch("touchStart", (200, 300))
        touch("touchMove", (150, 300))
        touch("touchMove", (100, 300))
        touch("touchEnd")
        page.settled()
        assert page.camera()[0] > before[0]
        phone.screenshot(tmp_path / "phone.png")
        assert phone.errors() == []


def test_a_wrong_token_shows_nothing(browser, viewer):
    browser.open(f"{viewer.url[:-6]}wrong/")
    assert "lacks the right token" in browser.text("body")
    assert all("403" in each for each in browser.errors())


def test_the_real_slide_is_shown_pixel_for_pixel(browser, real_slides, tmp_path):
    path, run = real_slides / "CMU-1-Small-Region.svs", tmp_path / "run"
    assert not tile.run(TileConfig(slides=path, run=run, workers=1)).failed
    patches = store.read_patches(store.patches_path(run, path.stem))
    add_heatmap(run, path.stem, patches.geometry, patches.coords)
    with served(run) as viewer:
        _, _, width, height = Page(browser, viewer.url).box()
        place = (
            f"x={1100 + width / 2}&y={1200 + height / 2}&z=0"  # whole pixels, of a canvas of odd sides too
        )
        page = Page(browser, f"{viewer.url}#slide={path.stem}&{place}&heat=0&outline=0")
        seen = page.stage(tmp_path / "cmu.png")
        with open_slide(path) as slide:
            expected = slide.read_level(0, 1100, 1200, width, height).astype(int)
        middle = (slice(2, -2), slice(2, -2))
        shifts = {
            (dx, dy): abs(seen[middle] - np.roll(expected, (dy, dx), (0, 1))[middle]).mean()
            for dx in (-1, 0, 1) for dy in (-1, 0, 1)
        }  # fmt: skip
        assert min(shifts, key=shifts.get) == (0, 0)
        assert shifts[0, 0] < 4
        page.browser.keys("0")
        page.settled()
        assert page.browser.errors() == []
