"""Many streams on one connection between an ingress and a node: what is said on it. Pure.

A viewer's stream over a connection of its own costs a system call at the node and one at the ingress for every token.
Here all of them share one WebSocket, `PATH`, and what one turn of the node's loop has for all viewers is one write.

A message is any number of records, each `kind, stream, length` and so many bytes. The ingress numbers its streams from
1 on, never the same number twice. `OPEN` is the head of a GET as HTTP/1.1 has it; the node says `SEEN` at once, then
`HEAD` (status line and fields), `DATA`, and `END` where the answer is whole or `BROKEN` where it is not. `TOKENS` are
data, too: nothing but whole `token` events, with the last one's cursor before them, so that nobody need look for it.
`CLOSE` is the ingress's: nobody wants more of it. Flow control is HTTP/2's: the node may send `WINDOW` bytes of a
stream, and as many more as `CREDIT` gives, so that who does not read holds up nobody but himself.

A GET that asks for an `upgrade` is a WebSocket, where the node says that it has them (`SERVES`). Its head has status
101. Both sides then send messages, `TEXT` or `BINARY`, a long one in pieces with `PART` before the last of them. Its
`TOKENS` are messages as they go to a client, framed; `END` says the code and the reason it is closed for. What a client
sends has no credit: a node closes a stream of which more waits than `HEARD` says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

PATH = "/internal/streams"
WINDOW = 128 * 1024
"""Bytes of one stream that may be on their way."""
MESSAGE = 4 * 1024
"""Bytes after which a message is ended: an ingress goes through so many at once, then others have their turn."""
MAX_STREAM = (1 << 32) - 1
PIECE = 32 * 1024
"""Bytes of a long message that are one record: what others say meanwhile goes between."""
HEARD = 1024
"""Messages of one client that may wait at a node to be looked at."""
MAX_REASON = 123
"""Bytes of why a WebSocket is closed (RFC 6455)."""
SERVES, SOCKETS = b"x-okome-streams", b"ws"
"""The field of the answer to the upgrade at `PATH`, and what it says where WebSockets are served on the connection."""

_HEADER = struct.Struct("!BII")
HEADER_SIZE = _HEADER.size
_CREDIT = struct.Struct("!I")
_CODE = struct.Struct("!H")


class Kind(IntEnum):
    OPEN = 1
    CLOSE = 2
    CREDIT = 3
    SEEN = 4
    HEAD = 5
    DATA = 6
    END = 7
    BROKEN = 8
    TOKENS = 9
    PART = 10
    TEXT = 11
    BINARY = 12


_TOKENS = int(Kind.TOKENS)


class Malformed(Exception):
    """What came is no message of records."""


def record(kind: int, stream: int, data: bytes = b"") -> bytes:
    return _HEADER.pack(kind, stream, len(data)) + data


def credit(stream: int, more: int) -> bytes:
    """The record that allows `more` bytes."""
    return record(Kind.CREDIT, stream, _CREDIT.pack(more))


def credit_of(data: bytes) -> int:
    """Raises Malformed."""
    try:
        return int(_CREDIT.unpack(data)[0])
    except struct.error as error:
        raise Malformed("a credit is four bytes") from error


def records(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, stream and bytes of each. Raises Malformed at the first that is none."""
    place, size = 0, len(message)
    unpack = _HEADER.unpack_from
    while place < size:
        begin = place + _HEADER.size
        if begin > size:
            raise Malformed("a record's header is cut off")
        kind, stream, length = unpack(message, place)
        place = begin + length
        if place > size:
            raise Malformed("a record is cut off")
        yield kind, stream, message[begin:place]


def messages(records: list[bytes]) -> Iterator[bytes]:
    """Records in messages of about MESSAGE bytes, a longer record in one of its own."""
    begin = size = 0
    for place, each in enumerate(records):
        if size and size + len(each) > MESSAGE:
            yield b"".join(records[begin:place])
            begin, size = place, 0
        size += len(each)
    if begin < len(records):
        yield b"".join(records[begin:])


def tokens(stream: int, cursor: bytes, events: bytes) -> bytes:
    """The record of a TOKENS, which nearly all are, put together at once."""
    size = len(cursor)
    return b"%b%c%b%b" % (_HEADER.pack(_TOKENS, stream, 1 + size + len(events)), size, cursor, events)


def read_tokens(data: bytes) -> tuple[bytes, bytes]:
    """Cursor and events. Raises Malformed."""
    if not data or len(data) <= data[0]:
        raise Malformed("tokens begin with a cursor")
    begin = 1 + data[0]
    return data[1:begin], data[begin:]


def message(stream: int, data: bytes, *, text: bool = True) -> list[bytes]:
    """The records of one message of a WebSocket."""
    last = max(0, (len(data) - 1) // PIECE) * PIECE
    parts = [record(Kind.PART, stream, data[begin : begin + PIECE]) for begin in range(0, last, PIECE)]
    return [*parts, record(Kind.TEXT if text else Kind.BINARY, stream, data[last:])]


def reason(text: str) -> str:
    """As much of it as a close frame holds."""
    return text.encode()[:MAX_REASON].decode(errors="ignore")


def farewell(code: int, text: str) -> bytes:
    """The bytes of the END of a WebSocket."""
    return _CODE.pack(code) + text.encode()


def read_farewell(data: bytes) -> tuple[int, str]:
    """Code and reason. Raises Malformed."""
    try:
        return int(_CODE.unpack_from(data)[0]), data[_CODE.size :].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise Malformed("a WebSocket ends with a code and a reason") from error


def head(status: int, fields: list[tuple[bytes, bytes]]) -> bytes:
    """The bytes of a HEAD."""
    return b"".join([b"%d\r\n" % status, *[b"%b: %b\r\n" % field for field in fields]])


def read_head(data: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Status and fields, names in lower case. Raises Malformed."""
    first, _, rest = data.partition(b"\r\n")
    if not first.isdigit() or len(first) != 3:
        raise Malformed("a head begins with its status")
    return int(first), read_fields(rest)


def read_fields(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Header fields, one a line, names in lower case. Raises Malformed."""
    fields = []
    for line in lines.split(b"\r\n"):
        if not line:
            continue
        name, colon, text = line.partition(b":")
        if not colon or not name:
            raise Malformed("a header field has a name")
        fields.append((name.lower(), text.strip()))
    return fields
