"""v2's object-info: what objects are like, without sending them. So far that is their size.

    request   =  *PKT-LINE("size" / "oid" SP obj-id)
    response  =  [ PKT-LINE("size") ] *PKT-LINE(obj-id SP [ size ]) flush-pkt     ; no LF; no size: not here

gitprotocol-v2, "object-info"; git: protocol-caps.c cap_object_info(), whose texts are used. A size is read
from the object's header, or from the beginning of its delta: contents are not inflated.
"""

from collections.abc import Iterable

from gitsmart.errors import ObjectMissing
from gitsmart.pack.objects import to_raw
from gitsmart.pack.store import ObjectStore
from gitsmart.service.channel import Channel
from gitsmart.wire.pktline import FLUSH_PKT, pkt
from gitsmart.wire.upload_request import parse_object_info_arguments

__all__ = ["object_info"]

_BATCH = 512
"""Objects looked up together, and lines joined into one write."""


def object_info(store: ObjectStore, channel: Channel, arguments: Iterable[bytes]) -> int:
    """Answer an object-info request and return how many objects were asked about.

    Nothing is written before the whole request was read. Time is linear in its lines.

    Raises:
        ProtocolError: an argument is unknown, or no oid of this repository's format.
        PackError: an object is broken.
        Disconnected: the peer has gone.
    """
    request = parse_object_info_arguments(arguments, hex_len=store.format.hex_len)
    if request.size and request.oids:
        channel.write(pkt(b"size"))
    for start in range(0, len(request.oids), _BATCH):
        channel.check()
        oids = request.oids[start : start + _BATCH]
        present = store.present(map(to_raw, oids))
        lines = []
        for oid in oids:
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
