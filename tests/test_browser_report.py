"""The report's page, opened from disk in a real browser, of the demo's cohort through all stages."""

import json

import numpy as np
import pytest

from pipelines.demo.cohort import make_cohort
from tests.browsers import chromium
from wsi_mil import embed, heatmap, report, store, tile, train
from wsi_mil.config import EmbedConfig, HeatmapConfig, ReportConfig, TileConfig, TrainConfig, ViewConfig
from wsi_mil.view.run import open_viewer

pytestmark = pytest.mark.browser
ESCAPE = "\ue00c"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The demo's cohort, small, through all stages, with one file that is no slide."""
    folder = tmp_path_factory.mktemp("demo")
    cohort = make_cohort(folder / "demo", slides=10, side_um=500, seed=3)
    (cohort.slides / "broken.svs").write_bytes(b"no slide")
    run = folder / "run"
    assert [each.slide_id for each in tile.run(TileConfig(slides=cohort.slides, run=run)).failed] == [
        "broken"
    ]
    (cohort.slides / "broken.svs").unlink()
    embed.run(EmbedConfig(run=run))
    train.run(TrainConfig(run=run, labels=cohort.labels, folds=2))
    assert not heatmap.run(HeatmapConfig(run=run)).failed
    assert not report.run(ReportConfig(run=run)).failed
    return run


@pytest.fixture(scope="module")
def browser():
    with chromium(1300, 1000) as found:
        yield found


@pytest.fixture
def page(browser, run):
    """The page, from disk and without a network; what it logs as an error fails the test."""
    browser.driver.execute_cdp_cmd("Network.enable", {})
    browser.driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    browser.errors()
    browser.open((run / "report.html").as_uri())
    yield browser
    assert browser.errors() == []


def shown(page, css):
    return [each.get_attribute("data-id") for each in page.all(css) if each.is_displayed()]


def cells(page, column):
    rows = [each for each in page.all("#cohort tbody tr") if each.is_displayed()]
    return [row.find_elements("css selector", "td")[column].text for row in rows]


def head(page, name):
    (found,) = [each for each in page.all("#cohort thead th") if each.text.startswith(name)]
    return found, page.all("#cohort thead th").index(found)


def test_the_table_is_sorted_and_so_are_the_cards(page, run):
    assert len(shown(page, "#cards article")) == 11
    for name, key in (("slide", str), ("p(label)", float), ("patches", int)):
        button, column = head(page, name)
        for direction, back in (("ascending", False), ("descending", True)):
            button.find_element("css selector", "button").click()
            assert button.get_attribute("aria-sort") == direction
            values = [each for each in cells(page, column) if each]
            assert values == sorted(values, key=key, reverse=back), (name, direction)
            assert not cells(page, column)[-1] or name == "slide", "what has no value comes last"
            order = cells(page, head(page, "slide")[1])
            assert shown(page, "#cards article") == order


def test_the_search_and_the_choice_leave_what_fits(page, run):
    rows = store.read_csv(run / "models" / "gated-attention" / "predictions.csv")
    some = rows[3]["slide_id"]
    page.find("#search").send_keys(some.upper())
    assert shown(page, "#cards article") == [some]
    assert page.text("#found") == "1 of 11 slides"
    page.find("#search").clear()
    page.find("#search").send_keys("cannot be opened")
    assert shown(page, "#cards article") == ["broken"]
    page.find("#search").clear()
    page.find("#kind option[value=wrong]").click()
    wrong = {row["slide_id"] for row in rows if row["label"] != row["predicted"]}
    assert set(shown(page, "#cards article")) == wrong
    page.find("#kind option[value=failed]").click()
    assert shown(page, "#cards article") == ["broken"]


def open_first(page):
    page.find("#cards .open").click()
    page.until(lambda: page.find("#viewer").is_displayed())
    return view(page)


def view(page):
    found = page.js("(({x, y, scale}) => [x, y, scale])(document.getElementById('stage').dataset)")
    return np.array([float(each) for each in found])


def stage(page, path):
    box = page.js(
        "(b => [b.left, b.top, b.width, b.height])(document.getElementById('stage').getBoundingClientRect())"
    )
    left, top, width, height = (round(each) for each in box)
    return (left, top, width, height), page.screenshot(path)[top : top + height, left : left + width].astype(
        int
    )


def mouse(page, kind, x, y, **more):
    page.driver.execute_cdp_cmd(
        "Input.dispatchMouseEvent",
        {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1} | more,
    )


def test_a_slide_is_looked_at_closely_by_mouse_and_keys(page, tmp_path):
    start = open_first(page)
    (left, top, width, height), _ = stage(page, tmp_path / "open.png")
    x, y = left + width / 2, top + height / 2
    mouse(page, "mouseWheel", x, y, deltaX=0, deltaY=-240, button="none")
    page.until(lambda: view(page)[2] > start[2])
    closer = view(page)
    assert closer[2] == pytest.approx(2 * start[2], rel=0.01)
    middle = np.array([width / 2, height / 2])
    assert (middle - closer[:2]) / closer[2] == pytest.approx((middle - start[:2]) / start[2], abs=1)
    mouse(page, "mousePressed", x, y)
    mouse(page, "mouseMoved", x - 60, y + 25)
    mouse(page, "mouseReleased", x - 60, y + 25)
    assert view(page) - closer == pytest.approx([-60, 25, 0], abs=1)
    for key, axis, sign in (("+", 2, 1), ("-", 2, -1), ("\ue014", 0, -1), ("\ue015", 1, -1)):
        before = view(page)
        page.keys(key, css="#stage")
        assert np.sign(view(page) - before)[axis] == sign
    page.keys("0", css="#stage")
    assert view(page) == pytest.approx(start, abs=1)
    first = page.text("#viewer-title")
    page.keys("n", css="#stage")
    assert page.text("#viewer-title") != first
    assert first not in page.js("location.hash")
    page.keys("p", css="#stage")
    assert page.text("#viewer-title") == first
    page.keys(ESCAPE, css="#stage")
    assert not page.find("#viewer").is_displayed()
    assert page.js("document.activeElement.className") == "open", "the keyboard is where it was"


def test_opacity_quantity_and_class_change_what_is_seen(page, run, tmp_path):
    open_first(page)
    slide_id = page.text("#viewer-title")
    found = store.read_heatmap(store.heatmap_folder(run, "gated-attention", slide_id) / "heatmap.zarr")
    pictures = {}
    for percent in (0, 100):
        page.js(
            "(s => { s.value = arguments[0]; s.dispatchEvent(new Event('input')); })"
            "(document.querySelector('dialog .opacity'))",
            percent,
        )
        pictures[percent] = stage(page, tmp_path / f"{percent}.png")[1]
    assert abs(pictures[0] - pictures[100]).mean() > 5
    for quantity in found.values:
        for output in found.outputs:
            for name, value in (("quantity", quantity), ("output", output)):
                select = page.find(f"dialog select.{name}")
                (option,) = [o for o in select.find_elements("css selector", "option") if o.text == value]
                option.click()
            values = found.values[quantity][found.row(output)]
            high = abs(values).max() if quantity == "evidence" else values.max()
            assert float(page.text("#legend-high")) == pytest.approx(high, rel=0.02)
            assert output in page.text("#legend-words")
            pictures[quantity, output] = stage(page, tmp_path / "now.png")[1]
    assert len({each.tobytes() for each in pictures.values()}) >= 5, "maps differ"
    page.keys("h", css="#stage")
    inner = slice(8, -8)  # without the frame of the keyboard's focus
    assert abs(stage(page, tmp_path / "off.png")[1] - pictures[0])[inner, inner].mean() < 0.1


def test_a_link_opens_a_slide_and_the_page_stands_without_the_dialog(page, run):
    last = shown(page, "#cards article")[-2]
    page.open(f"{(run / 'report.html').as_uri()}#slide={last}")
    page.until(lambda: page.text("#viewer-title") == last)
    page.find("#close").click()
    assert page.js("location.hash") == "#slides"


def test_everything_that_can_be_pressed_has_a_name(page):
    names = page.js(
        "[...document.querySelectorAll('button, input, select, a, [role=application]')].map(e =>"
        "  e.getAttribute('aria-label') || e.textContent.trim() || e.querySelector('img')?.alt"
        "  || e.closest('label')?.textContent.trim() || '')"
    )
    assert len(names) > 50
    assert all(names)
    assert page.js("[...document.images].every(each => each.hasAttribute('alt'))")


def test_the_demo_is_seen_in_the_viewer(run):
    from tests.test_browser_view import Page, served

    with open_viewer(ViewConfig(run=run)) as viewer:
        assert len(viewer.slides.ids) == 10
    with chromium() as browser, served(run) as viewer:
        page = Page(browser, viewer.url)
        for quantity in ("evidence", "probability", "attention"):
            page.choose("quantity", quantity)
            assert quantity.split()[0] in browser.text("#legend-text")
        browser.all("#strip button")[0].click()
        page.settled()
        slide_id = browser.text("#title")
        found = store.read_heatmap(store.heatmap_folder(run, "gated-attention", slide_id) / "heatmap.zarr")
        shown_patch = json.loads(browser.js("JSON.stringify(location.hash)"))
        assert "slide=" in shown_patch
        best = found.values["attention"][found.row()].argmax()
        assert f"patch {best} at" in browser.text("#patch-place")
        assert browser.errors() == []
