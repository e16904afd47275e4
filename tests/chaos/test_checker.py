"""The judge has to find every broken rule: each test breaks one thing in a transcript that is otherwise right."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from broker.bus.frames import Frame
from broker.bus.script import Script
from compose.chaos.checker import Asked, check_log, check_transcript, takeovers
from compose.chaos.viewer import Seen

SCRIPT = Script(tokens=4, seed=3)
ASKED = [Asked("g1", SCRIPT)]
INCARNATION = "abcd1234"


def _frames() -> list[Frame]:
    """An answer of four tokens with a takeover behind the second."""
    told: list[tuple[str, int, str, int, int, dict[str, Any]]] = [
        ("start", 1, "a", 0, 0, {"epoch": 1, "worker": "w"}),
        ("token", 1, "a", 0, 2, {"text": "3.0 3.1 ", "n": 2}),
        ("attempt", 2, "b", 2, 0, {"epoch": 2, "worker": "v"}),
        ("token", 2, "b", 2, 2, {"text": "3.2 3.3 ", "n": 2}),
        ("usage", 2, "b", 4, 0, {"prompt_tokens": 1, "completion_tokens": 4}),
        ("done", 2, "b", 4, 0, {"finish_reason": "stop"}),
    ]
    frames = []
    for index, (kind, epoch, attempt, offset, n, data) in enumerate(told):
        raw = json.dumps({"generation_id": "g1", "offset": offset, **data}).encode()
        frames.append(Frame(10 + index, kind, "g1", epoch, attempt, 9 + index if index else 0, offset, n, raw))
    return frames


def _seen(frames: list[Frame]) -> list[Seen]:
    shown = [Seen(float(frame.seq), frame.type, f"{INCARNATION}-{frame.seq}", frame.data) for frame in frames]
    return [Seen(0.0, "hello", f"{INCARNATION}-0", b"{}"), *shown]


def _rules(
    seen: list[Seen], frames: list[Frame] | None = None, *, resets: bool = False, whole: bool = True
) -> set[str]:
    stored = _frames() if frames is None else frames
    return {one.rule for one in check_transcript(seen, stored, ASKED, INCARNATION, resets=resets, whole=whole)}


def _told(event: Seen, **fields: object) -> Seen:
    return event._replace(data=json.dumps({**json.loads(event.data), **fields}).encode())


def test_a_right_transcript_breaks_nothing() -> None:
    assert check_log(_frames(), ASKED) == []
    assert _rules(_seen(_frames())) == set()


def test_a_takeover_is_told_with_those_who_took_part() -> None:
    assert takeovers(_frames()) == ["g1: v went on behind w at token 2, epoch 2"]


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda seen: seen[:2] + seen[3:], "gap"),
        (lambda seen: [*seen[:3], seen[2], *seen[3:]], "repeat"),
        (lambda seen: [*seen[:2], seen[4], seen[2], seen[3], *seen[5:]], "reorder"),
        (lambda seen: [*seen[:2], _told(seen[2], text="3.0 3.9 "), *seen[3:]], "bytes"),
        (lambda seen: [*seen[:2], seen[2]._replace(data=seen[2].data + b" "), *seen[3:]], "bytes"),
        (lambda seen: [*seen[:2], seen[2]._replace(id=f"other000-{seen[2].seq}"), *seen[3:]], "bytes"),
        (lambda seen: [*seen[:5], seen[5]._replace(id=""), *seen[6:]], "bytes"),
        (lambda seen: [*seen[:5], seen[5]._replace(id="a-b"), *seen[6:]], "bytes"),
        (lambda seen: [*seen[:5], seen[5]._replace(id="a-" + 5000 * "1"), *seen[6:]], "bytes"),
        (lambda seen: [*seen[:2], seen[2]._replace(data=b"{"), *seen[3:]], "bytes"),
        (lambda seen: [*seen[:2], seen[2]._replace(data=b"[]"), *seen[3:]], "bytes"),
        (lambda seen: [*seen[:2], _told(seen[2], text=1), *seen[3:]], "bytes"),
        (lambda seen: [seen[0]._replace(data=b"\xff"), *seen[1:]], "bytes"),
        (lambda seen: seen[:-1], "terminal"),
        (lambda seen: [*seen, seen[-1]._replace(id=f"{INCARNATION}-16")], "terminal"),
        (lambda seen: [*seen, seen[4]._replace(id=f"{INCARNATION}-16")], "terminal"),
        (lambda seen: [*seen[:3], Seen(2.5, "reset", "", b'{"reason":"gone"}'), *seen[3:]], "reset"),
    ],
)
def test_a_viewer_who_was_shown_something_else_is_found(spoil: Callable[[list[Seen]], list[Seen]], rule: str) -> None:
    assert rule in _rules(spoil(_seen(_frames())))


def test_what_the_log_itself_has_wrong_is_found() -> None:
    frames = _frames()
    assert {one.rule for one in check_log(frames[:-1], ASKED)} >= {"terminal"}
    assert {one.rule for one in check_log([*frames[:2], *frames[3:]], ASKED)} >= {"chain"}
    assert {one.rule for one in check_log([], ASKED)} >= {"terminal", "gap"}
    failed = frames[-1].data.replace(b"finish_reason", b"code")
    ended = Frame(15, "failed", "g1", 2, "b", 14, 4, 0, failed)
    assert {one.rule for one in check_log([*frames[:-1], ended], ASKED)} == {"terminal"}


def test_a_log_that_cannot_be_read_is_found() -> None:
    frames = _frames()
    unread = [_but(frames[0], data=b"{"), *frames[1:]]
    assert {one.rule for one in check_log(unread, ASKED)} == {"bytes"}
    assert takeovers(unread) == ["g1: v went on behind  at token 2, epoch 2"]


def test_a_text_that_no_engine_said_is_found_though_viewer_and_log_agree() -> None:
    frames = _frames()
    wrong = _but(frames[1], data=frames[1].data.replace(b"3.1", b"3.7"))
    spoilt = [frames[0], wrong, *frames[2:]]
    assert _rules(_seen(spoilt), spoilt) == {"script"}
    short = [
        *frames[:3],
        _but(frames[3], n=1, data=b'{"generation_id":"g1","offset":2,"text":"3.2 ","n":1}'),
    ]
    tail = [_but(frame, offset=3, data=frame.data.replace(b'"offset": 4', b'"offset": 3')) for frame in frames[4:]]
    assert _rules(_seen([*short, *tail]), [*short, *tail]) == {"gap"}


def test_epochs_that_jump_are_found() -> None:
    frames = _frames()
    seen = _seen(frames)
    seen[3] = _told(seen[3], epoch=3)
    assert "epoch" in _rules(seen)


def test_after_an_earned_reset_the_viewer_is_held_against_what_is_left() -> None:
    frames = _frames()
    left = frames[3:]
    seen = [*_seen(frames[:2]), _reset(12), *_seen(left)[1:]]
    assert _rules(seen, left, resets=True, whole=False) == set()
    assert "gap" in _rules([*seen[:-2], seen[-1]], left, resets=True, whole=False)
    assert "repeat" in _rules([*seen[:-1], seen[-2], seen[-1]], left, resets=True, whole=False)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda seen: [*seen[:2], _told(seen[2], text="3.0 3.9 "), *seen[3:]], "script"),
        (lambda seen: [seen[0], *seen[2:]], "gap"),
        (lambda seen: [*seen[:2], seen[3], *seen[3:]], "script"),
        (lambda seen: [*seen[:3], _told(seen[3], epoch=3), *seen[4:]], "epoch"),
        (lambda seen: [*seen[:4], *seen[6:]], "gap"),
        (lambda seen: [*seen[:5], *seen[6:]], "gap"),
        (lambda seen: [*seen[:4], _reset(13), *seen[6:]], "reset"),
        (lambda seen: [*seen[:4], _reset(12, b"{}"), *seen[5:]], "reset"),
        (lambda seen: [*seen[:4], _reset(12, b'{"earliest":"12"}'), *seen[5:]], "reset"),
        (lambda seen: [*seen[:2], _reset(10), seen[3], _told(seen[2], text="3.0 3.9 "), *seen[4:]], "script"),
    ],
)
def test_what_a_reset_parts_is_held_against_the_script_and_the_log(
    spoil: Callable[[list[Seen]], list[Seen]], rule: str
) -> None:
    frames = _frames()
    seen = [*_seen(frames[:3]), _reset(12), *_seen(frames[3:])[1:]]
    assert _rules(seen, frames[3:], resets=True, whole=False) == set()
    assert rule in _rules(spoil(seen), frames[3:], resets=True, whole=False)


def test_who_is_told_reset_twice_may_begin_anywhere_between() -> None:
    frames = _frames()
    seen = [*_seen(frames[:1]), _reset(10), *_seen(frames[1:3])[1:], _reset(12), *_seen(frames[3:])[1:]]
    assert _rules(seen, frames[3:], resets=True, whole=False) == set()


def test_who_had_seen_the_end_does_not_stay_for_what_a_reset_brings() -> None:
    frames = _frames()
    seen = [*_seen(frames), Seen(20.0, "reset", "", b'{"earliest":"other000-0"}')]
    assert _rules(seen, frames[3:], resets=True, whole=False) == set()
    assert "gap" in _rules([*seen[:-2], seen[-1]], frames[3:], resets=True, whole=False)
    assert "reset" in _rules(seen)


def test_who_had_seen_the_end_before_all_of_the_log_went_is_held_against_the_script() -> None:
    seen = _seen(_frames())
    assert check_log([], ASKED, whole=False) == []
    assert _rules(seen, [], resets=True, whole=False) == set()
    assert _rules([*seen, _reset(15)], [], resets=True, whole=False) == set()
    assert _rules(seen[:-1], [], resets=True, whole=False) == {"terminal"}
    assert _rules([*seen[:2], _told(seen[2], text="3.0 3.9 "), *seen[3:]], [], resets=True, whole=False) == {"script"}


def test_the_text_of_a_log_without_its_beginning_is_held_against_the_script() -> None:
    frames = _frames()
    assert check_log(frames[3:], ASKED, whole=False) == []
    wrong = [_but(frames[3], data=frames[3].data.replace(b"3.2", b"3.7")), *frames[4:]]
    assert {one.rule for one in check_log(wrong, ASKED, whole=False)} == {"script"}


def _reset(after: int, data: bytes = b"") -> Seen:
    told = data or b'{"earliest":"%s-%d","reason":"expired_or_foreign"}' % (INCARNATION.encode(), after)
    return Seen(20.0, "reset", "", told)


def _but(frame: Frame, **fields: object) -> Frame:
    return msgspec.structs.replace(frame, **fields)
