"""The command: look at all slides, print, and say by the exit code whether anything is wrong."""

import json

from wsi_mil.config import InspectConfig
from wsi_mil.inspect.cohort import inspect_slides
from wsi_mil.inspect.screen import show


def run(config: InspectConfig) -> int:
    """Print what is known of the slides; return the exit code: 1 where anything is wrong, else 0.

    Wrong are a slide that will fail, an id that several slides have, and a label without a slide.

    Raises:
        ConfigError, LabelError: as ``inspect_slides``.
    """
    cohort = inspect_slides(config)
    if config.json:
        print(json.dumps(cohort.to_json(), indent=2, ensure_ascii=False))
    else:
        show(cohort)
    return 1 if cohort.wrong else 0
