"""Write the files of other tools exactly as the tools do: names, datasets, types, chunks, attributes.

Studied in the code of CLAM 53e2409, TRIDENT a91fa84, STAMP c54ce06, slideflow 7f5a40b, AtlasPatch 31146af,
slide2vec 7cfa6bf, hs2p 8520c06 and torchmil a49f95d. A slide is ``(coords, features)``: level-0 corners
int64 and float32 values.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import torch

WIDTH, HEIGHT, MPP_L0 = 8000, 6000, 0.25
SIZE_L0, PATCH_PX, MPP = 512, 256, 0.5

Slides = dict[str, tuple[np.ndarray, np.ndarray]]


def make_slides(dim: int = 8, seed: int = 0, counts: tuple[int, ...] = (24, 9)) -> Slides:
    """Slides a, b, ... with patches on the grid of 512 level-0 pixels, row by row, and features for them."""
    rng = np.random.default_rng(seed)
    slides = {}
    for name, count in zip("abcdefghijklmnop", counts, strict=False):
        cells = np.sort(rng.choice(15 * 11, count, replace=False))
        if count > 3:
            cells[:3] = 0, 1, 15  # neighbours in a row and in a column
            cells = np.unique(cells)
        coords = np.stack([cells % 15, cells // 15], axis=1).astype(np.int64) * SIZE_L0
        slides[name] = coords, rng.normal(0, 2, (len(coords), dim)).astype(np.float32)
    return slides


def _growing(file: h5py.File | h5py.Group, name: str, values: np.ndarray, rows: int) -> h5py.Dataset:
    return file.create_dataset(
        name, data=values, chunks=(rows, *values.shape[1:]), maxshape=(None, *values.shape[1:])
    )


def write_clam(
    folder: Path, slides: Slides, *, level: int = 0, downsample: float = 1.0, side: int = SIZE_L0
) -> None:
    for kind in ("patches", "h5_files", "pt_files"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    size = np.array([int(WIDTH / downsample), int(HEIGHT / downsample)])
    for name, (coords, values) in slides.items():
        with h5py.File(folder / "patches" / f"{name}.h5", "w") as file:
            dataset = _growing(file, "coords", coords, 1)
            dataset.attrs.update(
                patch_size=side, patch_level=level, downsample=(downsample, downsample),
                downsampled_level_dim=tuple(size), level_dim=tuple(size),
                name=name, save_path="/results/patches",
            )  # fmt: skip
        with h5py.File(folder / "h5_files" / f"{name}.h5", "w") as file:
            _growing(file, "features", values, 32)
            _growing(file, "coords", coords.astype(np.int32), 32)
        torch.save(torch.from_numpy(values), folder / "pt_files" / f"{name}.pt")


def write_trident(folder: Path, slides: Slides, encoder: str = "uni_v1", **changes: object) -> None:
    base = folder / "20x_256px_0px_overlap"
    (base / "patches").mkdir(parents=True, exist_ok=True)
    (base / f"features_{encoder}").mkdir(exist_ok=True)
    (base / "_config_coords.json").write_text("{}")
    for name, (coords, values) in slides.items():
        attributes = {
            "patch_size": PATCH_PX, "patch_size_level0": 512, "level0_magnification": 40,
            "target_magnification": 20, "overlap": 0, "name": name, "savetodir": str(base),
            "level0_width": WIDTH, "level0_height": HEIGHT,
        } | changes  # fmt: skip
        with h5py.File(base / "patches" / f"{name}_patches.h5", "w") as file:
            _growing(file, "coords", coords, 1).attrs.update(attributes)
        with h5py.File(base / f"features_{encoder}" / f"{name}.h5", "w") as file:
            dataset = _growing(file, "features", values, 1)
            dataset.attrs.update(name=name, savetodir=str(base / f"features_{encoder}"), encoder=encoder)
            _growing(file, "coords", coords, 1).attrs.update(attributes)


def write_stamp(
    folder: Path, slides: Slides, mpp_l0: float = MPP_L0, version: str = "2.4.0", **changes: object
) -> None:
    base = folder / "uni-1a2b3c4d"
    base.mkdir(parents=True, exist_ok=True)
    for name, (coords, values) in slides.items():
        if not len(coords):
            continue  # STAMP writes no file then
        with h5py.File(base / f"{name}.h5", "w") as file:
            file["coords"] = (coords * mpp_l0).astype(np.float32)
            file["feats"] = values.astype(np.float16)
            attributes = {
                "stamp_version": version, "extractor": "uni", "unit": "um", "tile_size_um": PATCH_PX * MPP,
                "tile_size_px": PATCH_PX, "code_hash": "1a2b3c4d", "feat_type": "tile",
            } | changes  # fmt: skip
            file.attrs.update({key: value for key, value in attributes.items() if value is not None})


def write_slideflow(folder: Path, slides: Slides, tile_um: object = 128) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (coords, values) in slides.items():
        if not len(coords):
            continue  # slideflow skips empty slides
        torch.save(torch.from_numpy(values), folder / f"{name}.pt")
        np.savez(folder / f"{name}.index", arr_0=coords + int(SIZE_L0 / 2))
    extractor = {"class": "slideflow.model.extractors.ctranspath.CTransPathFeatures", "kwargs": {}}
    config = {
        "extractor": extractor,
        "normalizer": None,
        "num_features": 8,
        "tile_px": PATCH_PX,
        "tile_um": tile_um,
    }
    (folder / "bags_config.json").write_text(json.dumps(config))


def write_atlaspatch(
    folder: Path, slides: Slides, encoders: tuple[str, ...] = ("uni_v1", "resnet50")
) -> None:
    (folder / "patches").mkdir(parents=True, exist_ok=True)
    for name, (coords, values) in slides.items():
        with h5py.File(folder / "patches" / f"{name}.h5", "w") as file:
            five = np.column_stack([coords, np.full((len(coords), 3), (PATCH_PX, PATCH_PX, 1))]).astype(
                np.int32
            )
            _growing(file, "coords", five, 8192)
            _growing(
                file, "passports", np.array([f"{name}__x{x}_y{y}" for x, y in coords], dtype="S160"), 8192
            )
            file.attrs.update(
                patch_size=PATCH_PX, patch_size_level0=SIZE_L0, level0_magnification=40,
                target_magnification=20, overlap=0, level0_width=WIDTH, level0_height=HEIGHT,
                wsi_path=f"/slides/{name}.svs", passport_version=2,
                creation_date="2026-02-09T00:00:00+00:00", filename=f"{name}.svs",
                mpp=MPP_L0, magnification=40, num_patches=len(coords),
            )  # fmt: skip
            for scale, encoder in enumerate(encoders, start=1):
                _growing(file.require_group("features"), encoder, values * scale, 32)


_SEGMENTATION = (
    "tissue_method", "requested_seg_downsample", "seg_downsample", "seg_level", "seg_spacing_um", "sthresh",
    "sthresh_up", "mthresh", "close", "sam2_checkpoint_path", "sam2_config_path", "mask_path",
    "ref_tile_size_px", "tissue_mask_tissue_value", "mask_level", "mask_spacing_um",
)  # fmt: skip
_FILTERING = (
    "a_t", "a_h", "filter_white", "filter_black", "white_threshold", "black_threshold", "fraction_threshold",
    "filter_grayspace", "grayspace_saturation_threshold", "grayspace_fraction_threshold", "filter_blur",
    "blur_threshold", "qc_spacing_um",
)  # fmt: skip


def by_column(coords: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a slide in the order of hs2p: x, then y."""
    order = np.lexsort((coords[:, 1], coords[:, 0]))
    return coords[order], values[order]


def write_slide2vec(folder: Path, slides: Slides, payload: str = "pt") -> None:
    (folder / "tiles").mkdir(parents=True, exist_ok=True)
    (folder / "tile_embeddings").mkdir(exist_ok=True)
    for name, slide in slides.items():
        coords, values = by_column(*slide)
        tiles = folder / "tiles" / f"{name}.coordinates"
        if len(coords):
            np.savez_compressed(
                f"{tiles}.npz", tile_index=np.arange(len(coords), dtype=np.int32),
                x=coords[:, 0], y=coords[:, 1],
                tissue_fractions=np.linspace(0.5, 1, len(coords), dtype=np.float32),
            )  # fmt: skip
        meta = {
            "provenance": {
                "sample_id": name, "image_path": f"/slides/{name}.svs", "mask_path": None,
                "backend": "openslide", "requested_backend": "auto", "spacing_at_level_0": None,
                "mask_backend": None, "requested_mask_backend": None,
            },
            "slide": {"dimensions": [WIDTH, HEIGHT], "base_spacing_um": MPP_L0, "level_downsamples": [1.0]},
            "tiling": {
                "requested_tile_size_px": PATCH_PX, "requested_spacing_um": MPP, "read_level": 0,
                "read_tile_size_px": SIZE_L0, "read_spacing_um": MPP_L0, "tile_size_lv0": SIZE_L0,
                "tolerance": 0.05, "step_px_lv0": SIZE_L0, "overlap": 0.0, "min_tissue_fraction": 0.1,
                "is_within_tolerance": True, "n_tiles": len(coords),
            },
            "segmentation": dict.fromkeys(_SEGMENTATION),
            "filtering": dict.fromkeys(_FILTERING),
            "artifact": {
                "coordinate_space": "level0_px", "tile_order": "x_then_y", "annotation": None,
                "selection_strategy": None, "output_mode": None,
            },
        }  # fmt: skip
        Path(f"{tiles}.meta.json").write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n")
        base = folder / "tile_embeddings"
        if len(coords) and payload == "pt":
            torch.save(torch.from_numpy(values), base / f"{name}.pt")
        elif len(coords):
            np.savez_compressed(base / f"{name}.npz", features=values, tile_index=np.arange(len(coords)))
        sidecar = {
            "sample_id": name, "artifact_type": "tile_embeddings", "format": payload,
            "feature_dim": values.shape[1] if len(coords) else None, "num_tiles": len(coords),
            "encoder_name": "h0-mini",
            "coordinates_meta_path": f"/elsewhere/tiles/{name}.coordinates.meta.json",
            "tile_size_lv0": SIZE_L0, "image_path": f"/slides/{name}.svs", "annotation": None,
        }  # fmt: skip
        (base / f"{name}.meta.json").write_text(json.dumps(sidecar, indent=2, sort_keys=True))


def write_torchmil(folder: Path, slides: Slides, suffix: str = ".npy") -> None:
    for kind, index in (("features", 1), ("coords", 0)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, slide in slides.items():
            path = folder / kind / f"{name}{suffix}"
            if suffix == ".npy":
                np.save(path, slide[index])
            else:
                with h5py.File(path, "w") as file:
                    file[kind] = slide[index]
    (folder / "labels").mkdir(exist_ok=True)
    np.save(folder / "labels" / "a.npy", np.array([1]))


def write_manifest(path: Path, slides: Slides, mpp: float | None = MPP_L0) -> Path:
    """Write a manifest that says everything of slides that are not there."""
    rows = [f"{name},{name}.svs,{mpp or ''},{WIDTH},{HEIGHT}" for name in slides]
    path.write_text("\n".join(["slide_id,path,mpp,width,height", *rows]) + "\n")
    return path
