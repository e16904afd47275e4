"""A soak sees what is left behind in a system that runs, and where."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from compose.chaos import gauges, holdings, soak
from compose.chaos.churn import Churn
from compose.chaos.crowd import Crowd
from compose.chaos.holdings import owner
from compose.chaos.soak import SOAK, Soaking
from compose.chaos.soak_page import bars, page
from compose.chaos.soaked import Plan, Series
from compose.chaos.system import System
from compose.chaos.trend import FEWEST, Verdict

PLAN = Plan(waves=FEWEST, wave=0.2, sessions=8, warm=0, calm=FEWEST, rest=0.0)
LEFT = 12
"""Viewers that come in every wave, and never go."""
HELLO_TIMEOUT = 10.0
ONCE = 1.5  # seconds: lives begin spread over one


class LeakyChurn(Churn):
    """Lives once, and then, in every wave, viewers who stay."""

    def __init__(self, system: System, crowd: Crowd) -> None:
        super().__init__(system, seed=1)
        self._crowd_left = crowd

    async def wave(self, seconds: float, abreast: int) -> None:
        if not self.did["sessions"]:
            await super().wave(ONCE, abreast)
        session = await self._crowd_left.open()
        for _ in range(LEFT):
            self._crowd_left.watch(session, terminals=10**9)
        async with asyncio.timeout(HELLO_TIMEOUT):
            await asyncio.gather(*(viewer.changed(lambda one: bool(one.events)) for viewer in session.viewers))


async def test_viewers_that_never_go_are_seen_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In files of the ingress, in tasks and gauges of the nodes that hold them, and nowhere else. The churn before them
    lived to its end."""
    monkeypatch.setattr(soak, "SAMPLE_INTERVAL", 0.02)
    async with System(SOAK, tmp_path) as system:
        soaking = Soaking(system, PLAN, 1, lambda said: None)
        async with Crowd(lambda: system.process("ingress-1").url, system.api_key, soaking.rng) as crowd:
            soaking.churn = LeakyChurn(system, crowd)
            await soaking.run()
            told = soaking.told("a test")
    verdicts = {(one.process, one.gauge): one.trend.verdict for one in told.series}
    assert verdicts["ingress-1", gauges.FDS] is Verdict.GROWS
    assert verdicts["ingress-1", 'okome_ingress_streams_active{transport="sse"}'] is Verdict.GROWS
    nodes = [one for one in (*told.series, *told.calm) if one.process.startswith("node-")]
    for gauge in (gauges.TASKS, 'okome_node_subscribers{transport="sse"}'):
        left = sum(one.points[-1][1] - one.points[0][1] for one in nodes if one.gauge == gauge)
        assert left >= LEFT * (PLAN.waves - 2), gauge
    for process, gauge in (("control-1", gauges.FDS), ("worker-1", gauges.FDS), ("ingress-1", gauges.CONSUMERS)):
        assert verdicts[process, gauge] is Verdict.STEADY
    assert told.fell == ()
    assert told.did["sessions"] >= PLAN.sessions
    assert "given up" not in told.did
    assert not told.interrupted
    assert ("ingress-1", gauges.FDS) in {(one.process, one.gauge) for one in told.leaks}
    assert "ingress-1 fds" in page(told)


def test_what_a_server_holds_is_counted_for_whoever_asked_for_it() -> None:
    ids = ["node-1", "node-12", "worker-1", "control-1", "ingress-1"]
    for name, whose in {
        "tail-node-1-07-x3k9aa": "node-1",
        "tail-node-12-07-x3k9aa": "node-12",
        "node-12-revoked-x3k9aa": "node-12",
        "ingress-1-nodes-x3k9aa": "ingress-1",
        "lane_worker-1_scripted": "worker-1",
        "any_scripted": "worker",
        "okome-control-1": "control-1",
        "okome-open-x3k9aa": "control",
        "once-x3k9aa": "control",
        "somebody": "",
    }.items():
        assert owner(name, ids) == whose, name


def test_a_process_that_began_anew_is_measured_from_its_own_beginning() -> None:
    """Its series has only what was read since, and of the warm-up what it lived through."""
    soaking = object.__new__(Soaking)
    soaking.plan = Plan(waves=6, wave=1.0, sessions=1, warm=2, calm=6)
    soaking.readings = [(float(at), {"node-1": (7 if at < 3 else 8, {"fds": 10.0 + at})}) for at in range(6)]
    (series,) = soaking.series_of(6, frozenset({"node-1"}))
    assert series == Series("node-1", "fds", ((3.0, 13.0), (4.0, 14.0), (5.0, 15.0)), 0)
    soaking.readings = [(float(at), {"node-1": (7, {"fds": 10.0})}) for at in range(6)]
    (series,) = soaking.series_of(6, frozenset({"node-1"}))
    assert (len(series.points), series.measured) == (6, 2)


def test_bars_show_noise_small_and_a_leak_large() -> None:
    noise = Series("node-1", holdings.KEYS, ((0.0, 5.0), (1.0, 6.0), (2.0, 5.0)), 1)
    assert bars(noise) == "▁┊▂▁"
    leak = Series("node-1", holdings.KEYS, ((0.0, 5.0), (1.0, 40.0), (2.0, 75.0)), 0)
    assert bars(leak) == "▁▅█"
