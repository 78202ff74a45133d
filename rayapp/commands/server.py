"""`rayapp start`: the server."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import signal
import socket
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import WrongUsage
from rayapp.protocol import RESERVED_LABEL_NAMES

if TYPE_CHECKING:
    from pydantic import ValidationError

    from rayapp.config import Settings

logger = logging.getLogger("rayapp.ray")

Studies = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|URL",
        help="The folder with the images; labels go in it too. Or a data list (.json), or a DICOMweb address.",
    ),
]
Workspace = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where models, users and logs lie.  [default: ~/.local/share/rayapp/NAME-HASH of the studies]",
    ),
]
Port = Annotated[int | None, typer.Option(help="Port to listen on.  [default: 8000]")]
Replicas = Annotated[str | None, typer.Option(metavar="MIN:MAX", help="Inference replicas.  [default: 1:1]")]
Cpus = Annotated[
    int | None,
    typer.Option("--num-cpus", help="Logical CPUs for Ray.  [default: the cores, at least 4]"),
]


def start(
    studies: Studies = None,
    app: Annotated[
        str | None, typer.Option(help="radiology, bundle, or a folder with main.py.  [default: radiology]")
    ] = None,
    models: Annotated[str | None, typer.Option(metavar="a,b,…", help="Models of the app to serve.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,…", help="Structures, values 1..N.  [default: the shipped weights']"),
    ] = None,
    conf: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="For the app; may be repeated.")] = None,
    workspace: Workspace = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Port = None,
    auth: Annotated[str | None, typer.Option(metavar="none|token", help="Who may come in.  [default: none]")] = None,
    replicas: Replicas = None,
    num_cpus: Cpus = None,
) -> None:
    """Serve a folder of studies until Ctrl-C.

    Prints `ready http://HOST:PORT` once every route answers. Each option may also come from the environment
    (RAYAPP_STUDIES, …) or from the file rayapp.toml in the working directory.
    """
    given = {
        "studies": studies,
        "app": app,
        "models": names(models),
        "labels": names(labels),
        "conf": dict(pair("--conf", text, "=") for text in conf) if conf else None,
        "workspace": workspace,
        "host": host,
        "port": port,
        "auth": auth,
        "replicas": pair("--replicas", replicas, ":") if replicas else None,
        "num_cpus": num_cpus,
    }
    serve(settings({name: value for name, value in given.items() if value is not None}))


def serve(chosen: Settings, greet: Callable[[str], None] = lambda url: None) -> None:  # noqa: ARG005
    """Serve until SIGINT or SIGTERM; `greet` is told the address once everything answers."""
    from rich.console import Console

    console = Console(stderr=True)
    with _signals_end_it(), _stdout_for_one_line() as say:
        status = console.status("starting Ray and the models…")

        def on_ready(url: str) -> None:
            status.stop()
            say(f"ready {url}")
            greet(url)

        with status:
            _install_requirements(chosen)
            from rayapp.launch import serve_until_stopped

            serve_until_stopped(chosen, on_ready=on_ready)


def _install_requirements(chosen: Settings) -> None:
    """What the app needs beyond the server's packages, before anything starts."""
    from rayapp.app.requirements import interpreter
    from rayapp.errors import AppBroken

    try:
        interpreter(chosen)
    except AppBroken as error:
        raise WrongUsage(f"--app: {error.detail}") from error


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the block well also before the server minds its signals itself."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        yield


class _Logged(io.TextIOBase):
    """What is written here becomes lines of the log."""

    def write(self, text: str) -> int:
        """Log each line."""
        for line in filter(None, text.splitlines()):
            logger.info("%s", line)
        return len(text)


@contextlib.contextmanager
def _stdout_for_one_line() -> Iterator[Callable[[str], None]]:
    """Keep stdout for what is said here: whatever else prints, also from other processes, goes to stderr; what Ray
    prints in this one (whole tracebacks of what is told in one line, later) to the log."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", buffering=1) as stdout, contextlib.redirect_stdout(_Logged()):
            yield lambda line: print(line, file=stdout)
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def settings(given: Mapping[str, Any]) -> Settings:
    """The settings of these flags, the environment and the file, checked as far as can be before anything starts.

    Raises WrongUsage, in one line, for whatever is wrong.
    """
    chosen = places(given)
    _check_labels(chosen.labels)
    _check_address(chosen)
    return chosen.model_copy(update={"app": _app(chosen.app)})


def places(given: Mapping[str, Any]) -> Settings:
    """As `settings`, for a command that only needs to know where things lie."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from rayapp.config import Settings

    try:
        chosen = Settings(**given)
    except ValidationError as error:
        raise WrongUsage(_line(error)) from error
    except SettingsError as error:
        raise WrongUsage(f"environment: {error} (lists are JSON there)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongUsage(f"rayapp.toml: {error}") from error
    if chosen.dicomweb.url:
        chosen.studies.mkdir(parents=True, exist_ok=True)
    if chosen.studies.suffix == ".json" and chosen.studies.is_file():
        chosen = chosen.model_copy(update={"studies": _list_folder(chosen)})
    _check_studies(chosen.studies)
    # Other processes of the server have other working directories.
    update = {"studies": chosen.studies.resolve(), "workspace": chosen.workspace.expanduser().resolve()}
    return chosen.model_copy(update=update)


def _list_folder(chosen: Settings) -> Path:
    from rayapp.datastore.datalist import open_datalist
    from rayapp.errors import BadRequest

    try:
        return open_datalist(chosen.studies.resolve(), max_bytes=chosen.max_volume)
    except (BadRequest, OSError) as error:
        raise WrongUsage(f"--studies: {error}") from error


def _line(error: ValidationError) -> str:
    problem = next(p for p in error.errors() if p["type"] != "default_factory_not_called")
    name = str(problem["loc"][0])
    flag = f"--{name.replace('_', '-')}"
    if problem["type"] == "missing":
        return f"{flag} is needed"
    if problem["type"] == "extra_forbidden":
        return f"rayapp.toml: there is no setting {name!r}"
    return f"{flag}: {problem['msg'].removeprefix('Value error, ')}, not {problem['input']!r}"


def _check_studies(studies: Path) -> None:
    try:
        next(studies.iterdir(), None)
        tempfile.TemporaryFile(dir=studies).close()
    except FileNotFoundError as error:
        raise WrongUsage(f"--studies: there is no folder {studies}") from error
    except NotADirectoryError as error:
        raise WrongUsage(f"--studies: {studies} is not a folder") from error
    except OSError as error:
        raise WrongUsage(f"--studies: {studies} cannot be read and written: {error.strerror}") from error


def _check_labels(labels: tuple[str, ...]) -> None:
    for name in labels:
        if name in RESERVED_LABEL_NAMES or name == "background":
            raise WrongUsage(f"--labels: {name!r} has a meaning of its own in requests; take another name")
        if labels.count(name) > 1:
            raise WrongUsage(f"--labels: {name!r} is there twice")


def _check_address(chosen: Settings) -> None:
    if not chosen.loopback and chosen.auth == "none":
        raise WrongUsage(
            f"--host {chosen.host} without --auth token would let everyone who reaches this machine read and change "
            "the studies: add --auth token, or stay on 127.0.0.1"
        )
    try:
        family = socket.getaddrinfo(chosen.host, chosen.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((chosen.host, chosen.port))
    except OSError as error:
        raise WrongUsage(f"--host {chosen.host} --port {chosen.port}: {error.strerror}") from error


def _app(app: str) -> str:
    folder = Path(app)
    if (folder / "main.py").is_file():
        return str(folder.resolve())
    if app.isidentifier() and importlib.util.find_spec(f"rayapp.apps.{app}") is not None:
        return app
    raise WrongUsage(f"--app: no app {app!r}: name one that ships (radiology, bundle) or a folder with main.py")


def names(text: str | None) -> tuple[str, ...] | None:
    """The names in a comma list."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def pair(flag: str, text: str, mark: str) -> tuple[str, str]:
    """The two halves of KEY=VALUE or MIN:MAX."""
    first, found, second = text.partition(mark)
    if not (first and found):
        raise WrongUsage(f"{flag}: {text!r} has no {mark!r} in it")
    return first, second
