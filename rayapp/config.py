"""Settings: one typed object, from flags, then `RAYAPP_*` environment, then a TOML file, in that order."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

MIB = 1 << 20
Auth = Literal["none", "token"]


def user_data() -> Path:
    """`$XDG_DATA_HOME/rayapp`, usually `~/.local/share/rayapp`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "rayapp"


def ohif_folder() -> Path:
    """Where `rayapp ohif install` puts the viewer, and a server looks for it: `RAYAPP_OHIF`, else the user's data."""
    return Path(os.environ.get("RAYAPP_OHIF") or user_data() / "ohif").expanduser().absolute()


def default_workspace(studies: Path | str) -> Path:
    """One folder per studies folder or archive in the user's data."""
    if is_address(studies):
        name, whole = urlsplit(str(studies)).hostname or "archive", str(studies)
    else:
        folder = Path(studies).expanduser().resolve()
        name, whole = folder.name, str(folder)
    return user_data() / f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def is_address(studies: Path | str) -> bool:
    """Whether the studies lie in a DICOMweb archive rather than in a folder."""
    return str(studies).startswith(("http://", "https://"))


class Dicomweb(BaseModel):
    """The DICOMweb archive that holds the studies, and how to speak to it.

    In `rayapp.toml` a table `[dicomweb]`; in the environment `RAYAPP_DICOMWEB__TOKEN` and so on, which keeps secrets
    off the command line. Sign in with `user` and `password` (basic), with `token` (bearer), or with `token_url`,
    `client_id` and `client_secret` (OAuth 2 client credentials, RFC 6749 4.4).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = ""
    """Filled from `studies`; empty for a studies folder."""
    qido: str = ""
    """Path below `url` where searches are served, if not at `url` itself; `wado` and `stow` likewise."""
    wado: str = ""
    stow: str = ""
    user: str | None = None
    password: SecretStr = SecretStr("")
    token: SecretStr | None = None
    token_url: str | None = None
    client_id: str = ""
    client_secret: SecretStr = SecretStr("")
    scope: str = ""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds without a byte after which the archive counts as away."""
    cache: int = Field(default=20 * 1024 * MIB, gt=0)
    """Bytes of retrieved series that are kept on disk; those that were not used for longest go first."""
    fresh: float = Field(default=60.0, ge=0)
    """Seconds for which the list of series is taken as it was found."""
    segmentation: Literal["BINARY", "LABELMAP"] = "BINARY"
    """Type of the DICOM SEG that labels are stored as; many archives and viewers know BINARY only."""

    def base(self, service: Literal["qido", "wado", "stow"]) -> str:
        """The address of a service, without a slash at its end."""
        prefix = str(getattr(self, service)).strip("/")
        return f"{self.url.rstrip('/')}/{prefix}" if prefix else self.url.rstrip("/")


class Settings(BaseSettings):
    """What a server is started with. Frozen: every actor and replica gets the same copy."""

    model_config = SettingsConfigDict(
        env_prefix="RAYAPP_", env_nested_delimiter="__", frozen=True, extra="forbid", toml_file="rayapp.toml"
    )

    studies: Path
    """Where labels, revisions and clicks lie, with the images; for an archive, a folder in the workspace."""
    dicomweb: Dicomweb = Dicomweb()
    workspace: Path = Field(default_factory=lambda given: default_workspace(given["studies"]))
    """Where models, users and logs lie; by default a folder of the user's data for each studies folder."""
    app: str = "radiology"
    models: tuple[str, ...] = ("deepedit", "segmentation", "deepgrow_2d", "deepgrow_3d", "scribbles")
    labels: tuple[str, ...] = ()
    """Names of the structures, values 1..N in this order; empty means those of the shipped weights."""
    conf: dict[str, str] = Field(default_factory=dict)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    auth: Auth = "none"
    replicas: tuple[int, int] = (1, 1)
    """Minimum and maximum number of inference replicas."""
    replica_gpus: float | None = Field(default=None, ge=0, le=1)
    """Share of a GPU that each replica takes; None lets the planner choose."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of the embedded Ray node; more than the cores is fine."""
    dashboard: bool = True
    ray_address: str | None = None
    """Join this Ray cluster ("auto" on a cluster's node); None starts an embedded one."""

    max_body: int = Field(default=2048 * MIB, gt=0)
    """Bytes one request body may have."""
    max_volume: int = Field(default=4096 * MIB, gt=0)
    """Bytes one decoded image may have: checked against headers before anything is allocated."""
    volume_cache: int | None = Field(default=None, gt=0)
    """Bytes of decoded and preprocessed volumes one inference replica keeps; None lets the planner choose."""
    max_answer: float = Field(default=600.0, gt=0)
    """Seconds that a model may take for one answer; a replica in which one takes longer is replaced."""
    max_queued: int = Field(default=64, ge=1)
    """Requests that may wait for a replica before callers are told to come back later."""
    ohif: Path = Field(default_factory=ohif_folder)
    """A build of the OHIF viewer for `/ohif/`; nothing there means that no viewer is served."""
    session_expiry: int = Field(default=3600, ge=60)
    cors_origins: tuple[str, ...] = ()
    """Origins of further web pages that may use the server, such as `https://viewer.example`. By default only its own
    pages may when there are no keys, and every page when there are, since a page without a key gets nowhere."""

    @model_validator(mode="before")
    @classmethod
    def _of_an_archive(cls, given: dict[str, Any]) -> dict[str, Any]:
        address = str(given.get("studies", ""))
        if not is_address(address):
            return given
        workspace = Path(given.get("workspace") or default_workspace(address))
        archive = {**given.get("dicomweb", {}), "url": address}
        return {**given, "workspace": workspace, "studies": workspace / "studies", "dicomweb": archive}

    @field_validator("replicas")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        low, high = value
        if not 1 <= low <= high:
            raise ValueError("replicas is MIN:MAX with 1 <= MIN <= MAX")
        return value

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach the server."""
        return self.host in ("127.0.0.1", "localhost", "::1")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then `rayapp.toml` of the working directory."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
