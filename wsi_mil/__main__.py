"""``python -m wsi_mil`` is ``wsi-mil``."""

import sys

from wsi_mil.cli import main

if __name__ == "__main__":
    sys.exit(main())
