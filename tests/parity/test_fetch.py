"""Fetches: every feature of issue 4's list, played against both servers."""

from tests.parity import differences as known
from tests.parity.stage import Client, Difference, session

BY_VALUE = "uploadpack.allowRefInWant"  # false: git's server can't do a shallow fetch by name


@session()
def test_clone_and_fetch(client: Client) -> None:
    client.git("clone", "URL", "work")
    client.git("clone", "--mirror", "URL", "mirror.git")
    client.git("ls-remote", "--symref", "URL")
    client.git("ls-remote", "URL", "refs/tags/*", "main")
    client.git("fetch")
    client.on_server("update-ref", "refs/heads/topic", "main~2")
    client.on_server("update-ref", "-d", "refs/heads/unrelated")
    client.git("fetch", "--prune")
    client.git("fetch", "--prune", "origin", "+refs/*:refs/*", cwd="mirror.git")
    client.git("fetch", "origin", "nothing", status=128)


@session()
def test_progress_and_quiet(client: Client) -> None:
    said = client.git("clone", "--progress", "URL", "work")
    assert "remote: Enumerating objects" in said
    client.git("clone", "--quiet", "URL", "quiet")


# --- shallow


@session(
    expected=[
        Difference(
            known.SAID_AS_ERR,
            at="^git fetch .*nothing",
            gits="",
            ours="fatal: remote error: git upload-pack: deepen-not is not a ref: deepen-not nothing",
            versions=(0, 1),
        ),
        Difference(
            known.SAID_AS_ERR,
            at="^git fetch .*nothing",
            gits="fatal: expected 'acknowledgments'",
            ours="fatal: remote error: git upload-pack: deepen-not is not a ref: deepen-not nothing",
            versions=(2,),
        ),
    ]
)
def test_depths(client: Client) -> None:
    """deepen, deepen-since, deepen-not, deepen-relative, unshallow, fetching in a shallow clone."""
    client.config(BY_VALUE, "false")
    client.git("clone", "--depth=3", "URL", "work")
    client.git("clone", "--shallow-since=1600001800", "URL", "since")
    client.git("clone", "--shallow-exclude=v1.0", "URL", "exclude")
    client.git("fetch", "--deepen=2")
    client.git("fetch", "--depth=2")
    client.git("fetch", "origin", "topic")
    client.git("fetch", "--shallow-since=1600001200")
    client.look()
    client.git("fetch", "--shallow-exclude=topic")
    client.git("fetch", "--shallow-exclude=nothing", status=128)
    client.on_server("update-ref", "refs/heads/main", "unrelated")
    client.git("fetch", "origin", "main")
    client.git("fetch", "--unshallow")
    client.git("fetch", "--unshallow", status=128)


@session(
    versions=(2,),
    expected=[
        Difference(
            known.SHALLOW_BY_NAME,
            at="^git fetch",
            gits="exit 128\nfatal: expected 'packfile', received 'shallow-info'",
            ours="exit 0",
        ),
        Difference(known.SHALLOW_BY_NAME, at="refs after git fetch|objects", gits=".*", ours=".*"),
    ],
)
def test_a_shallow_fetch_by_name(client: Client) -> None:
    client.init()
    client.git("fetch", "-q", "--depth=3", "URL", "refs/heads/main:refs/heads/got", status=128)


@session()
def test_a_shallow_repository_is_served(client: Client) -> None:
    """Cloned from, fetched from by what is whole and what is shallow, and pushed to."""
    client.config(BY_VALUE, "false")
    client.on_server("branch", "-q", "old", "main~6")
    client.git("clone", "--bare", "URL", "whole.git")
    shorten(client)
    client.git("clone", "URL", "work")
    client.git("clone", "--depth=2", "URL", "shallow")
    client.git("clone", "--depth=20", "URL", "deep")
    client.git("fetch", "--deepen=1", cwd="shallow")
    client.git("fetch", "--unshallow", cwd="shallow")
    client.git("fetch", "--update-shallow", "origin", "main:refs/heads/got", cwd="whole.git")
    client.commit("new.txt", "new\n")
    client.git("push", "origin", "main", "main:refs/heads/new")
    client.git("fetch", "origin", "refs/heads/new", cwd="deep")
    client.commit("more.txt", "more\n", cwd="deep")
    client.git("push", "origin", "HEAD:refs/heads/deep", cwd="deep")


def shorten(client: Client) -> None:
    """Cut the server's history to three commits of each branch."""
    twin = client.folder / "twin"
    flags = ("--mirror", "--no-single-branch", "--depth=3")
    client.stage.peer.git("clone", "-q", *flags, f"file://{client.repo}", twin)
    twin.joinpath("config").write_bytes(client.repo.joinpath("config").read_bytes())
    client.repo.rename(client.folder / "before")
    twin.rename(client.repo)


# --- filters


FILTERS = [
    "blob:none", "blob:limit=100", "blob:limit=1k", "tree:0", "tree:1", "tree:3", "object:type=commit",
    "object:type=tree", "object:type=tag", "sparse:oid=patterns:patterns", "sparse:oid=OID",
    "combine:blob:none+tree:3",
]  # fmt: skip


@session()
def test_filters(client: Client) -> None:
    blob = client.on_server("hash-object", "-w", "--stdin", input="/src/\n!/src/part1/\n*.bin\n")
    tree = client.on_server("mktree", input=f"100644 blob {blob}\tpatterns\n")
    commit = client.on_server("commit-tree", "-m", "patterns", tree)
    client.on_server("update-ref", "refs/heads/patterns", commit)
    for number, spec in enumerate(FILTERS):
        spec = spec.replace("OID", blob)
        client.git("clone", "--bare", f"--filter={spec}", "URL", f"{number}.git")


@session()
def test_filters_by_config(client: Client) -> None:
    client.git("clone", "--bare", "--filter=tree:0", "--filter=blob:none", "URL", "both.git")
    client.config("uploadpackfilter.tree.maxDepth", "2")
    client.git("clone", "--bare", "--filter=tree:2", "URL", "two.git")
    client.git("clone", "--bare", "--filter=tree:3", "URL", "three.git", status=128)
    client.config("uploadpackfilter.combine.allow", "false")
    client.git("clone", "--bare", "--filter=combine:tree:0+blob:none", "URL", "no.git", status=128)
    client.config("uploadpackfilter.allow", "false")
    client.git("clone", "--bare", "--filter=blob:none", "URL", "no.git", status=128)
    client.git("clone", "--bare", "--filter=object:type=tag", "URL", "no.git", status=128)
    client.config("uploadpackfilter.blob:limit.allow", "true")
    client.git("clone", "--bare", "--filter=blob:limit=10", "URL", "yes.git")
    client.config("uploadpack.allowFilter", "false")
    client.git("clone", "--bare", "--filter=blob:limit=10", "URL", "whole.git")


@session()
def test_a_partial_clone_lives(client: Client) -> None:
    """Lazy fetches of blobs and trees by id, new commits, tags that come along, a push."""
    client.git("clone", "--no-checkout", "--filter=tree:0", "URL", "work")
    client.git("checkout", "-q", "main")
    client.git("clone", "--filter=blob:none", "URL", "other")
    client.git("log", "-p", "--format=%H", "main~3..main", cwd="other")
    link = client.on_server("rev-parse", "main:link")
    client.git("fetch", "--no-tags", "--filter=blob:none", "origin", link)
    client.commit("src/part1/mine.txt", "mine\n")
    client.local("tag", "-a", "-m", "on mine", "mine")
    client.git("push", "--follow-tags", "origin", "main")
    client.git("fetch", "origin", cwd="other")
    client.git("fetch", "-q", "--refetch", "--filter=tree:0", "origin", cwd="other")
    client.git("merge", "-q", "--ff-only", "origin/main", cwd="other")


@session(
    defaults=True,
    expected=[
        Difference(
            known.FILTERS_ARE_ON,
            at="clone",
            gits="(warning: filtering not recognized by server, ignoring\n?)+",
            ours="",
        ),
        Difference(known.FILTERS_ARE_ON, at="objects", gits=".* blob.*", ours=""),
    ],
)
def test_filters_by_default(client: Client) -> None:
    client.git("clone", "--bare", "--filter=blob:none", "URL", "copy.git")
