"""Commands, flags, messages, exit statuses."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gitsmart import __version__, app, cli, config, native
from gitsmart.telemetry import log


def run(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run `python -m gitsmart`."""
    return subprocess.run(
        [sys.executable, "-m", "gitsmart", *arguments],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
    )


def test_init_and_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert cli.main(["init", "demo", "--root", str(root)]) == 0
    assert cli.main(["init", "group/other.git", "--object-format", "sha256", "--root", str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"initialized empty repository demo.git below {root}",
        f"initialized empty repository group/other.git below {root}",
    ]
    assert cli.main(["list", str(root)]) == 0
    assert capsys.readouterr().out == "demo.git\ngroup/other.git\n"
    found = subprocess.run(
        [
            "git",
            "-C",
            str(root / "group/other.git"),
            "rev-parse",
            "--show-object-format",
            "--is-bare-repository",
        ],
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    assert found.stdout == "sha256\ntrue\n"


def test_root_comes_from_the_config_file_or_the_working_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repos").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "c.toml").write_text(f'[server]\nroot = "{tmp_path}/elsewhere"\n')
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "a"]) == cli.main(["init", "b", "--config", "c.toml"]) == 0
    capsys.readouterr()
    assert cli.main(["list"]) == cli.main(["list", "--config", "c.toml"]) == 0
    assert capsys.readouterr().out == "a.git\nb.git\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        pytest.param(["init", "demo"], 1, "gitsmart: repository 'demo' exists already", id="exists"),
        pytest.param(["init", "../out"], 1, "gitsmart: not a repository name: '../out'", id="name"),
        pytest.param(
            ["list", "none"], 2, "gitsmart: repository root 'none' is not a directory", id="no root"
        ),
        pytest.param(
            ["serve", "none"], 2, "gitsmart: repository root 'none' is not a directory", id="serve no root"
        ),
        pytest.param(
            ["serve", "--htpasswd", "none"], 2, "gitsmart: none: No such file or directory", id="htpasswd"
        ),
        pytest.param(
            ["serve", "--config", "none"], 2, "gitsmart: none: No such file or directory", id="config"
        ),
        pytest.param(
            ["serve", "--config", "bad.toml"], 2, "gitsmart: bad.toml: unknown key 'server.prot'", id="key"
        ),
        pytest.param(
            ["serve", "--port", "70000"], 2, "gitsmart: --port is 70000; allowed: an integer", id="port"
        ),
        pytest.param(["serve", "--host", "256.1.1.1"], 1, "gitsmart: can't listen on 256.1.1.1:", id="host"),
        pytest.param(["serve", "--host", "a..b"], 1, "gitsmart: can't listen on a..b:", id="host-name"),
    ],
)
def test_errors_are_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repos").mkdir()
    (tmp_path / "bad.toml").write_text("[server]\nprot = 1\n")
    if "init" in arguments:
        cli.main(["init", "demo"])
        capsys.readouterr()
    monkeypatch.setattr(log, "configure", lambda log_format: None)
    assert (
        cli.main(
            [*arguments, "--port", "0"]
            if arguments[:1] == ["serve"] and "--port" not in arguments
            else arguments
        )
        == status
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    cli.main(["init", "grün", "--root", str(tmp_path)])
    ran = subprocess.run(
        [sys.executable, "-m", "gitsmart", "list", str(tmp_path)],
        env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"},
        capture_output=True,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == (b"gr\\xfcn.git\n", b"", 0)


def test_port_in_use(tmp_path: Path) -> None:
    (tmp_path / "repos").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("serve", "--port", str(port), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"gitsmart: can't listen on 127.0.0.1:{port}: address already in use\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["serve", "--anonymous", "all"], ["serve", "--nope"], ["init"], ["serve", "--port", "x"]],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: gitsmart")


def test_init_with_reftables(tmp_path: Path) -> None:
    (tmp_path / "repos").mkdir()
    assert cli.main(["init", "app", "--ref-format", "reftable", "--root", str(tmp_path / "repos")]) == 0
    path = tmp_path / "repos" / "app.git"
    assert "refstorage = reftable" in (path / "config").read_text()
    assert (path / "HEAD").read_text() == "ref: refs/heads/.invalid\n"
    assert len((path / "reftable" / "tables.list").read_text().split()) == 1


def test_version(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout == f"gitsmart {__version__} ({native.describe()})\n"


def test_every_flag_sets_its_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[config.Config] = []
    monkeypatch.setattr(app, "run", lambda settings, *, announce: served.append(settings))
    flags = [
        "--host",
        "::1",
        "--port",
        "0",
        "--anonymous",
        "none",
        "--htpasswd",
        "users",
        "--log-format",
        "json",
    ]
    flags += ["--trusted-proxy", "::1", "--trusted-proxy", "10.0.0.0/8"]
    assert cli.main(["serve", "root", *flags]) == 0
    (settings,) = served
    assert settings.server == config.Server(root="root", host="::1", port=0, log_format="json")
    assert settings.access == config.Access(
        anonymous="none", htpasswd="users", trusted_proxies=("::1", "10.0.0.0/8")
    )


def test_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    root = tmp_path / "repos"
    root.mkdir()
    for n in range(3):
        cli.main(["init", f"r{n}", "--root", str(root)])
    command = f"{sys.executable} -m gitsmart list | true"
    result = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=30
    )
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
