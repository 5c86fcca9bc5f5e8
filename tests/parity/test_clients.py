"""dulwich's client and libgit2's, each in a process of its own: clone, fetch, push, delete, shallow."""

from tests.parity.stage import Client, session

DULWICH = """
import os, pathlib, sys
from dulwich import porcelain
url, what = sys.argv[1:]
who = b"D <d@example.com>"
def commit(name):
    pathlib.Path("work", name).write_bytes(name.encode() * 1000)
    porcelain.add("work", [os.path.join("work", name)])
    porcelain.commit("work", message=name.encode(), author=who, committer=who, commit_timestamp=1700000000,
        author_timestamp=1700000000, commit_timezone=0, author_timezone=0)
err = open(os.devnull, "wb")
if what == "clone":
    porcelain.clone(url, "work", errstream=err)
elif what == "push":
    commit("one")
    porcelain.push("work", "origin", ["refs/heads/main:refs/heads/main", "refs/heads/main:refs/heads/new"],
        outstream=err, errstream=err)
elif what == "fetch":
    porcelain.fetch("work", "origin", outstream=err, errstream=err)
elif what == "delete":
    porcelain.push("work", "origin", [":refs/heads/new"], outstream=err, errstream=err)
elif what == "shallow":
    porcelain.clone(url, "shallow", depth=2, bare=True, errstream=err)
elif what == "list":
    found = porcelain.ls_remote(url)
    for name, oid in sorted(getattr(found, "refs", found).items()):
        print(name.decode(), (oid or b"").decode())
"""

LIBGIT2 = """
import pathlib, sys
import pygit2
for level in (pygit2.enums.ConfigLevel.SYSTEM, pygit2.enums.ConfigLevel.GLOBAL, pygit2.enums.ConfigLevel.XDG):
    pygit2.settings.search_path[level] = "/nonexistent"
url, what = sys.argv[1:]
who = pygit2.Signature("L", "l@example.com", 1700000000, 0)
class Callbacks(pygit2.RemoteCallbacks):
    def push_update_reference(self, refname, message):
        print(refname, message)
    def sideband_progress(self, text):
        print(text, end="") if what == "hook" else None
if what == "clone":
    pygit2.clone_repository(url, "work")
elif what == "shallow":
    pygit2.clone_repository(url, "shallow", bare=True, depth=2)
else:
    repo = pygit2.Repository("work")
    origin = repo.remotes["origin"]
    if what == "push":
        pathlib.Path("work", "new").write_bytes(b"new" * 1000)
        repo.index.add("new")
        repo.index.write()
        tree = repo.index.write_tree()
        repo.create_commit("refs/heads/main", who, who, "by libgit2", tree, [repo.head.target])
        refs = ["refs/heads/main:refs/heads/main", "refs/heads/main:refs/heads/new"]
        origin.push(refs, callbacks=Callbacks())
    elif what == "hook":
        try:
            origin.push(["refs/heads/main:refs/heads/refused"], callbacks=Callbacks())
        except pygit2.GitError as error:
            print(error)
    elif what == "delete":
        origin.push([":refs/heads/new"], callbacks=Callbacks())
    elif what == "fetch":
        origin.fetch(callbacks=Callbacks())
    elif what == "list":
        for head in origin.list_heads() if hasattr(origin, "list_heads") else origin.ls_remotes():
            print(head["name"] if isinstance(head, dict) else head.name)
"""


def play(client: Client, script: str, *words: str) -> None:
    for word in words:
        client.python(script, word)
        if word == "clone":
            client.on_server("update-ref", "refs/heads/later", "topic")


@session(versions=(2,), formats=("sha1",))
def test_dulwich(client: Client) -> None:
    play(client, DULWICH, "list", "clone", "push", "fetch", "delete", "shallow")


@session(versions=(0,), formats=("sha1",))
def test_libgit2(client: Client) -> None:
    play(client, LIBGIT2, "clone", "list", "push", "fetch", "delete", "shallow")
    client.hook("update", "echo no; exit 1\n")
    play(client, LIBGIT2, "hook")
