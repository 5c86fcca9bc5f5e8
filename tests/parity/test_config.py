"""A repository's git config as git reads it; which services are on; dumb HTTP; archives."""

from tests.parity import differences as known
from tests.parity.stage import Client, Difference, session

WITH_TEXT = Difference(known.ERRORS_HAVE_TEXT, gits="", ours="(remote: .*\n?)+")


@session(versions=(2,))
def test_includes(client: Client) -> None:
    """`include.path`, `includeIf` by folder and by branch, nested ones; each change counts at once."""
    client.git("clone", "-q", "URL", "work")
    (client.repo / "deny.conf").write_text("[receive]\n\tdenyDeletes = true\n")
    client.config("include.path", "deny.conf")
    client.git("push", "origin", ":topic", status=1)
    (client.repo / "deny.conf").write_text("[include]\n\tpath = more.conf\n")
    (client.repo / "more.conf").write_text("[receive]\n\tdenyDeletes\n")
    client.git("push", "origin", ":topic", status=1)
    (client.repo / "more.conf").write_text("[receive]\n\tdenyDeletes = no\n")
    client.git("push", "origin", ":topic")
    (client.repo / "hide.conf").write_text("[transfer]\n\thideRefs = refs/tags\n")
    for number, condition in enumerate(
        ("gitdir:**/r.git/", "gitdir/i:**/R.GIT/", "onbranch:main", "onbranch:x/**")
    ):
        client.config(f"includeIf.{condition}.path", "hide.conf")
        client.git("ls-remote", "URL", label=f"condition {number}")
        client.on_server("config", "--unset", f"includeIf.{condition}.path")
    client.git("ls-remote", "URL", label="no condition")


@session(versions=(2,), formats=("sha1",), expected=[WITH_TEXT])
def test_services_that_are_off(client: Client) -> None:
    client.git("clone", "-q", "URL", "work")
    for name in ("uploadpack", "receivepack", "getanyfile"):
        client.config(f"http.{name}", "false")
    client.git("fetch", status=128)
    client.git("push", "origin", "main:x", status=128)
    client.git("clone", "-q", "URL", "dumb", env={"GIT_SMART_HTTP": "0"}, status=128)
    client.git("clone", "-q", client.url_of("nothing.git"), "nothing", status=128)


@session(versions=(2,))
def test_dumb_http(client: Client) -> None:
    """Without smart HTTP, the same objects come file by file."""
    client.on_server("repack", "-dq")
    client.on_server("update-server-info")
    dumb = {"GIT_SMART_HTTP": "0"}
    client.git("ls-remote", "URL", env=dumb)
    client.git("clone", "-q", "URL", "work", env=dumb)
    client.on_server(
        "update-ref", "refs/heads/new", client.on_server("commit-tree", "-m", "n", "main^{tree}")
    )
    client.on_server("update-server-info")
    client.git("fetch", "-q", env=dumb)
    fork = client.second("fork.git")
    (fork / "objects/info/alternates").write_text("../../r.git/objects\n")
    client.on_server("-C", fork, "update-ref", "refs/heads/main", client.on_server("rev-parse", "main"))
    client.on_server("-C", fork, "update-server-info")
    client.git(
        "clone", "-q", client.url_of("fork.git"), "fork", env=dumb, settings=["http.followRedirects=true"]
    )


@session(versions=(2,), since=(2, 44))
def test_archives(client: Client) -> None:
    """`git archive --remote` over HTTP."""
    client.config("http.uploadarchive", "true")
    for form in ("tar", "zip", "tar.gz"):
        client.git("archive", "--remote=URL", f"--format={form}", "-o", f"a.{form}", "--prefix=p/", "main")
        client.tell(form, (client.folder / f"a.{form}").read_bytes().hex())
    client.git("archive", "--remote=URL", "nothing", status=None)
    client.git("archive", "--remote=URL", "--list")
