"""The server's own configuration: defaults, a TOML file, flags -> one frozen Config.

    defaults  <  --config FILE  <  command line flags

Every error names the file (or the flag), the key, the value and what is allowed. Each option is documented in
docs/configuration.md and, with its default, in conf/gitsmart.toml; tests/test_docs.py compares all three. A
repository's git config is another thing: see repo/gitconfig.py.
"""

import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from gitsmart.errors import ConfigError

__all__ = [
    "Access",
    "Cache",
    "Config",
    "Git",
    "Http",
    "Limits",
    "Maintenance",
    "Network",
    "Push",
    "Server",
    "dump",
    "load",
    "options",
    "restore",
]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Port = Annotated[int, Meta(ge=0, le=65535, description="an integer from 0 (any free port) to 65535")]
Text = Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$", description="text")]
OptionalPath = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$", description='a path, or ""')]
OptionalNamespace = Annotated[
    str, Meta(max_length=200, pattern=r"^[^\x00-\x20\x7f]*$", description='a git namespace, or ""')
]
Realm = Annotated[
    str, Meta(max_length=100, pattern=r"^[ !#-\[\]-~]*$", description="printable ASCII without quotes")
]
Seconds = Annotated[float, Meta(ge=0, le=86400, description="seconds, from 0 to 86400")]
PositiveSeconds = Annotated[float, Meta(gt=0, le=86400, description="seconds, above 0, up to 86400")]
Count = Annotated[int, Meta(ge=1, le=1 << 62, description="an integer of 1 or more")]
CountOrNone = Annotated[int, Meta(ge=0, le=1 << 62, description="an integer of 0 (no limit) or more")]
Threads = Annotated[int, Meta(ge=1, le=4096, description="an integer from 1 to 4096")]
Processes = Annotated[
    Literal["auto"] | Annotated[int, Meta(ge=1, le=64)],
    Meta(description='"auto", or an integer from 1 to 64'),
]
Addresses = Annotated[
    tuple[str, ...],
    Meta(description='a list of IP addresses or networks, such as ["127.0.0.1", "10.0.0.0/8"]'),
]
Origins = Annotated[
    tuple[str, ...],
    Meta(description='a list of origins, such as ["https://example.org", "http://localhost:8080"], or ["*"]'),
]
AnonymousOrAuto = Annotated[
    Literal["auto", "none", "read", "write"], Meta(description='"auto", "none", "read" or "write"')
]
Switch = Annotated[bool, Meta(description="true or false")]
GitNames = Annotated[
    tuple[str, ...],
    Meta(description='a list of git config names, such as ["receive.denyDeletes", "core.*"]'),
]
LogFormat = Annotated[Literal["text", "json"], Meta(description='"text" or "json"')]


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[server]: what is served, where, and how it ends."""

    root: Text = "repos"
    host: Text = "127.0.0.1"
    port: Port = 8080
    export_all: Switch = True
    namespace: OptionalNamespace = ""
    workers: Processes = "auto"
    drain_s: Seconds = 30.0
    log_format: LogFormat = "text"

    def processes(self, cores: int) -> int:
        """How many processes accept connections; with "auto" one for each of `cores`, but 2 to 16."""
        return min(max(cores, 2), 16) if self.workers == "auto" else self.workers


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[access]: who may do what."""

    anonymous: AnonymousOrAuto = "auto"
    htpasswd: OptionalPath = ""
    realm: Realm = "git"
    trusted_proxies: Addresses = ()
    proxy_namespace: Switch = False


class Http(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[http]: how responses are sent, and to whose web pages."""

    gzip: Switch = True
    cors_origins: Origins = ()


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[limits]: how much, how long."""

    head_fields: Count = 200
    head_bytes: Count = 64 << 10
    head_line_bytes: Count = 16 << 10
    head_s: PositiveSeconds = 30.0
    connection_idle_s: PositiveSeconds = 75.0
    workers: Threads = 64
    idle_timeout_s: PositiveSeconds = 120.0
    keepalive_s: Seconds = 5.0
    request_lines: Count = 1_000_000
    request_bytes: Count = 64 << 20
    inflate_ratio: Count = 100


class Push(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[push]: what may come in."""

    pack_bytes: CountOrNone = 0
    pack_objects: Count = 20_000_000
    object_bytes: Count = 4 << 30
    structure_bytes: Count = 64 << 20
    delta_bytes: Count = 512 << 20
    delta_depth: Count = 4095
    detect_collisions: Switch = True
    hook_timeout_s: PositiveSeconds = 600.0


class Cache(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[cache]: packs that are kept for those who ask for the same."""

    bytes: CountOrNone = 2 << 30
    repository_bytes: Count = 1 << 30
    directory: OptionalPath = ""


class Maintenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[maintenance]: what is done for repositories after pushes."""

    auto: Switch = True
    packs: Count = 20
    interval_s: Seconds = 60.0


class Git(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[git]: git config for all repositories, and what of it they can't change."""

    locked: GitNames = ()


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All options. Make one with `load`, which checks the values; the constructors don't."""

    server: Server = Server()
    access: Access = Access()
    http: Http = Http()
    limits: Limits = Limits()
    push: Push = Push()
    cache: Cache = Cache()
    maintenance: Maintenance = Maintenance()
    git: Git = Git()
    git_config: tuple[tuple[str, str], ...] = ()
    """The names and values of [git], in order; a name may come several times."""

    def networks(self) -> tuple[Network, ...]:
        """`access.trusted_proxies`, parsed."""
        return tuple(_network(text) for text in self.access.trusted_proxies)

    def can_authenticate(self) -> bool:
        """Whether there is any way for a user to have a name."""
        return bool(self.access.htpasswd or self.access.trusted_proxies)

    def anonymous(self, *, loopback: bool) -> Literal["none", "read", "write"]:
        """What anonymous users may do; `loopback`: the server listens on loopback addresses only.

        "auto" is "write" where nobody can sign in and nobody from outside can connect, and "read" otherwise:
        as with git-http-backend, pushing takes a name.
        """
        if self.access.anonymous != "auto":
            return self.access.anonymous
        return "write" if loopback and not self.can_authenticate() else "read"


_SECTIONS: dict[
    str,
    type[Server]
    | type[Http]
    | type[Access]
    | type[Limits]
    | type[Push]
    | type[Cache]
    | type[Maintenance]
    | type[Git],
] = {
    "server": Server,
    "access": Access,
    "http": Http,
    "limits": Limits,
    "push": Push,
    "cache": Cache,
    "maintenance": Maintenance,
    "git": Git,
}

_GIT_NAME = re.compile(r"([A-Za-z0-9-]+)(?:\.[^\n\0]*)?\.([A-Za-z][A-Za-z0-9-]*|\*)")
_NOT_FOR_ALL = re.compile(
    r"extensions\..*|include\..*|includeif\..*|core\.(bare|worktree|repositoryformatversion)", re.IGNORECASE
)
"""What says what one repository is, or where more of its config is (repo/gitconfig.py)."""

_ORIGIN = re.compile(r"\*|https?://[a-z0-9.:\[\]-]+")
"""As browsers send it: scheme and host in lower case, no path (RFC 6454 section 6.2)."""


def options() -> Iterator[tuple[str, Any, str]]:
    """Every option: `section.key`, its default, and what is allowed in words."""
    for section, struct in _SECTIONS.items():
        hints = get_type_hints(struct, include_extras=True)
        default = struct()
        for key in struct.__struct_fields__:
            yield f"{section}.{key}", getattr(default, key), hints[key].__metadata__[0].description


def load(path: Path | None = None, flags: Mapping[str, tuple[str, object]] | None = None) -> Config:
    """Build the Config from the file at `path`, if any, and `flags`: `section.key` -> (the flag's name,
    value).

    Raises:
        ConfigError: names the file or flag, the key, the value and what is allowed.
    """
    values: dict[str, dict[str, object]] = {section: {} for section in _SECTIONS}
    git_config: list[tuple[str, str]] = []
    if path is not None:
        for section, key, value in _read(path, git_config):
            values[section][key] = value
    for name, (flag, value) in (flags or {}).items():
        section, _, key = name.partition(".")
        values[section][key] = _check(section, key, value, flag)
    return Config(
        server=Server(**values["server"]),  # type: ignore[arg-type]  # here and below: _check made each
        access=Access(**values["access"]),  # type: ignore[arg-type]
        http=Http(**values["http"]),  # type: ignore[arg-type]
        limits=Limits(**values["limits"]),  # type: ignore[arg-type]
        push=Push(**values["push"]),  # type: ignore[arg-type]
        cache=Cache(**values["cache"]),  # type: ignore[arg-type]
        maintenance=Maintenance(**values["maintenance"]),  # type: ignore[arg-type]
        git=Git(**values["git"]),  # type: ignore[arg-type]
        git_config=tuple(git_config),
    )


def dump(config: Config) -> bytes:
    """Write a Config for another process of ours."""
    return msgspec.json.encode(config)


def restore(data: bytes) -> Config:
    """Read what `dump` wrote."""
    return msgspec.json.decode(data, type=Config)


def _read(path: Path, git_config: list[tuple[str, str]]) -> Iterator[tuple[str, str, object]]:
    """Give section, key and value of each option; what [git] holds besides goes into `git_config`."""
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    for section, table in document.items():
        if section not in _SECTIONS:
            raise ConfigError(
                f"{path}: unknown section or key {section!r}; known sections: {_names(_SECTIONS)}"
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section!r} is {table!r}; it is a section: [{section}]")
        for key, value in table.items():
            known = _SECTIONS[section].__struct_fields__
            if section == "git" and key not in known:
                git_config += _git_values(key, value, f"{path}: git.{key}")
                continue
            if key not in known:
                raise ConfigError(
                    f"{path}: unknown key '{section}.{key}'; known in [{section}]: {_names(known)}"
                )
            yield section, key, _check(section, key, value, f"{path}: {section}.{key}")


def _git_values(name: str, value: object, where: str) -> Iterator[tuple[str, str]]:
    """Give git's names and values of one key of [git]: `"receive.denyDeletes" = true`, or nested tables."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _git_values(f"{name}.{key}", inner, f"{where}.{key}")
        return
    match = _GIT_NAME.fullmatch(name)
    if match is None or match[2] == "*" or _NOT_FOR_ALL.fullmatch(name):
        raise ConfigError(
            f"{where} is no git config name that can be set here; allowed: 'locked', and names such"
            " as 'receive.denyDeletes', but none of extensions, include, includeIf, nor core.bare,"
            " core.worktree, core.repositoryFormatVersion"
        )
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool):
            yield name, str(item).lower()
        elif isinstance(item, int | str) and "\0" not in str(item):
            yield name, str(item)
        else:
            raise ConfigError(
                f"{where} is {item!r}; allowed: true, false, an integer, a string, a list, or a table"
            )


def _check(section: str, key: str, value: object, where: str) -> object:
    """Return `value` converted to its option's type."""
    hint = get_type_hints(_SECTIONS[section], include_extras=True)[key]
    try:
        checked: object = msgspec.convert(value, hint)
        if hint is Origins and not all(map(_ORIGIN.fullmatch, checked if isinstance(checked, tuple) else ())):
            raise ValueError
        if hint is Addresses:
            for text in checked if isinstance(checked, tuple) else ():
                _network(text)
        if hint is GitNames and not all(
            map(_GIT_NAME.fullmatch, checked if isinstance(checked, tuple) else ())
        ):
            raise ValueError
    except (msgspec.ValidationError, ValueError):
        allowed = hint.__metadata__[0].description
        shown = value[0] if isinstance(value, list) and len(value) == 1 else value
        raise ConfigError(f"{where} is {shown!r}; allowed: {allowed}") from None
    return checked


def _network(text: str) -> Network:
    """Parse an address or network; ::ffff:10.0.0.0/104 is 10.0.0.0/8, as peers' addresses are IPv4 then."""
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _names(names: object) -> str:
    assert isinstance(names, tuple | dict)
    return ", ".join(sorted(names))
