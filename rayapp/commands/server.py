"""`rayapp start`: the server."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import signal
import socket
import ssl
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import WrongUsage
from rayapp.errors import disk_reason
from rayapp.protocol import RESERVED_LABEL_NAMES

if TYPE_CHECKING:
    from pydantic import ValidationError

    from rayapp.config import Settings

logger = logging.getLogger("rayapp.ray")

PROBE = 1 << 20
"""Bytes that must fit into the folders when a server starts."""

Studies = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|URL",
        help="Folder of images, to which labels are saved; or a data list (.json), or the URL of a DICOMweb archive.",
    ),
]
Workspace = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for models, users and logs.  [default: ~/.local/share/rayapp/NAME-HASH of the studies]",
    ),
]
Port = Annotated[int | None, typer.Option(help="Port to listen on.  [default: 8000]")]
Replicas = Annotated[str | None, typer.Option(metavar="MIN:MAX", help="Number of inference replicas.  [default: 1:1]")]
Cpus = Annotated[
    int | None,
    typer.Option("--num-cpus", help="Logical CPUs for Ray.  [default: number of cores, at least 4]"),
]


def start(
    studies: Studies = None,
    app: Annotated[
        str | None,
        typer.Option(help="App to serve: radiology, bundle, or a folder with main.py.  [default: radiology]"),
    ] = None,
    models: Annotated[str | None, typer.Option(metavar="a,b,…", help="Models of the app to serve.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,…", help="Structures, with values 1..N.  [default: those of the shipped weights]"
        ),
    ] = None,
    conf: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A setting of the app; may be repeated.")
    ] = None,
    workspace: Workspace = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Port = None,
    auth: Annotated[
        str | None, typer.Option(metavar="none|token|oidc", help="Authentication of clients.  [default: none]")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate (PEM), for HTTPS; needs --auth.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Key of --tls-cert (PEM).")] = None,
    replicas: Replicas = None,
    num_cpus: Cpus = None,
) -> None:
    """Serve a folder of studies until Ctrl-C.

    Prints `ready http://HOST:PORT` once every route answers. Each option can also be set in the environment
    (RAYAPP_STUDIES, …) or in the file rayapp.toml in the working directory.
    """
    flags = {
        "studies": studies,
        "app": app,
        "models": names(models),
        "labels": names(labels),
        "conf": dict(pair("--conf", text, "=") for text in conf) if conf else None,
        "workspace": workspace,
        "host": host,
        "port": port,
        "auth": auth,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "replicas": pair("--replicas", replicas, ":") if replicas else None,
        "num_cpus": num_cpus,
    }
    serve(settings({name: value for name, value in flags.items() if value is not None}))


def serve(settings: Settings, greet: Callable[[str], None] = lambda url: None) -> None:  # noqa: ARG005
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: The server's settings.
        greet: Called with the server's address once every route answers.
    """
    from rich.console import Console

    console = Console(stderr=True)
    with _signals_end_block(), _stdout_for_ready_line() as print_line:
        status = console.status("starting Ray and the models…")

        def on_ready(url: str) -> None:
            status.stop()
            print_line(f"ready {url}")
            greet(url)

        def on_wait(text: str) -> None:
            status.update(f"{text}…")
            if not console.is_terminal:
                print(f"rayapp: {text}", file=sys.stderr)

        with status:
            _install_requirements(settings)
            from rayapp.launch import serve_until_stopped

            serve_until_stopped(settings, on_ready=on_ready, on_wait=on_wait)


def _install_requirements(settings: Settings) -> None:
    """Install the app's requirements, before anything starts."""
    from rayapp.app.requirements import interpreter
    from rayapp.errors import AppBroken

    try:
        interpreter(settings)
    except AppBroken as error:
        raise WrongUsage(f"--app: {error.detail}") from error


@contextlib.contextmanager
def _signals_end_block() -> Iterator[None]:
    """End the block silently on SIGINT and SIGTERM, until the server installs its own signal handlers."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        yield


class _LogStream(io.TextIOBase):
    """A text stream whose lines are logged."""

    def write(self, text: str) -> int:
        """Log each line."""
        for line in filter(None, text.splitlines()):
            logger.info("%s", line)
        return len(text)


@contextlib.contextmanager
def _stdout_for_ready_line() -> Iterator[Callable[[str], None]]:
    """Reserve stdout for lines printed by the function that this yields.

    All other output goes to stderr, also that of child processes. Ray's output in this process, such as tracebacks of
    errors that are reported in one line later, goes to the log.
    """
    sys.stdout.flush()
    original = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(original), "w", buffering=1) as stdout, contextlib.redirect_stdout(_LogStream()):
            yield lambda line: print(line, file=stdout)
    finally:
        sys.stdout.flush()
        os.dup2(original, 1)
        os.close(original)


def settings(flags: Mapping[str, Any]) -> Settings:
    """The settings from flags, environment and rayapp.toml, checked as far as possible before anything starts.

    Args:
        flags: Values of the flags that were given, by name of the setting.

    Raises:
        WrongUsage: Naming the flag or setting that is wrong, in one line.
    """
    checked = places(flags)
    _check_writable("--studies", checked.studies)
    _check_writable("--workspace", checked.workspace)
    _check_labels(checked.labels)
    _check_address(checked)
    _check_certificate(checked)
    return checked.model_copy(update={"app": _app(checked.app)})


def places(flags: Mapping[str, Any]) -> Settings:
    """The settings as `settings` reads them, with only the folders checked, for commands that start no server.

    Args:
        flags: Values of the flags that were given, by name of the setting.

    Raises:
        WrongUsage: Naming the flag or setting that is wrong, in one line.
    """
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from rayapp.config import Settings

    try:
        loaded = Settings(**flags)
    except ValidationError as error:
        raise WrongUsage(_line(error)) from error
    except SettingsError as error:
        raise WrongUsage(f"environment: {error} (lists must be JSON)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongUsage(f"rayapp.toml: {error}") from error
    if loaded.dicomweb.url:
        loaded.studies.mkdir(parents=True, exist_ok=True)
    if loaded.studies.suffix == ".json" and loaded.studies.is_file():
        loaded = loaded.model_copy(update={"studies": _datalist_folder(loaded)})
    _check_studies(loaded.studies)
    # Absolute, because other processes of the server have other working directories.
    update = {"studies": loaded.studies.resolve(), "workspace": loaded.workspace.expanduser().resolve()}
    return loaded.model_copy(update=update)


def _datalist_folder(settings: Settings) -> Path:
    """The folder of images that a data list describes."""
    from rayapp.datastore.datalist import open_datalist
    from rayapp.errors import BadRequest

    try:
        return open_datalist(settings.studies.resolve(), max_bytes=settings.max_volume)
    except (BadRequest, OSError) as error:
        raise WrongUsage(f"--studies: {error}") from error


def _line(error: ValidationError) -> str:
    """The first problem of a validation error in one line."""
    problem = next(p for p in error.errors() if p["type"] != "default_factory_not_called")
    name = str(problem["loc"][0])
    flag = f"--{name.replace('_', '-')}"
    if problem["type"] == "missing":
        return f"{flag} is required"
    if problem["type"] == "extra_forbidden":
        return f"rayapp.toml: there is no setting {name!r}"
    return f"{flag}: {problem['msg'].removeprefix('Value error, ')}, not {problem['input']!r}"


def _check_studies(studies: Path) -> None:
    try:
        next(studies.iterdir(), None)
    except FileNotFoundError as error:
        raise WrongUsage(f"--studies: there is no folder {studies}") from error
    except NotADirectoryError as error:
        raise WrongUsage(f"--studies: {studies} is not a folder") from error
    except OSError as error:
        raise WrongUsage(f"--studies: {studies} cannot be read: {disk_reason(error)}") from error


def _check_writable(flag: str, folder: Path) -> None:
    """Write something below the folder, or below where it will be created."""
    existing = next(each for each in (folder, *folder.parents) if each.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(PROBE))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise WrongUsage(f"{flag}: {folder} cannot be written: {disk_reason(error)}") from error


def _check_labels(labels: tuple[str, ...]) -> None:
    for name in labels:
        if name in RESERVED_LABEL_NAMES or name == "background":
            raise WrongUsage(f"--labels: {name!r} is a reserved name in requests: choose another")
        if labels.count(name) > 1:
            raise WrongUsage(f"--labels: {name!r} is given twice")


def _check_address(settings: Settings) -> None:
    host, port = settings.host, settings.port
    if not settings.loopback and settings.auth == "none":
        raise WrongUsage(
            f"--host {host} without --auth token would let everyone who can reach this machine read and change "
            "the studies: add --auth token, or use 127.0.0.1"
        )
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise WrongUsage(f"--host {host} --port {port}: {error.strerror}") from error


def _check_certificate(settings: Settings) -> None:
    if settings.tls_cert is None or settings.tls_key is None:
        return
    if settings.ray_address is not None:
        raise WrongUsage(
            "--tls-cert: Ray Serve of the cluster listens, not this server: put a TLS proxy in front of it"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, lambda: "")
    except OSError as error:  # that of OpenSSL is one too
        reason = "are not a certificate and its key without a passphrase" if isinstance(error, ssl.SSLError) else ""
        both = f"{settings.tls_cert} and {settings.tls_key}"
        raise WrongUsage(
            f"--tls-cert, --tls-key: {both} {reason or f'cannot be read: {disk_reason(error)}'}"
        ) from error


def _app(app: str) -> str:
    folder = Path(app)
    if (folder / "main.py").is_file():
        return str(folder.resolve())
    if app.isidentifier() and importlib.util.find_spec(f"rayapp.apps.{app}") is not None:
        return app
    raise WrongUsage(f"--app: no app {app!r}: name radiology, bundle or a folder with main.py")


def names(text: str | None) -> tuple[str, ...] | None:
    """The names in a comma-separated list."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def pair(flag: str, text: str, separator: str) -> tuple[str, str]:
    """The two parts of a flag's value, such as KEY=VALUE or MIN:MAX.

    Raises:
        WrongUsage: Naming the flag, if there is no separator.
    """
    first, present, second = text.partition(separator)
    if not (first and present):
        raise WrongUsage(f"{flag}: {text!r} has no {separator!r} in it")
    return first, second
