"""Settings to choose from inside each training part: ``--grid FILE.toml``.

Comes in: a TOML file of lists. Goes out: every combination, checked as if it were given on the command line.
"""

import dataclasses
import itertools
import tomllib
from typing import Any

from wsi_mil.config.base import Json, require
from wsi_mil.config.train import TrainConfig
from wsi_mil.errors import ConfigError

CHOOSABLE = (
    "hidden_dim", "attention_dim", "dropout", "epochs", "patience", "batch_size", "bag_size", "patch_dropout",
    "feature_noise", "label_smoothing", "balance", "learning_rate", "attention_rate", "weight_decay",
    "optimiser", "schedule", "branches", "model", "initial_weights",
)  # fmt: skip
"""Fields that a grid may vary: those of the network and its training, not of the data or the evaluation."""


def read_grid(config: TrainConfig) -> list[dict[str, Json]]:
    """Return every combination of the values in ``config.grid``; one that changes nothing where there is
    none.

    Raises:
        ConfigError: no such file, no TOML, a key that cannot be varied, an empty list, or a value that the
            config refuses.
    """
    path = config.grid
    if path is None:
        return [{}]
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--grid {path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--grid {path}: not TOML ({error}).") from error
    require(bool(content), f"--grid {path}: empty; wanted lists, such as learning_rate = [1e-3, 3e-4].")
    for key, values in content.items():
        require(
            key in CHOOSABLE, f"--grid {path}: cannot vary '{key}'; wanted one of {', '.join(CHOOSABLE)}."
        )
        require(
            isinstance(values, list) and len(values) > 0,
            f"--grid {path}: {key} = {values!r}: wanted a list of values to choose from.",
        )
    combinations = [
        dict(zip(content, values, strict=True)) for values in itertools.product(*content.values())
    ]
    for each in combinations:
        _check(config, each, f"--grid {path}: {each}")
    return combinations


def _check(config: TrainConfig, values: dict[str, Any], where: str) -> None:
    """Let the config check a combination; a value of another type is a wrong one too."""
    try:
        dataclasses.replace(config, **values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except TypeError as error:
        raise ConfigError(f"{where}: a value of the wrong type ({error}).") from error
