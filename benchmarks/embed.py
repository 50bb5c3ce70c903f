"""How fast are slides embedded, against the field's loop and against the encoder alone?

    make bench-embed           (or: python -m benchmarks.embed --folder bench --append)

The field's loop is what CLAM and TRIDENT do: OpenSlide's ``read_region``, PIL, torchvision's transforms, a
DataLoader with 2 workers, fp32, NCHW; at their batch sizes (64, 256) and at the best one here (8). The slides
are mosaics of the CMU slide of ../shared, or drawn tissue, and the table says which. Every contender runs in
a process of its own, all of a case in each round, one after the other; a ratio is taken within a round, and
the table shows the median over the rounds and the middle half of them. Times begin when the encoder is ready.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.read import mosaic
from benchmarks.results import publish
from pipelines.ucsb_breast.prepare import prepare
from wsi_mil import embed, store, tile
from wsi_mil.config import EmbedConfig, TileConfig, from_toml
from wsi_mil.embed.engine import Engine
from wsi_mil.embed.precision import choose
from wsi_mil.encoders import PACKAGED, load_encoder
from wsi_mil.geometry import PatchGeometry, grid_l0

PATCH, MPP = 224, 0.5
UCSB = Path(__file__).parents[2] / "shared" / "data" / "ucsb_breast"
RECIPE = Path(__file__).parents[1] / "pipelines" / "ucsb_breast" / "pipeline.toml"
LARGE, SMALL = (100, 100), (5, 10)
"""(rows, columns) of patches of the large slide and of each small one."""

SMALL_SLIDES, MEMORY_SLIDES = 200, 500
Contender = Callable[[], float]


# Slides ----------------------------------------------------------------------------------------------


def make_runs(folder: Path) -> str:
    """Write slides, and run folders with their patches, where they are not yet; return words for them."""
    words = folder / "embed-words.txt"
    if words.is_file():
        return words.read_text()
    folder.mkdir(parents=True, exist_ok=True)
    picture, text = mosaic()
    size = picture.shape[0]
    rng = np.random.default_rng(0)
    tall, wide = LARGE[0] * PATCH, LARGE[1] * PATCH
    repeated = np.tile(picture, (-(-tall // size), -(-wide // size), 1))[:tall, :wide]
    write_slide(folder / "large.tiff", repeated)
    for number in range(SMALL_SLIDES):
        top, left = (int(rng.integers(0, size - side * PATCH)) for side in SMALL)
        part = picture[top : top + SMALL[0] * PATCH, left : left + SMALL[1] * PATCH]
        write_slide(folder / "small" / f"s{number:03d}.tiff", part)
    large, small = folder / "large.tiff", sorted((folder / "small").glob("*.tiff"))
    make_run(folder / "run-large", {"large": large}, LARGE)
    make_run(folder / "run-small", {each.stem: each for each in small}, SMALL)
    many = {f"m{number:03d}": small[number % len(small)] for number in range(MEMORY_SLIDES)}
    make_run(folder / "run-memory", many, SMALL)
    for count in (256, 1024):
        make_run(folder / f"run-{count}", {"large": large}, LARGE, count)
    words.write_text(text)
    return text


def write_slide(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(
        path, picture, photometric="rgb", tile=(256, 256), metadata=None, compression="jpeg",
        compressionargs={"level": 75}, subsampling=(2, 1), resolution=(10_000 / MPP, 10_000 / MPP),
        resolutionunit="CENTIMETER",
    )  # fmt: skip


def make_run(run: Path, slides: dict[str, Path], shape: tuple[int, int], count: int | None = None) -> None:
    """Write patches files: all patches of each slide, or the first ``count``."""
    plan = PatchGeometry.plan(
        width_l0=shape[1] * PATCH, height_l0=shape[0] * PATCH, mpp_l0=MPP, mpp=MPP, patch_px=PATCH
    )
    coords = grid_l0(plan)[:count]
    for slide_id, path in slides.items():
        patches = store.Patches(
            slide_id=slide_id, slide_path=path.absolute(), reader="openslide", mpp_source="given",
            geometry=plan, coords=coords, tissue_fraction=np.ones(len(coords), np.float32), record={},
        )  # fmt: skip
        store.write_patches(store.patches_path(run, slide_id), patches)


# Contenders, each in a process of its own -----------------------------------------------------------


class FieldPatches(Dataset):  # type: ignore[type-arg]
    """The field's data set: a region of OpenSlide, to RGB, to a normalised tensor."""

    def __init__(self, path: Path, coords: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]):
        self.path, self.coords = path, coords
        self.slide: openslide.OpenSlide | None = None
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.coords)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.slide is None:  # opened in the worker
            self.slide = openslide.OpenSlide(self.path)
        x, y = self.coords[index].tolist()
        image: Image.Image = self.slide.read_region((x, y), 0, (PATCH, PATCH)).convert("RGB")
        tensor: torch.Tensor = self.transform(image)
        return tensor


def field(folder: Path, encoder: str, batch: int, count: int) -> float:
    """Patches per second of the field's loop."""
    patches = store.read_patches(store.patches_path(folder / f"run-{count}", "large"))
    module = timm.create_model(encoder, pretrained=False, num_classes=0).eval()
    data = timm.data.resolve_model_data_config(module)
    dataset = FieldPatches(folder / "large.tiff", patches.coords, data["mean"], data["std"])
    loader = DataLoader(dataset, batch_size=batch, num_workers=2)
    features = []
    with torch.inference_mode():
        module(torch.zeros(batch, 3, PATCH, PATCH))
        start = time.perf_counter()
        for x in loader:
            features.append(module(x).numpy())
    done = len(np.concatenate(features))
    return done / (time.perf_counter() - start)


def ours(folder: Path, encoder: str, flags: dict[str, object], name: str) -> float:
    """Patches per second of ``embed`` on a run, from the first patch read to the last feature on disk."""
    run = folder / f"run-{name}"
    shutil.rmtree(run / "features", ignore_errors=True)
    config = EmbedConfig(run=run, encoder=encoder, weights=weights(folder, encoder), **flags)  # type: ignore[arg-type]
    result = embed.run(config)
    stage = store.read_stage(run, "embed")
    assert stage
    assert not result.failed, result.failed
    count = sum(len(store.read_patches(each).coords) for each in (run / "patches").glob("*.h5"))
    return count / float(stage["embed_seconds"])


def alone(folder: Path, encoder: str, flags: dict[str, object]) -> float:
    """Patches per second of the encoder on random tensors, in the settings of ``ours``."""
    config = EmbedConfig(run=folder, encoder=encoder, **flags)  # type: ignore[arg-type]
    loaded, device = load_encoder(encoder, weights(folder, encoder)), torch.device("cpu")
    precision = choose(config.precision, loaded, device)
    engine = Engine(
        loaded, device, precision.name, batch_size=config.batch_size or 32, compiled=config.compile,
        fp32_layers=precision.fp32_layers,
    )  # fmt: skip
    x = torch.randn(config.batch_size or 32, 3, loaded.patch_px, loaded.patch_px)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        engine.module(x)
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < 12:
            engine.module(x)
            done += len(x)
    return done / (time.perf_counter() - start)


def memory(folder: Path) -> float:
    """Growth of the memory in use between the 100th slide and the last, as a part of it."""
    seen: list[float] = []

    def look(*_: object) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen.append(pages * resource.getpagesize() / 2**20)

    original = store.Claims.give_back

    def counted(claims: store.Claims, slide_id: str) -> None:
        look()
        original(claims, slide_id)

    store.Claims.give_back = counted  # type: ignore[method-assign]
    ours(folder, PACKAGED, {}, "memory")
    early, late = statistics.median(seen[90:110]), statistics.median(seen[-20:])
    print(f"memory: {early:.0f} MiB at slide 100, {late:.0f} MiB at the end", file=sys.stderr)
    return late / early - 1


def precision(folder: Path) -> list[float]:
    """Cosines of the UCSB fields' features to those in fp32 (lowest, median), and AUROC of a probe on each.

    The probe: logistic regression on the mean of a field's features, one microarray left out at a time.
    """
    prepare(UCSB, folder / "ucsb")
    run = folder / "ucsb" / "run"
    tile.run(from_toml(TileConfig, RECIPE, slides=folder / "ucsb" / "slides", run=run))
    labels = {row["slide_id"]: row for row in store.read_csv(folder / "ucsb" / "labels.csv")}
    features: dict[str, dict[str, np.ndarray]] = {}
    for each in ("fp32", "auto"):
        embed.run(EmbedConfig(run=run, precision=each, overwrite=True))  # type: ignore[arg-type]
        kept = store.open_features(run, PACKAGED)
        features[each] = {name: kept.read(name).features.astype(np.float32) for name in labels}
    scores = []
    truth = np.array([row["label"] == "malignant" for row in labels.values()])
    groups = [row["patient_id"] for row in labels.values()]
    for each in ("fp32", "auto"):
        bags = np.stack([features[each][name].mean(axis=0) for name in labels])
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        guess = cross_val_predict(
            probe, bags, truth, groups=groups, cv=LeaveOneGroupOut(), method="predict_proba"
        )
        scores.append(float(roc_auc_score(truth, guess[:, 1])))
    pairs = [(features["fp32"][name], features["auto"][name]) for name in labels]
    cosines = np.concatenate([
        (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1) for a, b in pairs
    ])  # fmt: skip
    return [float(cosines.min()), float(np.median(cosines)), *scores]


def weights(folder: Path, encoder: str) -> Path | None:
    """Return a file of random weights (None for the packaged encoder): speed does not depend on them."""
    if encoder == PACKAGED:
        return None
    path = folder / f"{encoder}.pt"
    if not path.is_file():
        torch.manual_seed(0)
        torch.save(timm.create_model(encoder, pretrained=False, num_classes=0).state_dict(), path)
    return path


# Cases -----------------------------------------------------------------------------------------------


def cases() -> Iterator[tuple[str, dict[str, list[object]], list[tuple[str, str, float | None]]]]:
    """Yield (name, contenders by name, ratios: what, against what, must reach)."""
    for encoder, count, wanted in (("resnet50", 256, 3.5), (PACKAGED, 1024, 4.0)):
        contenders: dict[str, list[object]] = {
            f"field, batch {batch}": ["field", encoder, batch, count] for batch in (256, 64, 8)
        }
        compiled = {"compile": True}
        contenders |= {
            "wsi-mil": ["ours", encoder, {}, str(count)],
            "encoder alone": ["alone", encoder, {}],
            "wsi-mil --compile": ["ours", encoder, compiled, str(count)],
            "encoder alone, compiled": ["alone", encoder, compiled],
            "wsi-mil --precision fp32": ["ours", encoder, {"precision": "fp32"}, str(count)],
        }
        ratios: list[tuple[str, str, float | None]] = [
            (ours_, against, wanted)
            for ours_ in ("wsi-mil", "wsi-mil --compile")
            for against in ("field, batch 64", "field, batch 8")
        ]
        ratios += [("wsi-mil --precision fp32", "field, batch 8", None)]
        ratios += [("wsi-mil", "encoder alone", 0.9), ("wsi-mil --compile", "encoder alone, compiled", 0.9)]
        yield encoder, contenders, ratios
    slides: dict[str, list[object]] = {
        "200 slides of 50": ["ours", PACKAGED, {}, "small"],
        "1 slide of 10,000": ["ours", PACKAGED, {}, "large"],
    }
    yield "many small slides", slides, [("200 slides of 50", "1 slide of 10,000", 0.9)]


def measure(folder: Path, arguments: list[object]) -> Any:
    """Run one contender in a process of its own and return its patches per second (or what it measures)."""
    command = [sys.executable, "-m", "benchmarks.embed", "--folder", str(folder)]
    command += ["--contender", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(folder: Path, rounds: int, only: str) -> list[str]:
    """Run all cases; return the lines of two tables."""
    ratio_lines = [
        "| encoder | what | against | ratio (middle half) | must reach | |",
        "|---|---|---|---|---|---|",
    ]
    speed_lines = ["| case | contender | patches/s |", "|---|---|---|"]
    for name, contenders, ratios in cases():
        if only not in name:
            continue
        seen: dict[str, list[float]] = {each: [] for each in contenders}
        for number in range(rounds):
            for each, arguments in contenders.items():
                seen[each].append(measure(folder, arguments))
                print(f"{name}, round {number + 1}: {each}: {seen[each][-1]:.1f}", flush=True)
        for what, against, wanted in ratios:
            values = sorted(a / b for a, b in zip(seen[what], seen[against], strict=True))
            middle = statistics.median(values)
            low, high = np.quantile(values, [0.25, 0.75])
            verdict = "" if wanted is None else "met" if middle >= wanted else "**missed**"
            ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            ratio_lines.append(f"| {name} | {what} | {against} | {ratio} | {wanted or ''} | {verdict} |")
        speed_lines += [f"| {name} | {each} | {statistics.median(v):.1f} |" for each, v in seen.items()]
    return [*ratio_lines, "", *speed_lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--append", action="store_true", help="append the tables to RESULTS.md")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        kind, *rest = json.loads(arguments.contender)
        contenders: dict[str, Callable[..., object]] = {
            "field": field, "ours": ours, "alone": alone, "memory": memory, "precision": precision,
        }  # fmt: skip
        print(json.dumps(contenders[kind](arguments.folder, *rest)))
        return
    words = make_runs(arguments.folder)
    lines = compare(arguments.folder, arguments.rounds, arguments.only)
    if arguments.only in {"", "memory"}:
        growth = measure(arguments.folder, ["memory"])
        lines += [
            "",
            f"Memory in use after {MEMORY_SLIDES} slides against 100: {growth:+.1%} (at most +5 %).",
        ]
    if arguments.only in {"", "precision"} and UCSB.is_dir():
        lowest, median, fp32, auto = measure(arguments.folder, ["precision"])
        lines += [
            "",
            f"`--precision auto` against fp32, {PACKAGED} on the UCSB fields: cosine per patch at least "
            f"{lowest:.5f}, median {median:.5f} (wanted: 0.999 each); AUROC of a probe {auto:.4f} against "
            f"{fp32:.4f} (wanted: within 0.005).",
        ]
    head = (
        f"`make bench-embed`: slides of {words}, patches of {PATCH}; {arguments.rounds} rounds; "
        f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}."
    )
    publish("Embedding", [head, "", *lines], append=arguments.append)


if __name__ == "__main__":
    main()
