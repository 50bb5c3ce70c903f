"""The command line: one command per stage or tool, whose flags are the fields of its config.

Comes in: arguments. Goes out: an exit code. 0: all done. 1: some slides failed, more of them than
--max-failed lets pass (a table says which and why), or one error (one line; the traceback with --debug).
2: wrong usage or config. 130: interrupted. Nothing can be done here that ``wsi_mil.<stage>.run(Config(...))``
cannot (``_FUNCTIONS`` has the exceptions to that name).
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

from wsi_mil import __version__
from wsi_mil.config import PLACE_KEYS, STAGE_CONFIGS, fields_of, flag_of, to_toml, toml_values
from wsi_mil.errors import ConfigError, WsiMilError

if TYPE_CHECKING:
    from wsi_mil.parallel import StageResult

_FUNCTIONS = {
    "run": "wsi_mil.pipeline:run",
    "encoders": "wsi_mil.catalog:run",
    "import": "wsi_mil.exchange:import_run",
    "export": "wsi_mil.exchange:export_run",
}
"""The function behind a command, where it is not ``wsi_mil.<command>:run`` (import is no module's name)."""

_HELP = """\
usage: wsi-mil COMMAND [flags]        (wsi-mil COMMAND --help for the flags)

Whole-slide images to attention-based multiple instance learning.

commands, in their order:
{commands}

before all work:
  wsi-mil inspect SLIDES

a first run:
  wsi-mil tile    --slides SLIDES --run RUN
  wsi-mil embed   --run RUN
  wsi-mil train   --run RUN --labels labels.csv
  wsi-mil heatmap --run RUN
  wsi-mil report  --run RUN

all of it, from a file of settings:
  wsi-mil run PIPELINE.toml

new slides, by a model that was trained:
  wsi-mil predict --run NEW --model RUN/models/NAME

from another tool's files, and back:
  wsi-mil import  --from clam DIR --run RUN
  wsi-mil export  --to clam --run RUN --output DIR

Every command takes --config FILE.toml (defaults from the file's table of that name; flags win),
--print-config and --debug; --max-failed 0.02 ends with 0 where at most 2 % of the slides failed, so that
a chain of jobs goes on. A command that was interrupted goes on when it is given again.
"""


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
        max_failed: float = 0.0,
    ) -> tuple[Any, bool, float]:
        """Read the stage's settings.

        Args:
            settings: The stage's own.
            config: TOML file whose table of the command's name gives defaults; flags win.
            print_config: Print the resolved settings as TOML and stop.
            debug: Show the traceback of an error.
            max_failed: Largest part of the slides that may fail, and be named, without the command failing.
        """
        del config, debug  # taken up before: the file's values are flags by now
        return settings, print_config, max_failed

    flags, of_file = _of_file(stage, arguments)
    command.__annotations__["settings"] = Annotated[_as_typed(config_class, of_file), tyro.conf.arg(name="")]
    typed, print_only, max_failed = tyro.cli(
        command,
        args=flags + _spread(config_class, arguments),
        prog=f"wsi-mil {stage}",
        description=(config_class.__doc__ or "").strip(),
    )
    if not 0 <= max_failed < 1:
        raise ConfigError(f"--max-failed {max_failed:g}: a fraction, at least 0 and below 1.")
    settings = config_class(**{f.name: getattr(typed, f.name) for f in dataclasses.fields(config_class)})
    if print_only:
        print(to_toml(settings), end="")
        return 0
    # SIGTERM (Slurm, docker stop) ends a stage as Ctrl-C does: nothing half-written stays.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        module, function = _FUNCTIONS.get(stage, f"wsi_mil.{stage}:run").split(":")
        call = getattr(importlib.import_module(module), function)
        result = call(settings, told=_tell) if stage == "run" else call(settings)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if isinstance(result, list):
        _list_failed(
            [(f"{each.stage}: {one.slide_id}", one.reason) for each in result for one in each.failed]
        )
        return max((_code(each, max_failed) for each in result), default=0)
    return result if isinstance(result, int) else _summarise(result, max_failed)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _spread(config_class: type, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a flag that was given again (--mpp 0.5 --mpp 1.0) as the one for more values.

    A field says in its metadata (``further``) of which other field it takes them.
    """
    given = list(arguments)
    for each in dataclasses.fields(config_class):
        flag = f"--{each.metadata.get('further', '').replace('_', '-')}"
        places = [k for k, text in enumerate(given) if flag != "--" and text.split("=")[0] == flag]
        more: list[str] = []
        for place in reversed(places[1:]):
            parts = given[place].split("=", 1)
            values = parts[1:] or given[place + 1 : place + 2]
            del given[place : place + (1 if len(parts) > 1 else 2)]
            more = values + more
        if more:
            given += [flag_of(each), *more]
    return given


def _as_typed(config_class: type, of_file: dict[str, Any]) -> type:
    """Return the config with the command line's own words: help, another flag, or a place instead of a flag.

    A field says the latter in its metadata (``flag``, ``positional``), because the configs know no command
    line. ``of_file`` gives defaults of fields that have a place.
    """
    hints, texts = get_type_hints(config_class), _help_texts(config_class)
    changed: dict[str, Any] = {}
    for each in dataclasses.fields(config_class):
        text = texts.get(each.name)
        if each.metadata.get("positional"):
            place = tyro.conf.arg(metavar=flag_of(each), help=text)
            changed[each.name] = Annotated[hints[each.name], place, tyro.conf.Positional]
        else:
            flag = tyro.conf.arg(name=each.metadata.get("flag"), help=text)
            changed[each.name] = Annotated[hints[each.name], flag]
    content = {"__annotations__": changed, "__doc__": config_class.__doc__, **of_file}
    typed: Any = dataclasses.dataclass(frozen=True, kw_only=True)(
        type(config_class.__name__, (config_class,), content)
    )
    # What stages share is inherited, and would be shown before what is the stage's own.
    order = [each.name for each in fields_of(config_class)]
    typed.__dataclass_fields__ = {name: typed.__dataclass_fields__[name] for name in order}
    return typed  # type: ignore[no-any-return]


def _help_texts(config_class: type) -> dict[str, str]:
    """Return the text under each field of a config as one line: the parser would keep the source's lines."""
    texts = {}
    for each in config_class.__mro__[:-1]:  # what it inherits has its text where it is declared
        (definition,) = ast.parse(inspect.getsource(each)).body
        assert isinstance(definition, ast.ClassDef)
        for line, below in itertools.pairwise(definition.body):
            if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                texts[ast.unparse(line.target)] = " ".join(str(ast.literal_eval(below.value)).split())
    return texts


def _of_file(stage: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return --config's values: as flags, to stand before the user's own, which then win; and as defaults.

    The latter are those of fields that have a place instead of a flag: a place can be taken only once.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        path = parser.parse_known_args(arguments)[0].config
    except argparse.ArgumentError:
        return [], {}  # --config without a value: the real parser says so
    if path is None:
        return [], {}
    if stage == "run":
        raise ConfigError(f"--config {path}: the file stands behind the command: wsi-mil run {path}")
    fields = {each.name: each for each in dataclasses.fields(STAGE_CONFIGS[stage])}
    flags: list[str] = []
    places: dict[str, Any] = {}
    own_place = any(flag_of(fields[key]) in _flags_in(arguments) for key in PLACE_KEYS if key in fields)
    for key, value in toml_values(path, stage).items():
        flag = flag_of(fields[key])
        if own_place and key in PLACE_KEYS:
            continue  # of the places to work at, the user's word replaces the file's
        if fields[key].metadata.get("positional"):
            places[key] = tuple(map(str, value)) if isinstance(value, list) else Path(value)
        elif isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:
            flags += [flag, str(value)]
    return flags, places


def _flags_in(arguments: Sequence[str]) -> set[str]:
    """Return the flags that arguments hold, however they are written: --a_b 1, --a-b=1."""
    return {each.split("=")[0].replace("_", "-") for each in arguments if each.startswith("--")}


def _summarise(result: "StageResult", max_failed: float) -> int:
    """Print the table of slides that failed, and how many ended how; return the exit code."""
    _list_failed([(each.slide_id, each.reason) for each in result.failed], result.named)
    _tell(result)
    return _code(result, max_failed)


def _code(result: "StageResult", max_failed: float) -> int:
    """Return the exit code of a stage; say so where --max-failed lets failed slides pass."""
    if not result.failed:
        return 0
    if result.named != "slide" or len(result.failed) > max_failed * len(result.outcomes):
        return 1
    print(f"{result.stage}: --max-failed {max_failed:g} lets {len(result.failed)} failed pass")
    return 0


def _list_failed(failed: Sequence[tuple[str, str]], named: str = "slide") -> None:
    """Print a table of what failed and why."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not failed:
        return
    table = Table(title=f"{len(failed)} failed", title_justify="left")
    table.add_column(named, overflow="fold")
    table.add_column("reason", overflow="fold")
    for name, reason in failed:
        table.add_row(Text(name), Text(reason))
    Console(highlight=False).print(table)


def _tell(result: "StageResult") -> None:
    """Print the remarks on a stage's slides, and how many ended how."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    counts = ", ".join(f"{result.count(status)} {status}" for status in ("done", "skipped", "failed"))
    for each in result.outcomes:
        if each.facts.get("reason"):
            console.print(f"note: {each.slide_id}: {each.facts['reason']}", markup=False)
    console.print(f"{result.stage}: {counts} -> {result.output}", markup=False)


def _command_list() -> str:
    lines = (
        f"  {name:<9}{(each.__doc__ or '').strip().splitlines()[0]}" for name, each in STAGE_CONFIGS.items()
    )
    return "\n".join(lines)
