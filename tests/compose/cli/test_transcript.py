"""A session's events as text."""

import io

from compose.cli.api import Event
from compose.cli.transcript import Transcript, printable


def shown(*events: Event, roles: bool = True) -> str:
    out = io.StringIO()
    transcript = Transcript(out, roles=roles)
    for event in events:
        transcript.show(event)
    transcript.end()
    return out.getvalue()


def test_the_conversation_reads_like_one() -> None:
    text = shown(
        Event("hello", "a-0", {}),
        Event("message", "a-1", {"role": "user", "content": "hi"}),
        Event("message", "a-2", {"role": "assistant", "content": "hello"}),
        Event("start", "a-3", {"input": [{"role": "user", "content": "and?"}]}),
        Event("token", "a-4", {"text": "one "}),
        Event("token", "a-5", {"text": "two"}),
        Event("done", "a-6", {"finish_reason": "stop"}),
    )
    assert text == "user: hi\nassistant: hello\nuser: and?\nassistant: one two\n"


def test_an_answer_alone_is_its_tokens_and_a_line_end() -> None:
    start = Event("start", "a-1", {"input": [{"role": "user", "content": "hi"}]})
    assert shown(start, Event("token", "a-2", {"text": "x"}), Event("done", "a-3", {}), roles=False) == "x\n"


def test_what_a_model_writes_cannot_drive_a_terminal() -> None:
    assert printable("a\x1b[2Jb\tc\n") == "a\ufffd[2Jb\tc\n"
