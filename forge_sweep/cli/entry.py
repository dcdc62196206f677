"""The application: global options, all commands, those of plugins too, and the entry point of ``forge-sweep``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from forge_sweep import __version__, plugins
from forge_sweep.cli import compare, models, run, serve
from forge_sweep.cli.printing import echo, say
from forge_sweep.cli.surroundings import INTERRUPTED, MaskingFormatter, flush_quietly, report_error, set_up

HELP = {"data": "Versions of datasets in PostgreSQL: frozen, in one order, test rows out of reach."}
"""Help of the package's own plugins; of others it is the summary of their distribution."""


class _Commands(TyperGroup):
    """The commands of the program, and those declared as entry points."""

    def __init__(self, *, commands: Mapping[str, Any], **settings: Any) -> None:
        own = {name: _Declared(name) for name in plugins.COMMANDS.own}
        super().__init__(commands={**commands, **own}, **settings)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys([*super().list_commands(ctx), *plugins.names(plugins.COMMANDS)]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None and plugins.is_known(plugins.COMMANDS, cmd_name):
            return _Declared(cmd_name)
        return found


class _Declared(TyperGroup):
    """A command of an entry point: listed by name, imported once it or one of its own commands is called."""

    def __init__(self, name: str) -> None:
        words = HELP.get(name) or plugins.summary(plugins.COMMANDS, name)
        super().__init__(name=name, help=words, no_args_is_help=True, rich_markup_mode=None)

    @cached_property
    def _loaded(self) -> Any:
        parent = typer.Typer(add_completion=False, rich_markup_mode=None)
        parent.add_typer(plugins.load(plugins.COMMANDS, str(self.name), ["add_typer"]), name=self.name)
        return get_command(parent).commands[str(self.name)]  # type: ignore[attr-defined]  # it is a group

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self._loaded.make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self._loaded.list_commands(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._loaded.get_command(ctx, cmd_name)


app = typer.Typer(
    name="forge-sweep",
    cls=_Commands,
    help="Hyperparameter sweeps for Keras: one TOML file in, one registered model out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line and exit with its code; no error shows a traceback without ``--debug``."""
    set_up()
    code: int | str | None = 0
    try:
        app(standalone_mode=True)
    except SystemExit as leaving:
        code = leaving.code
    except KeyboardInterrupt:
        say("interrupted", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        code = 1
    except Exception as error:
        try:
            code = report_error(error)
        except OSError:  # standard error is closed
            code = 1
    flush_quietly()
    sys.exit(code)


def _start_debugging(wanted: bool) -> None:
    if wanted:
        handler = logging.StreamHandler()
        handler.setFormatter(MaskingFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        for name in ("forge_sweep", "psycopg", "alembic"):
            logging.getLogger(name).setLevel(logging.DEBUG)


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"forge-sweep {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", callback=_start_debugging, help="Print log lines and tracebacks, credentials masked."),
    ] = False,
) -> None:
    """Hyperparameter sweeps for Keras: one TOML file in, one registered model out."""


for command in (*run.COMMANDS, *compare.COMMANDS, *models.COMMANDS, *serve.COMMANDS):
    app.command()(command)
app.add_typer(models.app, name="models")
app.add_typer(run.store_app, name="store")
