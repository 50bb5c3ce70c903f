"""What the page may ask for, over HTTP, from this machine only.

Comes in: requests. Goes out: the page's own files, JSON, squares of a slide, values of a heatmap. The first
part of every address is a token; the second a word of ``_ROUTES``; a slide is named by its id and looked up.
It writes nothing, and keeps nothing that grows.
"""

import hmac
import importlib.resources
import json
import os
import secrets
import select
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from wsi_mil.colours import colours_for
from wsi_mil.errors import WsiMilError
from wsi_mil.slide import Slide
from wsi_mil.store import QUANTITIES
from wsi_mil.view import tiles
from wsi_mil.view.slides import RunSlides

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
_HEADERS = {
    # The page loads its own files and nothing else; no other page may frame it or read from it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",  # pictures of patients stay out of the browser's files
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PICTURE_PX = (32, 512)  # of a patch


class Refused(Exception):  # noqa: N818
    """An answer that is no success: a status, and words."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        """Answer ``status`` with ``words``."""
        super().__init__(words)
        self.status = status


class Viewer(ThreadingHTTPServer):
    """Serves one run on 127.0.0.1; ``url`` is what to open. Start it with ``serve_forever``."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, slides: RunSlides, *, port: int = 0, token: bool = True, cache_mib: int = 256) -> None:
        """Bind to ``port`` (0: a free one); with ``token`` the address starts with a secret.

        Raises:
            OSError: the port is taken.
        """
        self.slides = slides
        self.token = secrets.token_urlsafe(16) if token else ""
        self.kept = tiles.Kept(cache_mib << 20)
        # Reading is bound by the processor: more at once are not faster. Threads of their own, not of the
        # many connections: each thread that ever read keeps memory.
        self.readers = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "read")
        self.pages = _pages()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/" + (f"{self.token}/" if self.token else "")

    def server_close(self) -> None:
        """Close the socket and the slides."""
        super().server_close()
        self.readers.shutdown(cancel_futures=True)
        self.slides.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, except that a page went away."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "wsi-mil", ""
    timeout = 120  # an idle connection ends, and its thread
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer one request."""
        try:
            body, kind = self._answer()
            status = HTTPStatus.OK
        except Refused as refused:
            status, (body, kind) = refused.status, _json({"error": str(refused)})
            if status == HTTPStatus.FOUND:
                return self._redirect(str(refused))
        except WsiMilError as error:
            status, (body, kind) = HTTPStatus.NOT_FOUND, _json({"error": str(error)})
        self._send(status, body, kind)
        return None

    def _answer(self) -> tuple[bytes, str]:
        host = self.headers.get("Host", "").rsplit(":", 1)[0] or "127.0.0.1"
        if host not in _HOSTS:  # another site's name that leads here: its scripts must not read slides
            raise Refused(HTTPStatus.FORBIDDEN, f"asked for as {host!r}; open http://127.0.0.1:PORT instead.")
        # Split first, unquote then: %2F in an id is part of its name.
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        if self.server.token:
            if not hmac.compare_digest(parts[0].encode(), self.server.token.encode()):
                raise Refused(
                    HTTPStatus.FORBIDDEN,
                    "the address lacks the right token; open the whole one that `wsi-mil view` printed.",
                )
            if len(parts) == 1:
                raise Refused(HTTPStatus.FOUND, f"/{quote(parts[0], safe='')}/")
            parts = parts[1:]
        if parts == [""]:
            parts = ["index.html"]
        if len(parts) == 1 and parts[0] in self.server.pages:
            return self.server.pages[parts[0]]
        if len(parts) == 1 and parts[0] == "slides.json":
            return _json(self.server.slides.rows())
        if len(parts) >= 3 and parts[0] == "slides" and parts[2] in _ROUTES:
            if parts[1] not in self.server.slides:
                raise Refused(HTTPStatus.NOT_FOUND, f"the run has no slide {parts[1]!r}.")
            return _ROUTES[parts[2]](self, parts[1], parts[3:])
        raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address.")

    def _info(self, slide_id: str, rest: list[str]) -> tuple[bytes, str]:
        if rest:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address.")
        return _json(self.server.slides.describe(slide_id))

    def _square(self, slide_id: str, rest: list[str]) -> tuple[bytes, str]:
        depth, column, row = self._numbers(rest, 3)

        def pixels(slide: Slide) -> NDArray[np.uint8]:
            columns, rows = tiles.counts(slide.width_l0, slide.height_l0, min(depth, 40))
            if depth > tiles.coarsest(slide) or column >= columns or row >= rows:
                raise Refused(HTTPStatus.NOT_FOUND, "that is beyond the slide.")
            return tiles.read_square(slide, depth, column, row)

        key = slide_id, depth, column, row
        return self.server.kept.get(key, lambda: self._read(slide_id, pixels)), "image/jpeg"

    def _patch(self, slide_id: str, rest: list[str]) -> tuple[bytes, str]:
        """Return a picture of patch N of a heatmap: slides/ID/patch/MODEL/N/PIXELS."""
        if len(rest) != 3:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address.")
        number, px = self._numbers(rest[1:], 2)
        heatmap = self.server.slides.heatmap(slide_id, rest[0])
        if number >= len(heatmap.coords) or not _PICTURE_PX[0] <= px <= _PICTURE_PX[1]:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such patch, or not in that size.")
        geometry = heatmap.geometry
        x, y = heatmap.coords[number].tolist()

        def pixels(slide: Slide) -> NDArray[np.uint8]:
            return slide.read(x, y, px, geometry.patch_size_l0 * slide.mpp_l0 / px)

        key = slide_id, rest[0], x, y, px
        return self.server.kept.get(key, lambda: self._read(slide_id, pixels)), "image/jpeg"

    def _heat(self, slide_id: str, rest: list[str]) -> tuple[bytes, str]:
        """Return coords, (N + M, 2) int32, or a quantity's values, (C, N + M) float32; little-endian.

        slides/ID/heat/MODEL/coords or slides/ID/heat/MODEL/QUANTITY; the M dense patches come last.
        """
        if len(rest) != 2:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address.")
        heatmap = self.server.slides.heatmap(slide_id, rest[0])
        if rest[1] == "coords":
            coords = np.concatenate([heatmap.coords, heatmap.dense_coords])
            return coords.astype("<i4").tobytes(), "application/octet-stream"
        if rest[1] not in heatmap.values:
            raise Refused(HTTPStatus.NOT_FOUND, f"the heatmap has no {rest[1]!r}.")
        values = heatmap.values[rest[1]]
        dense = heatmap.dense_values.get(rest[1], np.zeros((len(values), 0), np.float32))
        return np.concatenate([values, dense], axis=1).astype("<f4").tobytes(), "application/octet-stream"

    def _numbers(self, parts: list[str], count: int) -> list[int]:
        if len(parts) != count or not all(
            each.isascii() and each.isdigit() and len(each) < 8 for each in parts
        ):
            raise Refused(HTTPStatus.NOT_FOUND, f"wanted {count} numbers.")
        return [int(each) for each in parts]

    def _read(self, slide_id: str, pixels: Callable[[Slide], NDArray[np.uint8]]) -> bytes:
        """Read pixels when it is this answer's turn, unless nobody waits any more: panning leaves many."""

        def turn() -> bytes:
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and self.connection.recv(1, socket.MSG_PEEK) == b"":
                raise ConnectionAbortedError
            with self.server.slides.open(slide_id) as slide:
                return tiles.to_jpeg(pixels(slide))

        return self.server.readers.submit(turn).result()

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, where: str) -> None:
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Write no line for every request."""


_ROUTES: dict[str, Callable[[_Handler, str, list[str]], tuple[bytes, str]]] = {
    "info.json": _Handler._info,
    "square": _Handler._square,
    "patch": _Handler._patch,
    "heat": _Handler._heat,
}


def _pages() -> dict[str, tuple[bytes, str]]:
    """Return the page's own files by name, and the palettes: what is not in here is not served."""
    folder = importlib.resources.files("wsi_mil.view") / "static"
    found = {}
    for each in folder.iterdir():
        kind = _TYPES.get(each.name[each.name.rfind(".") :])
        if kind is not None:
            found[each.name] = each.read_bytes(), kind
    steps = np.linspace(0, 1, 256)
    colours = {
        name: np.rint(colours_for(name)(steps)[:, :3] * 255).astype(int).tolist() for name in QUANTITIES
    }
    return found | {"palettes.json": _json(colours)}


def _json(content: object) -> tuple[bytes, str]:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode(), "application/json"
