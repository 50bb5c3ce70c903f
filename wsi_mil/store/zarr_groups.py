"""One slide's features as a zarr v3 group: ``features``, ``coords`` and ``left_out``, in shards (FORMATS.md).

Comes in: blocks of rows, in order. Goes out: arrays first and the group's own ``zarr.json`` last, so that the
group is there only when it is whole. Where it lies is the business of ``zarr_features``.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec

from wsi_mil.errors import FormatError, WsiMilError
from wsi_mil.store import attributes as attrs
from wsi_mil.store import checksum
from wsi_mil.store.disk import refusal, refused_advice
from wsi_mil.store.hdf5 import CHUNK_ROWS, DAMAGE
from wsi_mil.store.items import Features, FeaturesHead, FeaturesSummary

SHARD_BYTES = 16 * 2**20
"""Most bytes of values in one object: a slide of 10,000 patches is two to four of them."""


def write_group(
    at: Callable[[str], Store],
    head: FeaturesHead,
    coords: NDArray[np.int64],
    blocks: Iterable[NDArray[np.float16]],
    left_out: Iterable[Mapping[str, Any]],
) -> None:
    """Write a slide's group; ``at`` opens a store at a path below it (``""`` is the group itself)."""
    texts = [json.dumps(each) for each in left_out]
    attributes = attrs.of_features(head, len(texts))
    sums = {
        "features": _write_rows(
            at("features"), (len(coords), head.dim), "<f2", blocks, attributes["features"]
        ),
        "coords": _write_rows(at("coords"), (len(coords), 2), "<i8", [coords], attributes["coords"]),
    }
    if texts:
        sums["left_out"] = checksum.of_texts(texts)
        array = zarr.create_array(
            at("left_out"),
            shape=(len(texts),),
            dtype="str",
            chunks=(len(texts),),
            attributes={"checksum": sums["left_out"]},
        )
        array[:] = np.array(texts, dtype=object)
    for name, each in sums.items():
        attributes[name]["checksum"] = each
    root = attributes[""] | {"attributes_checksum": checksum.of_attributes(attributes)}
    zarr.create_group(at(""), attributes=root, zarr_format=3)


def _write_rows(
    store: Store,
    shape: tuple[int, int],
    dtype: str,
    blocks: Iterable[NDArray[Any]],
    attributes: Mapping[str, Any],
) -> str:
    """Write an array shard by shard and return its checksum."""
    row = max(1, shape[1] * np.dtype(dtype).itemsize)
    chunk = max(1, min(CHUNK_ROWS, shape[0]))
    shard = chunk * max(1, min(SHARD_BYTES // (chunk * row), -(-shape[0] // chunk)))
    array = zarr.create_array(
        store,
        shape=shape,
        dtype=dtype,
        chunks=(chunk, max(1, shape[1])),
        shards=(shard, max(1, shape[1])),
        compressors=_codecs(),
        # No value of ours equals it: an object that went missing shows, and is not taken for zeros.
        fill_value=np.nan if dtype == "<f2" else -1,
    )
    total, start = checksum.Checksum(), 0
    for rows in _regroup(blocks, shard):
        array[start : start + len(rows)] = rows
        total.update(rows.astype(dtype, copy=False))
        start += len(rows)
    array.attrs.update({**attributes, "checksum": total.text()})
    return total.text()


def _codecs() -> list[Any]:
    """Return how a chunk is made smaller, and the checksum by which every zarr reader sees damage."""
    return [ZstdCodec(level=1), Crc32cCodec()]  # measured: benchmarks/RESULTS.md


def _regroup(blocks: Iterable[NDArray[Any]], size: int) -> Iterator[NDArray[Any]]:
    """Yield the same rows in blocks of ``size``; the last may be shorter."""
    held: list[NDArray[Any]] = []
    count = 0
    for block in blocks:
        start = 0
        while start < len(block):
            part = block[start : start + size - count]
            held.append(part)
            count, start = count + len(part), start + len(part)
            if count == size:
                yield held[0] if len(held) == 1 else np.concatenate(held)
                held, count = [], 0
    if count:
        yield held[0] if len(held) == 1 else np.concatenate(held)


def read_group(group: zarr.Group, where: str) -> Features:
    """Return a slide's features.

    Raises:
        FormatError: other values than those that were written.
    """
    return attrs.to_features(
        where,
        group.attrs.asdict(),
        coords=_array(group, "coords"),
        features=_array(group, "features"),
        checksum=group["features"].attrs.get("checksum"),
        left_out=left_out_texts(group),
    )


def summarise_group(group: zarr.Group) -> FeaturesSummary:
    """Return what a slide's features say about themselves."""
    shape: Sequence[int] = group["features"].shape  # type: ignore[union-attr]
    return attrs.to_summary(read_attributes(group), tuple(shape))


def read_attributes(group: zarr.Group) -> attrs.Attributes:
    """Return the attributes of the group and of each array."""
    found = {"": group.attrs.asdict()}
    names = ["coords", "features"] + (["left_out"] if found[""].get("left_out") else [])
    return found | {name: group[name].attrs.asdict() for name in names}


def left_out_texts(group: zarr.Group) -> list[str]:
    """Return the JSON texts of the patches that are left out of a slide's features."""
    return [str(each) for each in _array(group, "left_out")] if group.attrs.get("left_out") else []


def _array(group: zarr.Group, name: str) -> NDArray[Any]:
    return np.asarray(group[name][:])  # type: ignore[index]


@contextmanager
def opened(store: Store, where: str, advice: str) -> Iterator[zarr.Group]:
    """Open a slide's group for reading after checking what it says it is.

    Raises:
        FormatError: it is not what it should be, or the block meets something that it should not hold.
    """
    try:
        group = zarr.open_group(store, mode="r", zarr_format=3)
        attrs.check_format(where, group.attrs.asdict(), attrs.FEATURES)
        yield group
    except WsiMilError:
        raise
    except FileNotFoundError as error:
        raise FormatError(f"{where}: no such features; {advice}.") from error
    except PermissionError as error:
        raise FormatError(f"{where}: no permission to read it; change its permissions (chmod).") from error
    except DAMAGE as error:
        if said := refusal(error):
            raise FormatError(f"{where}: cannot be read ({said}); {refused_advice(error)}.") from error
        raise FormatError(
            f"{where}: damaged, or not as FORMATS.md says ({error}); remove it and run the stage again."
        ) from error
