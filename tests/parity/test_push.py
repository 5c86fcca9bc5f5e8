"""Pushes: reports, options, atomicity, checks, limits, shallow clones, alternates."""

import hashlib
import random
import zlib

from tests.parity import differences as known
from tests.parity.stage import CONFLICT, NON_COMMIT, REASONS, Client, Difference, session


@session(expected=[REASONS, NON_COMMIT])
def test_all_kinds_of_updates(client: Client) -> None:
    """report-status, delete-refs, quiet, ofs-delta; what the client refuses by itself."""
    client.git("clone", "URL", "work")
    client.git("push", "origin", "main")
    client.commit("new.txt", "new\n")
    client.git("push", "origin", "main", "main:refs/heads/new", ":topic", "main~3:refs/heads/older")
    client.git("push", "--quiet", "origin", "main:quiet")
    client.git("push", "--porcelain", "origin", ":quiet", "main:refs/notes/x")
    client.local("reset", "-q", "--hard", "HEAD~3")
    client.commit("other.txt", "another way\n")
    client.git("push", "origin", "main", status=1)
    client.git("push", "--force-with-lease=main:main~1", "origin", "main", status=1)
    client.git("push", "--force", "origin", "main")
    client.git("push", "origin", ":nothing", status=1)
    client.git("push", "origin", "main:refs/heads/older/below", "main:refs/heads/fine", status=1)
    client.local("tag", "-a", "-m", "annotated", "v3.0")
    client.git("push", "--follow-tags", "origin", "main")
    client.git("push", "origin", "v3.0^{tree}:refs/tags/tree", "main:docs/README:refs/tags/blob")
    client.git("push", "origin", "v3.0^{tree}:refs/tags/tree", "main~1:refs/heads/größe")
    client.git("push", "origin", "v3.0^{tree}:refs/heads/tree", status=1)


@session(expected=[CONFLICT])
def test_atomic(client: Client) -> None:
    client.git("clone", "URL", "work")
    client.local("branch", "-q", "unrelated", "origin/unrelated")
    client.commit("new.txt", "new\n")
    client.git("push", "--atomic", "origin", "main", "main:topic/below", "main:fine", status=1)
    client.git("push", "--atomic", "origin", "main", "unrelated:topic", status=1)
    client.hook("update", "[ $1 != refs/heads/bad ] || { echo no; exit 1; }\n")
    client.git("push", "--atomic", "origin", "main", "main:bad", ":topic", status=1)
    client.git("push", "origin", "main", "main:bad", status=1)
    client.config("receive.denyDeletes", "true")
    client.git("push", "--atomic", "origin", "main:one", ":topic", status=1)
    client.config("receive.denyNonFastForwards", "true")
    # several refs denied, each for a reason of its own, and one that isn't
    client.git("push", "--atomic", "origin", ":topic", "+main~5:main", ":unrelated", "main:one", status=1)
    client.git("push", "--atomic", "origin", "+main~5:main", "main:bad", ":topic", status=1)
    client.config("receive.denyNonFastForwards", "false")
    client.git("push", "--atomic", "origin", "main:one", "main:two")
    client.config("receive.advertiseAtomic", "false")
    client.git("push", "--atomic", "origin", "main:three", status=None)


@session(
    expected=[
        Difference(
            known.ADVICE,
            at="^git push origin :main$",
            gits="(remote: error: By default, deleting the current branch.*)?",
            ours="(remote: A clone checks out the branch that HEAD names.*)?",
        ),
        Difference(known.DENIED_OBJECTS, at="^objects of the server", gits=r"(\w+ \w+\n?)+", ours=""),
    ]
)
def test_what_config_denies(client: Client) -> None:
    client.git("clone", "URL", "work")
    client.local("reset", "-q", "--hard", "HEAD~3")
    client.commit("other.txt", "another way\n")
    client.config("receive.denyNonFastForwards", "true")
    client.git("push", "-f", "origin", "main", status=1)
    client.config("receive.denyDeletes", "true")
    client.git("push", "origin", ":topic", ":refs/tags/light", status=1)
    client.config("receive.denyDeletes", "false")
    client.git("push", "origin", ":main", status=1)
    client.config("receive.denyDeleteCurrent", "warn")
    client.git("push", "origin", ":main")
    client.untidy = True


@session(
    expected=[
        Difference(
            known.ADVICE,
            at="^git push origin :?main$",
            gits="remote: error: By default, updating the current branch.*",
            ours="remote: Pushing to the branch that is checked out would.*",
        )
    ]
)
def test_a_repository_with_a_work_tree(client: Client) -> None:
    """denyCurrentBranch in all its values; push-to-checkout."""
    client.git("clone", "URL", "work")
    client.commit("new.txt", "new\n")
    client.config("core.bare", "false")
    client.git("push", "origin", "main", status=1)
    client.git("push", "origin", ":main", status=1)
    client.git("push", "origin", "main:elsewhere")
    client.config("receive.denyCurrentBranch", "warn")
    client.git("push", "origin", "main~1:main", "main:elsewhere")
    client.config("receive.denyCurrentBranch", "ignore")
    client.git("push", "origin", "main")


@session()
def test_push_options(client: Client) -> None:
    client.git("clone", "URL", "work")
    for name in ("pre-receive", "update", "post-receive", "post-update"):
        client.hook(name, 'env | grep ^GIT_PUSH_OPTION | sort | sed "s/^/$(basename $0) /"\n')
    client.git("push", "-o", "ci.skip", "-o", "topic=a b", "origin", "main:one")
    client.git("push", "origin", "main:two")
    client.config("receive.advertisePushOptions", "false")
    client.git("push", "-o", "x", "origin", "main:three", status=None)


@session(
    defaults=True,
    expected=[
        Difference(known.PUSH_OPTIONS, at="^git push", gits=".*", ours=".*"),
        Difference(known.PUSH_OPTIONS, at="^refs", gits="", ours=r"\w+ refs/(heads|remotes/origin)/one"),
    ],
)
def test_push_options_by_default(client: Client) -> None:
    client.git("clone", "URL", "work")
    client.git("push", "-o", "x", "origin", "main:one", status=1)


# --- objects that are checked


def put_object(client: Client, kind: str, data: bytes) -> str:
    """Write an object that git itself would not make."""
    whole = f"{kind} {len(data)}\0".encode() + data
    oid = hashlib.new(client.stage.object_format, whole).hexdigest()
    path = client.folder / "work" / ".git" / "objects" / oid[:2] / oid[2:]
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_bytes(zlib.compress(whole))
    return oid


def bad_commits(client: Client) -> dict[str, str]:
    """Commits that fsck complains of, by what is wrong."""
    empty = put_object(client, "tree", b"")
    blob = put_object(client, "blob", b"x\n")
    gitmodules = put_object(client, "blob", b'[submodule "../x"]\n\turl = -u\n\tpath = -p\n')
    unparsable = put_object(client, "blob", b"[submodule\n")
    link = put_object(client, "blob", b"target")
    trees: dict[str, list[tuple[str, str, str]]] = {
        "dotgit": [("40000", ".GIT", empty)],
        "hfs-dotgit": [("40000", ".g\u200cit", empty)],
        "ntfs-dotgit": [("40000", "git~1", empty)],
        "dot": [("40000", ".", empty)],
        "dotdot": [("40000", "..", empty)],
        "slash": [("100644", "a/b", blob)],
        "empty-name": [("100644", "", blob)],
        "duplicate": [("100644", "a", blob), ("100644", "a", blob)],
        "file-and-folder": [("100644", "a", blob), ("40000", "a", empty)],
        "unsorted": [("100644", "b", blob), ("100644", "a", blob)],
        "mode": [("100666", "a", blob)],
        "zero-mode": [("0100644", "a", blob)],
        "null-oid": [("160000", "a", "0" * client.oid_len)],
        "gitmodules": [("100644", ".gitmodules", gitmodules)],
        "unparsable-gitmodules": [("100644", ".gitmodules", unparsable)],
        "gitmodules-link": [("120000", ".gitmodules", link)],
        "gitattributes-link": [("120000", ".gitattributes", link)],
    }
    found = {}
    for name, entries in trees.items():
        data = b"".join(f"{mode} {path}".encode() + b"\0" + bytes.fromhex(oid) for mode, path, oid in entries)
        tree = put_object(client, "tree", data)
        found[name] = client.local("commit-tree", "-p", "main", "-m", name, tree)
    tree = client.local("rev-parse", "main^{tree}")
    who = "A <a> 1 +0000"
    commits = {
        "missing-email": f"tree {tree}\nauthor A 1 +0000\ncommitter {who}\n\nx\n",
        "no-author": f"tree {tree}\ncommitter {who}\n\nx\n",
        "two-authors": f"tree {tree}\nauthor {who}\nauthor {who}\ncommitter {who}\n\nx\n",
        "bad-date": f"tree {tree}\nauthor A <a> x +0000\ncommitter {who}\n\nx\n",
        "zero-padded-date": f"tree {tree}\nauthor A <a> 01 +0000\ncommitter {who}\n\nx\n",
        "bad-zone": f"tree {tree}\nauthor A <a> 1 +000\ncommitter {who}\n\nx\n",
        "no-space": f"tree {tree}\nauthor A<a> 1 +0000\ncommitter {who}\n\nx\n",
        "nul": f"tree {tree}\nauthor {who}\ncommitter {who}\n\nx\0y\n",
    }
    for name, text in commits.items():
        found[name] = put_object(client, "commit", text.encode())
    head = client.local("rev-parse", "main")
    tags = {
        "tagger": f"object {head}\ntype commit\ntag x\n\nx\n",
        "tag-name": f"object {head}\ntype commit\ntag a..b\ntagger {who}\n\nx\n",
        "tag-type": f"object {head}\ntype nonsense\ntag x\ntagger {who}\n\nx\n",
    }
    for name, text in tags.items():
        found[name] = put_object(client, "tag", text.encode())
    return found


@session(
    versions=(0, 1),
    expected=[
        Difference(
            known.ORDER_IN_PACK,
            at="^gitmodules$",
            gits="remote: fatal: fsck error in pack objects",
            ours="remote: fatal: fsck error in packed object",
            formats=("sha256",),  # where the blob comes before its tree
        )
    ],
)
def test_checks_of_fsck(client: Client) -> None:
    """Each fault by itself: the same refusal, warning or silence, in the same words."""
    client.untidy = True
    client.git("clone", "-q", "URL", "work")
    for name, oid in bad_commits(client).items():
        ref = "refs/tags/bad" if name.startswith("tag") else "refs/heads/bad"
        client.git("push", "-q", "-f", "URL", f"{oid}:{ref}", status=None, label=name)


@session(versions=(0, 1))
def test_severities(client: Client) -> None:
    client.untidy = True
    client.git("clone", "-q", "URL", "work")
    bad = bad_commits(client)
    client.config("receive.fsck.missingEmail", "warn")
    client.git("push", "URL", f"{bad['missing-email']}:refs/heads/one")
    client.config("receive.fsck.zeroPaddedFilemode", "error")
    client.git("push", "URL", f"{bad['zero-mode']}:refs/heads/two", status=1)
    client.config("receive.fsck.hasDotgit", "ignore")
    client.git("push", "URL", f"{bad['dotgit']}:refs/heads/three")
    tree = client.local("rev-parse", f"{bad['dotdot']}^{{tree}}")
    (client.repo / "skip").write_text(f"# known\n\n  {tree}  # by now\n")
    client.config("receive.fsck.skipList", "skip")
    client.git("push", "URL", f"{bad['dotdot']}:refs/heads/four")
    client.config("receive.fsckObjects", "false")
    client.git("push", "URL", f"{bad['duplicate']}:refs/heads/five")
    client.config("transfer.fsckObjects", "true")
    client.on_server("config", "--unset", "receive.fsckObjects")
    client.git("push", "URL", f"{bad['no-author']}:refs/heads/six", status=1)


# --- limits


@session(
    versions=(0, 1),
    expected=[
        Difference(
            known.INDEX_PACK_ALWAYS,
            at="few-objects",
            gits=".*unpack-objects abnormal exit.*",
            ours=".*index-pack abnormal exit.*",
        ),
        Difference(
            known.INDEX_PACK_ALWAYS,
            at="few-objects",
            gits="remote: fatal: pack exceeds maximum allowed size",
            ours=r"remote: fatal: pack exceeds maximum allowed size \(1000 bytes\)",
        ),
    ],
)
def test_packs_that_are_too_large(client: Client) -> None:
    client.git("clone", "-q", "URL", "work")
    client.config("receive.maxInputSize", "1000")
    (client.folder / "work" / "noise").write_bytes(random.Random(1).randbytes(5000))
    client.local("add", "noise")
    client.local("commit", "-q", "-m", "noise")
    client.git("push", "origin", "main", status=1)
    client.config("receive.unpackLimit", "100")
    client.git("push", "origin", "main", status=1, label="few-objects")
    client.config("receive.maxInputSize", "0")
    client.git("push", "origin", "main")


@session(versions=(0, 1), empty=True)
def test_unpack_limits(client: Client) -> None:
    """How objects are stored is a policy of ours; which ones are is not."""
    client.init()
    for number, (name, limit) in enumerate((("receive", "3"), ("receive", "100"), ("transfer", "2"))):
        client.config(f"{name}.unpackLimit", limit)
        client.commit(f"{number}", f"{number}\n")
        client.git("push", "URL", "HEAD:refs/heads/main")
        client.look()


# --- shallow clones


@session(
    expected=[
        Difference(known.ERRORS_HAVE_TEXT, at="second.git", gits="", ours="remote: repository not found")
    ]
)
def test_pushes_out_of_shallow_clones(client: Client) -> None:
    client.config("uploadpack.allowRefInWant", "false")
    client.git("clone", "-q", "--depth=2", "URL", "work")
    client.commit("new.txt", "new\n")
    client.git("push", "origin", "main")
    client.commit("newer.txt", "newer\n")
    client.git("push", client.url_of("second.git"), "HEAD:refs/heads/main", status=128)
    second = client.second("second.git")
    client.git("push", client.url_of("second.git"), "HEAD:refs/heads/main", status=1)
    client.on_server("-C", second, "config", "receive.shallowUpdate", "true")
    client.git("push", client.url_of("second.git"), "HEAD:refs/heads/main")
    client.git("push", client.url_of("second.git"), "HEAD~1:refs/heads/older")
    client.tell("second", client.on_server("-C", second, "for-each-ref") + (second / "shallow").read_text())
    client.git("clone", client.url_of("second.git"), "third")


# --- alternates


@session()
def test_a_repository_that_borrows(client: Client) -> None:
    """Borrowed objects are served, and need not be pushed (`.have`)."""
    client.git("clone", "-q", "--mirror", "URL", "copy.git")
    fork = client.second("fork.git")
    (fork / "objects/info/alternates").write_text("../../r.git/objects\n")
    url = client.url_of("fork.git")
    client.git("push", url, "main:refs/heads/main", cwd="copy.git", label="push to the fork")
    client.tell("fork", client.on_server("-C", fork, "for-each-ref"))
    client.tell("its own objects", "\n".join(sorted(path.name for path in (fork / "objects").glob("??/*"))))
    client.git("clone", "-q", url, "work", label="clone of the fork")
    client.commit("new.txt", "new\n")
    client.git("push", "origin", "main", label="push of one commit")
    client.git("ls-remote", url, label="ls-remote")
