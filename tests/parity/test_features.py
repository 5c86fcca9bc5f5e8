"""The optional features of fetches, most of them protocol v2's; empty repositories and odd HEADs."""

from tests.parity import differences as known
from tests.parity.stage import Client, Difference, session

BY_NAME = "uploadpack.allowRefInWant"  # git's server can't do a shallow fetch by name


@session(versions=(2,))
def test_refs_are_wanted_by_name(client: Client) -> None:
    client.git("clone", "--mirror", "URL", "mirror.git")
    client.git("clone", "URL", "work")
    for n in range(20):
        client.on_server("update-ref", f"refs/heads/many/{n}", f"main~{n % 7}")
    client.git("fetch", "origin", "main", "refs/heads/many/*:refs/many/*")
    client.git("fetch", cwd="mirror.git")
    client.git("fetch", "origin", "HEAD", "refs/heads/nothing", status=128)
    for n in range(30):
        client.local("commit", "-q", "--allow-empty", "-m", f"{n}")
    new = client.on_server("commit-tree", "-m", "new", "-p", "main", "topic^{tree}")
    client.on_server("update-ref", "refs/heads/main", new)
    client.git("fetch", "origin", "main")


@session(versions=(2,), formats=("sha1",), commits=3)
def test_50000_refs(client: Client) -> None:
    main = client.on_server("rev-parse", "main")
    with (client.repo / "packed-refs").open("a") as file:
        file.writelines(f"{main} refs/zz/{number:06d}\n" for number in range(50_000))
    client.git("clone", "-q", "--mirror", "URL", "mirror.git")
    client.git("push", "-q", "URL", "refs/zz/00001*:refs/zy/*", ":refs/zz/000099", cwd="mirror.git")
    client.config("transfer.hideRefs", "refs/zz", "!refs/zz/000012")
    client.git("ls-remote", "URL")
    client.git("fetch", "URL", "refs/zz/000012:refs/heads/got", cwd="mirror.git")


@session(
    versions=(2,),
    expected=[
        Difference(
            known.ACKNOWLEDGED_TWICE, at="--negotiate-only", gits="", ours=r"(\w+\n?)+", since=(2, 51, 1)
        )
    ],
)
def test_negotiation_without_a_fetch(client: Client) -> None:
    """wait-for-done."""
    client.git("clone", "URL", "work")
    client.commit("mine.txt", "mine\n")
    client.git("fetch", "--negotiate-only", "--negotiation-tip=HEAD", "origin")
    client.git("push", "origin", "HEAD:main", settings=["push.negotiate=true"])


@session(versions=(2,))
def test_sideband_all(client: Client) -> None:
    client.config("uploadpack.allowSidebandAll", "true")
    client.config(BY_NAME, "false")
    client.git("clone", "--progress", "URL", "work")
    client.git("clone", "--depth=2", "URL", "shallow")
    client.git("fetch", "URL", "1" * client.oid_len, status=128)


@session()
def test_server_options_agents_and_sessions(client: Client) -> None:
    client.config("transfer.advertiseSID", "true")
    client.git("ls-remote", "-o", "colour=red", "-o", "x", "URL")
    client.git("clone", "--server-option=one", "URL", "work", status=None)
    client.git("clone", "URL", "again", settings=["transfer.advertiseSID=true"])
    client.git("fetch", "-o", "two", cwd="again", status=None)
    client.git("push", "origin", "main:new", cwd="again", settings=["transfer.advertiseSID=true"])


@session(
    empty=True,
    expected=[
        Difference(
            known.EMPTY_V0,
            at="git fetch",
            gits="fatal: couldn't find remote ref HEAD",
            ours=".+",
            versions=(0,),
            until=(2, 41),
        )
    ],
)
def test_the_wrong_object_format(client: Client) -> None:
    other = "sha256" if client.stage.object_format == "sha1" else "sha1"
    client.local("init", "-q", f"--object-format={other}", "work", cwd=".")
    client.commit("x", "x\n")
    client.git("push", "URL", "HEAD:refs/heads/main", status=None)
    client.git("fetch", "URL", status=128)


@session(versions=(2,), formats=("sha1",))
def test_packfile_uris(client: Client) -> None:
    blob = client.on_server("rev-parse", "main:data/blob.bin")
    pack_hash = client.on_server("pack-objects", "-q", client.web.folder / client.side, input=blob + "\n")
    client.config("uploadpack.allowSidebandAll", "true")
    uri = f"{client.web.url}/{client.side}-{pack_hash}.pack"
    client.config("uploadpack.blobPackfileUri", f"{blob} {pack_hash} {uri}")
    client.git("clone", "--mirror", "URL", "copy.git", settings=["fetch.uriprotocols=http,https"])
    client.git("clone", "--mirror", "URL", "plain.git")


@session(versions=(2,), since=(2, 40))
def test_bundle_uri(client: Client) -> None:
    client.on_server("bundle", "create", "-q", client.web.folder / "base.bundle", "--all")
    client.config("uploadpack.advertiseBundleURIs", "true")
    client.config("bundle.version", "1")
    client.config("bundle.mode", "all")
    client.config("bundle.base.uri", f"{client.web.url}/base.bundle")
    new = client.on_server("commit-tree", "-m", "new", "-p", "main", "topic^{tree}")
    client.on_server("update-ref", "refs/heads/main", new)
    client.git("clone", "URL", "work", settings=["transfer.bundleURI=true"])


# --- HEAD, empty repositories


@session(empty=True)
def test_an_empty_repository(client: Client) -> None:
    client.on_server("symbolic-ref", "HEAD", "refs/heads/trunk")
    for way in ("advertise", "allow", "ignore"):
        client.config("lsrefs.unborn", way)
        client.git("clone", "URL", way)
        client.git("ls-remote", "--symref", "URL")
    client.git("clone", "--bare", "URL", "bare.git")
    client.git("fetch", "origin", cwd="advertise")
    client.git("clone", "--depth=1", "URL", "shallow")
    client.commit("first", "first\n", cwd="advertise")
    client.git("push", "origin", "HEAD:refs/heads/trunk", cwd="advertise")
    client.git("clone", "URL", "full")


@session()
def test_heads(client: Client) -> None:
    """Detached, dangling, elsewhere, on a tag, by way of another symbolic ref; symbolic refs beside HEAD."""
    main = client.on_server("rev-parse", "main~2")
    client.on_server("symbolic-ref", "refs/heads/alias", "refs/heads/topic")
    client.on_server("symbolic-ref", "refs/remotes/o/HEAD", "refs/heads/alias")
    client.on_server("symbolic-ref", "refs/heads/broken", "refs/heads/nowhere")
    targets = ["refs/heads/nowhere", "refs/heads/topic", "refs/tags/light", "refs/heads/alias"]
    for number, target in enumerate([*targets, main]):
        if target == main:
            client.on_server("update-ref", "--no-deref", "HEAD", main)
        else:
            client.on_server("symbolic-ref", "HEAD", target)
        client.git("ls-remote", "--symref", "URL")
        client.git("clone", "URL", f"{number}")
    client.git("clone", "--mirror", "URL", "mirror")
    client.git("push", "-f", "URL", "refs/heads/main:refs/heads/alias", cwd="mirror")
    client.git("push", "URL", ":refs/remotes/o/HEAD", cwd="mirror")
    client.untidy = True
