"""A round whose questions nobody answers: judged and recorded like any other, never a traceback."""

import asyncio
import random
from types import SimpleNamespace
from typing import cast

import pytest

from broker.bus.errors import BusUnavailable
from broker.bus.frames import Frame
from broker.bus.nats import Bus
from compose.chaos import round as module
from compose.chaos.checker import Asked
from compose.chaos.crowd import Watched
from compose.chaos.fault import DidNotHappen, Fault
from compose.chaos.faults import abort
from compose.chaos.round import Round, Spoiled, Verdict
from compose.chaos.scenario import Play, Scenario
from compose.chaos.subject import Running
from compose.chaos.viewer import Seen, Viewer, ViewerRefused


async def _whole() -> None:
    return


async def nothing() -> None:
    return


async def proven() -> str:
    return "it happened"


async def silent() -> str:
    raise BusUnavailable("no answer")


async def refuted() -> str:
    raise DidNotHappen("nothing was seen")


async def no_log(bus: Bus, sid: str) -> tuple[list[Frame], str]:
    return [], "abcd1234"


async def play(scenario: Play, *, control: bool = False, keeps_connections: bool = False) -> Verdict:
    system = cast(Running, SimpleNamespace(api_key="", url="http://127.0.0.1:1", whole=_whole, bus=None))
    played = Scenario("a-scenario", "a scenario", scenario, keeps_connections=keeps_connections)
    round = Round(system, played, 1, run="r", seed=1, sessions=1, began=0.0, replay="", control=control)
    return await round.play()


def rules(verdict: Verdict) -> list[str]:
    return [violation.rule for violation in verdict.record.violations]


@pytest.mark.parametrize(
    "error", [BusUnavailable("no answer"), ConnectionResetError(), EOFError(), KeyError("gone"), ValueError("{")]
)
async def test_a_question_of_a_scenario_that_fails_is_a_violation(error: Exception) -> None:
    async def scenario(round: Round) -> None:
        raise error

    verdict = await play(scenario)
    assert rules(verdict) == ["stuck"]
    assert repr(error) in verdict.record.violations[0].detail


async def test_a_strike_that_nobody_answers_is_not_verified_and_says_why() -> None:
    async def scenario(round: Round) -> None:
        await round.hurt(Fault("somebody", silent, proven), [])

    verdict = await play(scenario)
    (injection,) = verdict.injections
    assert not injection.verified
    assert "no answer" in injection.proof
    assert rules(verdict) == ["stuck"]


async def test_what_cannot_be_given_back_is_a_violation() -> None:
    async def scenario(round: Round) -> None:
        await round.hurt(Fault("somebody", nothing, proven, silent), [])

    verdict = await play(scenario)
    assert verdict.injections[0].verified
    assert rules(verdict) == ["stuck"]
    assert "somebody could not be given back" in verdict.record.violations[0].detail


async def test_a_fault_that_had_nothing_to_hurt_is_not_verified() -> None:
    async def too_late(round: Round) -> None:
        await round.hurt(Fault("somebody", nothing, proven), [])
        round.spoil("everything was over")

    async def never(round: Round) -> None:
        raise Spoiled("everything was over")

    for scenario in (too_late, never):
        verdict = await play(scenario)
        (injection,) = verdict.injections
        assert not injection.verified
        assert injection.proof == "everything was over"
        assert rules(verdict) == []


async def test_a_viewer_that_gives_up_is_a_violation_and_no_one_else_is_forgotten() -> None:
    async def scenario(round: Round) -> None:
        async def refused() -> None:
            raise ViewerRefused("410 gone")

        async def puzzled() -> None:
            raise ValueError("no number")

        for sid, watch in (("one", refused), ("two", puzzled)):
            watching = [asyncio.create_task(watch())]
            round.crowd.watched.append(Watched(sid, "token", [], [Viewer(lambda: "", sid, "token")], watching))

    verdict = await play(scenario)
    assert rules(verdict) == ["stuck", "stuck"]
    assert [one.session for one in verdict.record.violations] == ["one", "two"]
    assert "410 gone" in verdict.record.violations[0].detail
    assert "no number" in verdict.record.violations[1].detail


async def test_a_control_run_counts_only_proofs_that_were_looked_for() -> None:
    async def never(round: Round) -> None:
        raise Spoiled("everything was over")

    async def looked_for(round: Round) -> None:
        await round.hurt(Fault("somebody", nothing, refuted), [])

    assert (await play(never, control=True)).injections == ()
    assert [one.verified for one in (await play(looked_for, control=True)).injections] == [False]


async def test_work_gets_another_crowd_where_every_answer_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    async def scenario(round: Round) -> None:
        async def gather(scripts: list[object], *, viewers: int) -> list[Watched]:
            viewer = Viewer(lambda: "", "sid", "token")
            viewer.ended = int(len(lengths) < 1)
            lengths.append(viewers)
            return [Watched("sid", "token", [], [viewer])]

        monkeypatch.setattr(round.crowd, "gather", gather)
        (one,) = await round.work(1)
        assert not one.viewers[0].over

    assert rules(await play(scenario)) == []
    assert len(lengths) == 2


async def test_clients_that_are_kept_waiting_break_off_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[abort.Aborters] = []

    async def keep_waiting(self: abort.Aborters) -> None:
        kept.append(self)
        await asyncio.Event().wait()

    monkeypatch.setattr(abort, "CLIENT_TIMEOUT", 0.001)
    monkeypatch.setattr(abort.Aborters, "_one", keep_waiting)
    await abort.Aborters(lambda: "", "key", [], random.Random(1)).abort(30)
    assert len(kept) == 30


async def test_a_lost_connection_is_a_violation_where_only_what_is_behind_it_was_hurt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(round: Round) -> None:
        kept, lost = (Viewer(lambda: "", "sid", "token") for _ in range(2))
        lost.lost.append("ended in good order")
        watching = [asyncio.create_task(nothing()) for _ in range(2)]
        round.crowd.watched.append(Watched("sid", "token", [Asked("g1", None)], [kept, lost], watching))

    monkeypatch.setattr(module, "read_log", no_log)
    assert rules(await play(scenario, keeps_connections=True)).count("connection") == 1
    assert "connection" not in rules(await play(scenario))


async def test_only_who_lost_frames_may_be_told_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(round: Round) -> None:
        round.purged.add("purged")
        round.renamed.add("renamed")
        for sid in ("purged", "renamed", "beside"):
            viewer = Viewer(lambda: "", sid, "token")
            viewer._take(Seen(1.0, "reset", "", b'{"earliest":"abcd1234-0"}'))
            watching = [asyncio.create_task(nothing())]
            round.crowd.watched.append(Watched(sid, "token", [Asked("g1", None)], [viewer], watching))

    monkeypatch.setattr(module, "read_log", no_log)
    verdict = await play(scenario)
    assert [one.session for one in verdict.record.violations if one.rule == "reset"] == ["beside"]
