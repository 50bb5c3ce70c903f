"""What ``benchmarks.train`` compares: the field's loop, torchmil's trainer, CLAM's loops, and ``train.fit``.

All train the same network on the same bags for the same number of epochs: 1,024 -> 512 (ReLU) -> gated
attention of 256 -> two classes (torchmil: one logit). ``measure`` is called in a process of its own, and
returns patches per second of the epochs alone, from the first file read, and the AUROC on bags never trained
on, scored in fp32. Only patches that went through the network count: a hook on the layer that takes the
features counts its rows, and padding is taken off.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks import train_cohort as cohort
from wsi_mil import models, store
from wsi_mil.config import TrainConfig
from wsi_mil.train import Patches, assemble, fit_jobs, make_jobs
from wsi_mil.train.packed import pack as pack_features
from wsi_mil.train.packed import tensor_of

HIDDEN, ATTENTION, DROPOUT = 512, 256, 0.25
Settings = dict[str, Any]
Score = Callable[[Tensor], float]
"""The margin of the positive class for a bag (N, D) float32."""


class Clock:
    """Adds up the time, and the processor time of this process, of the blocks that it stands over."""

    seconds = processor = 0.0

    def __enter__(self) -> "Clock":
        self._seconds, self._processor = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._seconds
        self.processor += time.process_time() - self._processor


def measure(folder: Path, settings: Settings) -> dict[str, Any]:
    """Train once; return patches per second, and the margin of each bag to score with their AUROC."""
    if threads := settings.get("threads"):
        torch.set_num_threads(threads)
    torch.manual_seed(settings["seed"])
    np.random.seed(settings["seed"])  # noqa: NPY002 - CLAM and torchmil draw from it
    wanted = sum(cohort.lengths(folder)) * settings["epochs"]
    with counted() as rows:
        clock, score = CONTENDERS[settings["kind"]](folder, settings)
    if rows[0] < wanted:
        raise SystemExit(f"{settings}: {rows[0]} of {wanted} patches went through the network")
    margins = []
    with torch.inference_mode():
        for bag in cohort.val_bags(folder):
            margins.append(score(torch.from_numpy(bag).float()))
    return {
        "patches_per_second": wanted / clock.seconds,
        "processor_us": 1e6 * clock.processor / wanted,
        "auroc": float(roc_auc_score(cohort.val_codes(), margins)),
        "margins": margins,
        "padding": rows[0] / wanted - 1,
    }


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """Count the rows that the layer of the features gets with gradients on, padding included."""
    rows = [0]

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Linear) and module.in_features == cohort.DIM and torch.is_grad_enabled():
            rows[0] += arguments[0][..., 0].numel()

    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield rows
    finally:
        hook.remove()


# The field's loop ------------------------------------------------------------------------------------


class H5Bags(Dataset):  # type: ignore[type-arg]
    """Opens a bag's file at each step, as the field's tools do."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with h5py.File(self.paths[index]) as file:
            return torch.from_numpy(file["features"][:]).float(), index % 2


class GatedMil(nn.Module):
    """Gated attention MIL as its users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(cohort.DIM, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT))
        self.V = nn.Sequential(nn.Linear(HIDDEN, ATTENTION), nn.Tanh())
        self.U = nn.Sequential(nn.Linear(HIDDEN, ATTENTION), nn.Sigmoid())
        self.w = nn.Linear(ATTENTION, 1)
        self.classify = nn.Linear(HIDDEN, 2)

    def forward(self, x_ND: Tensor) -> Tensor:
        h_NH = self.hidden(x_ND)
        a_N = (self.w(self.V(h_NH) * self.U(h_NH))).softmax(dim=0)
        logits: Tensor = self.classify(a_N.T @ h_NH)
        return logits


def field(folder: Path, settings: Settings) -> tuple[Clock, Score]:
    """h5 read at each step, one bag, fp32 (or bf16 by autocast), Adam."""
    paths = cohort.stored(folder, settings["files"])
    loader = DataLoader(
        H5Bags(paths),
        batch_size=1,
        shuffle=True,
        num_workers=settings["workers"],
        collate_fn=lambda rows: rows[0],
    )
    network = GatedMil()
    optimiser = torch.optim.Adam(network.parameters(), lr=settings["rate"], weight_decay=1e-5)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=settings.get("autocast", False))
    clock = Clock()
    cohort.warm(paths)
    for _ in range(settings["epochs"]):
        if settings["cold"]:
            cohort.evict(paths)
        with clock:
            for x_ND, code in loader:
                with autocast:
                    loss = functional.cross_entropy(network(x_ND), torch.tensor([code]))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                loss.item()
    network.eval()

    def score(x_ND: Tensor) -> float:
        logits_C = network(x_ND)[0]
        return float(logits_C[1] - logits_C[0])

    return clock, score


# torchmil ----------------------------------------------------------------------------------------------


def torchmil(folder: Path, settings: Settings) -> tuple[Clock, Score]:
    """torchmil's data set, collate function, gated ABMIL and Trainer, as its README puts them together.

    Its data set keeps what it has read, so that it reads each file once. Its Trainer validates after each
    epoch: one bag of one patch, here, so that this costs nothing.
    """
    from torchmil.data import collate_fn  # noqa: PLC0415
    from torchmil.datasets import ProcessedMILDataset  # noqa: PLC0415
    from torchmil.models import ABMIL  # noqa: PLC0415
    from torchmil.utils import Trainer  # noqa: PLC0415

    dataset = ProcessedMILDataset(
        features_path=str(folder / "npy" / "features"), labels_path=str(folder / "npy" / "labels"),
        bag_keys=["X", "Y"], load_at_init=settings["load_at_init"],
    )  # fmt: skip
    loader = DataLoader(dataset, batch_size=settings["batch"], shuffle=True, collate_fn=collate_fn)
    tiny = [{"X": torch.zeros(1, cohort.DIM), "Y": torch.tensor(1)}]
    hidden = nn.Sequential(nn.Linear(cohort.DIM, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT))
    model = ABMIL(in_shape=(cohort.DIM,), att_dim=ATTENTION, gated=True, feat_ext=hidden)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings["rate"])
    trainer = Trainer(model, optimiser, device="cpu", disable_pbar=True, verbose=False)
    cohort.warm(sorted((folder / "npy" / "features").glob("*.npy")))
    with Clock() as clock:
        trainer.train(
            max_epochs=settings["epochs"], train_dataloader=loader,
            val_dataloader=DataLoader(tiny, batch_size=1, collate_fn=collate_fn),  # type: ignore[arg-type]
        )  # fmt: skip
    model.eval()
    return clock, lambda x_ND: float(model(x_ND[None]))


# CLAM --------------------------------------------------------------------------------------------------


def clam(folder: Path, settings: Settings) -> tuple[Clock, Score]:
    """CLAM's data set, loader, CLAM_SB and training loops, from the user's own copy of it.

    With ``cluster`` as ``main.py`` does by default, without as ``--no_inst_cluster`` (attention MIL alone).
    """
    sys.path.insert(0, settings["clam"])
    import pandas as pd  # noqa: PLC0415 - CLAM needs it
    from dataset_modules.dataset_generic import Generic_Split  # noqa: PLC0415
    from models.model_clam import CLAM_SB  # noqa: PLC0415
    from utils.core_utils import train_loop, train_loop_clam  # noqa: PLC0415
    from utils.utils import get_optim, get_split_loader  # noqa: PLC0415

    rows = [{"slide_id": path.stem, "label": k % 2} for k, path in enumerate(cohort.stored(folder, "h5"))]
    split = Generic_Split(pd.DataFrame(rows), data_dir=str(folder / "clam"), num_classes=2)
    loader = get_split_loader(split, training=True)
    loss = nn.CrossEntropyLoss()
    model = CLAM_SB(
        dropout=DROPOUT, n_classes=2, embed_dim=cohort.DIM, instance_loss_fn=nn.CrossEntropyLoss()
    )
    optimiser = get_optim(model, argparse.Namespace(opt="adam", lr=settings["rate"], reg=1e-5))
    cohort.warm(sorted((folder / "clam" / "pt_files").glob("*.pt")))
    with Clock() as clock:
        for epoch in range(settings["epochs"]):
            if settings["cluster"]:
                train_loop_clam(epoch, model, loader, optimiser, 2, 0.7, None, loss)
            else:
                train_loop(epoch, model, loader, optimiser, 2, None, loss)
    model.eval()

    def score(x_ND: Tensor) -> float:
        logits_C = model(x_ND)[0][0]
        return float(logits_C[1] - logits_C[0])

    return clock, score


# Ours --------------------------------------------------------------------------------------------------


def pack(folder: Path) -> store.Packed:
    """Return the stored features in one memory-mapped array, written where it is not there yet."""
    features = store.open_features(folder / "train-run", cohort.ENCODER)
    packed, failed = pack_features(folder / "train-run", features, features.slide_ids())
    assert packed is not None
    assert not failed, failed
    return packed


def head_of(config: TrainConfig) -> dict[str, Any]:
    task = models.make_task("classification", ("negative", "positive"))
    head = {
        "task": task.to_head(),
        "model": config.model,
        "identity": {"dim": cohort.DIM},
        "branches": "shared",
    }
    return head | {
        name: getattr(config, name)
        for name in ("hidden_dim", "attention_dim", "dropout", "members", "initial_weights")
    }


def ours(folder: Path, settings: Settings) -> tuple[Clock, Score]:
    """``train.fit``'s parts on the packed memory map, at our defaults but for ``settings["train"]``.

    Standardisation is in the time. Packing is not: it is done once for a cohort, whatever is trained on it.
    """
    packed = pack(folder)
    config = TrainConfig(
        run=folder, labels=folder, members=1, hidden_dim=HIDDEN, attention_dim=ATTENTION, dropout=DROPOUT,
        epochs=settings["epochs"], patch_dropout=0, bag_size="full", device="cpu",
        learning_rate=settings.get("rate", TrainConfig.learning_rate), **settings.get("train", {}),
    )  # fmt: skip
    task = models.make_task("classification", ("negative", "positive"))
    targets = np.arange(cohort.TRAIN) % 2
    everything, nothing = np.arange(cohort.TRAIN), np.empty(0, np.int64)
    files = [
        path for path in store.bags_folder(folder / "train-run", cohort.ENCODER).iterdir() if path.is_file()
    ]
    if settings["cold"]:
        cohort.evict(files)
    else:
        cohort.warm(files)
    # torch imports its compiler with the first optimiser, which the others make before their time begins.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    head = head_of(config)
    with Clock() as clock:
        patches = Patches(tensor_of(packed), [[each] for each in packed.ranges])
        jobs = make_jobs(patches, targets, everything, [nothing], task, settings["seed"])
        trained = fit_jobs(patches, targets, jobs, head=head, config=config)
    model = assemble(head, jobs, trained).model

    def score(x_ND: Tensor) -> float:
        logits_C = model.bag(x_ND).logits_BC[0]
        return float(logits_C[1] - logits_C[0])

    return clock, score


CONTENDERS: dict[str, Callable[[Path, Settings], tuple[Clock, Score]]] = {
    "field": field,
    "torchmil": torchmil,
    "clam": clam,
    "ours": ours,
}
