"""The contact sheet in a browser: it sorts, filters and shows its pictures without any other file."""

import shutil
import subprocess

import pytest

from wsi_mil import tile
from wsi_mil.config import TileConfig

pytestmark = pytest.mark.browser


def test_cards_are_sorted_by_what_to_look_at(make_slide, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium: the contact sheet was NOT looked at")
    make_slide("large.tiff", width=768, height=512, tissue=((128, 128, 500, 400),))
    make_slide("blank.tiff", width=768, height=512, tissue=())
    run = tmp_path / "run"
    tile.run(TileConfig(slides=tmp_path / "slides", run=run, tissue_mpp=4, min_area_um2=400, workers=1))
    page = run / "patches" / "contact_sheet.html"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "2 of 2 shown" in dom, "the script ran"
    cards = dom[dom.index('<main id="cards">') :]
    assert cards.index('data-name="blank"') < cards.index('data-name="large"'), "flagged first"
