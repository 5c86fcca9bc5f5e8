"""Defaults, a file, flags; every error names where, what and what is allowed."""

from pathlib import Path

import pytest

from gitsmart import config
from gitsmart.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path) -> "Writer":
    return Writer(tmp_path / "gitsmart.toml")


class Writer:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, text: str) -> Path:
        self.path.write_text(text)
        return self.path


def test_defaults() -> None:
    settings = config.load()
    assert settings == config.Config()
    assert (settings.server.root, settings.server.host, settings.server.port) == ("repos", "127.0.0.1", 8080)


def test_file_is_read_and_flags_win(write: Writer) -> None:
    path = write('[server]\nport = 9000\nhost = "::1"\n[access]\ntrusted_proxies = ["10.0.0.0/8"]\n')
    settings = config.load(path, {"server.port": ("--port", 0), "access.trusted_proxies": ("-t", ["::1"])})
    assert (settings.server.port, settings.server.host) == (0, "::1")
    assert [str(network) for network in settings.networks()] == ["::1/128"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("[server]\nprot = 1\n", ["'server.prot'", "host", "port"], id="unknown key"),
        pytest.param(
            "[servre]\nport = 1\n",
            ["'servre'", "access, cache, git, http, limits, maintenance, push, server"],
            id="unknown section",
        ),
        pytest.param(
            "port = 1\n",
            ["'port'", "access, cache, git, http, limits, maintenance, push, server"],
            id="key outside a section",
        ),
        pytest.param("server = 1\n", ["'server'", "[server]"], id="section is a value"),
        pytest.param("[server]\nport = 65536\n", ["server.port", "65536", "0 (any free port)"], id="range"),
        pytest.param('[server]\nport = "80"\n', ["server.port", "'80'", "integer"], id="type"),
        pytest.param("[server]\nport = true\n", ["server.port", "True", "integer"], id="boolean"),
        pytest.param("[server]\ndrain_s = -1\n", ["server.drain_s", "-1", "0 to 86400"], id="negative"),
        pytest.param("[server]\ndrain_s = nan\n", ["server.drain_s", "nan", "0 to 86400"], id="nan"),
        pytest.param("[server]\nhost = ''\n", ["server.host", "''"], id="empty"),
        pytest.param("[server]\nroot = ''\n", ["server.root"], id="empty root"),
        pytest.param('[access]\nanonymous = "all"\n', ["access.anonymous", "'all'", '"none"'], id="choice"),
        pytest.param('[access]\nrealm = "a\\"b"\n', ["access.realm", "without quotes"], id="realm"),
        pytest.param(
            '[access]\ntrusted_proxies = ["10.0.0.300"]\n',
            ["access.trusted_proxies", "10.0.0.300", "IP addresses or networks"],
            id="address",
        ),
        pytest.param(
            '[access]\ntrusted_proxies = "::1"\n', ["access.trusted_proxies", "'::1'"], id="no list"
        ),
        pytest.param("[limits]\nworkers = 0\n", ["limits.workers", "0", "1 to 4096"], id="zero workers"),
        pytest.param(
            '[http]\ncors_origins = ["https://example.org/path"]\n',
            ["http.cors_origins", "origins"],
            id="origin",
        ),
        pytest.param("[server\n", ["not TOML"], id="syntax"),
    ],
)
def test_errors_name_file_key_and_what_is_allowed(write: Writer, text: str, words: list[str]) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value).replace(str(path), "")


def test_errors_of_flags_name_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"^--port is 99999; allowed: an integer from 0"):
        config.load(flags={"server.port": ("--port", 99999)})
    with pytest.raises(ConfigError, match=r"^--trusted-proxy is 'x'; allowed: .*IP addresses"):
        config.load(flags={"access.trusted_proxies": ("--trusted-proxy", ["x"])})


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "missing.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(binary)


@pytest.mark.parametrize(
    ("flags", "loopback", "expected"),
    [
        pytest.param({}, True, "write", id="alone on loopback"),
        pytest.param({}, False, "read", id="nobody can sign in, others can connect"),
        pytest.param({"access.htpasswd": ("f", "users")}, True, "read", id="with passwords"),
        pytest.param({"access.trusted_proxies": ("f", ["::1"])}, True, "read", id="behind a proxy"),
        pytest.param({"access.anonymous": ("f", "none")}, True, "none", id="said so"),
        pytest.param({"access.anonymous": ("f", "write")}, False, "write", id="said so, on purpose"),
    ],
)
def test_what_anonymous_users_may_do(
    flags: dict[str, tuple[str, object]], loopback: bool, expected: str
) -> None:
    assert config.load(flags=flags).anonymous(loopback=loopback) == expected


def test_networks_in_ipv6_clothes_are_what_peers_are_compared_with() -> None:
    proxies = ["::ffff:127.0.0.1", "::ffff:10.1.2.3/104", "::/0", "fd00::/8"]
    settings = config.load(flags={"access.trusted_proxies": ("f", proxies)})
    assert [str(network) for network in settings.networks()] == [
        "127.0.0.1/32", "10.0.0.0/8", "::/0", "fd00::/8",
    ]  # fmt: skip


def test_config_does_not_change() -> None:
    with pytest.raises(AttributeError):
        config.load().server.port = 1  # type: ignore[misc]


def test_git_config_for_all_repositories(write: Writer) -> None:
    path = write(
        """
        [git]
        "receive.denyDeletes" = true
        "transfer.hideRefs" = ["refs/internal", "!refs/internal/public"]
        http.receivepack = false
        "uploadpackfilter.blob:none.allow" = false
        locked = ["receive.denyDeletes", "core.*"]
        [git.receive]
        maxInputSize = 5
        """
    )
    settings = config.load(path)
    assert settings.git.locked == ("receive.denyDeletes", "core.*")
    assert sorted(settings.git_config) == sorted([
        ("receive.denyDeletes", "true"),
        ("transfer.hideRefs", "refs/internal"),
        ("transfer.hideRefs", "!refs/internal/public"),
        ("http.receivepack", "false"),
        ("uploadpackfilter.blob:none.allow", "false"),
        ("receive.maxInputSize", "5"),
    ])  # fmt: skip
    hidden = [value for name, value in settings.git_config if name == "transfer.hideRefs"]
    assert hidden == ["refs/internal", "!refs/internal/public"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("foo = 1", ["git.foo", "'locked'", "receive.denyDeletes"], id="no section"),
        pytest.param('"receive.x_y" = 1', ["git.receive.x_y", "no git config name"], id="underscore"),
        pytest.param('"receive.*" = 1', ["git.receive.*", "no git config name"], id="star"),
        pytest.param('"extensions.objectFormat" = "sha1"', ["git.extensions.objectFormat"], id="extension"),
        pytest.param("core.bare = true", ["git.core.bare", "core.bare"], id="core.bare"),
        pytest.param('"include.path" = "x"', ["git.include.path"], id="include"),
        pytest.param('"IncludeIf.gitdir:/.path" = "x"', ["git.IncludeIf.gitdir:/.path"], id="conditional"),
        pytest.param("receive.x = 1.5", ["git.receive.x", "1.5", "an integer, a string"], id="float"),
        pytest.param("receive.x = [[1]]", ["git.receive.x", "[1]"], id="nested list"),
        pytest.param("locked = ['receive']", ["git.locked", "'receive'", "core.*"], id="locked section"),
        pytest.param("locked = 'receive.*'", ["git.locked", "'receive.*'"], id="locked no list"),
    ],
)
def test_git_config_that_can_t_be(write: Writer, text: str, words: list[str]) -> None:
    path = write(f"[git]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
