"""Refs: hidden ones, namespaces, names that are not ASCII, reftables, reflogs, extensions."""

import re

from tests.parity import differences as known
from tests.parity.stage import REASONS, Client, Difference, session

HIDDEN = "transfer.hideRefs"
IN_N = ["http.extraHeader=X-Git-Namespace: n"]


@session(
    expected=[
        REASONS,
        Difference(known.HIDDEN_ATOMIC, at="^git push --atomic", gits=".*", ours=".*"),
        Difference(known.HIDDEN_ATOMIC, at="^refs|^objects", gits=".*", ours=".*"),
    ]
)
def test_hidden_refs(client: Client) -> None:
    client.on_server("update-ref", "refs/internal/secret", "main~3")
    client.on_server("update-ref", "refs/internal/public", "main~2")
    client.config(HIDDEN, "refs/internal", "!refs/internal/public")
    client.config("uploadpack.hideRefs", "refs/heads/topic")
    client.config("receive.hideRefs", "refs/tags")
    listed = client.git("ls-remote", "URL")
    assert "refs/internal/public" in listed
    assert "secret" not in listed
    client.git("clone", "-q", "URL", "work")
    client.git("fetch", "origin", "refs/internal/secret", status=128)
    client.git("fetch", "-q", "origin", "refs/internal/public:refs/heads/public")
    client.git(
        "push", "URL", "main:refs/internal/new", ":refs/internal/secret", "main:refs/internal/public/no",
        "main:refs/tags/hidden", "main~1:refs/heads/topic-2", status=1,
    )  # fmt: skip
    client.commit("new.txt", "new\n")
    client.git("push", "--atomic", "URL", "main:refs/internal/new", "main:refs/heads/more", status=1)


@session()
def test_hidden_refs_complete_pushes(client: Client) -> None:
    client.git("clone", "-q", "--mirror", "URL", "mirror")
    client.config(HIDDEN, "refs/heads", "!refs/heads/new")
    client.git("push", "URL", "refs/heads/unrelated:refs/heads/new", cwd="mirror")
    client.git("push", "URL", ":refs/heads/topic", cwd="mirror", status=None)


@session()
def test_hidden_tags_dont_come_along(client: Client) -> None:
    client.on_server("tag", "-a", "-m", "hidden", "hidden-tag", "main~1")
    client.config(HIDDEN, "refs/tags/hidden-tag")
    client.git("clone", "-q", "--bare", "URL", "bare")


TWICE = Difference(
    known.HEAD_TWICE, at="ls-remote", gits=r"(ref: \S+\tHEAD\n)?\w+\tHEAD", ours="", versions=(2,)
)


@session(expected=[TWICE])
def test_namespaces(client: Client) -> None:
    for name in ("pre-receive", "update", "post-receive"):
        client.hook(name, f'echo "{name} $GIT_NAMESPACE $*"; [ {name} = update ] || cat\n')
    client.git("ls-remote", "URL", settings=IN_N, label="empty")
    client.git("clone", "-q", "URL", "empty", settings=IN_N)
    client.git("clone", "-q", "URL", "work")
    client.git("push", "URL", "main", "v1.0", "main~1:refs/heads/topic", settings=IN_N)
    client.on_server("symbolic-ref", "refs/namespaces/n/HEAD", "refs/namespaces/n/refs/heads/topic")
    listed = client.git("ls-remote", "--symref", "URL", settings=IN_N)
    assert "namespaces" not in listed
    client.git("clone", "-q", "URL", "two", settings=IN_N)
    client.commit("new", "new\n", cwd="two")
    client.git("push", "URL", "topic", cwd="two", settings=IN_N)
    client.git("push", "URL", ":topic", cwd="two", settings=IN_N)
    client.local("update-ref", "--no-deref", "-d", "refs/remotes/origin/HEAD", cwd="two")  # it dangles
    client.on_server("symbolic-ref", "refs/namespaces/n/HEAD", "refs/namespaces/n/refs/heads/main")
    client.git("push", "URL", "main~2:main", settings=IN_N, status=1)
    client.git("push", "-f", "URL", "main~2:main", settings=IN_N)
    nested = ["http.extraHeader=X-Git-Namespace: n/m"]
    client.git("push", "URL", "main", settings=nested)
    client.git("ls-remote", "URL", settings=nested, label="nested")


@session(expected=[TWICE])
def test_hidden_refs_in_namespaces(client: Client) -> None:
    for ref in ("refs/heads/main", "refs/heads/topic", "refs/internal/x"):
        client.on_server("update-ref", "refs/namespaces/n/" + ref, "main")
    client.on_server("symbolic-ref", "refs/namespaces/n/HEAD", "refs/namespaces/n/refs/heads/main")
    client.config(HIDDEN, "refs/internal", "^refs/namespaces/n/refs/heads/topic", "^refs/heads")
    listed = client.git("ls-remote", "URL", settings=IN_N)
    assert set(re.findall(r"\t(\S+)", listed)) == {"HEAD", "refs/heads/main"}
    client.git("clone", "-q", "URL", "work", settings=IN_N)
    client.git("push", "URL", "main:topic", "main:refs/internal/y", "main:fine", settings=IN_N, status=1)
    client.on_server("update-ref", "refs/namespaces/n/refs/heads/other", "main")
    client.on_server("symbolic-ref", "HEAD", "refs/namespaces/n/refs/heads/other")
    client.config("receive.denyDeleteCurrent", "refuse")
    client.git("push", "URL", ":other", settings=IN_N, status=1)
    client.on_server("symbolic-ref", "HEAD", "refs/heads/main")


@session()
def test_names_that_are_not_ascii(client: Client) -> None:
    for name in ("refs/heads/größe/ß", "refs/tags/日本", "refs/heads/🐍"):
        client.on_server("update-ref", name, "main")
    client.on_server("pack-refs", "--all")
    client.on_server("update-ref", "refs/heads/ünpacked", "main~1")
    client.git("ls-remote", "URL")
    client.git("clone", "-q", "--mirror", "URL", "mirror")
    client.git("fetch", "-q", "URL", "refs/heads/größe/ß:refs/heads/x", cwd="mirror")
    client.git("push", "URL", "main~1:refs/heads/naïve", ":refs/heads/🐍", cwd="mirror")


@session(versions=(0, 1))
def test_reflogs(client: Client) -> None:
    """`user@http.ADDRESS`, in and out of namespaces; `core.logAllRefUpdates` in its values."""
    client.git("clone", "-q", "URL", "work")
    for number, value in enumerate(("always", "true", "false")):
        client.config("core.logAllRefUpdates", value)
        refs = (f"main:refs/heads/b{number}", f"main:refs/tags/t{number}", f"main:refs/other/o{number}")
        client.git("push", "-f", "URL", *refs, "main~1:refs/heads/topic")
        client.git("push", "-f", "URL", *refs, "main~2:refs/heads/topic", settings=IN_N)
    client.git(
        "push", "-f", "URL", "main:refs/heads/topic", settings=["http.extraHeader=X-Remote-User: alice"]
    )
    logs = client.repo / "logs"
    for path in sorted(logs.rglob("*")):
        if path.is_file():
            client.tell(str(path.relative_to(logs)), re.sub(r"> \d+ ", "> TIME ", path.read_text()))


CONFIGS = [
    ("1", "noop"),
    ("1", "noop-v1 = x"),
    ("1", "preciousObjects = true"),
    ("1", "worktreeConfig = true"),
    ("0", "unheardOf = 1"),
    ("0", "preciousObjects = true"),
    ("1", "unheardOf = 1"),
    ("0", "noop-v1 = 1"),
    ("1", "objectFormat = sha3"),
    ("1", "objectFormat"),
    ("2", ""),
]


@session(
    versions=(2,),
    formats=("sha1",),
)
def test_extensions(client: Client) -> None:
    """A repository is served when git serves it."""
    client.is_broken = True
    kept = (client.repo / "config").read_text()
    for version, line in CONFIGS:
        text = f"[core]\nbare = true\nrepositoryFormatVersion = {version}\n[extensions]\n{line}\n"
        (client.repo / "config").write_text(text)
        result = client.git_.run("ls-remote", client.url)
        client.tell(f"{version} {line}", f"served: {result.returncode == 0}")
    (client.repo / "config").write_text(kept)


@session(since=(2, 45))
def test_reftables(client: Client) -> None:
    """Read and written, beside git itself."""
    client.untidy = True  # the system's git may know no reftables
    client.git("clone", "-q", "--mirror", "URL", "mirror")
    client.git("clone", "-q", "URL", "work")
    client.on_server("refs", "migrate", "--ref-format=reftable")
    client.git("ls-remote", "--symref", "URL")
    client.commit("new.txt", "new\n")
    client.git("push", "origin", "main", "main:refs/heads/new", ":topic")
    client.on_server("update-ref", "refs/heads/theirs", "main~1")
    client.git("fetch", "origin")
    client.git("push", "origin", "main:refs/heads/theirs/below", status=1)
    client.git("push", "--atomic", "origin", "main~1:refs/heads/one", "main~2:refs/heads/two")
    client.on_server("pack-refs", "--all")
    client.git("push", "origin", ":one", "main:refs/heads/größe")
    client.tell("fsck", client.on_server("fsck", "--no-progress", "--no-dangling"))
