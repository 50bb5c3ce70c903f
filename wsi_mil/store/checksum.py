"""Checksums of what is stored: BLAKE2b with 128 bits, written as ``blake2b-128:<32 hexadecimal digits>``.

An array's is over its values in row-major order as little-endian bytes; texts are joined by line feeds; the
attributes of a file are one JSON text with sorted keys. So each can be computed again without this program.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PREFIX = "blake2b-128:"


class Checksum:
    """The checksum of an array that comes in blocks of rows."""

    def __init__(self) -> None:
        """Start with no rows."""
        self._hash = hashlib.blake2b(digest_size=16)

    def update(self, rows: NDArray[Any]) -> None:
        """Add the next rows."""
        little = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
        if little.size:
            self._hash.update(little.reshape(-1).view(np.uint8).data)

    def text(self) -> str:
        """Return the checksum of all rows so far."""
        return _PREFIX + self._hash.hexdigest()


def of_array(array: NDArray[Any]) -> str:
    """Return the checksum of an array's values."""
    checksum = Checksum()
    checksum.update(array)
    return checksum.text()


def of_texts(texts: Iterable[str]) -> str:
    """Return the checksum of texts (UTF-8, joined by line feeds)."""
    return _PREFIX + hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()


def of_attributes(attributes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the checksum of the attributes of a file's objects (``""`` is the root), by object and name.

    The root's ``attributes_checksum`` itself is not part of it.
    """
    plain = {
        owner: {
            name: _plain(value)
            for name, value in each.items()
            if (owner, name) != ("", "attributes_checksum")
        }
        for owner, each in attributes.items()
    }
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return _PREFIX + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    """Return an attribute as JSON knows it, whatever library it came from."""
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
