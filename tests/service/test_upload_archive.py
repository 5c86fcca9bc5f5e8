"""Archives, byte for byte those of C git's upload-archive for the same request; and its texts."""

import subprocess
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from gitsmart.errors import Disconnected
from gitsmart.repo.root import RepositoryRoot
from gitsmart.service.export_subst import CommitText, substitute
from gitsmart.service.options import ServiceOptions
from gitsmart.service.upload_archive import upload_archive
from gitsmart.wire.pktline import PktLineDecoder, Special
from tests.service.conftest import BytesChannel, Git

LONG = "deep/" * 30 + "x" * 90

ATTRIBUTES = """\
# a comment
*.secret export-ignore
/tests/ export-ignore
docs/**/draft* export-ignore
docs/keep/draft.txt -export-ignore
version.* export-subst
*.crlf text eol=crlf
*.lf text eol=lf
*.auto text=auto eol=crlf
*.id ident
data/*.bin binary
"quoted\\040name" export-ignore
[attr]hidden export-ignore -text
macro.txt hidden
value.txt export-ignore=yes
unset.txt export-ignore
unset.txt !export-ignore
[a-c]?.cls export-ignore
"""

SUBST = """\
id $Format:%H$ short $Format:%h %t %p$ tree $Format:%T$ parents $Format:%P$
author $Format:%an <%ae> %al %ad / %aD / %at / %ai / %as$
committer $Format:%cn <%ce> %cl %cd / %cD / %ct / %ci$
subject $Format:%s$ file $Format:%f$ body $Format:%b$ raw $Format:%B$
refs $Format:%d$ and $Format:%D$ percent $Format:%%%n%x41$ unknown $Format:%Q%zz$ open $Format:no end
second $Format:%H$ plain %H
"""


@pytest.fixture
def repo(git: Git, tmp_path: Path) -> Path:
    work = tmp_path / "work"
    git("init", "-q", work)
    files: dict[str, bytes] = {
        ".gitattributes": ATTRIBUTES.encode(),
        "README": b"read me\n",
        "empty": b"",
        "a.secret": b"no\n",
        "tests/test_x": b"no\n",
        "sub/tests/test_y": b"yes\n",
        "docs/a/draft1": b"no\n",
        "docs/a/b/draft2": b"no\n",
        "docs/keep/draft.txt": b"yes\n",
        "docs/only/draft": b"no\n",
        "version.txt": SUBST.encode(),
        "dos.crlf": b"one\ntwo\r\nthree",
        "unix.lf": b"one\ntwo\n",
        "guess.auto": b"one\ntwo\n",
        "binary.auto": b"one\0\ntwo\n",
        "mixed.auto": b"one\r\ntwo\n",
        "me.id": b"$Id$ and $Id: old $ and $Id: some one else $ $Id:\n",
        "data/raw.bin": bytes(range(256)) * 300,
        "quoted name": b"no\n",
        "macro.txt": b"no\n",
        "value.txt": b"yes\n",
        "unset.txt": b"yes\n",
        "b1.cls": b"no\n",
        "d1.cls": b"yes\n",
        "grüße.txt": "grüße\n".encode(),
        "more/.gitattributes": b"*.txt export-ignore\nin/here export-ignore\n",
        "more/a.txt": b"no\n",
        "more/in/here": b"no\n",
        "more/in/there": b"yes\n",
        LONG: b"long\n",
        "y" * 130: b"longer\n",
    }
    for name, content in files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (work / "run").write_text("#!/bin/sh\n")
    (work / "run").chmod(0o755)
    (work / "link").symlink_to("README")
    (work / "far").symlink_to("z/" * 70 + "end")
    git("add", "-A", cwd=work)
    git("-c", "core.autocrlf=false", "add", "-A", cwd=work)
    oid = "1" * 40
    git("update-index", "--add", "--cacheinfo", f"160000,{oid},module", cwd=work)
    git("commit", "-qm", "The subject,\nin two lines\n\nA body.\n\nOf two parts.", cwd=work)
    git("tag", "-am", "a tag", "v1.0", cwd=work)
    git("tag", "light", cwd=work)
    git("branch", "other", cwd=work)
    path = tmp_path / "root" / "repo.git"
    path.parent.mkdir()
    git("clone", "-q", "--bare", work, path)
    git("repack", "-adq", cwd=path)
    return path


def body(*arguments: str | bytes) -> bytes:
    out = b""
    for argument in arguments:
        text = b"argument " + (argument if isinstance(argument, bytes) else argument.encode()) + b"\n"
        out += b"%04x%b" % (len(text) + 4, text)
    return out + b"0000"


def bands(response: bytes) -> tuple[bytes, bytes, bytes, bool]:
    """Bands 1 to 3, and whether it ends with a flush-pkt."""
    decoder = PktLineDecoder()
    lines = decoder.feed(response)
    assert decoder.is_between_packets
    assert lines[:2] == [b"ACK\n", Special.FLUSH]
    found = {1: b"", 2: b"", 3: b""}
    for line in lines[2:]:
        if isinstance(line, bytes):
            found[line[0]] += line[1:]
    return found[1], found[2], found[3], lines[-1] is Special.FLUSH and len(lines) > 2


def ours(repo: Path, request: bytes) -> tuple[bytes, bytes, bytes, bool]:
    channel = BytesChannel(request)
    upload_archive(
        RepositoryRoot(repo.parent).open(repo.name), channel, options=ServiceOptions(keepalive_s=0)
    )
    return bands(bytes(channel.response))


def gits(git: Git, repo: Path, request: bytes) -> tuple[bytes, bytes, bytes, bool]:
    out = subprocess.run(
        ["git", "upload-archive", str(repo)],
        input=request,
        env=git.environ | {"TZ": "UTC"},
        capture_output=True,
    ).stdout
    return bands(out)


@pytest.mark.parametrize(
    "arguments",
    [
        ("main",),
        ("--format=tar", "refs/heads/main"),
        ("--format", "tar", "HEAD"),
        ("--prefix=a/b/", "v1.0"),
        ("--prefix=a-", "v1.0"),
        ("--prefix", "//", "main"),
        ("--verbose", "main"),
        ("-v", "main", "docs"),
        ("--format=zip", "main"),
        ("--format=zip", "-0", "main"),
        ("--format=zip", "-9", "--prefix=p/", "light"),
        ("--format=tar.gz", "main"),
        ("--format=tgz", "-1", "main"),
        ("--form=tar.gz", "-9", "--", "other"),
        ("main", "sub"),
        ("main", "docs/", "README"),
        ("main", "*.txt"),
        ("main", "d*s/*"),
        ("main", "./sub/../docs"),
        ("main", "."),
        ("main", "more", "[er]*"),
        ("@",),
        ("heads/main",),
    ],
    ids=" ".join,
)
def test_archive_is_gits(git: Git, repo: Path, arguments: tuple[str, ...]) -> None:
    request = body(*arguments)
    expected = gits(git, repo, request)
    got = ours(repo, request)
    assert got[2:] == expected[2:] == (b"", True)
    assert got[1] == expected[1]
    assert got[0] == expected[0]
    assert got[0]


def test_a_tree_has_no_commit(git: Git, repo: Path) -> None:
    """Its time is now, so only the rest is compared."""
    for path in ("docs", "", "more/in"):
        members = []
        for data in (ours(repo, body(f"main:{path}"))[0], gits(git, repo, body(f"main:{path}"))[0]):
            with tarfile.open(fileobj=BytesIO(data)) as archive:
                assert not archive.pax_headers
                members.append([(m.name, m.mode, m.size, m.type, m.linkname) for m in archive.getmembers()])
        assert members[0] == members[1]
        assert members[0]


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        (("tar.umask=0022",), ("main",)),
        (("tar.umask=0",), ("main",)),
        (("tar.umask=user",), ("main",)),
        (("core.autocrlf=true",), ("main",)),
        (("core.eol=crlf",), ("main",)),
        (("core.autocrlf=input",), ("main",)),
        (("tar.tgz.remote=false",), ("--list",)),
        ((), ("--list",)),
        ((), ("-l",)),
        (("uploadArchive.allowUnreachable=true",), ("main~0",)),
        (("uploadArchive.allowUnreachable=true",), ("v1.0^{commit}",)),
        (("uploadArchive.allowUnreachable=true",), ("v1.0^0",)),
        (("uploadArchive.allowUnreachable=true",), ("main^{}",)),
    ],
)
def test_config(git: Git, repo: Path, settings: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    for setting in settings:
        git("config", *setting.split("="), cwd=repo)
    assert ours(repo, body(*arguments)) == gits(git, repo, body(*arguments))


def test_info_attributes_count_most(git: Git, repo: Path) -> None:
    (repo / "info").mkdir(exist_ok=True)
    (repo / "info" / "attributes").write_text("README export-ignore\na.secret -export-ignore\n")
    assert ours(repo, body("main")) == gits(git, repo, body("main"))


def test_unreachable_objects_only_where_allowed(git: Git, repo: Path) -> None:
    oid = git("rev-parse", "main", cwd=repo)
    for name in (oid, f"{oid}:docs", "main^{tree}", "main~0"):
        got, expected = ours(repo, body(name)), gits(git, repo, body(name))
        assert got[2].startswith(expected[2])
        assert got[1] == expected[1]
    git("config", "uploadArchive.allowUnreachable", "true", cwd=repo)
    assert ours(repo, body(oid)) == gits(git, repo, body(oid))


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",), ("main:nothing",), ("main:README",), ("main:README/x",), ("main", "nothing"),
        ("main", "no*"),
        ("--format=rar", "main"), ("--remote=x", "main"), ("--output=x", "main"), ("-o", "x", "main"),
        ("--exec=x", "main"), ("-5", "main"), ("main", ""), (":README",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_refusals_are_gits(git: Git, repo: Path, arguments: tuple[str, ...]) -> None:
    got, expected = ours(repo, body(*arguments)), gits(git, repo, body(*arguments))
    assert got[0] == expected[0] == b""
    assert got[1].splitlines()[:1] == expected[1].splitlines()[:1]
    assert got[2].strip() == expected[2].strip()
    assert (got[3], expected[3]) == (False, False)


@pytest.mark.parametrize(
    ("request_body", "text"),
    [
        (b"", b"hung up"),
        (b"0000", b"tree-ish is needed"),
        (body("--nothing", "main"), b"unknown option `nothing'"),
        (body("--pre", "x", "--o", "main"), b"Unexpected option --output"),
        (body("-x", "main"), b"unknown switch `x'"),
        (body("--format"), b"option `format' requires a value"),
        (body("--verbose=1", "main"), b"takes no value"),
        (body("--add-file=/etc/passwd", "main"), b"cannot be used together"),
        (body("main", ":(glob)x"), b"pathspec magic"),
        (body("main", ":!x"), b"pathspec magic"),
        (body("--mtime=whenever", "main"), b"no time that is understood"),
        (body(*["x"] * 65), b"Too many options (>63)"),
        (b"0008main0000", b"'argument' token or flush expected"),
        (b"zzzz", b"bad line length"),
        (body("--list", "x"), b"extra command line parameter 'x'"),
        (body("main", "../x"), b"../x: '../x' is outside repository"),
        (body("main", "/etc"), b"/etc: '/etc' is outside repository"),
        (body("main")[:-4], b"hung up"),
        (body("main")[:-8], b"hung up"),
    ],
)
def test_bad_requests_are_told(repo: Path, request_body: bytes, text: bytes) -> None:
    archive, told, error, is_whole = ours(repo, request_body)
    assert (archive, is_whole) == (b"", False)
    assert told.startswith(b"fatal: ")
    assert text in told
    assert error == b"git upload-archive: archiver died with error"


def test_hidden_refs_are_no_refs(git: Git, repo: Path) -> None:
    """git gives archives of them to whoever knows the name."""
    git("update-ref", "refs/secret/one", git("rev-parse", "main", cwd=repo), cwd=repo)
    git("config", "uploadpack.hideRefs", "refs/secret", cwd=repo)
    for name in ("refs/secret/one", "secret/one"):
        assert ours(repo, body(name))[1] == f"fatal: no such ref: {name}\n".encode()
    version = ours(repo, body("main", "version.txt"))[0]
    assert b"tag: v1.0" in version
    assert b"secret" not in version


def test_mtime(repo: Path) -> None:
    for text in ("1700000000 +0000", "@1700000000", "2023-11-14T22:13:20Z", "2023-11-14 22:13:20 +0000"):
        data = ours(repo, body(f"--mtime={text}", "main"))[0]
        with tarfile.open(fileobj=BytesIO(data)) as archive:
            assert {member.mtime for member in archive.getmembers()} == {1_700_000_000}


def test_a_missing_object_breaks_it_off(git: Git, repo: Path) -> None:
    (pack,) = (repo / "objects" / "pack").glob("*.pack")
    data = pack.read_bytes()
    for file in (repo / "objects" / "pack").iterdir():
        file.unlink()
    subprocess.run(["git", "unpack-objects", "-q"], cwd=repo, input=data, env=git.environ, check=True)
    oid = git("rev-parse", "main:README", cwd=repo)
    (repo / "objects" / oid[:2] / oid[2:]).unlink()
    archive, told, error, is_whole = ours(repo, body("main"))
    assert archive
    assert not is_whole
    assert oid.encode() in told
    assert b"died" in error


def test_a_client_that_leaves_ends_it(repo: Path) -> None:
    def leave(written: int) -> None:
        if written > 30_000:
            raise Disconnected("gone")

    channel = BytesChannel(body("main"), fail_write=leave)
    with pytest.raises(Disconnected):
        upload_archive(RepositoryRoot(repo.parent).open(repo.name), channel, options=ServiceOptions())


@pytest.mark.slow
def test_a_zip_of_many_files(git: Git, tmp_path: Path) -> None:
    """More entries than the old directory can count."""
    path = tmp_path / "root" / "repo.git"
    git("init", "-q", "--bare", path)
    files = "".join(f"M 644 inline d{n % 300}/f{n}\ndata 2\nx\n\n" for n in range(66_000))
    head = "commit refs/heads/main\ncommitter A <a@b> 1600000000 +0000\ndata 1\nc\n"
    git("fast-import", "--quiet", cwd=path, data=(head + files).encode())
    assert ours(path, body("--format=zip", "main")) == gits(git, path, body("--format=zip", "main"))


def test_sha256(git: Git, tmp_path: Path) -> None:
    work, path = tmp_path / "work", tmp_path / "root" / "repo.git"
    git("init", "-q", "--object-format=sha256", work)
    (work / "file").write_text("content\n")
    git("add", "file", cwd=work)
    git("commit", "-qm", "one", cwd=work)
    path.parent.mkdir()
    git("clone", "-q", "--bare", work, path)
    for arguments in (("main",), ("--format=zip", "main")):
        assert ours(path, body(*arguments)) == gits(git, path, body(*arguments))


def test_placeholders_that_changed_between_versions_of_git() -> None:
    """%cI: Z for UTC since 2.45."""
    person = b"A <a@b> 1700000000 %b\n"
    data = b"tree %b\nauthor %bcommitter %b\nfirst\n" % (b"1" * 40, person % b"+0000", person % b"-0330")
    commit = CommitText(
        oid=b"2" * 40, tree=b"1" * 40, parents=(), data=data, abbreviate=lambda oid: oid[:7], decorations=list
    )
    text = b"$Format:%aI %cI %d|%D|%h|%+s|% b|%-b$"
    expected = b"2023-11-14T22:13:20Z 2023-11-14T18:43:20-03:30 ||2222222|\nfirst||"
    assert substitute(text, commit) == expected
    broken = replace(commit, data=b"tree x\nauthor nobody\n")
    assert substitute(b"$Format:%an %ad %s$", broken) == b"%an %ad "
