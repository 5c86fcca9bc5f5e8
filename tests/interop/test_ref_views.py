"""Hidden refs, namespaces, odd HEADs and names: the same commands against gitsmart and C git's http-backend.

Each step runs against both, and its exit status, its output and the repositories' refs must be the same.
"""

import contextlib
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Git, MakeRepo, Server, commit_file, fsck, leftovers, refs, start_server

ZERO = "0" * 40


@dataclass(slots=True)
class Pair:
    """Two servers over two copies of one repository, and a client's folder for each."""

    git: Git
    servers: tuple[Server, Server]

    def paths(self) -> tuple[Path, Path]:
        ours, gits = (server.root / "r.git" for server in self.servers)
        return ours, gits

    def change(self, *args: str) -> None:
        """Run git in both repositories."""
        for path in self.paths():
            self.git(*args, cwd=path)

    def same(self, *args: str, cwd: str = ".", git: Git | None = None) -> str:
        """Run a client against both ("URL" among the arguments is the repository's), which must come to the
        same; return what it said.
        """
        said = []
        for server in self.servers:
            folder = server.root.parent / "client" / cwd
            folder.mkdir(parents=True, exist_ok=True)
            url = server.url_of("r.git")
            result = (git or self.git).run(*(arg.replace("URL", url) for arg in args), cwd=folder)
            text = f"{result.returncode}\n{result.stdout}{result.stderr}"
            text = text.replace("(refname conflict)", "(failed to update ref)")  # git 2.39's words
            # git's ls-refs lists a namespace's HEAD again, among the refs below the namespace
            text = re.sub(r"((?:.*\tHEAD\n)+?)\1", r"\1", text)
            said.append(
                re.sub(
                    r"/root/r\.git|.*(objects|Unpacking|deltas|Total|error: cannot).*\n",
                    "",
                    text.replace(url, "URL"),
                )
            )
        assert said[0] == said[1]
        ours, gits = self.paths()
        assert refs(ours) == refs(gits)
        for name in ("HEAD", "refs/namespaces/n/HEAD"):
            assert (ours / name).exists() == (gits / name).exists()
        return said[0]

    def clients(self, name: str) -> tuple[Path, Path]:
        ours, gits = (server.root.parent / "client" / name for server in self.servers)
        return ours, gits


PairFunction = Callable[..., Pair]


@pytest.fixture
def pair(git: Git, make_repo: MakeRepo, tmp_path: Path, server_kind: str) -> Iterator[PairFunction]:
    """Return a function: pair(namespace="") -> Pair; when the test ends both repositories are checked."""
    started: list[Server] = []

    def start(namespace: str = "") -> Pair:
        roots = []
        for kind in ("gitsmart", "git"):
            root = tmp_path / kind / "root"
            root.mkdir(parents=True)
            make_repo(root / "r.git")
            roots.append(root)
        config = tmp_path / "gitsmart.toml"
        config.write_text(f'[server]\nnamespace = "{namespace}"\n')
        flags = ["--anonymous", "write"]
        ours = start_server(roots[0], *flags, "--config", str(config), kind=server_kind, environ=git.environ)
        started.append(ours)
        environ = {**git.environ, **({"GIT_NAMESPACE": namespace} if namespace else {})}
        gits = start_server(roots[1], *flags, kind="git", environ=environ)
        started.append(gits)
        return Pair(git, (ours, gits))

    with contextlib.ExitStack() as stack:
        yield start
        for server in started:
            stack.callback(server.stop)
        for server in started:
            # what fsck doesn't like, and a test has made on purpose
            git("symbolic-ref", "HEAD", "refs/heads/main", cwd=server.root / "r.git")
            (server.root / "r.git" / "refs" / "heads" / "broken").unlink(missing_ok=True)
            fsck(server.root / "r.git")
            assert leftovers(server.root) == []


# Hidden refs


def test_hidden_refs_are_not_listed_fetched_or_pushed_to(pair: PairFunction, client: Git) -> None:
    both = pair()
    both.change("update-ref", "refs/internal/secret", "main~3")
    both.change("update-ref", "refs/internal/public", "main~2")
    both.change("config", "transfer.hideRefs", "refs/internal")
    both.change("config", "--add", "transfer.hideRefs", "!refs/internal/public")
    both.change("config", "uploadpack.hideRefs", "refs/heads/topic")
    both.change("config", "receive.hideRefs", "refs/tags")
    listed = both.same("ls-remote", "URL", git=client)
    assert "refs/internal/public" in listed
    assert "secret" not in listed
    assert "refs/heads/topic\n" not in listed
    assert "refs/tags/v2.0^{}" in listed
    both.same("clone", "-q", "URL", "work", git=client)
    assert "couldn't find remote ref" in both.same(
        "fetch", "origin", "refs/internal/secret", cwd="work", git=client
    )
    both.same("fetch", "-q", "origin", "refs/internal/public:refs/heads/public", cwd="work", git=client)
    said = both.same(
        "push", "URL", "main:refs/internal/new", ":refs/internal/secret", "main:refs/internal/public/no",
        "main:refs/tags/hidden", "main~1:refs/heads/topic-2", cwd="work", git=client,
    )  # fmt: skip
    assert "main -> refs/internal/new (deny updating a hidden ref)" in re.sub(" +", " ", said)
    assert "hidden (deny updating a hidden ref)" in said
    assert "topic-2" in said
    for work in both.clients("work"):
        both.git("update-ref", "refs/internal/secret", "main~3", cwd=work)
    for path in both.paths():
        assert "refs/internal/secret" in refs(path)
    # git lets the others of an atomic push through; here it is all or nothing
    before = refs(both.paths()[0])
    work = both.clients("work")[0]
    url = both.servers[0].url_of("r.git")
    said = client.fails("push", "--atomic", url, "main:refs/internal/new", "main:more", cwd=work)
    assert "(deny updating a hidden ref)" in said
    assert "(atomic push failure)" in said
    assert refs(both.paths()[0]) == before


def test_a_hidden_ref_can_t_be_deleted(pair: PairFunction, client: Git) -> None:
    both = pair()
    both.same("clone", "-q", "URL", "work", git=client)
    both.change("config", "receive.hideRefs", "refs/heads/topic")
    for path in both.paths():
        oid = refs(path)["refs/heads/topic"]
    said = both.same(
        "push", f"--force-with-lease=topic:{oid}", "URL", ":refs/heads/topic", cwd="work", git=client
    )
    # the client sees no such ref, and doesn't even ask
    assert "topic" in said
    for path, server in zip(both.paths(), both.servers, strict=True):
        line = f"{oid} {ZERO} refs/heads/topic\0 report-status"
        body = f"{len(line) + 4:04x}{line}0000"
        request = urllib.request.Request(
            server.url_of("r.git/git-receive-pack"),
            body.encode(),
            {"Content-Type": "application/x-git-receive-pack-request"},
        )
        with urllib.request.urlopen(request) as response:
            assert b"ng refs/heads/topic deny deleting a hidden ref\n" in response.read()
        assert refs(path)["refs/heads/topic"] == oid


def test_hidden_tags_don_t_come_along(pair: PairFunction, client: Git) -> None:
    both = pair()
    both.change("tag", "-a", "-m", "hidden", "hidden-tag", "main~1")
    both.change("config", "transfer.hideRefs", "refs/tags/hidden-tag")
    both.same("clone", "-q", "--bare", "URL", "bare", git=client)
    for clone, path in zip(both.clients("bare"), both.paths(), strict=True):
        assert "refs/tags/hidden-tag" not in refs(clone)
        tag = both.git("rev-parse", "refs/tags/hidden-tag", cwd=path)
        has_tag = both.git.run("cat-file", "-e", tag, cwd=clone).returncode == 0
        # git's pack-objects knows nothing of hidden refs, and sends the tag's object
        assert not has_tag or clone is both.clients("bare")[1]


def test_what_only_hidden_refs_reach_still_completes_a_push(pair: PairFunction, git: Git) -> None:
    """A client that got the objects elsewhere pushes a commit on top of a hidden one."""
    both = pair()
    both.same("clone", "-q", "--mirror", "URL", "mirror")
    both.change("config", "transfer.hideRefs", "refs/heads")
    both.change("config", "--add", "transfer.hideRefs", "!refs/heads/new")
    said = both.same("push", "URL", "refs/heads/unrelated:refs/heads/new", cwd="mirror")
    assert "[new branch]" in said


# Namespaces


@pytest.mark.parametrize("namespace", ["n", "n/m"])
def test_a_namespace_is_a_repository_of_its_own(pair: PairFunction, client: Git, namespace: str) -> None:
    both = pair(namespace)
    prefix = "".join(f"refs/namespaces/{part}/" for part in namespace.split("/"))
    for path in both.paths():
        (path / "hooks").mkdir(exist_ok=True)
        for name in ("pre-receive", "update", "post-receive"):
            hook = path / "hooks" / name
            hook.write_text(f'#!/bin/sh\necho "{name} $GIT_NAMESPACE $*"; [ {name} = update ] || cat\n')
            hook.chmod(0o755)
    assert both.same("ls-remote", "URL", git=client) == "0\n"
    both.same("clone", "-q", "URL", "empty", git=client)
    for work in both.clients("one"):
        both.git("clone", "-q", both.servers[0].root / "r.git", work)
    said = both.same("push", "URL", "main", "v1.0", "main~1:refs/heads/topic", cwd="one", git=client)
    assert f"remote: update {namespace} refs/heads/main" in said
    assert f"remote: pre-receive {namespace}" in said
    for path in both.paths():
        assert refs(path)[prefix + "refs/heads/main"] == refs(path)["refs/heads/main"]
        assert prefix + "refs/tags/v1.0" in refs(path)
    both.change("symbolic-ref", prefix + "HEAD", prefix + "refs/heads/topic")
    listed = both.same("ls-remote", "--symref", "URL", git=client)
    assert "ref: refs/heads/topic\tHEAD" in listed
    assert "namespaces" not in listed
    assert "other" not in listed
    both.same("clone", "-q", "URL", "two", git=client)
    for work in both.clients("two"):
        assert both.git("symbolic-ref", "HEAD", cwd=work) == "refs/heads/topic"
        commit_file(both.git, work, "new", "new\n")
    both.same("push", "URL", "topic", cwd="two", git=client)
    assert "[deleted]" in both.same("push", "URL", ":topic", cwd="two", git=client)
    both.change("symbolic-ref", prefix + "HEAD", prefix + "refs/heads/main")
    assert "rejected" in both.same("push", "URL", "main~2:main", cwd="one", git=client)
    both.same("push", "-f", "URL", "main~2:main", cwd="one", git=client)
    assert refs(both.paths()[0])["refs/heads/main"] != refs(both.paths()[0])[prefix + "refs/heads/main"]


def test_hidden_refs_and_namespaces(pair: PairFunction, client: Git) -> None:
    both = pair("n")
    for ref in ("refs/heads/main", "refs/heads/topic", "refs/internal/x"):
        both.change("update-ref", "refs/namespaces/n/" + ref, "main")
    both.change("symbolic-ref", "refs/namespaces/n/HEAD", "refs/namespaces/n/refs/heads/main")
    both.change("config", "transfer.hideRefs", "refs/internal")
    both.change("config", "--add", "transfer.hideRefs", "^refs/namespaces/n/refs/heads/topic")
    both.change("config", "--add", "transfer.hideRefs", "^refs/heads")
    listed = both.same("ls-remote", "URL", git=client)
    assert sorted(re.findall(r"\t(\S+)", listed)) == ["HEAD", "refs/heads/main"]
    both.same("clone", "-q", "URL", "work", git=client)
    said = both.same("push", "URL", "main:topic", "main:refs/internal/y", "main:fine", cwd="work", git=client)
    assert said.count("deny updating a hidden ref") == 2
    assert "refs/namespaces/n/refs/heads/fine" in refs(both.paths()[0])


def test_the_current_branch_of_the_repository_is_protected_in_namespaces_as_by_git(
    pair: PairFunction, git: Git
) -> None:
    both = pair("n")
    both.change("update-ref", "refs/namespaces/n/refs/heads/main", "main")
    both.change("update-ref", "refs/namespaces/n/refs/heads/other", "main")
    both.same("clone", "-q", "URL", "work")
    assert "[deleted]" in both.same(
        "push", "URL", ":main", cwd="work"
    )  # the repository's own HEAD is elsewhere
    both.change("symbolic-ref", "HEAD", "refs/namespaces/n/refs/heads/other")
    both.change("config", "receive.denyDeleteCurrent", "refuse")
    assert "deletion of the current branch prohibited" in both.same("push", "URL", ":other", cwd="work")


# HEAD, symbolic refs, names


@pytest.mark.parametrize("head", ["detached", "dangling", "other", "tag", "chain"])
def test_heads(pair: PairFunction, client: Git, head: str) -> None:
    both = pair()
    match head:
        case "detached":
            both.change("update-ref", "--no-deref", "HEAD", "main~2")
        case "dangling":
            both.change("symbolic-ref", "HEAD", "refs/heads/nowhere")
        case "other":
            both.change("symbolic-ref", "HEAD", "refs/heads/topic")
        case "tag":
            both.change("symbolic-ref", "HEAD", "refs/tags/light")
        case "chain":
            both.change("symbolic-ref", "refs/heads/alias", "refs/heads/topic")
            both.change("symbolic-ref", "HEAD", "refs/heads/alias")
    both.same("ls-remote", "--symref", "URL", git=client)
    both.same("clone", "-q", "URL", "work", git=client)
    ours, gits = both.clients("work")
    assert (
        both.git.run("symbolic-ref", "HEAD", cwd=ours).stdout
        == both.git.run("symbolic-ref", "HEAD", cwd=gits).stdout
    )
    assert (
        both.git.run("rev-parse", "HEAD", cwd=ours).stdout
        == both.git.run("rev-parse", "HEAD", cwd=gits).stdout
    )


def test_symbolic_refs_beside_head(pair: PairFunction, client: Git) -> None:
    both = pair()
    both.change("symbolic-ref", "refs/heads/alias", "refs/heads/topic")
    both.change("symbolic-ref", "refs/remotes/o/HEAD", "refs/heads/alias")
    both.change("symbolic-ref", "refs/heads/broken", "refs/heads/nowhere")
    listed = both.same("ls-remote", "--symref", "URL", git=client)
    assert "refs/heads/alias" in listed
    assert "refs/heads/broken" not in listed
    both.same("clone", "-q", "--mirror", "URL", "mirror", git=client)
    both.same("push", "-f", "URL", "main:refs/heads/alias", cwd="mirror", git=client)
    ours, _ = both.paths()
    assert refs(ours)["refs/heads/topic"] == refs(ours)["refs/heads/main"]


def test_names_that_are_not_ascii(pair: PairFunction, client: Git) -> None:
    both = pair()
    for name in ("refs/heads/größe/ß", "refs/tags/日本", "refs/heads/🐍"):
        both.change("update-ref", name, "main")
    both.change("pack-refs", "--all")
    both.change("update-ref", "refs/heads/ünpacked", "main~1")
    assert "refs/heads/größe/ß" in both.same("ls-remote", "URL", git=client)
    both.same("clone", "-q", "--mirror", "URL", "mirror", git=client)
    assert refs(both.clients("mirror")[0]) == refs(both.paths()[0])
    both.same("fetch", "-q", "URL", "refs/heads/größe/ß:refs/heads/x", cwd="mirror", git=client)
    said = both.same("push", "URL", "main~1:refs/heads/naïve", ":refs/heads/🐍", cwd="mirror", git=client)
    assert "naïve" in said
    assert "refs/heads/🐍" not in refs(both.paths()[0])


def test_packed_refs_with_100000_refs(pair: PairFunction) -> None:
    both = pair()
    for path in both.paths():
        oid = both.git("rev-parse", "main", cwd=path)
        names = sorted(f"refs/changes/{n % 100:02}/{n}" for n in range(100_000))
        lines = (path / "packed-refs").read_text().splitlines(keepends=True)
        header, rest = lines[0], lines[1:]
        (path / "packed-refs").write_text(
            header + "".join(f"{oid} {name}\n" for name in names) + "".join(rest)
        )
    assert both.same("ls-remote", "URL").count("\n") > 100_000
    both.same("clone", "-q", "URL", "work")
    both.same("fetch", "-q", "URL", "refs/changes/17/4217:refs/heads/change", cwd="work")
    both.change("config", "transfer.hideRefs", "refs/changes")
    both.change("config", "--add", "transfer.hideRefs", "!refs/changes/42")
    assert both.same("ls-remote", "URL").count("refs/changes/") == 1000
    said = both.same("push", "URL", "main:refs/heads/one", ":refs/changes/42/42", cwd="work")
    assert "[deleted]" in said
    for path in both.paths():
        assert len(refs(path)) == len(names) + len(rest) - sum(line.startswith("^") for line in rest)


# Extensions


@pytest.mark.parametrize(
    "config",
    [
        "[core]\nrepositoryFormatVersion = 1\n[extensions]\nnoop\n",
        "[core]\nrepositoryFormatVersion = 1\n[extensions]\nnoop-v1 = x\n",
        "[core]\nrepositoryFormatVersion = 1\n[extensions]\npreciousObjects = true\n",
        "[core]\nrepositoryFormatVersion = 1\n[extensions]\nworktreeConfig = true\n",
        "[core]\nrepositoryFormatVersion = 1\n[extensions]\nobjectFormat = sha1\n",
        "[core]\nrepositoryFormatVersion = 0\n[extensions]\nunheardOf = 1\n",
        "[core]\nrepositoryFormatVersion = 0\n[extensions]\npreciousObjects = true\n",
        "[core]\nrepositoryFormatVersion = 1\n[extensions]\nunheardOf = 1\n",
        "[core]\nrepositoryFormatVersion = 0\n[extensions]\nnoop-v1 = 1\n",
        "[core]\nrepositoryFormatVersion = 0\n[extensions]\nobjectFormat = sha1\n",
        "[core]\nrepositoryFormatVersion = 1\n[extensions]\nobjectFormat = sha3\n",
        "[core]\nrepositoryFormatVersion = 1\n[extensions]\nobjectFormat\n",
        "[core]\nrepositoryFormatVersion = 2\n",
    ],
)
def test_a_repository_is_served_when_git_serves_it(pair: PairFunction, git: Git, config: str) -> None:
    both = pair()
    for path in both.paths():
        (path / "config").write_text("[core]\nbare = true\n" + config)
    results = [git.run("ls-remote", server.url_of("r.git")) for server in both.servers]
    assert (results[0].returncode == 0) == (results[1].returncode == 0), results
    if results[0].returncode:
        assert re.search(
            r"remote: .*(version|extension|unheardof|noop-v1|object format)", results[0].stderr.lower()
        ), results[0].stderr
    for path in both.paths():
        (path / "config").write_text("[core]\nbare = true\n")


# Reflogs


@pytest.mark.parametrize("namespace", ["", "n"])
def test_reflogs_name_the_pusher_as_git_http_backend_does(
    pair: PairFunction, git: Git, namespace: str
) -> None:
    both = pair(namespace)
    both.change("config", "core.logAllRefUpdates", "always")
    for work in both.clients("work"):
        git("clone", "-q", both.servers[0].root / "r.git", work)
    both.same("push", "-f", "URL", "main~1:refs/heads/topic", "main:refs/heads/new", cwd="work")
    prefix = "refs/namespaces/n/" if namespace else ""
    logs = []
    for path in both.paths():
        for name in ("new", "topic"):
            text = (path / "logs" / f"{prefix}refs/heads/{name}").read_text()
            logs.append(re.sub(r"> \d+ ", "> TIME ", text))
    assert logs[:2] == logs[2:]
    assert " anonymous <anonymous@http.127.0.0.1> TIME +0000\tpush\n" in logs[0]
    for path in both.paths():
        shutil.rmtree(path / "logs")
