"""A finer map of the top regions: patches between those of the grid, embedded for it.

Comes in: values of a slide's patches, the open slide and the encoder. Goes out: coords and features of more
patches. They are in no bag: only the picture becomes finer, the prediction does not change.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from wsi_mil import embed, store
from wsi_mil.encoders import Encoder
from wsi_mil.errors import FormatError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.heatmap.export import threshold
from wsi_mil.slide import Slide


def finer(
    coords: NDArray[np.int64],
    geometry: PatchGeometry,
    values: NDArray[np.float32],
    part: float,
    overlap: float,
) -> NDArray[np.int64]:
    """Return the corners (M, 2) of patches that overlap by ``overlap`` in the highest ``part`` of them.

    Their step is (1 - overlap) of a patch's side. All of them lie on the slide and reach into a patch of the
    top region; those that are there already are left out.
    """
    step = geometry.patch_size_l0 * (1 - overlap)
    reach = int(np.ceil(geometry.patch_size_l0 / step)) - 1
    offsets = np.arange(-reach, reach + 1) * step
    top = coords[values >= threshold(values, part)]
    around = np.stack(np.meshgrid(offsets, offsets), axis=-1).reshape(-1, 2)
    found = np.rint((top[:, None] + around[None]).reshape(-1, 2)).astype(np.int64)
    limit = np.array([geometry.width_l0, geometry.height_l0]) + 0.5 - geometry.patch_size_l0
    found = np.unique(found[((found >= 0) & (found <= limit)).all(axis=1)], axis=0)
    # Neighbours' offsets are rounded apart by a pixel at most: the first of such is kept.
    cells = np.rint(np.concatenate([coords, found]) / max(2.0, step / 4)).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    chosen: NDArray[np.int64] = found[np.sort(first[first >= len(coords)]) - len(coords)]
    return chosen


def embed_finer(
    slide: Slide, features: store.Features, coords: NDArray[np.int64], encoder: Encoder
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Return the coords and features of the patches at ``coords`` that could be read.

    Raises:
        FormatError: the encoder has other weights than the slide's features were made with.
        SlideError: the slide cannot be read there.
    """
    if encoder.weights_digest != features.weights_digest:
        raise FormatError(
            f"--overlap: {encoder.name} has weights {encoder.weights_digest} here, and the features are of "
            f"weights {features.weights_digest}; give those with --weights or --weights-dir."
        )
    patches = store.Patches(
        slide_id=features.slide_id,
        slide_path=features.slide_path,
        reader=features.reader,
        mpp_source="features",
        geometry=dataclasses.replace(features.geometry),
        coords=coords,
        tissue_fraction=np.ones(len(coords), np.float32),
        record={},
    )
    made = embed.embed_slide(slide, patches, encoder)
    return coords[made.index], made.features
