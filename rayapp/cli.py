"""The command line `rayapp`.

Errors are printed as one line on stderr. The exit status is 2 for a wrong argument, 1 for a command that failed, 3 if
nothing is left to do, and 130 after Ctrl-C. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from rayapp import __version__
from rayapp.commands import (
    accounts,
    annotation,
    audit,
    datasets,
    demo,
    doctor,
    images,
    jobs,
    labels,
    models,
    nninteractive_models,
    overview,
    plan,
    replay,
    score,
    server,
    simulate,
    transfer,
    upkeep,
    viewer,
)
from rayapp.errors import RayappError, disk_reason

app = typer.Typer(
    help="AI-assisted interactive labelling of 3D medical images, served by Ray.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(server.start)
app.command()(demo.demo)
app.add_typer(datasets.commands, name="datasets")
app.command()(overview.info)
app.command()(overview.logs)
app.command()(overview.reload)
app.command()(images.images)
app.command()(annotation.infer)
app.command("next")(annotation.next_image)
app.command()(transfer.upload)
app.command()(transfer.save)
app.add_typer(labels.commands, name="labels")
app.command()(replay.replay)
app.command()(jobs.train)
app.command()(jobs.batch)
app.command()(score.score)
app.command()(jobs.jobs)
app.command()(simulate.simulate)
app.add_typer(models.commands, name="models")
app.add_typer(nninteractive_models.commands, name="nninteractive")
app.add_typer(viewer.commands, name="ohif")
app.command()(doctor.doctor)
app.command()(plan.plan)
app.command()(audit.audit)
app.add_typer(accounts.commands, name="users")
app.command()(upkeep.backup)
app.command()(upkeep.restore)
app.command()(upkeep.check)
app.command()(upkeep.gc)
app.command()(upkeep.erase)


def _version(requested: bool) -> None:
    if requested:
        print(f"rayapp {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> NoReturn:
    """Run the command line with the process's arguments, and exit."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except TyperException as error:
        context: typer.Context | None = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        _fail(error.format_message() + hint, error.exit_code)
    except RayappError as error:
        _fail(error.detail, 1)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'rayapp'}: {disk_reason(error)}", 1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def _fail(message: str, status: int) -> NoReturn:
    print(f"rayapp: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
