"""v2's bundle-uri: where the repository's admin has put bundles of it, as its config says.

    bundle-uri-response = *PKT-LINE(key "=" value) flush-pkt        ; no LF

gitprotocol-v2, "bundle-uri"; Documentation/technical/bundle-uri; git: bundle-uri.c bundle_uri_command().
Making the bundles, and serving them, is another's: the URIs may lead anywhere.
"""

import logging
import os
from collections.abc import Iterable

from gitsmart.errors import ProtocolError
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.service.channel import Channel
from gitsmart.wire.pktline import FLUSH_PKT, MAX_PAYLOAD, chomp, pkt, printable

__all__ = ["bundle_uri"]

_logger = logging.getLogger(__name__)


def bundle_uri(config: GitConfig, channel: Channel, arguments: Iterable[bytes]) -> int:
    """Answer a bundle-uri request with every `bundle.*` variable, and return how many those are.

    In the file's order, all values of one that is set several times. Variables without a value, and those
    that fit no pkt-line, are left out with a warning in the log.

    Raises:
        ProtocolError: the client sent arguments; there are none.
        Disconnected: the peer has gone.
    """
    for line in arguments:
        raise ProtocolError(f"bundle-uri: unexpected argument: '{printable(chomp(line))}'")
    sent = 0
    for name, value in config.in_order(*config.names("bundle")):
        line = os.fsencode(f"{name}={value}")
        if not value or len(line) > MAX_PAYLOAD:
            problem = "is too long" if value else "has no value"
            _logger.warning("config '%s' %s", name, problem)
            continue
        channel.write(pkt(line))
        sent += 1
    channel.write(FLUSH_PKT)
    return sent
