"""What a repository's config lets its fetches do: the optional features of protocol v2, read once a request.

    [uploadpack] allowFilter           true unless set to false; git's default is false
                 allowRefInWant        true unless set to false; git's default is false
                 allowSidebandAll      false unless set
                 advertiseBundleURIs   false unless set: the command bundle-uri
                 blobPackfileUri       "<blob> <pack hash> <uri>", any number of them: packfile-uris
                 keepAlive             seconds, 0 for never
    [transfer]   advertiseSID          false unless set: session-id
                 advertiseObjectInfo   false unless set: the command object-info
    [promisor]   advertise             false unless set: promisor-remote
                 sendFields            what is told of a promisor remote beside its name and its URL
    [lsrefs]     unborn                advertise (unless set), allow, ignore

What is advertised and what is accepted are both made from this, so that they can't differ. git-config;
git: serve.c capabilities[], upload-pack.c upload_pack_config(), upload_pack_advertise().
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import ObjectFormat, to_raw
from gitsmart.repo.gitconfig import GitConfig

__all__ = ["Features", "read_features"]

_PROMISOR_FIELDS = ("partialCloneFilter", "token")
_UNBORN = ("advertise", "allow", "ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The optional features of one repository, at one moment."""

    filter: bool = True
    ref_in_want: bool = True
    sideband_all: bool = False
    object_info: bool = False
    bundle_uri: bool = False
    session_id: bool = False
    advertises_unborn: bool = True
    allows_unborn: bool = True
    packfile_uris: Mapping[bytes, tuple[bytes, bytes]] = field(default_factory=dict)
    """Blobs that a client may take from elsewhere: raw oid -> hash of the pack, its URI."""
    promisor_remotes: Mapping[bytes, bytes] = field(default_factory=dict)
    """Repositories that have what may be missing here: name -> its fields, as they are advertised."""
    keepalive_s: float | None = None
    """Instead of the server's own; None: as the server has it."""

    @property
    def commands(self) -> frozenset[bytes]:
        """The commands that may be asked for."""
        optional = {b"object-info": self.object_info, b"bundle-uri": self.bundle_uri}
        return frozenset({b"ls-refs", b"fetch"}).union(name for name, on in optional.items() if on)

    @property
    def capabilities(self) -> frozenset[bytes]:
        """The capabilities that the head of a request may name."""
        optional = {b"session-id": self.session_id, b"promisor-remote": bool(self.promisor_remotes)}
        known = frozenset({b"agent", b"server-option", b"object-format"})
        return known.union(name for name, on in optional.items() if on)

    @property
    def fetch_features(self) -> tuple[bytes, ...]:
        """The values of the advertisement's `fetch=`: a fetch may use the arguments that belong to them."""
        optional = {
            b"filter": self.filter,
            b"ref-in-want": self.ref_in_want,
            b"sideband-all": self.sideband_all,
            b"packfile-uris": bool(self.packfile_uris),
        }
        return (b"shallow", b"wait-for-done", *(name for name, on in optional.items() if on))


def read_features(config: GitConfig, fmt: ObjectFormat) -> Features:
    """Read the features from a repository's config: once for each state of it.

    Raises:
        RepositoryUnusable: a value is malformed; where git would die.
    """
    known = config.memo.get("features")
    if isinstance(known, Features):
        return known
    unborn = config.get_str("lsrefs.unborn", "advertise")
    if unborn not in _UNBORN:
        raise RepositoryUnusable(f"invalid value for 'lsrefs.unborn': {unborn!r}")
    features = config.memo["features"] = Features(
        filter=config.get_bool("uploadpack.allowFilter", True),
        ref_in_want=config.get_bool("uploadpack.allowRefInWant", True),
        sideband_all=config.get_bool("uploadpack.allowSidebandAll", False),
        object_info=config.get_bool("transfer.advertiseObjectInfo", False),
        bundle_uri=config.get_bool("uploadpack.advertiseBundleURIs", False),
        session_id=config.get_bool("transfer.advertiseSID", False),
        advertises_unborn=unborn == "advertise",
        allows_unborn=unborn != "ignore",
        packfile_uris=_read_packfile_uris(config, fmt),
        promisor_remotes=_read_promisor_remotes(config),
        keepalive_s=config.get_int("uploadpack.keepAlive"),
    )
    return features


def _read_promisor_remotes(config: GitConfig) -> dict[bytes, bytes]:
    """git: promisor-remote.c promisor_remote_config(), promisor_remote_info()"""
    if not config.get_bool("promisor.advertise", False):
        return {}
    chosen = {word.lower() for word in re.split("[ ,]", config.get_str("promisor.sendFields", ""))}
    fields = ["url", *(field for field in _PROMISOR_FIELDS if field.lower() in chosen)]
    found: dict[bytes, bytes] = {}
    for variable in config.names("remote"):
        name, _, key = variable.removeprefix("remote.").rpartition(".")
        is_promisor = key == "promisor" and config.get_bool(variable)
        if not (is_promisor or key == "partialclonefilter") or name.startswith("/"):
            continue
        values = [(field, config.get_str(f"remote.{name}.{field}", "")) for field in fields]
        if values[0][1]:
            pairs = [("name", name), *((field, value) for field, value in values if value)]
            found[os.fsencode(name)] = b",".join(
                field.encode() + b"=" + _percent_encode(os.fsencode(value)) for field, value in pairs
            )
    return found


def _percent_encode(text: bytes) -> bytes:
    """git: promisor-remote.c allow_unsanitized()"""
    return re.sub(rb"[^!-~]|[,;%]", lambda match: b"%%%02x" % match[0][0], text)


def _read_packfile_uris(config: GitConfig, fmt: ObjectFormat) -> dict[bytes, tuple[bytes, bytes]]:
    """git: builtin/pack-objects.c git_pack_config(), whose texts are used."""
    values = config.get_all("uploadpack.blobPackfileUri")
    if not values:
        return {}
    grammar = re.compile(rb"([0-9a-f]{%d}) ([0-9a-f]{%d}) ([^\n]+)" % (fmt.hex_len, fmt.hex_len))
    found: dict[bytes, tuple[bytes, bytes]] = {}
    for value in values:
        match = grammar.fullmatch(os.fsencode(value or ""))
        if match is None:
            raise RepositoryUnusable(
                "value of uploadpack.blobpackfileuri must be of the form"
                f" '<object-hash> <pack-hash> <uri>' (got {value!r})"
            )
        raw_oid = to_raw(match[1])
        if raw_oid in found:
            raise RepositoryUnusable(
                f"object already configured in another uploadpack.blobpackfileuri (got {value!r})"
            )
        found[raw_oid] = (match[2], match[3])
    return found
