r"""git fsck's checks of single objects, for pushed objects while they are in hand.

    Fsck.check(type, raw oid, data) --> "error: object <oid>: <msg-id>: <text>" to `say`, then FsckFailed
    Fsck.finish(read)               --> the contents of what trees call .gitmodules and .gitattributes

Ids, texts, their order and severities are git's: git-fsck(1), "FSCK MESSAGES"; fsck.h FOREACH_FSCK_MSG_ID;
fsck.c fsck_tree(), fsck_commit(), fsck_tag_standalone(), fsck_blob(); utf8.c is_hfs_dot_generic();
path.c is_ntfs_dotgit(), is_ntfs_dot_generic(). Severities are those of `index-pack --strict`: warnings are
errors, infos are warnings.

Objects as git itself makes them pass one compiled pattern each; only what does not is read by the functions
that follow git's line by line. Measured by benchmarks/ingest.py. Time is linear in the object; memory is some
lists of its names. A tree that came as a small delta on a tree without any fault is judged by its new entries
(`check_changes`), unless order is to be checked.

Where this is not git: duplicate entries are found wherever they stand, git's one pass overlooks some in
unsorted trees. A .gitmodules of more than 4 MiB is `gitmodulesLarge` (git: core.bigFileThreshold). A missing
.gitmodules is the connectivity check's business, as it is for index-pack.
"""

import enum
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from gitsmart.errors import LimitExceeded, ObjectMissing, PackError
from gitsmart.pack.objects import BLOB, COMMIT, TAG, TREE, TYPE_NUMBERS, ObjectFormat, to_hex
from gitsmart.pack.submodules import is_submodule_name, is_submodule_url

__all__ = [
    "DANGEROUS",
    "MESSAGES",
    "BadSettingError",
    "Fsck",
    "FsckFailed",
    "FsckRules",
    "Severity",
    "is_dot_name",
    "severities",
]


class Severity(enum.Enum):
    """What becomes of a finding: FATAL is an ERROR that config can't change, INFO a WARN that stays one."""

    FATAL = "fatal"
    ERROR = "error"
    WARN = "warn"
    INFO = "info"
    IGNORE = "ignore"


_FATAL: Final = "nulInHeader unterminatedHeader"
_ERROR: Final = """badDate badDateOverflow badEmail badGpgsig badHeaderContinuation badName badObjectSha1
    badParentSha1 badTimezone badTree badTreeSha1 badType duplicateEntries gitattributesBlob
    gitattributesLarge gitattributesLineLength gitattributesMissing gitmodulesBlob gitmodulesLarge
    gitmodulesMissing gitmodulesName gitmodulesPath gitmodulesSymlink gitmodulesUpdate gitmodulesUrl
    missingAuthor missingCommitter missingEmail missingNameBeforeEmail missingObject missingSpaceBeforeDate
    missingSpaceBeforeEmail missingTag missingTagEntry missingTree missingType missingTypeEntry
    multipleAuthors treeNotSorted unknownType zeroPaddedDate"""
_WARN: Final = """emptyName fullPathname hasDot hasDotdot hasDotgit largePathname nullSha1 nulInCommit
    zeroPaddedFilemode"""
_INFO: Final = """badFilemode badTagName gitattributesSymlink gitignoreSymlink gitmodulesParse mailmapSymlink
    missingTaggerEntry"""
_IGNORE: Final = "extraHeaderEntry"
# Of refs: known to config, so that setting them is no mistake, and without effect on objects
_OF_REFS: Final = """badHeadTarget badPackedRefEntry badPackedRefHeader badReferentName badRefContent
    badRefFiletype badRefName badRefOid badReftableTableName emptyPackedRefsFile packedRefEntryNotTerminated
    packedRefUnsorted refMissingNewline symlinkRef symrefTargetIsNotARef trailingRefContent"""

MESSAGES: Final[Mapping[str, Severity]] = {
    msg_id: severity
    for severity, ids in (
        (Severity.FATAL, _FATAL),
        (Severity.ERROR, _ERROR),
        (Severity.WARN, _WARN),
        (Severity.INFO, _INFO),
        (Severity.IGNORE, _IGNORE),
        (Severity.IGNORE, _OF_REFS),
    )
    for msg_id in ids.split()
}
"""Message id -> git's own severity."""

_DANGEROUS: Final = """nulInHeader unterminatedHeader badTree badTreeSha1 badParentSha1 badObjectSha1 badType
    hasDotgit hasDot hasDotdot fullPathname emptyName nullSha1 duplicateEntries badFilemode zeroPaddedFilemode
    gitmodulesBlob gitmodulesLarge gitmodulesName gitmodulesPath gitmodulesSymlink gitmodulesUpdate
    gitmodulesUrl missingTree missingAuthor missingCommitter missingObject missingTypeEntry missingType
    missingTagEntry missingTag"""
DANGEROUS: Final = frozenset(_DANGEROUS.split())
"""What is refused unless config says otherwise: what harms whoever checks it out, or can't be read."""

_BY_LOWER: Final = {msg_id.lower(): msg_id for msg_id in MESSAGES}
_DEMOTABLE_TO: Final = {"error": Severity.ERROR, "warn": Severity.WARN, "ignore": Severity.IGNORE}


class FsckFailed(PackError):
    """An object broke a rule whose severity is error; the details went to `say`."""


class BadSettingError(ValueError):
    """A severity setting that git would die of; the text is git's."""


def severities(
    settings: Iterable[tuple[str, str]], *, strict: bool, warn: Callable[[str], None]
) -> tuple[dict[str, Severity], int]:
    """Give the severities in force, ids that are ignored left out, and the longest name a tree may hold.

    As git: builtin/receive-pack.c receive_pack_config(), fsck.c fsck_set_msg_type(), index-pack --strict.

    Args:
        settings: (message id, value) in the config's order, the id in any case.
        strict: True for git's whole list, False for `DANGEROUS` alone.
        warn: told of ids that there are none of.

    Raises: BadSettingError in git's words.
    """
    if strict:
        found = dict(MESSAGES)
        for msg_id, severity in MESSAGES.items():
            if severity is Severity.WARN:
                found[msg_id] = Severity.ERROR
    else:
        found = {msg_id: max(MESSAGES[msg_id], Severity.ERROR, key=_at_least_error) for msg_id in DANGEROUS}
    longest = 4096
    for name, value in settings:
        msg_id = _BY_LOWER.get(name.lower(), "")
        if not msg_id:
            warn(f"skipping unknown msg id '{name}'")
            continue
        word, colon, length = value.partition(":")
        if msg_id == "largePathname" and colon:
            if not length.isdecimal() or len(length) > 18:
                raise BadSettingError(f"unable to parse max tree entry len: {length}")
            longest = int(length)
        else:
            word = value
        if word not in _DEMOTABLE_TO:
            raise BadSettingError(f"Unknown fsck message type: '{value}'")
        if word != "error" and MESSAGES[msg_id] is Severity.FATAL:
            raise BadSettingError(f"Cannot demote {name.lower()} to {word}")
        found[msg_id] = _DEMOTABLE_TO[word]
    for msg_id in [name for name, severity in found.items() if severity is Severity.IGNORE]:
        del found[msg_id]
    return found, longest


def _at_least_error(severity: Severity) -> int:
    return (Severity.IGNORE, Severity.INFO, Severity.WARN, Severity.ERROR, Severity.FATAL).index(severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class FsckRules:
    """What to check of one push."""

    severities: Mapping[str, Severity]
    """Message id -> severity; what isn't here is ignored."""
    parse_config: Callable[[bytes], Iterator[tuple[str, str | None]]]
    """Gives a config file's variables in order; raises `parse_error` at a line that is none."""
    parse_error: type[Exception]
    is_refname: Callable[[bytes], bool]
    """git check-ref-format."""
    skip: frozenset[bytes] = frozenset()
    """Raw oids of objects whose faults are known and forgiven (fsck.skipList)."""
    longest_name: int = 4096
    tolerate_0664: bool = False
    """Mode 100664 is no bad mode: git wrote it in 2005."""

    @property
    def follows_changes(self) -> bool:
        """True when a tree may be judged by what changed in it, see `Fsck.check_changes`."""
        return "treeNotSorted" not in self.severities


_GITMODULES_BYTES: Final = 4 << 20
_GITATTRIBUTES_BYTES: Final = 100 << 20  # git: attr.h ATTR_MAX_FILE_SIZE
_LONG_LINE: Final = re.compile(rb"[^\n]{2048}")  # git: attr.h ATTR_MAX_LINE_LENGTH
_SLOW_BYTES: Final = 64 << 20
"""What one push may have of .gitmodules files that are written oddly: read letter by letter, 0.2 us each."""
_MOST_FRESH: Final = 32  # entries, each looked for in the whole tree; past it a pass over the tree is cheaper
_MOST_LINES: Final = 1000  # of warnings for one push, pulled out of the air

# What git writes, read in one go. A group of its own for names of files, of folders, and for entries whose
# name or mode deserves a look; the last alternative takes all from where no entry begins.
_HARMLESS: Final = rb"(?![.\xe2\xef]|[gGmM][^\0~]*~)[^\0/\\]++|\.(?![.gGmM\xe2\xef\0])[^\0/\\]++"
_TREES: Final = {
    raw_len: re.compile(
        rb"(?:100(?:644|755)|120000|160000) (%b)\0.{%d}|40000 (%b)\0.{%d}|([0-7]++ [^\0]++\0.{%d})|.++"
        % (_HARMLESS, raw_len, _HARMLESS, raw_len, raw_len),
        re.DOTALL,
    )
    for raw_len in (20, 32)
}
# A .gitmodules as git writes it: each line is one of these, or empty
_PLAIN_MODULE_LINE: Final = re.compile(
    rb"""\[submodule[ ]"[^"\\\n\0]++"\]|[ \t]*+[A-Za-z][A-Za-z0-9-]*+[ ]=[ ][^"\\#;\r\n\0]++|"""
)
_MODULE_LINE: Final = re.compile(
    rb"""^(?:\[submodule[ ]"([^"]*)"\]|[ \t]*([A-Za-z][A-Za-z0-9-]*)[ ]=[ ](.*))$""", re.MULTILINE
)
_NO_ENTRY: Final = (b"", b"", b"")
_ENTRY: Final = {
    raw_len: re.compile(rb"(0*(?:1[0-7]{5}|[0-7]{1,5})) ([^\0]++)\0(.{%d})" % raw_len, re.DOTALL)
    for raw_len in (20, 32)
}
_GOOD_IDENT: Final = rb"[^<>\n]* <[^<>\n]*> (?:0|[1-9][0-9]{0,17}) [+-][0-9]{4}\n"
_COMMITS: Final = {
    hex_len: re.compile(
        rb"tree [0-9a-fA-F]{%d}\n(?:parent [0-9a-fA-F]{%d}\n)*author %bcommitter %b"
        % (hex_len, hex_len, _GOOD_IDENT, _GOOD_IDENT)
    )
    for hex_len in (40, 64)
}
_HEX: Final = {hex_len: re.compile(rb"[0-9a-fA-F]{%d}" % hex_len) for hex_len in (40, 64)}
_DIGITS: Final = re.compile(rb"[0-9]*")
_ZONE: Final = re.compile(rb"[+-][0-9]{4}\n")
_TIME_LIMIT: Final = 1 << 63

_GOOD_MODES: Final = frozenset({0o100755, 0o100644, 0o120000, 0o040000, 0o160000})
_GIT_MODES: Final = frozenset({b"100755", b"100644", b"120000", b"40000", b"160000"})
_FORMAT: Final = 0o170000
_LINK: Final = 0o120000
_FOLDER: Final = 0o040000

# HFS+ ignores these code points: git: utf8.c next_hfs_char()
_HFS_IGNORED: Final = rb"(?:\xe2(?:\x80[\x8c-\x8f\xaa-\xae]|\x81[\xaa-\xaf])|\xef\xbb\xbf)*"
# On NTFS, a stream's name, a folder's separator and trailing dots and blanks belong to no name
_NTFS_DOTGIT: Final = re.compile(rb"(?:\.git|git~1)[. ]*(?:[/\\:]|\Z)", re.IGNORECASE | re.DOTALL)
_SHORT_NAMES: Final = {
    b"gitmodules": b"gi7eba",
    b"gitattributes": b"gi7d29",
    b"gitignore": b"gi250a",
    b"mailmap": b"maba30",
}


def _ntfs_pattern(name: bytes, short: bytes) -> "re.Pattern[bytes]":
    # 8 characters: some of `short`, a tilde, a digit that isn't 0, digits
    fallback = b"|".join(rb"%b~[1-9][0-9]{%d}" % (short[:kept], 6 - kept) for kept in range(7))
    return re.compile(
        rb"(?:\.%b|%b~[1-4]|%b)[ .]*(?:\Z|:)" % (name, re.escape(name[:6]), fallback),
        re.IGNORECASE | re.DOTALL,
    )


_HFS: Final = {
    name: re.compile(
        _HFS_IGNORED + b"".join(re.escape(bytes([byte])) + _HFS_IGNORED for byte in b"." + name),
        re.IGNORECASE,
    )
    for name in (b"git", *_SHORT_NAMES)
}
_NTFS: Final = {name: _ntfs_pattern(name, short) for name, short in _SHORT_NAMES.items()}


def is_dot_name(name: bytes, needle: bytes) -> bool:
    """Tell whether a file system makes `.needle` of this name: b"git", b"gitmodules" and the like.

    >>> is_dot_name(b"GIT~1", b"git"), is_dot_name(b".g\\xe2\\x80\\x8cit", b"git")
    (True, True)
    """
    ntfs = _NTFS_DOTGIT if needle == b"git" else _NTFS[needle]
    return ntfs.match(name) is not None or _is_hfs_dot(name, needle)


def _is_hfs_dot(name: bytes, needle: bytes) -> bool:
    match = _HFS[needle].match(name)
    if match is None:
        return False
    rest = name[match.end() :]
    return rest[:1] in (b"", b"/") or _is_malformed(rest)


def _is_malformed(text: bytes) -> bool:
    """Tell whether this begins with no character of UTF-8: for git a name ends there, too.

    git: utf8.c pick_one_utf8_char().
    """
    lead = text[0]
    length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    try:
        return text[:length].decode("utf-8") in ("\ufffe", "\uffff")
    except UnicodeDecodeError:
        return True


class Fsck:
    """The checks of one push's objects; their state is what trees said of blobs to come.

    Args:
        say: told each finding, a line with its newline; may be called from within every method.
    """

    def __init__(self, rules: FsckRules, fmt: ObjectFormat, say: Callable[[str], None]) -> None:
        self._rules = rules
        self._severities = rules.severities
        self._format = fmt
        self._say = say
        self._lines = 0
        self._failed = False
        self._gitmodules: set[bytes] = set()
        self._gitattributes: set[bytes] = set()
        self._wants_attributes = any(name.startswith("gitattributes") for name in rules.severities)
        self._wants_order = not rules.follows_changes
        self._wants_length = "largePathname" in rules.severities
        self._good_lines: set[tuple[bytes, bytes, bytes]] = set()
        self._slow_bytes = 0
        self._oid = b""

    @property
    def follows_changes(self) -> bool:
        return self._rules.follows_changes

    @property
    def longest_name(self) -> int:
        """Names in trees that are longer may have something said of them."""
        return self._rules.longest_name if self._wants_length else (1 << 64) - 1

    @property
    def tolerates_0664(self) -> bool:
        return self._rules.tolerate_0664

    def expect(self, *, is_modules: bool, raw_oid: bytes) -> None:
        """Note what a tree that was found clean elsewhere calls .gitmodules, or else .gitattributes."""
        if is_modules:
            self._gitmodules.add(raw_oid)
        elif self._wants_attributes:
            self._gitattributes.add(raw_oid)

    def check(self, kind: int, raw_oid: bytes, data: bytes) -> bool:
        """Check a commit, tree or tag; True when it is clean: nothing to say of it.

        Raises: FsckFailed once all was said that git says of this object.
        """
        said = self._lines
        is_skipped = raw_oid in self._rules.skip
        if kind == TREE:
            if self._is_plain_tree(data):
                return True
            self._begin(raw_oid)
            self._tree(data)
        elif not is_skipped:
            self._begin(raw_oid)
            if kind == TAG:
                self._tag(data)
            elif kind == COMMIT and not self._is_plain_commit(data):
                self._commit(data)
        if self._failed:
            raise FsckFailed("fsck error in packed object")
        return self._lines == said and not is_skipped

    def check_changes(self, raw_oid: bytes, data: bytes, fresh: Sequence[tuple[int, int]]) -> bool:
        """Check a tree of which all but the entries at `fresh` were copied, each once, from a clean one.

        True when this one is clean as well: there is nothing to say of it.

        Raises: as `check`.
        """
        if len(fresh) > _MOST_FRESH or self._wants_order:
            return self.check(TREE, raw_oid, data)
        entries = b"".join([data[start:end] for start, end in fresh])
        names = self._plain_names(entries)
        if (
            names is None
            or bytes(self._format.raw_len) in entries
            or self._is_long(names)
            # Behind a blank the name may also end another, or stand in an oid: then all is looked at
            or any(data.count(b" %b\0" % name) != 1 for name in names)
        ):
            return self.check(TREE, raw_oid, data)
        return True

    def finish(self, read: Callable[[bytes, int], tuple[int, bytes] | None]) -> None:
        """Check the contents of what trees call .gitmodules and .gitattributes.

        Args:
            read: gives an object's type and data, b"" for what is no blob; None when it is larger than the
                limit. Raises ObjectMissing.

        Raises: FsckFailed, LimitExceeded.
        """
        for raw_oid in sorted(self._gitmodules):
            self._finish_one(raw_oid, "gitmodules", _GITMODULES_BYTES, read, self._module_file)
        for raw_oid in sorted(self._gitattributes):
            self._finish_one(raw_oid, "gitattributes", _GITATTRIBUTES_BYTES, read, self._attributes_file)
        if self._failed:
            raise FsckFailed("fsck error in packed object")

    def _finish_one(
        self,
        raw_oid: bytes,
        what: str,
        limit_bytes: int,
        read: Callable[[bytes, int], tuple[int, bytes] | None],
        check: Callable[[bytes], None],
    ) -> None:
        if raw_oid in self._rules.skip:
            return
        self._begin(raw_oid, keep_failed=True)
        try:
            item = read(raw_oid, limit_bytes)
        except ObjectMissing:
            return
        if item is None:
            self._report(f"{what}Large", f".{what} too large to parse")
        elif item[0] != BLOB:
            self._report(f"{what}Blob", f"non-blob found at .{what}")
        else:
            check(item[1])

    # -- findings

    def _begin(self, raw_oid: bytes, *, keep_failed: bool = False) -> None:
        self._oid = raw_oid
        self._failed = keep_failed and self._failed

    def _report(self, msg_id: str, text: str) -> bool:
        """Say a finding; True when it is an error. git: fsck.c report(), fsck_objects_error_function()."""
        severity = self._severities.get(msg_id)
        if severity is None or self._oid in self._rules.skip:
            return False
        is_error = severity in (Severity.ERROR, Severity.FATAL)
        self._failed = self._failed or is_error
        self._lines += 1
        if self._lines == _MOST_LINES:
            self._say("warning: further findings are not shown\n")
        if self._lines < _MOST_LINES:
            word = "error" if is_error else "warning"
            self._say(f"{word}: object {to_hex(self._oid).decode()}: {msg_id}: {text}\n")
        return is_error

    # -- trees

    def _plain_names(self, entries: bytes) -> list[bytes] | None:
        """Give the names of entries, folders with a slash, when all of them are as git makes them; else None.

        Entries with a name that begins like one of git's own files are looked at one by one.
        """
        found = _TREES[self._format.raw_len].findall(entries)
        if _NO_ENTRY in found:
            return None
        names = []
        for file, folder, odd in found:
            if file:
                names.append(file)
            elif folder:
                names.append(folder)
            else:
                name = self._odd_entry(odd)
                if name is None:
                    return None
                names.append(name)
        return names

    def _odd_entry(self, entry: bytes) -> bytes | None:
        """Give the name of an entry that needed a look; None when there may be something to say of it."""
        mode, _, rest = entry.partition(b" ")
        name, _, raw_oid = rest.partition(b"\0")
        if mode not in _GIT_MODES and not (mode == b"100664" and self._rules.tolerate_0664):
            return None
        if b"\\" in name or b"/" in name or name in (b".", b"..") or is_dot_name(name, b"git"):
            return None
        if mode == b"120000" and any(is_dot_name(name, needle) for needle in _SHORT_NAMES):
            return None
        if is_dot_name(name, b"gitmodules"):
            self._gitmodules.add(raw_oid)
        if self._wants_attributes and is_dot_name(name, b"gitattributes"):
            self._gitattributes.add(raw_oid)
        return name

    def _is_plain_tree(self, data: bytes) -> bool:
        if bytes(self._format.raw_len) in data:
            return False
        if self._wants_order:
            return self._is_plain_sorted_tree(data)
        names = self._plain_names(data)
        return names is not None and len(set(names)) == len(names) and not self._is_long(names)

    def _is_plain_sorted_tree(self, data: bytes) -> bool:
        found = _TREES[self._format.raw_len].findall(data)
        if _NO_ENTRY in found:
            return False
        keys = []
        names = []
        for file, folder, odd in found:
            name = file or folder
            if odd:
                looked = self._odd_entry(odd)
                if looked is None:
                    return False
                name = looked
            names.append(name)
            is_folder = folder or odd.startswith(b"40000 ")
            keys.append(name + b"/" if is_folder else name)
        # Strictly ascending, and no name twice: `a` and `a/` may have others between them
        return (
            all(map(operator.lt, keys, keys[1:]))
            and len(set(names)) == len(names)
            and not self._is_long(names)
        )

    def _is_long(self, names: Sequence[bytes]) -> bool:
        return self._wants_length and bool(names) and max(map(len, names)) > self._rules.longest_name

    def _tree(self, data: bytes) -> None:
        """Check a tree entry by entry; git: fsck.c fsck_tree()."""
        raw_len = self._format.raw_len
        entries: list[tuple[int, bytes]] = []
        found: set[str] = set()
        null = bytes(raw_len)
        end = 0
        for match in _ENTRY[raw_len].finditer(data):
            if match.start() != end:
                break
            end = match.end()
            digits, name, raw_oid = match.groups()
            mode = int(digits, 8)
            entries.append((mode, name))
            self._entry(mode, name, raw_oid, found)
            if raw_oid == null:
                found.add("nullSha1")
            if digits[:1] == b"0":
                found.add("zeroPaddedFilemode")
            if mode not in _GOOD_MODES and not (mode == 0o100664 and self._rules.tolerate_0664):
                found.add("badFilemode")
        if end != len(data):
            self._report("badTree", "cannot be parsed as a tree")
        self._order(entries, found)
        for msg_id, text in _TREE_TEXTS:
            if msg_id in found:
                self._report(msg_id, text)

    def _entry(self, mode: int, name: bytes, raw_oid: bytes, found: set[str]) -> None:
        is_link = mode & _FORMAT == _LINK
        if b"/" in name:
            found.add("fullPathname")
        if name == b".":
            found.add("hasDot")
        if name == b"..":
            found.add("hasDotdot")
        if len(name) > self._rules.longest_name:
            found.add("largePathname")
        # git: is_ntfs_dotgit(), is_ntfs_dotgitmodules() behind each backslash
        behind = [name[at.end() :] for at in re.finditer(rb"\\", name)]
        if is_dot_name(name, b"git") or any(map(_NTFS_DOTGIT.match, behind)):
            found.add("hasDotgit")
        if is_dot_name(name, b"gitmodules") or any(map(_NTFS[b"gitmodules"].match, behind)):
            if is_link:
                self._report("gitmodulesSymlink", ".gitmodules is a symbolic link")
            else:
                self._gitmodules.add(raw_oid)
        if is_dot_name(name, b"gitattributes"):
            if is_link:
                self._report("gitattributesSymlink", ".gitattributes is a symlink")
            elif self._wants_attributes:
                self._gitattributes.add(raw_oid)
        if is_link and is_dot_name(name, b"gitignore"):
            self._report("gitignoreSymlink", ".gitignore is a symlink")
        if is_link and is_dot_name(name, b"mailmap"):
            self._report("mailmapSymlink", ".mailmap is a symlink")

    def _order(self, entries: Sequence[tuple[int, bytes]], found: set[str]) -> None:
        names = {name for _, name in entries}
        if len(names) != len(entries):
            found.add("duplicateEntries")
        if not all(_is_ordered(*entry, *following) for entry, following in pairwise(entries)):
            found.add("treeNotSorted")

    # -- commits and tags

    def _is_plain_commit(self, data: bytes) -> bool:
        match = _COMMITS[self._format.hex_len].match(data)
        if match is None or b"\0" in data:
            return False
        return data.endswith(b"\n") or data.find(b"\n\n", match.end() - 1) >= 0

    def _header_fails(self, data: bytes) -> bool:
        """git: fsck.c verify_headers()."""
        blank = data.find(b"\n\n")
        nul = data.find(b"\0", 0, blank if blank >= 0 else len(data))
        if nul >= 0:
            return self._report("nulInHeader", f"unterminated header: NUL at offset {nul}")
        if blank >= 0 or data.endswith(b"\n"):
            return False
        return self._report("unterminatedHeader", "unterminated header")

    def _oid_line_end(self, data: bytes, start: int) -> int:
        """Give the place behind an oid and its newline; -1 when these aren't there."""
        match = _HEX[self._format.hex_len].match(data, start)
        return match.end() + 1 if match and data[match.end() : match.end() + 1] == b"\n" else -1

    def _commit(self, data: bytes) -> None:
        report = self._report
        if self._header_fails(data):
            return
        if not data.startswith(b"tree "):
            report("missingTree", "invalid format - expected 'tree' line")
            return
        pos = self._oid_line_end(data, 5)
        if pos < 0:
            report("badTreeSha1", "invalid 'tree' line format - bad sha1")
            return
        while data.startswith(b"parent ", pos):
            pos = self._oid_line_end(data, pos + 7)
            if pos < 0:
                report("badParentSha1", "invalid 'parent' line format - bad sha1")
                return
        authors = 0
        while data.startswith(b"author ", pos):
            authors += 1
            pos, fails = self._ident(data, pos + 7)
            if fails:
                return
        if authors < 1:
            if report("missingAuthor", "invalid format - expected 'author' line"):
                return
        elif authors > 1 and report("multipleAuthors", "invalid format - multiple 'author' lines"):
            return
        if not data.startswith(b"committer ", pos):
            report("missingCommitter", "invalid format - expected 'committer' line")
            return
        _, fails = self._ident(data, pos + 10)
        if not fails and b"\0" in data:
            report("nulInCommit", "NUL byte in the commit object body")

    def _ident(self, data: bytes, pos: int) -> tuple[int, bool]:
        """Check a person and date; give where the next line begins, and whether this one is an error.

        git: fsck.c fsck_ident().
        """
        end = data.index(b"\n", pos)  # _header_fails() has seen to it that there is one
        fault = self._ident_fault(data[pos : end + 1])
        if fault is None:
            return end + 1, False
        return end + 1, self._report(fault[0], f"invalid author/committer line - {fault[1]}")

    @staticmethod
    def _ident_fault(line: bytes) -> tuple[str, str] | None:
        if line.startswith(b"<"):
            return "missingNameBeforeEmail", "missing space before email"
        pos = _place_of(line, b"<>\n", 0)
        if line[pos] == 0x0A:
            return "missingEmail", "missing email"
        if line[pos] == 0x3E:
            return "badName", "bad name"
        if line[pos - 1] != 0x20:
            return "missingSpaceBeforeEmail", "missing space before email"
        pos = _place_of(line, b"<>\n", pos + 1)
        if line[pos] != 0x3E:
            return "badEmail", "bad email"
        pos += 1
        if line[pos] != 0x20:
            return "missingSpaceBeforeDate", "missing space before date"
        pos += 1
        while line[pos] in b" \t":
            pos += 1
        if not 0x30 <= line[pos] <= 0x39:
            return "badDate", "bad date"
        if line[pos] == 0x30 and line[pos + 1] != 0x20:
            return "zeroPaddedDate", "zero-padded date"
        match = _DIGITS.match(line, pos)
        assert match is not None  # it matches the empty string
        digits = match[0]
        if len(digits) > 20 or int(digits) >= _TIME_LIMIT:
            return "badDateOverflow", "date causes integer overflow"
        pos = match.end()
        if line[pos] != 0x20:
            return "badDate", "bad date"
        if _ZONE.fullmatch(line, pos + 1) is None:
            return "badTimezone", "bad time zone"
        return None

    def _tag(self, data: bytes) -> None:
        report = self._report
        if self._header_fails(data):
            return
        if not data.startswith(b"object "):
            report("missingObject", "invalid format - expected 'object' line")
            return
        pos = self._oid_line_end(data, 7)
        if pos < 0:
            report("badObjectSha1", "invalid 'object' line format - bad sha1")
            return
        if not data.startswith(b"type ", pos):
            report("missingTypeEntry", "invalid format - expected 'type' line")
            return
        end = data.find(b"\n", pos)
        if end < 0:
            report("missingType", "invalid format - unexpected end after 'type' line")
            return
        if data[pos + 5 : end] not in TYPE_NUMBERS:
            report("badType", "invalid 'type' value")
            return
        pos = end + 1
        if not data.startswith(b"tag ", pos):
            report("missingTagEntry", "invalid format - expected 'tag' line")
            return
        end = data.find(b"\n", pos)
        if end < 0:
            report("missingTag", "invalid format - unexpected end after 'type' line")
            return
        name = data[pos + 4 : end]
        if not self._rules.is_refname(b"refs/tags/" + name):
            shown = name.decode("utf-8", "backslashreplace")
            if report("badTagName", f"invalid 'tag' name: {shown}"):
                return
        pos = end + 1
        if data.startswith(b"tagger ", pos):
            pos, _ = self._ident(data, pos + 7)
        elif report("missingTaggerEntry", "invalid format - expected 'tagger' line"):
            return
        self._rest_of_tag(data, pos)

    def _rest_of_tag(self, data: bytes, pos: int) -> None:
        what = "'gpgsig' or 'gpgsig-sha256'"
        if data.startswith((b"gpgsig ", b"gpgsig-sha256 "), pos):
            pos = data.find(b"\n", pos) + 1
            if not pos:
                self._report("badGpgsig", f"invalid format - unexpected end after {what} line")
                return
            while data.startswith(b" ", pos):
                pos = data.find(b"\n", pos) + 1
                if not pos:
                    text = f"invalid format - unexpected end in {what} continuation line"
                    self._report("badHeaderContinuation", text)
                    return
        if pos < len(data) and not data.startswith(b"\n", pos):
            self._report("extraHeaderEntry", "invalid format - extra header(s) after 'tagger'")

    # -- blobs

    def _module_file(self, data: bytes) -> None:
        """Check a .gitmodules; git: fsck.c fsck_blob(), fsck_gitmodules_fn()."""
        *lines, rest = data.split(b"\n")
        if not rest and all(map(_PLAIN_MODULE_LINE.fullmatch, lines)):
            name = b""
            for section, key, value in _MODULE_LINE.findall(data):
                if not key:
                    name = section
                elif (line := (name, key, value)) not in self._good_lines:
                    said = self._lines
                    variable = b"submodule.%b.%b" % (name, key.lower())
                    self._module_setting(_text(variable), _text(value.strip(b" \t")))
                    if said == self._lines:
                        self._good_lines.add(line)
            return
        self._slow_bytes += len(data)
        if self._slow_bytes > _SLOW_BYTES:
            raise LimitExceeded(f"more than {_SLOW_BYTES} bytes of .gitmodules files in one push")
        try:
            for setting in self._rules.parse_config(data):
                self._module_setting(*setting)
        except self._rules.parse_error:
            self._report("gitmodulesParse", "could not parse gitmodules blob")

    def _module_setting(self, variable: str, value: str | None) -> None:
        section, _, rest = variable.partition(".")
        name, dot, key = rest.rpartition(".")
        if section != "submodule" or not dot:
            return
        text = "" if value is None else value.partition("\0")[0]
        if not is_submodule_name(name):
            self._report("gitmodulesName", f"disallowed submodule name: {_show(name)}")
        if value is not None:
            if key == "url" and not is_submodule_url(text.encode("utf-8", "surrogateescape")):
                self._report("gitmodulesUrl", f"disallowed submodule url: {_show(text)}")
            if key == "path" and text.startswith("-"):
                self._report("gitmodulesPath", f"disallowed submodule path: {_show(text)}")
            if key == "update" and text.startswith("!"):
                self._report("gitmodulesUpdate", f"disallowed submodule update setting: {_show(text)}")

    def _attributes_file(self, data: bytes) -> None:
        if _LONG_LINE.search(data.partition(b"\0")[0]):
            self._report("gitattributesLineLength", ".gitattributes has too long lines to parse")


_TREE_TEXTS: Final = (
    ("nullSha1", "contains entries pointing to null sha1"),
    ("fullPathname", "contains full pathnames"),
    ("hasDot", "contains '.'"),
    ("hasDotdot", "contains '..'"),
    ("hasDotgit", "contains '.git'"),
    ("zeroPaddedFilemode", "contains zero-padded file modes"),
    ("badFilemode", "contains bad file modes"),
    ("duplicateEntries", "contains duplicate file entries"),
    ("treeNotSorted", "not properly sorted"),
    ("largePathname", "contains excessively large pathname"),
)


def _is_ordered(mode: int, name: bytes, next_mode: int, next_name: bytes) -> bool:
    """git: fsck.c verify_ordered(), which says of two equal names that they are duplicates, not unsorted."""
    common = min(len(name), len(next_name))
    if name[:common] != next_name[:common]:
        return name < next_name
    if len(name) == len(next_name):
        return True
    end, next_end = (b"/" if kind & _FORMAT == _FOLDER else b"\0" for kind in (mode, next_mode))
    return (name[common : common + 1] or end) < (next_name[common : common + 1] or next_end)


def _place_of(line: bytes, any_of: bytes, start: int) -> int:
    """Give the first place of one of these bytes; there is one, the newline at the end."""
    return min(place for byte in any_of if (place := line.find(byte, start)) >= 0)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _show(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
