"""What is installed: a checkout has every file, a wheel and the image only those that are declared."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_file_of_the_package_is_declared():
    """An installed wsi-mil without its templates fails where a checkout does not."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    data = [
        path
        for path in (ROOT / "wsi_mil").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    ]
    assert len(data) > 5
    for path in data:
        packages = [
            (name, path.relative_to(ROOT / name.replace(".", "/")))
            for name in declared
            if path.is_relative_to(ROOT / name.replace(".", "/"))
        ]
        # A star of setuptools does not reach into folders.
        assert any(
            fnmatch(str(rest), pattern) and str(rest).count("/") == pattern.count("/")
            for name, rest in packages
            for pattern in declared[name]
        ), f"{path.relative_to(ROOT)}: not in [tool.setuptools.package-data]; a wheel would lack it"
