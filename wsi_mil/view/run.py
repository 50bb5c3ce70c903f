"""Serve a run to the browser until Ctrl-C.

Comes in: a run folder. Goes out: the address of a page. Nothing is written.
"""

from wsi_mil.config import ViewConfig
from wsi_mil.errors import ConfigError
from wsi_mil.locate import slide_finder
from wsi_mil.view.server import Viewer
from wsi_mil.view.slides import RunSlides


def run(config: ViewConfig) -> int:
    """Serve the run's slides and heatmaps on this machine until interrupted, then return 0.

    Raises:
        ConfigError: there is no such folder, no slide in it or in ``slides``, or the port is taken.
        LabelError: ``slides`` is a manifest that is wrong.
    """
    with open_viewer(config) as viewer:
        slides, port = viewer.slides, viewer.server_address[1]
        heatmaps = len(set().union(*slides.heatmaps.values()))
        print(f"{len(slides.ids)} slides, {heatmaps} with a heatmap. Open:\n\n  {viewer.url}\n", flush=True)
        print(
            f"From another computer: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE, then the same address. "
            "Ctrl-C ends it.",
            flush=True,
        )
        try:
            viewer.serve_forever()
        except KeyboardInterrupt:
            print("ended.")
    return 0


def open_viewer(config: ViewConfig) -> Viewer:
    """Return a server that is bound and not yet serving; close it after use.

    Raises:
        ConfigError, LabelError: as ``run``.
    """
    if not config.run.is_dir():
        raise ConfigError(f"--run {config.run}: no such folder; give the one that `wsi-mil tile` wrote to.")
    slides = RunSlides(config.run, slide_finder(config.slides))
    if not slides.ids:
        raise ConfigError(f"--run {config.run}: no slides there; run `wsi-mil tile` first.")
    try:
        return Viewer(slides, port=config.port, token=config.token, cache_mib=config.cache_mib)
    except OSError as error:
        raise ConfigError(
            f"--port {config.port}: cannot be used ({error.strerror}); --port 0 takes a free one."
        ) from error
