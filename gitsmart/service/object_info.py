"""v2's object-info: what objects are like, without sending them. So far that is their size.

    request   =  *PKT-LINE("size" / "oid" SP obj-id)
    response  =  [ PKT-LINE("size") ] *PKT-LINE(obj-id SP [ size ]) flush-pkt     ; no LF; no size: not here

gitprotocol-v2, "object-info"; git: protocol-caps.c cap_object_info(), whose texts are used. A size is read
from the object's header, or from the beginning of its delta: contents are not inflated. An object that may
not be fetched (wants.py) is answered as one that isn't here.
"""

from collections.abc import Iterable

from gitsmart.errors import ObjectMissing
from gitsmart.pack.objects import to_raw
from gitsmart.pack.store import ObjectStore
from gitsmart.service.channel import Channel
from gitsmart.service.wants import Wants
from gitsmart.wire.pktline import FLUSH_PKT, pkt
from gitsmart.wire.upload_request import parse_object_info_arguments

__all__ = ["object_info"]

_BATCH = 512
"""Lines joined into one write: some 24 KiB."""


def object_info(store: ObjectStore, channel: Channel, arguments: Iterable[bytes], wants: Wants) -> int:
    """Answer an object-info request and return how many objects were asked about.

    Nothing is written before the whole request was read. Time is linear in its lines, once it is known what
    the refs lead to.

    Args:
        wants: what this client may ask for.

    Raises:
        ProtocolError: an argument is unknown, or no oid of this repository's format.
        ObjectMissing, PackError: an object is broken, or one that refs lead to is missing.
        Disconnected: the peer has gone.
    """
    request = parse_object_info_arguments(arguments, hex_len=store.format.hex_len)
    present = store.present(map(to_raw, request.oids))
    present -= wants.refused(present)
    if request.size and request.oids:
        channel.write(pkt(b"size"))
    for start in range(0, len(request.oids), _BATCH):
        channel.check()
        lines = []
        for oid in request.oids[start : start + _BATCH]:
            line = oid + b" "
            if (raw_oid := to_raw(oid)) in present:
                try:
                    line = b"%b %d" % (oid, store.size_of(raw_oid)[1]) if request.size else oid
                except ObjectMissing:
                    pass  # gone since; it is as if it had not been here
            lines.append(pkt(line))
        channel.write(b"".join(lines))
    channel.write(FLUSH_PKT)
    return len(request.oids)
