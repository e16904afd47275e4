"""Endings: the record says what the log says, and fits where records are kept."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.records import Generation, Message, Request, encode
from control.app import Okome
from control.transcript import fitting
from tests.control.okome import Writer, ended, generate, generation_record, new_session, session_record, worker

PIECE = 1024 * 1024


async def test_an_answer_too_long_for_its_record_is_closed_with_how_it_begins(okome: Okome, bus: Bus) -> None:
    """Nobody could store more: it would be tried for a day, and then the whole turn were forgotten."""
    sid = await new_session(bus)
    async with worker(okome, bus) as alive:
        made = await generate(bus, sid)
        gid = made.generation_id
        alive.held = {gid: "held"}  # so that the sweeper leaves it alone
        writer = Writer(bus, sid, gid, 0)
        await writer.begin()
        while writer.offset * PIECE <= bus.max_payload:
            await writer.say("é" * (PIECE // 2))
        await writer.done()
        assert await ended(bus, sid, gid) == {"closed": True}
    record = await generation_record(bus, sid, gid)
    assert record is not None
    assert (record.status, record.truncated, record.finish_reason) == ("done", True, "stop")
    assert record.completion_tokens == writer.offset
    assert bus.max_payload - PIECE < len(encode(record)) < bus.max_payload
    assert set(record.text) == {"é"}
    assert set(await Bucket(bus, "generations").all(f"{sid}.*")) == {f"{sid}.{gid}"}, "it can be read with the others"
    session = await session_record(bus, sid)
    assert session is not None
    assert session.running == ""


@given(text=st.text(max_size=300), limit=st.integers(400, 900))
def test_a_text_is_cut_only_where_it_must_be_and_then_fits(text: str, limit: int) -> None:
    record = Generation("g", "00s", "t", Request("m", [Message("user", "x")]), 0, 0, text=text)
    fits = len(encode(record)) <= limit
    kept = fitting(record, limit)
    assert (kept == record) is fits
    assert len(encode(kept)) <= limit
    assert text.startswith(kept.text)
    assert kept.truncated is not fits
    assert msgspec.structs.replace(kept, text=text, truncated=False) == record


@pytest.mark.parametrize("prompt", ["x" * 500, "é" * 300])
def test_a_prompt_that_leaves_no_room_leaves_none_of_the_answer(prompt: str) -> None:
    record = Generation("g", "00s", "t", Request("m", [Message("user", prompt)]), 0, 0, text="abc")
    assert (fitting(record, 400).text, fitting(record, 400).truncated) == ("", True)
