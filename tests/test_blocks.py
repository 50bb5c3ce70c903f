"""Patches from blocks are the patches of Slide.read, each block is decoded once, damage is counted."""

import dataclasses
import math
import threading
import time
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiffs import texture, write_tiff
from wsi_mil import blocks, geometry
from wsi_mil.blocks import batches, cache, reader, table
from wsi_mil.errors import SlideError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import open_slide

LOSSLESS = ("lzw", "lzw-predictor", "deflate", "deflate-predictor", "none")
JPEG = ("jpeg-420", "jpeg-422", "jpeg-444", "jpeg-rgb", "jpeg-tables")


def plan(slide, mpp=0.5, patch_px=64, overlap_px=0):
    return PatchGeometry.plan(
        width_l0=slide.width_l0, height_l0=slide.height_l0, mpp_l0=slide.mpp_l0, mpp=mpp,
        patch_px=patch_px, overlap_px=overlap_px,
    )  # fmt: skip


def read_all(slide, coords, plan_, **options):
    """All patches, with the reason why they were read through Slide, or ""."""
    notes = []
    got = list(blocks.stream(slide, coords, plan_, note=notes.append, **options))
    index = np.concatenate([each.index for each in got])
    assert (index == np.arange(len(coords))).all()
    return np.concatenate([each.patches for each in got]), "".join(notes)


def reference(slide, coords, plan_):
    return np.stack([slide.read(x, y, plan_.patch_px, plan_.mpp) for x, y in coords.tolist()])


def furthest(a, b):
    return int(np.abs(a.astype(int) - b).max())


# Exactness -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*JPEG, *LOSSLESS])
def test_native_patches_equal_openslide_bit_for_bit(kind, tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(700, 500), kind=kind, block=(128, 112))
    with open_slide(path) as slide, openslide.OpenSlide(path) as raw:
        coords = geometry.grid_l0(plan(slide, overlap_px=20))
        patches, note = read_all(slide, coords, plan(slide, overlap_px=20))
        assert note == ""
        for (x, y), patch in zip(coords.tolist(), patches, strict=True):
            assert (np.asarray(raw.read_region((x, y), 0, (64, 64)).convert("RGB")) == patch).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([*JPEG, *LOSSLESS]),
    block=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(40, 400), st.integers(40, 400)),
    patch_px=st.integers(16, 150),
    where=st.lists(st.tuples(st.integers(-160, 420), st.integers(-160, 420)), min_size=1, max_size=12),
    empty=st.booleans(),
    workers=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    memory_mib=st.sampled_from([0, 1, 256]),
)
def test_any_coords_on_any_slide_equal_slide_read(
    tmp_path, kind, block, size, patch_px, where, empty, workers, batch_size, memory_mib
):
    # OpenSlide's libtiff refuses uncompressed blocks that are not a multiple of 1024 bytes.
    unit = 32 if kind == "none" else 16
    path = write_tiff(
        tmp_path / "h.tiff", texture(*size), kind=kind, block=(unit * block[0], unit * block[1]),
        empty=frozenset({0}) if empty else frozenset(),
    )  # fmt: skip
    with open_slide(path) as slide:
        p = plan(slide, patch_px=patch_px)
        coords = np.array(where)
        patches, note = read_all(
            slide, coords, p, workers=workers, batch_size=batch_size, memory_mib=memory_mib
        )
        assert note == ""
        assert (patches == reference(slide, coords, p)).all()


@pytest.mark.parametrize("block", [(256, 256), (240, 240), (112, 80)])
@pytest.mark.parametrize("factor", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("step", [1, 24])
def test_whole_ratios_are_averages_of_openslides_pixels(tmp_path, block, factor, step):
    image = texture(1100, 900)
    path = write_tiff(tmp_path / "a.tiff", image, kind="jpeg-422", block=block)
    with open_slide(path) as slide, openslide.OpenSlide(path) as raw:
        p = plan(slide, mpp=0.5 * factor, patch_px=40)
        coords = np.array([(x, y) for x in range(0, 500, 97) for y in range(0, 400, 83)]) // step * step
        patches, note = read_all(slide, coords, p)
        assert note == ""
        assert furthest(patches, reference(slide, coords, p)) <= 1
        for (x, y), patch in zip(coords.tolist(), patches, strict=True):
            region = np.asarray(raw.read_region((x, y), 0, (40 * factor, 40 * factor)).convert("RGB"))
            mean = region.reshape(40, factor, 40, factor, 3).mean(axis=(1, 3))
            assert np.abs(patch - mean).max() <= 1


@pytest.mark.parametrize("mpp", [0.61, 0.8, 0.989, 1.1, 1.77])
@pytest.mark.parametrize("block", [(256, 256), (240, 240)])
def test_other_ratios_agree_with_slide_read_and_have_no_seams(tmp_path, mpp, block):
    path = write_tiff(tmp_path / "a.tiff", texture(1100, 900), kind="lzw", block=block)
    with open_slide(path) as slide:
        p = plan(slide, mpp=mpp, patch_px=64, overlap_px=32)
        coords = geometry.grid_l0(p)
        patches, note = read_all(slide, coords, p)
        expected = reference(slide, coords, p)
    assert note == ""
    difference = np.abs(patches.astype(int) - expected)
    assert difference.max() <= 2  # the two filters round their weights differently
    assert difference.mean() < 0.1


def test_levels_of_a_pyramid_are_used_as_slide_read_uses_them(make_slide):
    path = make_slide("p.tiff", width=4096, height=3072, tissue=((0, 0, 4096, 3072),))
    with open_slide(path) as slide:
        assert len(slide.downsamples) > 1
        for mpp in (2.0, 2.3, 4.0):
            p = plan(slide, mpp=mpp, patch_px=96, overlap_px=7)
            coords = geometry.grid_l0(p)
            patches, note = read_all(slide, coords, p)
            assert note == ""
            assert furthest(patches, reference(slide, coords, p)) <= 1


def test_jpeg_2000_agrees_within_the_rounding_of_its_decoders(tmp_path):
    for kind in ("jp2k-rgb", "jp2k-ycbcr"):
        path = write_tiff(tmp_path / f"{kind}.svs", texture(600, 400), kind=kind, block=(240, 240))
        with open_slide(path) as slide:
            coords = geometry.grid_l0(plan(slide))
            patches, note = read_all(slide, coords, plan(slide))
            assert (slide.vendor, note) == ("aperio", "")
            assert furthest(patches, reference(slide, coords, plan(slide))) <= 1


def test_webp_and_its_empty_blocks(tmp_path):
    path = write_tiff(tmp_path / "w.tiff", texture(600, 400), kind="webp", empty=frozenset({1}))
    with open_slide(path) as slide:
        assert slide.reader == "tiffslide"
        coords = geometry.grid_l0(plan(slide))
        patches, note = read_all(slide, coords, plan(slide))
        expected = reference(slide, coords, plan(slide))
    assert note == ""
    blank = (coords[:, 0] >= 256) & (coords[:, 0] < 512) & (coords[:, 1] < 256)
    assert blank.sum() == 16
    assert (patches[~blank] == expected[~blank]).all()
    assert (patches[blank] == 255).all()


@pytest.mark.parametrize(
    ("name", "mpp", "path_taken"),
    [
        ("CMU-1-Small-Region.svs", None, ""),
        ("CMU-1-wrong-mpp.jpeg.tiff", 0.5, ""),
        ("CropBreastSlide.tiff", 0.25, ""),
        ("openslide_fixtures/boxes.tiff", 0.25, ""),
        ("openslide_fixtures/small.svs", 0.25, ""),
        ("cmu1_dicom/level-0-frames-0-30.dcm", None, "read through openslide: dicom slides"),
        ("test3-TRITC 2 (560).ndpi", None, "read through openslide: hamamatsu slides"),
    ],
)
def test_real_slides_through_both_paths(real_slides, name, mpp, path_taken):
    with open_slide(real_slides / name, mpp=mpp) as slide:
        side = min(slide.width_l0, slide.height_l0, 224)
        for ratio in (1, 2, 1.37):
            if side * ratio > min(slide.width_l0, slide.height_l0):
                continue
            p = plan(slide, mpp=slide.mpp_l0 * ratio, patch_px=side)
            coords = geometry.grid_l0(p)[::3]
            patches, note = read_all(slide, coords, p)
            assert note.startswith(path_taken) == bool(note) or not path_taken
            assert bool(note) == bool(path_taken)
            expected = reference(slide, coords, p)
            if slide.downsamples[reader.place(slide, coords, p).level] % 1:
                # OpenSlide takes level-0 locations only: on a level of 1/2.001 it reads between the pixels.
                assert np.abs(patches.astype(int) - expected).mean() < 2
            else:
                assert furthest(patches, expected) <= {1: 0, 2: 1}.get(ratio, 2)


# Once, in order, within memory -----------------------------------------------------------------------


@pytest.fixture
def spy(monkeypatch):
    """Every block cache that is made meanwhile."""
    made = []

    class Spied(cache.BlockCache):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.keys_decoded = []
            made.append(self)

        def _decode(self, key, out):
            self.keys_decoded.append(key)
            return super()._decode(key, out)

    monkeypatch.setattr(reader, "BlockCache", Spied)
    monkeypatch.setattr(batches, "_difference", lambda *_: "")  # it decodes blocks of its own
    return made


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(("mpp", "overlap_px"), [(0.5, 0), (0.5, 40), (1.0, 0), (0.8, 32)])
def test_each_block_is_decoded_once(tmp_path, spy, workers, mpp, overlap_px):
    path = write_tiff(tmp_path / "a.tiff", texture(1500, 1100), block=(112, 112))
    with open_slide(path) as slide:
        p = plan(slide, mpp=mpp, overlap_px=overlap_px)
        read_all(slide, geometry.grid_l0(p), p, workers=workers, batch_size=7)
    decoded = spy[0].keys_decoded
    assert len(decoded) == len(set(decoded)) == spy[0].decoded
    rows, columns = math.ceil(1100 / 112), math.ceil(1500 / 112)
    assert (rows - 1) * (columns - 1) <= len(decoded) <= rows * columns
    assert not spy[0]._entries, "every block is given back"


def test_only_blocks_under_wanted_patches_are_decoded(tmp_path, spy):
    path = write_tiff(tmp_path / "a.tiff", texture(1024, 1024))
    with open_slide(path) as slide:
        read_all(slide, np.array([(300, 300), (700, 10)]), plan(slide))
    assert sorted(spy[0].keys_decoded) == [(0, 2), (1, 1)]


def test_the_memory_budget_holds_and_costs_only_decoding_again(tmp_path, spy):
    path = write_tiff(tmp_path / "a.tiff", texture(4096, 1024), block=(112, 112))
    with open_slide(path) as slide:
        p = plan(slide, patch_px=64)
        coords = geometry.grid_l0(p)
        queue = 4 * 4 * 64 * 64 * 3
        tight = math.ceil((queue + 10 * 112 * 112 * 3) / 2**20)
        patches, _ = read_all(slide, coords, p, batch_size=4, memory_mib=tight)
        assert (patches[::9] == reference(slide, coords[::9], p)).all()
    room = (tight * 2**20 - queue) // (112 * 112 * 3)
    assert spy[0].most <= room < 60
    assert spy[0].decoded > len(set(spy[0].keys_decoded))


def sparse_slide(path: Path, width: int, height: int, block: int = 256) -> Path:
    """A slide of any size whose blocks are all empty but the first."""
    count = math.ceil(width / block) * math.ceil(height / block)
    data = (b"" if k else bytes(block * block * 3) for k in range(count))
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(
            data, shape=(height, width, 3), dtype=np.uint8, tile=(block, block), photometric="rgb",
            resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None,
            compression="adobe_deflate",
        )  # fmt: skip
    return path


def test_a_slide_200_000_pixels_wide_is_swept_so_that_rows_share_blocks(tmp_path):
    path = sparse_slide(tmp_path / "wide.tiff", 200_000, 2000)
    with open_slide(path) as slide:
        p = plan(slide, mpp=0.8, patch_px=256, overlap_px=128)
        coords = geometry.grid_l0(p)
        order = blocks.sweep_order(slide, coords, p, memory_mib=256)
        assert sorted(order.tolist()) == list(range(len(coords)))
        assert (order != np.arange(len(coords))).any()
        placement = reader.place(slide, coords[order], p)
        most = blocks_alive(placement, 256, (256, 256)) * 256 * 256 * 3
        assert most < 256 * 2**20
        assert blocks_alive(reader.place(slide, coords, p), 256, (256, 256)) * 256 * 256 * 3 > 256 * 2**20
        narrow = coords[coords[:, 0] < 20_000]
        assert (blocks.sweep_order(slide, narrow, p, memory_mib=2048) == np.arange(len(narrow))).all()


def blocks_alive(placement, size, block_rc):
    """The most blocks that patches before and after some moment both touch."""
    chunk = reader._chunk(placement, 0, len(placement.left), size, block_rc)
    first, last = {}, {}
    for k in range(len(chunk.x)):
        for key in chunk.keys(k):
            first.setdefault(key, k)
            last[key] = k
    change = np.zeros(len(chunk.x) + 1, dtype=int)
    for key, k in first.items():
        change[k] += 1
        change[last[key] + 1] -= 1
    return int(change.cumsum().max())


def test_batches_come_in_order_while_readers_are_uneven(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tiff", texture(1024, 768))
    rng = np.random.default_rng(0)
    plain = reader.BlockPatches.read

    def uneven(self, chunk, k, out):
        time.sleep(float(rng.uniform(0, 0.003)))
        plain(self, chunk, k, out)

    monkeypatch.setattr(reader.BlockPatches, "read", uneven)
    with open_slide(path) as slide:
        coords = np.random.default_rng(1).permutation(geometry.grid_l0(plan(slide)))
        patches, _ = read_all(slide, coords, plan(slide), workers=4, batch_size=5)
        assert (patches == reference(slide, coords, plan(slide))).all()


def test_a_batch_stays_as_it_is_while_somebody_holds_it(tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(1024, 768))
    with open_slide(path) as slide:
        coords = geometry.grid_l0(plan(slide))
        kept = [batch.patches[1:3] for batch in blocks.stream(slide, coords, plan(slide), batch_size=4)]
        expected = reference(slide, coords, plan(slide))
    assert all((part == expected[4 * i + 1 : 4 * i + 3]).all() for i, part in enumerate(kept))


def test_leaving_the_stream_early_ends_its_threads(tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(1024, 768))
    before = threading.active_count()
    with open_slide(path) as slide:
        batches_ = blocks.stream(slide, geometry.grid_l0(plan(slide)), plan(slide), batch_size=4)
        next(batches_)
        batches_.close()
    assert threading.active_count() == before


def test_no_patches_is_no_batch(tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(256, 256))
    with open_slide(path) as slide:
        assert not list(blocks.stream(slide, np.empty((0, 2), dtype=np.int64), plan(slide)))


# What is not in order --------------------------------------------------------------------------------


def overwrite_block(path: Path, number: int, data: bytes, at: int = 0) -> None:
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[number]
    with path.open("r+b") as file:
        file.seek(offset + at)
        file.write(data)


@pytest.mark.parametrize("kind", ["jpeg-422", "jpeg-tables", "lzw", "deflate-predictor"])
def test_patches_on_a_broken_block_are_left_out_and_said(tmp_path, kind):
    path = write_tiff(tmp_path / "a.tiff", texture(2048, 2048), kind=kind)
    overwrite_block(path, 9, bytes(4000), at=600)  # row 1, column 1
    with open_slide(path) as slide:
        p = plan(slide, overlap_px=16)
        coords = geometry.grid_l0(p)
        got = list(blocks.stream(slide, coords, p, batch_size=32, max_broken=0.05, workers=2))
    touching = (coords + 63 >= 256).all(axis=1) & (coords < 512).all(axis=1)
    broken = [each for batch in got for each in batch.broken]
    assert [each.index for each in broken] == np.flatnonzero(touching).tolist()
    assert all(each.where == "level 0, block (row 1, column 1)" and each.reason for each in broken)
    assert [(each.x_l0, each.y_l0) for each in broken] == [tuple(xy) for xy in coords[touching].tolist()]
    index = np.concatenate([batch.index for batch in got])
    assert index.tolist() == np.flatnonzero(~touching).tolist()
    patches = np.concatenate([batch.patches for batch in got])
    source = write_tiff(tmp_path / "b.tiff", texture(2048, 2048), kind=kind)
    with open_slide(source) as slide:
        assert (patches == reference(slide, coords[~touching], p)).all()


def test_damage_that_libjpeg_only_warns_of_is_damage(tmp_path):
    """Half a block decodes to something with most decoders. OpenSlide refuses, and so do we."""
    path = write_tiff(tmp_path / "a.tiff", texture(512, 512))
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    overwrite_block(path, 0, b"\xff\xd9", at=count // 2)  # the end of the picture, too early
    assert imagecodecs.jpeg8_decode(path.read_bytes()[offset : offset + count]).shape == (256, 256, 3)
    with open_slide(path) as slide:
        p = plan(slide)
        coords = np.array([(0, 0), (300, 300), (300, 0)])
        (batch,) = blocks.stream(slide, coords, p, max_broken=0.5)
    assert [each.index for each in batch.broken] == [0]
    with open_slide(path) as slide, pytest.raises(SlideError):
        slide.read(0, 0, 64, 0.5)


def test_more_damage_than_allowed_fails_the_slide(tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(1024, 1024))
    overwrite_block(path, 5, bytes(4000), at=600)
    with open_slide(path) as slide:
        coords = geometry.grid_l0(plan(slide))
        with pytest.raises(SlideError, match=r"of 256 patches .* 1\.00% .*--max-broken\); patch \d+"):
            list(blocks.stream(slide, coords, plan(slide)))
        assert sum(len(b.patches) for b in blocks.stream(slide, coords, plan(slide), max_broken=0.1)) == 240


def test_a_truncated_file_gives_what_is_there(tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(1024, 1024), kind="none")
    size = path.stat().st_size
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].dataoffsets[0] < 100_000, "the directory comes first"
    with path.open("r+b") as file:
        file.truncate(size // 2)
    with open_slide(path) as slide:
        coords = geometry.grid_l0(plan(slide, patch_px=256))
        got = list(blocks.stream(slide, coords, plan(slide, patch_px=256), max_broken=0.6))
    assert sum(len(batch.patches) for batch in got) == 7
    assert "ends at byte" in got[0].broken[0].reason


def test_a_table_that_lies_is_not_believed(tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(512, 512), kind="jpeg-420")
    with open_slide(path) as slide:
        honest = table.open_table(slide, 0)
        out = np.empty((256, 256, 3), dtype=np.uint8)
        for offsets, counts, words in (
            ((2**62,) * 4, (100,) * 4, "ends at byte"),
            ((8,) * 4, (2**40,) * 4, "ends at byte"),
            ((8,) * 4, (3,) * 4, "."),
        ):
            lying = dataclasses.replace(honest, offsets=offsets, counts=counts)
            with pytest.raises(table.BlockError, match=words):
                lying.decode(0, 0, out)
        honest.close()


def test_a_block_of_another_size_than_the_table_says_is_damage(tmp_path):
    for kind in ("jpeg-420", "webp"):
        path = write_tiff(tmp_path / f"{kind}.tiff", texture(512, 512), kind=kind)
        large = write_tiff(tmp_path / f"{kind}-l.tiff", texture(1024, 1024), kind=kind, block=(512, 512))
        with open_slide(path) as slide, open_slide(large) as other:
            ours, theirs = table.open_table(slide, 0), table.open_table(other, 0)
            swapped = dataclasses.replace(ours, source=theirs.source, offsets=theirs.offsets)
            swapped = dataclasses.replace(swapped, counts=theirs.counts)
            with pytest.raises(table.BlockError):
                swapped.decode(0, 0, np.empty((256, 256, 3), dtype=np.uint8))
            ours.close()
            theirs.close()


def test_a_block_count_of_two_to_the_31_is_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(512, 512))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for name in ("TileOffsets", "TileByteCounts", "ImageWidth", "ImageLength"):
            entry = tiff.pages[0].tags[name].offset
            if name.startswith("Tile"):
                data[entry + 4 : entry + 8] = (2**31).to_bytes(4, "little")
            else:
                data[entry + 8 : entry + 12] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(SlideError), open_slide(path) as slide:
        list(blocks.stream(slide, np.array([(0, 0)]), plan(slide)))
    assert time.perf_counter() - start < 10


def test_every_read_fails_and_the_slide_does(real_slides):
    with open_slide(real_slides / "openslide_fixtures" / "unreadable.svs", mpp=0.5) as slide:
        p = plan(slide, patch_px=16)
        with pytest.raises(SlideError, match="cannot be read"):
            list(blocks.stream(slide, np.array([(0, 0), (0, 0)]), p))


def test_colours_that_no_table_tells_of_send_a_slide_the_slow_way(tmp_path):
    """The stream says RGB, the TIFF says YCbCr: readers differ in whom they believe."""
    path = write_tiff(tmp_path / "a.tiff", texture(512, 512), kind="jpeg-rgb")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        entry = tiff.pages[0].tags["PhotometricInterpretation"].offset
    data[entry + 8] = 6
    path.write_bytes(data)
    with open_slide(path) as slide:
        coords = geometry.grid_l0(plan(slide))
        patches, note = read_all(slide, coords, plan(slide))
        assert "decode to other colours" in note
        assert (patches == reference(slide, coords, plan(slide))).all()


def test_the_slow_path_counts_damage_too(tmp_path, monkeypatch):
    """OpenSlide's handle fails for good after an error; the patches after it are read all the same."""
    path = write_tiff(tmp_path / "a.tiff", texture(1024, 1024))
    overwrite_block(path, 5, bytes(4000), at=600)
    monkeypatch.setattr(table, "PLAIN_VENDORS", ())
    with open_slide(path) as slide:
        coords = geometry.grid_l0(plan(slide))
        got = list(blocks.stream(slide, coords, plan(slide), max_broken=0.1, workers=3))
    assert sum(len(batch.patches) for batch in got) == 240
    assert sum(len(batch.broken) for batch in got) == 16


# Fuzz ------------------------------------------------------------------------------------------------


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, repeat or overwrite: anywhere, or in the first kilobyte, where the directory is."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        span = len(changed) if rng.random() < 0.5 else min(len(changed), 1024)
        at, how = int(rng.integers(0, span)), int(rng.integers(0, 5))
        if how == 0:
            changed[at] ^= 1 << int(rng.integers(0, 8))
        elif how == 1:
            changed[at : at + 4] = rng.integers(0, 256, len(changed[at : at + 4]), dtype=np.uint8).tobytes()
        elif how == 2:
            changed[at : at + 4] = b"\xff" * len(changed[at : at + 4])
        elif how == 3:
            del changed[at : at + int(rng.integers(1, 200))]
        else:
            del changed[max(at, 16) :]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")  # what the libraries below say of such files is theirs
@pytest.mark.parametrize("count", [150, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_files_give_patches_or_a_slide_error(tmp_path, count):
    rng = np.random.default_rng(0)
    kinds = [*JPEG, "lzw", "deflate-predictor", "none", "webp", "jp2k-rgb"]
    originals = {}
    for kind in kinds:
        suffix = ".svs" if kind.startswith("jp2k") else ".tiff"
        path = write_tiff(tmp_path / f"{kind}{suffix}", texture(300, 200), kind=kind, block=(128, 112))
        originals[path] = path.read_bytes()
    slowest, opened, failed = 0.0, 0, 0
    for _ in range(count):
        path = list(originals)[int(rng.integers(0, len(originals)))]
        path.write_bytes(damage(originals[path], rng))
        start = time.perf_counter()
        try:
            with open_slide(path, mpp=0.5) as slide:
                if slide.width_l0 * slide.height_l0 < 10**7:
                    coords = geometry.grid_l0(plan(slide))[:40]
                    for batch in blocks.stream(slide, coords, plan(slide), max_broken=1.0):
                        assert batch.patches.shape[1:] == (64, 64, 3)
                    opened += 1
        except SlideError:
            failed += 1
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 10
    assert opened > count / 10
    assert failed > count / 10
