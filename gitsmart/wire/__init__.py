"""Bytes to events and back: HTTP framing, pkt-line, the requests of git's protocol. No I/O of any kind."""
