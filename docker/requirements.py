"""Print what a pyproject.toml requires: python requirements.py pyproject.toml [EXTRAS].

EXTRAS are names of its extras, joined by commas. The image installs its dependencies by this list, before the
source is there, so that a change of the source does not install them again.
"""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(pyproject: str, extras: Sequence[str] = ()) -> list[str]:
    """Return the dependencies in a pyproject.toml's text and those of ``extras``.

    Raises:
        KeyError: it has no such extra; names those that there are.
    """
    project = tomllib.loads(pyproject)["project"]
    known = project.get("optional-dependencies", {})
    unknown = [name for name in extras if name not in known]
    if unknown:
        raise KeyError(f"no extra {', '.join(unknown)}; there are: {', '.join(known)}")
    return [*project["dependencies"], *(each for name in extras for each in known[name])]


if __name__ == "__main__":
    names = [name for name in sys.argv[2].split(",") if name] if len(sys.argv) > 2 else []
    try:
        print("\n".join(requirements(Path(sys.argv[1]).read_text(encoding="utf-8"), names)))
    except KeyError as error:
        sys.exit(f"requirements.py: EXTRAS: {error.args[0]}")
