"""The body of a streamed HTTP answer, taken apart as its bytes come: the transfer coding, then the events. Pure."""

LINE_LIMIT = 4 * 1024 * 1024
"""Bytes of one line of an event stream, and of one event."""
SIZE_LIMIT = 256
"""Bytes of the line that says how long a chunk is, its extensions included."""
BOM = b"\xef\xbb\xbf"


class Malformed(ValueError):
    """The bytes are not what they are announced to be."""


class Chunks:
    """The transfer coding `chunked` (RFC 9112, section 7.1). Trailers are not read."""

    def __init__(self) -> None:
        self.ended = False
        self._left = 0  # bytes still to come of the chunk that has begun, its line end included
        self._rest = b""  # of the line that says the next one's size

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in these. Raises Malformed."""
        if not (self._left or self._rest or self.ended):  # what a token comes as: one chunk, whole and alone
            newline = data.find(b"\r\n", 0, 10)
            if newline > 0 and (size := self._size(data[:newline])) and len(data) == newline + 4 + size:
                return data[newline + 2 : -2]
            if (whole := self._all_whole(data)) is not None:
                return whole
        if self._rest:
            data = self._rest + data
            self._rest = b""
        body = []
        at, end = 0, len(data)
        while at < end and not self.ended:
            if self._left:
                upto = min(end, at + self._left)
                body.append(data[at : min(end, at + max(0, self._left - 2))])
                self._left -= upto - at
                at = upto
                continue
            newline = data.find(b"\r\n", at)
            if newline < 0:
                self._rest = data[at:]
                if len(self._rest) > SIZE_LIMIT:
                    raise Malformed("a chunk whose size does not end")
                break
            self._left = self._size(data[at:newline]) + 2
            at = newline + 2
            if self._left == 2:
                self.ended = True
        return body[0] if len(body) == 1 else b"".join(body)

    def _all_whole(self, data: bytes) -> bytes | None:
        """What several tokens come as: whole chunks, and none with a line end of theirs inside. None: another."""
        *lines, rest = data.split(b"\r\n")
        sizes, bodies = lines[::2], lines[1::2]
        if rest or len(sizes) != len(bodies) or not all(bodies):
            return None
        try:
            whole = [self._size(line) for line in sizes] == [len(body) for body in bodies]
        except Malformed:  # a line of a body, it may be
            return None
        return b"".join(bodies) if whole else None

    @staticmethod
    def _size(line: bytes) -> int:
        digits = line.split(b";", 1)[0].strip()
        if not digits.isalnum():  # int() would take a sign and underscores
            raise Malformed("a chunk without a size")
        try:
            return int(digits, 16)
        except ValueError:
            raise Malformed("a chunk without a size") from None


class Payloads:
    """The payloads of server-sent events, as WHATWG's HTML standard has them: the `data:` lines of an event, whatever
    ends them; and its `error:` lines, which llama.cpp writes.
    """

    def __init__(self) -> None:
        self._between = True  # events: nothing of the next one has come
        self._rest = b""  # of a line that has not ended
        self._data: list[bytes] = []  # of an event that has not
        self._size = 0  # of these
        self._after_cr = False  # which may be half of a line's end

    def feed(self, body: bytes) -> list[bytes]:
        """The payloads whose events end in these bytes. Raises Malformed."""
        if self._between and body.startswith(b"data: "):
            lines = body.splitlines()
            if len(lines) == 2 and not lines[1]:  # what a token comes as: one event, whole and alone
                return [lines[0][6:].strip()]
            if body.endswith(b"\n\n"):
                events = body[6:-2].split(b"\n\ndata: ")
                if len(lines) == 2 * len(events):  # several of them, and nothing else
                    return [event.strip() for event in events]
        return self._by_lines(body)

    def end(self) -> list[bytes]:
        """The payload of an event that nothing ended but the body, where its server was short of words."""
        return [] if self._between else self._by_lines(b"\n\n")

    def _by_lines(self, body: bytes) -> list[bytes]:
        if not body:
            return []
        if self._after_cr:
            body = body.removeprefix(b"\n")
        self._after_cr = body.endswith(b"\r")
        *lines, self._rest = (self._rest + body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
        found = []
        for line in lines:
            line = line.removeprefix(BOM)
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data).strip())
                    self._data, self._size = [], 0
                continue
            name, _, value = line.partition(b":")  # no name is a comment (ping)
            if name in (b"data", b"error"):
                self._data.append(value.removeprefix(b" "))
                self._size += len(line)
        if len(self._rest) + self._size > LINE_LIMIT:
            raise Malformed("an event without end")
        self._between = not (self._rest or self._data)
        return found
