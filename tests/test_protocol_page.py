"""docs/protocol.md has all that git's protocol and config have, and each claim names tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "protocol.md").read_text()
ROWS = re.findall(r"^\| (?!section|element|capability|setting|variable|hook \|)(.*?) \| (.*?) \| ?(.*?) ?\|$",
                  PAGE, re.MULTILINE)  # fmt: skip
VERDICT = re.compile(r"yes|different, because \S.*|no, because \S.*")

# gitprotocol-capabilities(5), gitprotocol-v2(5)
CAPABILITIES = """
    multi_ack multi_ack_detailed no-done thin-pack side-band side-band-64k ofs-delta agent object-format
    symref shallow deepen-since deepen-not deepen-relative no-progress include-tag report-status
    report-status-v2 delete-refs quiet atomic push-options allow-tip-sha1-in-want
    allow-reachable-sha1-in-want push-cert filter session-id
"""
COMMANDS = """
    ls-refs:peel ls-refs:symrefs ls-refs:unborn ls-refs:ref-prefix fetch:want fetch:have fetch:done
    fetch:thin-pack fetch:no-progress fetch:include-tag fetch:ofs-delta fetch:shallow fetch:deepen
    fetch:deepen-relative fetch:deepen-since fetch:deepen-not fetch:filter fetch:want-ref
    fetch:sideband-all fetch:packfile-uris fetch:wait-for-done object-info:size bundle-uri:bundle-uri
    promisor-remote:name server-option object-format session-id agent acknowledgments shallow-info
    wanted-refs packfile-uris packfile
"""
# git-config(1)
SETTINGS = """
    uploadpack.hideRefs uploadpack.allowTipSHA1InWant uploadpack.allowReachableSHA1InWant
    uploadpack.allowAnySHA1InWant uploadpack.keepAlive uploadpack.packObjectsHook uploadpack.allowFilter
    uploadpackfilter.allow uploadpackfilter.<filter>.allow uploadpackfilter.tree.maxDepth
    uploadpack.allowRefInWant uploadpack.allowSidebandAll uploadpack.blobPackfileUri
    uploadpack.advertiseBundleURIs uploadarchive.allowUnreachable lsrefs.unborn receive.advertiseAtomic
    receive.advertisePushOptions receive.autogc receive.certNonceSeed receive.certNonceSlop
    receive.fsckObjects receive.fsck.<msg-id> receive.fsck.skipList receive.keepAlive receive.unpackLimit
    receive.maxInputSize receive.denyDeletes receive.denyDeleteCurrent receive.denyCurrentBranch
    receive.denyNonFastForwards receive.hideRefs receive.procReceiveRefs receive.updateServerInfo
    receive.shallowUpdate fsck.<msg-id> fsck.skipList transfer.credentialsInUrl transfer.fsckObjects
    transfer.hideRefs transfer.unpackLimit transfer.advertiseSID transfer.bundleURI
    transfer.advertiseObjectInfo http.getanyfile http.uploadpack http.receivepack http.uploadarchive
    http.maxRequestBuffer http.<url>.* bundle.version bundle.mode bundle.heuristic bundle.<id>.uri
    bundle.<id>.* promisor.quiet promisor.advertise promisor.sendFields promisor.acceptFromServer
    promisor.acceptFromServerUrl promisor.checkFields promisor.storeFields core.bare core.worktree
    core.repositoryFormatVersion core.hooksPath core.logAllRefUpdates core.alternateRefsPrefixes
    core.alternateRefsCommand core.filesRefLockTimeout core.packedRefsTimeout core.sharedRepository
    core.fsync core.protectHFS core.protectNTFS core.ignoreCase core.useReplaceRefs core.commitGraph
    core.multiPackIndex core.maxTreeDepth core.bigFileThreshold extensions.noop extensions.preciousObjects
    extensions.relativeWorktrees extensions.submodulePathConfig extensions.objectFormat
    extensions.compatObjectFormat extensions.partialClone extensions.refStorage extensions.worktreeConfig
    include.path safe.directory protocol.version gpg.program gpg.format gpg.x509.program gpg.ssh.program
    gpg.ssh.allowedSignersFile gpg.ssh.revocationFile gpg.minTrustLevel gpg.ssh.defaultKeyCommand
    tar.umask
"""
# git-http-backend(1)
VARIABLES = """
    GIT_PROJECT_ROOT PATH_INFO PATH_TRANSLATED GIT_HTTP_EXPORT_ALL GIT_HTTP_MAX_REQUEST_BUFFER REMOTE_USER
    REMOTE_ADDR CONTENT_TYPE QUERY_STRING REQUEST_METHOD GIT_PROTOCOL HTTP_GIT_PROTOCOL GIT_COMMITTER_NAME
    GIT_COMMITTER_EMAIL GIT_NAMESPACE
"""
HOOKS = """
    pre-receive update proc-receive reference-transaction post-receive post-update push-to-checkout
    pre-auto-gc
"""


@cache
def functions_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@cache
def push_ids() -> frozenset[str]:
    source = (TESTS / "conformance" / "test_push_transcripts.py").read_text()
    return frozenset(re.findall(r'\bid="([\w-]+)"', source))


def problem(reference: str) -> str | None:
    """Why `reference` leads to no test."""
    if reference.startswith("fetch/"):
        return None if (TESTS / "conformance" / reference).is_file() else "no such transcript"
    if reference.startswith("push/"):
        return None if reference.removeprefix("push/") in push_ids() else "no such exchange"
    path, _, name = reference.partition("::")
    if not (TESTS / path).is_file():
        return "no such file"
    return None if name in functions_in(TESTS / path) else "no such test"


def test_there_are_rows() -> None:
    assert len(ROWS) > 200


@pytest.mark.parametrize(("name", "verdict", "shown"), ROWS, ids=[row[0][:60] for row in ROWS])
def test_each_row_says_whether_and_what_shows_it(name: str, verdict: str, shown: str) -> None:
    assert VERDICT.fullmatch(verdict)
    references = re.findall(r"`([^`]+)`", shown)
    assert bool(references) != verdict.startswith("no")
    assert {reference: why for reference in references if (why := problem(reference))} == {}


def test_tests_that_the_text_names_exist() -> None:
    text = PAGE[PAGE.index("## Where this differs") :]
    for reference in re.findall(r"`(?:tests/)?([\w/]+\.py::\w+)`", text):
        assert problem(reference) is None, reference


def test_every_transcript_is_named() -> None:
    """What nobody finds here shows nothing."""
    files = {f"fetch/{path.name}" for path in (TESTS / "conformance" / "fetch").glob("*.txt")}
    assert files <= set(re.findall(r"`(fetch/[^`]+\.txt)`", PAGE))


def names_in(*titles: str) -> set[str]:
    """Every word of the first cells of these tables; behind "fetch: " as fetch:word."""
    found: set[str] = set()
    for title in titles:
        table = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
        assert table is not None, title
        for cell in re.findall(r"^\| (.*?) \|", table[1], re.MULTILINE):
            head, _, rest = cell.partition(": ")
            found.update(re.split(r"[`, :=]+", cell))
            found.update(f"{head}:{word}" for word in re.split(r"[`, ;]+", rest))
    return found


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        (CAPABILITIES, ["gitprotocol-capabilities"]),
        (COMMANDS, ["gitprotocol-v2"]),
        (
            SETTINGS,
            [title for title in re.findall("^## (.*)", PAGE, re.MULTILINE) if title[:8] == "Settings"],
        ),
        (VARIABLES, ["git-http-backend's environment"]),
        (HOOKS, ["Hooks"]),
    ],
    ids=["capabilities", "commands", "settings", "variables", "hooks"],
)
def test_nothing_is_left_out(names: str, titles: list[str]) -> None:
    assert set(names.split()) - names_in(*titles) == set()
