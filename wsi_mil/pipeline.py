"""All stages from one file of settings, one after the other.

Comes in: a TOML file with a table per stage. Goes out: what the stages write, and what each returned. It
knows what they are called and in which order, and nothing of what they do.
"""

import dataclasses
import importlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from wsi_mil.config import PLACE_KEYS, STAGE_CONFIGS, ClusterConfig, RunConfig, from_toml, toml_tables
from wsi_mil.errors import ConfigError, WsiMilError
from wsi_mil.parallel import StageResult, console, local_cluster

STAGES = ("tile", "embed", "train", "heatmap", "report")


def run(config: RunConfig, told: Callable[[StageResult], None] | None = None) -> list[StageResult]:
    """Do every stage that the file has a table for; return what each returned.

    What a stage finds done it skips. Slides that fail in a stage are left behind by the next, and the others
    go on; a stage in which all fail is the last. ``told`` is called with each result as it comes. All
    settings are read before the first stage begins.

    Raises:
        ConfigError: the file is wrong, or has no table of a stage.
        WsiMilError: a stage failed as a whole; those before it are kept.
    """
    configs = read_configs(config)
    results: list[StageResult] = []
    with ExitStack() as stack:
        if any(getattr(each, "dask", None) == "local" for each in configs.values()):
            here = stack.enter_context(local_cluster())  # one for all stages
            configs = {stage: _at(each, here) for stage, each in configs.items()}
        for number, (stage, each) in enumerate(configs.items(), 1):
            console.print(f"run: {stage} ({number} of {len(configs)})", markup=False)
            try:
                result = importlib.import_module(f"wsi_mil.{stage}").run(each)
            except WsiMilError:
                _say_failed(results)
                console.print(
                    f"run: {stage} failed as a whole, and what comes after it was not begun", markup=False
                )
                raise
            results.append(result)
            if told:
                told(result)
            if result.outcomes and len(result.failed) == len(result.outcomes) and number < len(configs):
                console.print(
                    f"run: every slide failed in {stage}; what comes after it was not begun", markup=False
                )
                break
    return results


def read_configs(config: RunConfig) -> dict[str, Any]:
    """Return the config of each stage that the file has a table for, in their order.

    Raises:
        ConfigError: the file is wrong, or has no table of a stage.
    """
    tables = toml_tables(config.pipeline)
    stages = [stage for stage in STAGES if stage in tables]
    if not stages:
        wanted = ", ".join(f"[{stage}]" for stage in STAGES)
        raise ConfigError(f"{config.pipeline}: no table of a stage; wanted some of {wanted}.")
    own: dict[str, Any] = {"run": config.run} if config.run else {}
    cluster: dict[str, Any] = {}
    if config.on_cluster or config.dask is not None:
        cluster = {key: getattr(config, key) for key in PLACE_KEYS}
    if config.worker_wait != ClusterConfig().worker_wait:
        cluster["worker_wait"] = config.worker_wait
    return {
        stage: from_toml(
            STAGE_CONFIGS[stage],
            config.pipeline,
            **own,
            **(cluster if issubclass(STAGE_CONFIGS[stage], ClusterConfig) else {}),
        )
        for stage in stages
    }


def _at(config: Any, scheduler: str) -> Any:
    """Return a stage's config with a scheduler's address for a cluster of its own."""
    if getattr(config, "dask", None) != "local":
        return config
    return dataclasses.replace(config, dask=None, scheduler=scheduler)


def _say_failed(results: list[StageResult]) -> None:
    for result in results:
        for each in result.failed:
            console.print(f"failed in {result.stage}: {each.slide_id}: {each.reason}", markup=False)
