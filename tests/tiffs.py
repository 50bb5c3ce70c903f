"""TIFF slides of every kind that scanners write, from an array: blocks, colours, compressions, gaps."""

from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

APERIO = (
    "Aperio Image Library v12.0.0\r\n{w}x{h} [0,0 {w}x{h}] ({b}x{b}) JPEG/RGB Q=75|AppMag = 20|MPP = {mpp:g}"
)
WHITE_AND_PINK = ((240, 238, 242), (190, 90, 150))


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return noise at several scales with sharp edges: what a wrong pixel or subsampling shows up in."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cell in (64, 16, 4, 1):
        shape = -(-height // cell), -(-width // cell), 3
        noise = rng.normal(0, 18, shape).repeat(cell, axis=0).repeat(cell, axis=1)
        image += noise[:height, :width]
    return np.clip(image + np.array([180, 110, 160]), 0, 255).astype(np.uint8)


def blocks_of(image: np.ndarray, block_width: int, block_height: int) -> Iterator[np.ndarray]:
    """Yield the blocks row by row, padded at the edges with grey as scanners do."""
    height, width = image.shape[:2]
    for top in range(0, height, block_height):
        for left in range(0, width, block_width):
            block = np.full((block_height, block_width, 3), 128, dtype=np.uint8)
            part = image[top : top + block_height, left : left + block_width]
            block[: part.shape[0], : part.shape[1]] = part
            yield block


def write_tiff(
    path: Path,
    image: np.ndarray,
    *,
    mpp: float = 0.5,
    block: tuple[int, int] = (256, 256),
    kind: str = "jpeg-420",
    quality: int = 85,
    empty: frozenset[int] = frozenset(),
    icc: bytes | None = None,
) -> Path:
    """Write one level; ``block`` is (width, height), ``empty`` the numbers of blocks without data.

    ``kind``: jpeg-420, jpeg-422, jpeg-444, jpeg-rgb, jpeg-tables, lzw, lzw-predictor, deflate,
    deflate-predictor, none, webp, jp2k-ycbcr, jp2k-rgb (the last two need .svs).
    ``icc``: a profile to put in.
    """
    height, width = image.shape[:2]
    encode, options = _KINDS[kind](quality)
    data = [encode(each) for each in blocks_of(image, *block)]
    if kind == "jpeg-tables":
        options["jpegtables"], data = _abbreviate(data)
    for number in empty:
        data[number] = b""
    per_cm = 10_000 / mpp
    if path.suffix == ".svs":
        extra = {"description": APERIO.format(w=width, h=height, b=block[0], mpp=mpp)}
    else:
        extra = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter(data), shape=image.shape, dtype=np.uint8, tile=(block[1], block[0]), metadata=None,
            iccprofile=icc, **options, **extra,
        )  # fmt: skip
    return path


def _jpeg(subsampling: str, photometric: str = "ycbcr"):
    def make(quality):
        colour = "RGB" if photometric == "rgb" else "YCBCR"

        def encode(block):
            return imagecodecs.jpeg8_encode(
                block, level=quality, colorspace="RGB", outcolorspace=colour, subsampling=subsampling
            )

        options = {"photometric": photometric, "compression": "jpeg"}
        if photometric == "rgb":
            options["compressionargs"] = {"outcolorspace": "RGB"}
        if photometric == "ycbcr":
            options["subsampling"] = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[subsampling]
        return encode, options

    return make


def _difference(block):
    return imagecodecs.delta_encode(block, axis=-2)


def _lossless(compression, encoder, predictor=False):
    def make(_quality):
        def encode(block):
            return encoder(np.ascontiguousarray(_difference(block) if predictor else block).tobytes())

        options = {"photometric": "rgb", "compression": compression}
        return encode, options | ({"predictor": 2} if predictor else {})

    return make


def _jp2k(compression, ycbcr):
    def make(quality):
        def encode(block):
            if ycbcr:
                block = _ycbcr(block)
            return imagecodecs.jpeg2k_encode(
                block, level=quality, codecformat="J2K", mct=not ycbcr, reversible=False
            )

        return encode, {"photometric": "rgb", "compression": compression}

    return make


def _ycbcr(block):
    r, g, b = (block[..., i].astype(float) for i in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.clip(np.rint(np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], -1)), 0, 255).astype(
        np.uint8
    )


_KINDS = {
    "jpeg-420": _jpeg("420"),
    "jpeg-422": _jpeg("422"),
    "jpeg-444": _jpeg("444"),
    "jpeg-rgb": _jpeg("444", "rgb"),
    "jpeg-tables": _jpeg("420"),
    "lzw": _lossless("lzw", imagecodecs.lzw_encode),
    "lzw-predictor": _lossless("lzw", imagecodecs.lzw_encode, predictor=True),
    "deflate": _lossless("adobe_deflate", imagecodecs.zlib_encode),
    "deflate-predictor": _lossless("adobe_deflate", imagecodecs.zlib_encode, predictor=True),
    "none": _lossless(None, bytes),
    "webp": lambda quality: (
        lambda block: imagecodecs.webp_encode(block, level=quality),
        {"photometric": "rgb", "compression": "webp"},
    ),
    "jp2k-ycbcr": _jp2k(33003, True),
    "jp2k-rgb": _jp2k(33005, False),
}


def _abbreviate(streams: list[bytes]) -> tuple[bytes, list[bytes]]:
    """Move the tables (DQT, DHT) of JPEG streams into one stream of tables, as TIFF's JPEGTables has them."""
    tables, short = b"", []
    for stream in streams:
        kept, found, at = b"", b"", 2
        while stream[at + 1] != 0xDA:
            end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
            if stream[at + 1] in {0xDB, 0xC4}:
                found += stream[at:end]
            else:
                kept += stream[at:end]
            at = end
        assert not tables or tables == found, "all blocks share their tables"
        tables = found
        short.append(b"\xff\xd8" + kept + stream[at:])
    return b"\xff\xd8" + tables + b"\xff\xd9", short


_SCN_IMAGE = """<image uuid="{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>
<device model="m" version="1"/>
<pixels sizeX="{w}" sizeY="{h}">{levels}</pixels>
<view sizeX="{wide}" sizeY="{high}" offsetX="{x}" offsetY="{y}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>{power}</objective></objectiveSettings><illuminationSettings>
<illuminationSource>brightfield</illuminationSource><numericalAperture>0.4</numericalAperture>
</illuminationSettings></scanSettings></image>"""


def write_scn(
    path: Path, image: np.ndarray, *, offset: tuple[int, int], glass: tuple[int, int], mpp: float = 0.5
) -> Path:
    """Write a Leica slide whose scanned part lies at ``offset`` (x, y) on a ``glass`` (width, height).

    Readers see the whole glass, and say where the scanned part is (openslide.bounds-x, ...). Two levels.
    """
    height, width = image.shape[:2]
    nm = round(mpp * 1000)
    small = image[: height // 4 * 4, : width // 4 * 4].reshape(height // 4, 4, width // 4, 4, 3)
    small = np.rint(small.mean(axis=(1, 3))).astype(np.uint8)
    macro = np.full((64, 64, 3), 240, np.uint8)
    levels = [(64, 64, 0, 0), (width, height, 0, 1), (width // 4, height // 4, 1, 2)]
    dimensions = [f'<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{ifd}"/>' for w, h, r, ifd in levels]
    whole = {"wide": glass[0] * nm, "high": glass[1] * nm}
    views = _SCN_IMAGE.format(name="macro", w=64, h=64, levels=dimensions[0], x=0, y=0, power=1, **whole)
    views += _SCN_IMAGE.format(
        name="main", w=width, h=height, levels="".join(dimensions[1:]), wide=width * nm, high=height * nm,
        x=offset[0] * nm, y=offset[1] * nm, power=20,
    )  # fmt: skip
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{glass[0] * nm}" sizeY="{glass[1] * nm}"><barcode/>{views}</collection></scn>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, pixels in enumerate((macro, image, small)):
            per_cm = 10_000 / mpp / (4 if level == 2 else 1)
            tiff.write(
                pixels, tile=(256, 256), photometric="rgb", compression="adobe_deflate", metadata=None,
                resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
                description=None if level else text,
            )  # fmt: skip
    return path
