"""The command `sapnet`: one module for each subcommand, nothing heavy imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

import sapnet_cli
from sapnet_cli.cli.benchmark import benchmark
from sapnet_cli.cli.derain import derain
from sapnet_cli.cli.download import download_weights
from sapnet_cli.cli.process import quick_end
from sapnet_cli.cli.train import train
from sapnet_cli.cores import share_cores

app = typer.Typer(
    name="sapnet",
    help="Removes rain from photos, offline, on the CPU or a GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(derain)
app.command()(train)
app.command()(benchmark)
app.command()(download_weights)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sapnet {sapnet_cli.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `sapnet` itself; with a callback, a single subcommand keeps its name."""


def main() -> None:
    """Runs the command line."""
    share_cores()
    with quick_end():
        app(prog_name="sapnet")
