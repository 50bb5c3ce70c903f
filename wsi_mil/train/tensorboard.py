"""A training as TensorBoard shows it: losses of every network, scores, and the settings.

Comes in: how networks were trained, and the content of metrics.json. Goes out: event files. It is the home of
``tensorboard``, which is imported when it is needed: it takes a second.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_mil.train.networks import Trained


def write_logs(
    folder: Path, folds: Sequence[Sequence[Trained]], content: Mapping[str, Any], settings: str
) -> None:
    """Write the event files of a model; ``folds`` are the networks of each fold.

    ``folder`` has a run for every network, fold_K_member_M, with ``loss/train`` and ``loss/val`` by epoch and
    ``loss/kept``, the validation loss at the epoch that was kept; and a run ``scores`` with every score
    (``score/NAME``, ``score/NAME/low``, ``score/NAME/high``), the leading one of each fold (``fold/NAME``, by
    fold) and of each repeat (``repeat/NAME``), and as text the settings (TOML) and a table of the scores.
    ``content`` is that of metrics.json. Call it inside ``atomic_folder``.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    for fold, members in enumerate(folds):
        for member, each in enumerate(members):
            with SummaryWriter(str(folder / f"fold_{fold}_member_{member}")) as writer:
                for epoch, loss in enumerate(each.train_losses, 1):
                    writer.add_scalar("loss/train", loss, epoch)
                for epoch, loss in enumerate(each.val_losses, 1):
                    writer.add_scalar("loss/val", loss, epoch)
                if each.val_loss is not None:
                    writer.add_scalar("loss/kept", each.val_loss, each.epoch)
    with SummaryWriter(str(folder / "scores")) as writer:
        for name, value, step in _scalars(content):
            if value is not None:
                writer.add_scalar(name, value, step)
        writer.add_text("settings", _indented(settings))
        writer.add_text("scores", _table(content))


def _scalars(content: Mapping[str, Any]) -> list[tuple[str, float | None, int]]:
    """Return (name, value, step) of the run ``scores``."""
    leading = content["leading"]
    found: list[tuple[str, float | None, int]] = []
    for name, each in content["scores"].items():
        found.append((f"score/{name}", each["value"], 0))
        found += [(f"score/{name}/{end}", each[end], 0) for end in ("low", "high")]
    found += [(f"fold/{leading}", each.get(leading), each["fold"]) for each in content["folds"]]
    for name, values in content["spread"].items():
        found += [(f"repeat/{name}", value, repeat) for repeat, value in enumerate(values)]
    return found


def _table(content: Mapping[str, Any]) -> str:
    """Return the scores as a table in Markdown."""
    rows = ["| score | value | low | high |", "|---|---|---|---|"]
    for name, each in content["scores"].items():
        cells = ["" if each[key] is None else f"{each[key]:.4f}" for key in ("value", "low", "high")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _indented(text: str) -> str:
    """Return text as a block of code in Markdown, which nothing in it can end."""
    return "".join(f"    {line}\n" for line in text.splitlines())
