"""The command line: one command per stage or tool, whose flags are the fields of its config.

Comes in: arguments. Goes out: an exit code. 0: all done. 1: some slides failed (a table says which and why),
or one error (one line; the traceback with --debug). 2: wrong usage or config. 130: interrupted. Nothing can
be done here that ``wsi_mil.<stage>.run(Config(...))`` cannot.
"""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from wsi_mil import __version__
from wsi_mil.config import STAGE_CONFIGS, to_toml, toml_values
from wsi_mil.errors import ConfigError, WsiMilError

if TYPE_CHECKING:
    from wsi_mil.parallel import StageResult

_HELP = """\
usage: wsi-mil COMMAND [flags]        (wsi-mil COMMAND --help for the flags)

Whole-slide images to attention-based multiple instance learning.

commands, in their order:
{commands}

a first run:
  wsi-mil tile    --slides SLIDES --run RUN
  wsi-mil embed   --run RUN
  wsi-mil train   --run RUN --labels labels.csv
  wsi-mil heatmap --run RUN
  wsi-mil report  --run RUN

Every command takes --config FILE.toml (defaults from the file's table of that name; flags win),
--print-config and --debug. A command that was interrupted goes on when it is given again.
"""


_MODULES = {"encoders": "catalog"}
"""Commands whose module has another name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_HELP.format(commands=_command_list()), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"wsi-mil {__version__}")
        return 0
    try:
        return _run(arguments[0], arguments[1:])
    except WsiMilError as error:
        if "--debug" in arguments:
            raise
        print(f"wsi-mil: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("\ninterrupted; give the same command again to go on.", file=sys.stderr)
        return 130


def _run(stage: str, arguments: list[str]) -> int:
    if stage not in STAGE_CONFIGS:
        raise ConfigError(f"no command {stage!r}; there are: {', '.join(STAGE_CONFIGS)}.")
    config_class = STAGE_CONFIGS[stage]

    def command(
        settings: Annotated[Any, tyro.conf.arg(name="")],
        config: Path | None = None,
        print_config: bool = False,
        debug: bool = False,
    ) -> tuple[Any, bool]:
        """Read the stage's settings.

        Args:
            settings: The stage's own.
            config: TOML file whose table of the command's name gives defaults; flags win.
            print_config: Print the resolved settings as TOML and stop.
            debug: Show the traceback of an error.
        """
        del config, debug  # taken up before: the file's values are flags by now
        return settings, print_config

    command.__annotations__["settings"] = Annotated[config_class, tyro.conf.arg(name="")]
    settings, print_only = tyro.cli(
        command,
        args=_flags_of_file(stage, arguments) + arguments,
        prog=f"wsi-mil {stage}",
        description=(config_class.__doc__ or "").strip(),
    )
    if print_only:
        print(to_toml(settings), end="")
        return 0
    # SIGTERM (Slurm, docker stop) ends a stage as Ctrl-C does: nothing half-written stays.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        module = importlib.import_module(f"wsi_mil.{_MODULES.get(stage, stage)}")
        result = module.run(settings)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return result if isinstance(result, int) else _summarise(result)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _flags_of_file(stage: str, arguments: Sequence[str]) -> list[str]:
    """Return the values of --config's file as flags, to stand before the user's own, which then win."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        path = parser.parse_known_args(arguments)[0].config
    except argparse.ArgumentError:
        return []  # --config without a value: the real parser says so
    if path is None:
        return []
    flags: list[str] = []
    for key, value in toml_values(path, stage).items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags += [f"--{name}", str(value)]
    return flags


def _summarise(result: "StageResult") -> int:
    """Print how many slides ended how, and the table of those that failed; return the exit code."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = ", ".join(f"{result.count(status)} {status}" for status in ("done", "skipped", "failed"))
    console = Console(highlight=False, soft_wrap=True)
    if result.failed:
        table = Table(title=f"{len(result.failed)} failed", title_justify="left")
        table.add_column("slide", overflow="fold")
        table.add_column("reason", overflow="fold")
        for each in result.failed:
            table.add_row(Text(each.slide_id), Text(each.reason))
        Console(highlight=False).print(table)
    for each in result.outcomes:
        if each.facts.get("reason"):
            console.print(f"note: {each.slide_id}: {each.facts['reason']}", markup=False)
    console.print(f"{result.stage}: {counts} -> {result.output}", markup=False)
    return 1 if result.failed else 0


def _command_list() -> str:
    lines = (
        f"  {name:<9}{(each.__doc__ or '').strip().splitlines()[0]}" for name, each in STAGE_CONFIGS.items()
    )
    return "\n".join(lines)
