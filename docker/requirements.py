"""Write what the image installs: python requirements.py pyproject.toml constraints.txt [EXTRAS].

Comes in: the project's two files, and names of extras, joined by commas. Goes out, in the working directory:
requirements.txt and pins.txt, the dependencies of the project and of these extras, and the versions that may
concern them. They stay the same where the rest of the two files changes: Docker then installs nothing again.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
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


def pins(pyproject: str, constraints: str, extras: Sequence[str] = ()) -> list[str]:
    """Return the lines of a constraints file without those of packages that only other extras ask for."""
    every_extra = tomllib.loads(pyproject)["project"].get("optional-dependencies", {})
    wanted = _names(requirements(pyproject, extras))
    others = _names(requirements(pyproject, list(every_extra))) - wanted
    lines = [line for line in constraints.splitlines() if line and line[0] != "#"]
    return [line for line in lines if not _names([line]) & others]


def _names(requirements: Iterable[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", each) for each in requirements)
    return {match[0].lower().replace("_", "-") for match in found if match}


if __name__ == "__main__":
    texts = [Path(each).read_text(encoding="utf-8") for each in sys.argv[1:3]]
    names = [name for name in "".join(sys.argv[3:4]).split(",") if name]
    try:
        Path("requirements.txt").write_text("\n".join(requirements(texts[0], names)) + "\n", encoding="utf-8")
        Path("pins.txt").write_text("\n".join(pins(*texts, names)) + "\n", encoding="utf-8")
    except KeyError as error:
        sys.exit(f"requirements.py: EXTRAS: {error.args[0]}")
