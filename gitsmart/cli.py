"""The command line: parse, call, print, exit. Exit status 2: usage or configuration; 1: it can't be done now.

gitsmart serve [ROOT] [--host H] [--port P] [--anonymous none|read|write] [--htpasswd FILE]
               [--trusted-proxy ADDRESS] [--require-export-ok] [--workers auto|N] [--config FILE]
               [--log-format text|json]
gitsmart init NAME [--object-format sha1|sha256] [--root ROOT] [--config FILE]
gitsmart list [ROOT] [--config FILE]
gitsmart maintain (NAME... | --all) [--full] [--root ROOT] [--config FILE]
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gitsmart import app, config, native
from gitsmart._version import __version__
from gitsmart.errors import ConfigError, GitsmartError
from gitsmart.repo.root import RepositoryRoot

__all__ = ["main", "make_parser"]

# flag -> the option that it overrides
_OPTIONS = {
    "ROOT": "server.root",
    "--root": "server.root",
    "--host": "server.host",
    "--port": "server.port",
    "--workers": "server.workers",
    "--log-format": "server.log_format",
    "--require-export-ok": "server.export_all",
    "--anonymous": "access.anonymous",
    "--htpasswd": "access.htpasswd",
    "--trusted-proxy": "access.trusted_proxies",
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; every flag of `serve` has an option in the config file with the same meaning."""
    parser = argparse.ArgumentParser(prog="gitsmart", description="A smart-HTTP git server.")
    parser.add_argument(
        "--version", action="version", version=f"gitsmart {__version__} ({native.describe()})"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the repositories below ROOT")
    serve.add_argument("ROOT", nargs="?", help="directory of bare repositories (default: repos)")
    serve.add_argument("--host", metavar="H", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument(
        "--port", metavar="P", type=int, help="port to listen on, 0 for a free one (default: 8080)"
    )
    serve.add_argument(
        "--anonymous",
        choices=["none", "read", "write"],
        help="what users without a name may do (default: write on a loopback address when there is no way to "
        "sign in, read otherwise)",
    )
    serve.add_argument(
        "--htpasswd", metavar="FILE", help="users and password hashes, as of Apache's htpasswd"
    )
    serve.add_argument(
        "--trusted-proxy",
        metavar="ADDRESS",
        action="append",
        help="an IP address or network from which X-Remote-User names the user; may be given more than once",
    )
    serve.add_argument(
        "--require-export-ok",
        action="store_const",
        const=False,
        help="serve only repositories that hold a file git-daemon-export-ok",
    )
    serve.add_argument(
        "--workers",
        metavar="N",
        type=lambda text: int(text) if text.isascii() and text.isdigit() else text,
        help="processes that serve, 1 for a single one without helpers (default: auto, as there are cores)",
    )
    serve.add_argument("--log-format", choices=["text", "json"], help="of the log on stderr (default: text)")
    serve.add_argument("--config", metavar="FILE", type=Path, help="a TOML file; flags override it")

    init = commands.add_parser("init", help="make an empty bare repository below ROOT")
    init.add_argument("NAME", help="its name, such as project or group/project; .git is added")
    init.add_argument("--object-format", choices=["sha1", "sha256"], default="sha1", help="(default: sha1)")
    init.add_argument("--ref-format", choices=["files", "reftable"], default="files", help="(default: files)")
    init.add_argument("--root", metavar="ROOT", help="directory of bare repositories (default: repos)")
    init.add_argument("--config", metavar="FILE", type=Path, help="a TOML file; --root overrides it")

    names = commands.add_parser("list", help="print the names of the repositories below ROOT")
    names.add_argument("ROOT", nargs="?", help="directory of bare repositories (default: repos)")
    names.add_argument("--config", metavar="FILE", type=Path, help="a TOML file; ROOT overrides it")

    maintain = commands.add_parser("maintain", help="join packs, pack refs, write bitmaps, drop old garbage")
    maintain.add_argument("NAME", nargs="*", help="repositories below ROOT")
    maintain.add_argument("--all", action="store_true", help="all of them, one after the other")
    maintain.add_argument(
        "--full",
        action="store_true",
        default=None,
        help="write everything into one pack with bitmaps, and drop unreachable objects that are older than "
        "gc.pruneExpire (default: when a tenth of the objects is outside of the pack with bitmaps)",
    )
    maintain.add_argument("--root", metavar="ROOT", help="directory of bare repositories (default: repos)")
    maintain.add_argument("--config", metavar="FILE", type=Path, help="a TOML file; --root overrides it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names can be more than the terminal can show
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "maintain" and arguments.all == bool(arguments.NAME):
        parser.error("maintain: NAME or --all")
    try:
        settings = config.load(arguments.config, _flags(arguments))
        if arguments.command == "serve":
            return _serve(settings)
        if arguments.command == "maintain":
            names = None if arguments.all else arguments.NAME
            return 0 if app.maintain(settings, names, full=arguments.full, announce=_announce) else 1
        root = RepositoryRoot(Path(settings.server.root))
        if arguments.command == "init":
            repo = root.create(
                arguments.NAME, object_format=arguments.object_format, ref_format=arguments.ref_format
            )
            print(f"initialized empty repository {repo.name} below {root.path}")
        else:
            for name in root.names():
                print(name)
        sys.stdout.flush()
    except ConfigError as error:
        print(f"gitsmart: {error}", file=sys.stderr)
        return 2
    except GitsmartError as error:
        print(f"gitsmart: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # A reader such as head has what it wants: the rest goes nowhere, without a word from Python at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _flags(arguments: argparse.Namespace) -> dict[str, tuple[str, object]]:
    flags: dict[str, tuple[str, object]] = {}
    for flag, option in _OPTIONS.items():
        value = getattr(arguments, flag.removeprefix("--").replace("-", "_"), None)
        if value is not None:
            flags[option] = (flag, value)
    return flags


def _serve(settings: config.Config) -> int:
    app.run(settings, announce=_announce)
    return 0


def _announce(line: str) -> None:
    print(line, flush=True)
