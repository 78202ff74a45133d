"""Settings: one typed object, read from flags, then `RAYAPP_*` environment variables, then `rayapp.toml`."""

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

from rayapp.protocol import Role

MIB = 1 << 20
Auth = Literal["none", "token", "oidc"]


def user_data() -> Path:
    """The user's data folder: `$XDG_DATA_HOME/rayapp`, usually `~/.local/share/rayapp`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "rayapp"


def ohif_folder() -> Path:
    """The folder where `rayapp ohif install` puts the viewer: `RAYAPP_OHIF`, else one in the user's data folder."""
    return Path(os.environ.get("RAYAPP_OHIF") or user_data() / "ohif").expanduser().absolute()


def default_workspace(studies: Path | str) -> Path:
    """The default workspace: a folder in the user's data folder, one for each studies folder or archive."""
    if is_address(studies):
        name, location = urlsplit(str(studies)).hostname or "archive", str(studies)
    else:
        folder = Path(studies).expanduser().resolve()
        name, location = folder.name, str(folder)
    return user_data() / f"{name}-{hashlib.sha256(location.encode()).hexdigest()[:8]}"


def is_address(studies: Path | str) -> bool:
    """True if the studies are in a DICOMweb archive rather than in a folder."""
    return str(studies).startswith(("http://", "https://"))


class Dicomweb(BaseModel):
    """Connection to the DICOMweb archive that holds the studies.

    Set in table `[dicomweb]` of `rayapp.toml`, or by environment variables such as `RAYAPP_DICOMWEB__TOKEN`, which
    keeps secrets off the command line. Authenticate with `user` and `password` (HTTP Basic), with `token` (bearer
    token), or with `token_url`, `client_id` and `client_secret` (OAuth 2 client credentials, RFC 6749 section 4.4).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = ""
    """Base address of the archive, taken from `studies`; empty for a studies folder."""
    qido: str = ""
    """Path of the search service (QIDO-RS) below `url`; empty if it is at `url` itself."""
    wado: str = ""
    """Path of the retrieve service (WADO-RS) below `url`."""
    stow: str = ""
    """Path of the store service (STOW-RS) below `url`."""
    user: str | None = None
    """User name for HTTP Basic authentication."""
    password: SecretStr = SecretStr("")
    """Password for HTTP Basic authentication."""
    token: SecretStr | None = None
    """Bearer token."""
    token_url: str | None = None
    """Token endpoint for OAuth 2 client credentials."""
    client_id: str = ""
    """OAuth 2 client id."""
    client_secret: SecretStr = SecretStr("")
    """OAuth 2 client secret."""
    scope: str = ""
    """OAuth 2 scope to request; empty for none."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds without receiving a byte after which the archive counts as unavailable."""
    cache: int = Field(default=20 * 1024 * MIB, gt=0)
    """Maximum size in bytes of the cache of retrieved series on disk; the least recently used are evicted first."""
    fresh: float = Field(default=60.0, ge=0)
    """Seconds for which a listing of the archive's series is reused."""
    segmentation: Literal["BINARY", "LABELMAP"] = "BINARY"
    """Type of the DICOM SEG objects that labels are stored as; many archives and viewers support only BINARY."""

    def base(self, service: Literal["qido", "wado", "stow"]) -> str:
        """Address of a service, without a trailing slash."""
        prefix = str(getattr(self, service)).strip("/")
        return f"{self.url.rstrip('/')}/{prefix}" if prefix else self.url.rstrip("/")


class Oidc(BaseModel):
    """The OpenID Connect provider that signs people in with `--auth oidc`.

    Set in table `[oidc]` of `rayapp.toml`, or by environment variables such as `RAYAPP_OIDC__ISSUER`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str = ""
    """Address of the provider, exactly as its tokens name it under `iss`."""
    audience: str = "rayapp"
    """Name of this server in tokens' `aud`: what is meant for other services lets nobody in."""
    client_id: str = "rayapp"
    """Client under which names and passwords are sent to the provider, for programs that ask for both."""
    client_secret: SecretStr = SecretStr("")
    """Secret of that client; empty for a public one."""
    scope: str = "openid"
    """Scope to ask for with a name and a password."""
    name_claim: str = "preferred_username"
    """Claim with the user's name; `sub` counts where it is missing."""
    role_claim: str = "roles"
    """Claim with the user's roles, with dots where it is within another: `realm_access.roles` for Keycloak."""
    roles: dict[str, Role] = {role.value: role for role in Role}
    """Role that each value of the claim stands for; the highest counts, and who has none is not let in."""
    leeway: float = Field(default=60.0, ge=0, le=600)
    """Seconds by which the clocks of server and provider may differ."""


class Settings(BaseSettings):
    """Settings of a server. Frozen: every actor and replica gets the same copy."""

    model_config = SettingsConfigDict(
        env_prefix="RAYAPP_", env_nested_delimiter="__", frozen=True, extra="forbid", toml_file="rayapp.toml"
    )

    studies: Path
    """Studies folder with images, labels, revisions and clicks; for an archive, the folder of its local part."""
    dicomweb: Dicomweb = Dicomweb()
    """Connection to the archive, if `studies` is the address of one."""
    workspace: Path = Field(default_factory=lambda given: default_workspace(given["studies"]))
    """Folder for models, users and logs; by default one in the user's data folder for each studies folder."""
    app: str = "radiology"
    """App to serve: the name of a shipped one, or the folder of one's own."""
    models: tuple[str, ...] = ("deepedit", "segmentation", "deepgrow_2d", "deepgrow_3d", "scribbles")
    """Models of the app to serve."""
    labels: tuple[str, ...] = ()
    """Names of the structures, with values 1..N in this order; empty for those of the shipped weights."""
    conf: dict[str, str] = Field(default_factory=dict)
    """Options of the app, from `--conf KEY=VALUE`."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 for any free one."""
    auth: Auth = "none"
    """Authentication of clients: `token` requires a user's token, `oidc` that or one of the provider of `oidc`, `none`
    admits everybody who can reach the server.
    """
    oidc: Oidc = Oidc()
    """The provider for `auth = "oidc"`."""
    tls_cert: Path | None = None
    """File with the server's certificate and those that signed it (PEM), for HTTPS; it is read at the start."""
    tls_key: Path | None = None
    """File with the key of `tls_cert` (PEM), without a passphrase."""
    max_connections: int = Field(default=512, ge=8)
    """Connections that one address may hold open at a time; raise it behind a proxy, whose clients share one."""
    replicas: tuple[int, int] = (1, 1)
    """Minimum and maximum number of inference replicas."""
    replica_gpus: float | None = Field(default=None, ge=0, le=1)
    """Share of a GPU per replica; None lets the planner choose."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of the embedded Ray node; may exceed the number of cores."""
    dashboard: bool = True
    """Start Ray's dashboard with the embedded node."""
    ray_address: str | None = None
    """Ray cluster to join ("auto" on a node of one); None starts an embedded node."""

    log_format: Literal["text", "json"] = "text"
    """Lines of the log: text, or JSON with the ids of requests."""

    max_body: int = Field(default=2048 * MIB, gt=0)
    """Maximum size of a request body in bytes."""
    max_volume: int = Field(default=4096 * MIB, gt=0)
    """Maximum size of a decoded image in bytes, checked against headers before anything is allocated."""
    volume_cache: int | None = Field(default=None, gt=0)
    """Bytes of decoded and preprocessed volumes that an inference replica keeps in memory; None lets the planner
    choose.
    """
    max_answer: float = Field(default=600.0, gt=0)
    """Seconds that a model may take for one answer; a replica that exceeds this is replaced."""
    max_queued: int = Field(default=64, ge=1)
    """Requests that may wait for a replica; further ones are answered 503 with Retry-After."""
    ohif: Path = Field(default_factory=ohif_folder)
    """Folder of an OHIF build to serve at `/ohif/`; if it does not exist, no viewer is served."""
    session_expiry: int = Field(default=3600, ge=60)
    """Seconds without use after which a session expires."""
    cors_origins: tuple[str, ...] = ()
    """Additional web origins (such as `https://viewer.example`) whose pages may call the server, besides those of this
    machine.

    If empty and `auth` is `token`, every origin may: without a token a page cannot do anything.
    """

    @model_validator(mode="before")
    @classmethod
    def _split_address(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Turn `studies` with an archive's address into `dicomweb.url` and a folder in the workspace."""
        address = str(fields.get("studies", ""))
        if not is_address(address):
            return fields
        workspace = Path(fields.get("workspace") or default_workspace(address))
        archive = {**fields.get("dicomweb", {}), "url": address}
        return {**fields, "workspace": workspace, "studies": workspace / "studies", "dicomweb": archive}

    @field_validator("replicas")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        low, high = value
        if not 1 <= low <= high:
            raise ValueError("replicas must be MIN:MAX with 1 <= MIN <= MAX")
        return value

    @model_validator(mode="after")
    def _certified(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: give both or none")
        if self.tls_cert is not None and self.auth == "none":
            raise ValueError("tls_cert needs auth: without keys the server answers to this machine only")
        if self.auth == "oidc" and not self.oidc.issuer.startswith(
            ("https://", "http://127.0.0.1", "http://localhost")
        ):
            raise ValueError("auth oidc needs oidc.issuer, the https address of the identity provider")
        return self

    @property
    def loopback(self) -> bool:
        """True if the server can be reached from this machine only."""
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
        """Precedence: flags, then environment variables, then `rayapp.toml` in the working directory."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
