"""What the proxy allows: every limit it has, with its meaning, unit and default."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of one proxy server. Times are in seconds, sizes in bytes."""

    max_connections: int = 16_384
    """Client connections open at a time; one more is told 503 and closed."""

    max_head_bytes: int = 64 * KIB
    """Request line and header fields together; more is 431."""

    max_header_fields: int = 100
    """Header fields in a request; more is 431."""

    max_body_bytes: int = 256 * MIB
    """One request's body, streamed; more is 413."""

    max_collected_bytes: int = 1024 * MIB
    """All bodies that are held whole in memory at a time (requests whose route depends on the body); past it 503."""

    waiting_body_bytes: int = 64 * KIB
    """Of a request that waits at a gate: read this much of its body, then stop reading."""

    replay_bytes: int = 1 * MIB
    """Keep a body up to this size until the upstream answers, so that a request that was not run can go elsewhere."""

    heartbeat: float = 10.0
    """A streaming request that waits gets an SSE comment after each silence of this length; 0: never."""

    heartbeat_body_bytes: int = 16 * MIB
    """Of such a request: read the body up to this size, within `max_collected_bytes`, to see that it is streaming."""

    discard_bytes: int = 256 * KIB
    """Rest of a body that is read and thrown away after an early answer, to keep the connection; more closes it."""

    write_buffer_bytes: int = 64 * KIB
    """Bytes waiting in this process for a slow reader (each direction) before reading at the other side stops."""

    head_timeout: float = 15.0
    """From a request's first byte to the end of its head; later is 408."""

    idle_timeout: float = 75.0
    """A client connection without a request is closed after this."""

    body_timeout: float = 30.0
    """While a body is being read, each period of this length must bring `min_body_rate`; else 408."""

    min_body_rate: float = 256.0
    """Bytes a second that a sender of a body must reach on average over `body_timeout`."""

    stall_timeout: float = 120.0
    """A client that reads nothing of its answer for this long is cut off."""

    linger_timeout: float = 2.0
    """After an answer that ends the connection: read (and drop) what the client still sends for this long."""

    connect_timeout: float = 5.0
    """To connect to the upstream."""

    upstream_idle_timeout: float = 2.0
    """A pooled upstream connection unused for this long is closed: well before the 5 s that uvicorn (vLLM) waits."""

    sweep_interval: float = 0.5
    """How often the time limits above are looked at."""
