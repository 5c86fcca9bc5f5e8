"""The differences from git that sessions may show, each with the words of docs/protocol.md that own up to it.

`tests/test_docs.py` holds that the words are there: who changes the one changes the other.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """A documented difference."""

    documented: str
    """Words of docs/protocol.md, white space aside."""


PUSH_OPTIONS = Known(
    "Push options are offered unless `receive.advertisePushOptions` is false; in git it is off unless true."
)
SAID_AS_ERR = Known(
    "git ends a malformed request with an empty answer, and says why on its own stderr; here the same"
    " text is an `ERR`."
)
SHALLOW_BY_NAME = Known("git's server sends them before, and so a shallow fetch by name fails there")
FILTERS_ARE_ON = Known(
    "Filters are on unless `uploadpack.allowFilter` is false; in git they are off unless it is true."
)
ONLY_WHAT_REFS_SHOW = Known(
    "Only what the refs lead to that a client may see is served, in every version, and all of that. git"
    " serves any object that exists in v2, and any blob and tree in v0 over HTTP."
)
REACHABLE_BY_DEFAULT = Known(
    "v0 clients are told `allow-reachable-sha1-in-want` unless `uploadpack.allowReachableSHA1InWant` is"
    " false; in git, unless it isn't true."
)
EMPTY_V0 = Known(
    "v0 tells what it can do of an empty repository too, as git does since 2.41; before, its answer was"
    " empty."
)
INDEX_PACK_ALWAYS = Known(
    "The reason after `unpack` is git's `index-pack abnormal exit` for what fsck or `receive.maxInputSize`"
    " refuses, in packs of every size; git says `unpack-objects` of small ones."
)
ADVICE = Known("Where git explains a refusal by a paragraph of advice, ours is in words of our own")
DENIED_OBJECTS = Known(
    "What `receive.deny*` refuses is refused before its pack is in place, and leaves no objects behind; in"
    " git they stay, unreachable."
)
REASONS = Known(
    "Why a ref can't be updated is told in the words of git 2.50 and later; before, it was always `failed to"
    " update ref`."
)
TRANSACTION_STATES = Known("The hook reference-transaction is told `prepared`, `committed` and `aborted`")
TRANSACTION_REFUSAL = Known(
    "a no to `prepared` is `ng <ref> ref updates aborted by hook`, where git dies without a report"
)
HIDDEN_ATOMIC = Known("an atomic push as a whole, where git lets the other refs through")
HEAD_TWICE = Known("The HEAD of a namespace is listed once in v2; git lists it twice.")
ERRORS_HAVE_TEXT = Known("Errors have a text, with its type and length; its errors are empty but for 415.")
CUT_SHORT = Known(
    "A request that breaks off, or has a special packet where none belongs, is answered with an `ERR`"
)
ONLY_WHAT_IS_OFFERED = Known("object-info and packfile-uris are refused where they aren't offered")
DEEPEN_NOT = Known("Of a deepen-not that names no ref git before 2.45 says `ambiguous deepen-not`.")
WANT_REF_TWICE = Known("A want-ref that comes twice is refused")
UNPACK_REASON = Known("Why a pack can't be read stands behind `unpack`")
CORRUPT_DELETION = Known(
    "A deletion whose old value names no object of ours must still name what the ref holds"
)
SERVICE_LINE = Known(
    "Lists of refs for pushes begin with `# service=` also where the client asks for version 2"
)
ORDER_IN_PACK = Known("A bad `.gitmodules` is a `fsck error in packed object` wherever in the pack it lies")
NON_COMMIT = Known("git 2.55 leaves out `cannot update ref` where a branch was to hold what is no commit.")
DELETIONS_FIRST = Known(
    "The update hook hears of refs in the client's order; since 2.51 git runs it for deletions first, unless"
    " the push is atomic."
)
ACKNOWLEDGED_TWICE = Known(
    "v2 acknowledges every common have, as git did before 2.51.1; since then it leaves out parents of those"
    " that it acknowledged before."
)
CONFLICT = Known("git since 2.50 leaves out `cannot lock ref` where a new name conflicts with a packed ref.")
