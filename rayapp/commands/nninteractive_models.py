"""`rayapp nninteractive`: official model folders of nnInteractive, which are not rayapp's."""

from __future__ import annotations

from typing import Annotated

import typer

commands = typer.Typer(help="Official models of nnInteractive, for `rayapp start --models nninteractive`.")


@commands.callback()
def _nninteractive() -> None:
    """Make `download` a subcommand although it is the only one."""


@commands.command()
def download(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="The model's id, such as nnInteractive_v1.0.")],
    accept: Annotated[bool, typer.Option("--accept-licence", help="Accept the licence without being asked.")] = False,
) -> None:
    """Show the licence of the weights, ask, download them from Hugging Face (400 MB), and print the folder."""
    from rayapp.downloads import nninteractive

    typer.echo(nninteractive.LICENCE, err=True)
    if not accept:
        typer.confirm(f"Download {model_id} under this licence?", abort=True, err=True)
    print(nninteractive.download(model_id))
