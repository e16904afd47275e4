"""One round: a scenario played once. A crowd is put to work, the fault strikes and proves itself, all is judged.

Everything that is drawn by chance comes from the round's own generator, seeded by run, scenario and number, so that a
round can be played again alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NoReturn

from broker.bus.errors import FrameMalformed
from broker.bus.script import Script
from compose.chaos.answers import FAILED
from compose.chaos.checker import Broken, check_log, check_transcript, takeovers
from compose.chaos.crowd import Crowd, NotAdmitted, Watched
from compose.chaos.fault import DidNotHappen, Fault
from compose.chaos.log import read_log
from compose.chaos.record import Injection, Stall, Violation
from compose.chaos.record import Round as Record
from compose.chaos.scenario import Scenario
from compose.chaos.subject import Running
from compose.chaos.system import System
from compose.chaos.viewer import Viewer
from compose.chaos.whole import NotBack, Process

UNDERWAY_TIMEOUT = 45.0
"""A loaded machine was silent for 22 s, and nothing was wrong with it."""
PLAY_TIMEOUT = 240.0
"""More than a crowd that begins, a proof and a restart may take together, each as long as it may."""
OVER_TIMEOUT = 45.0
"""Seconds after the script's own length in which every answer must have ended."""
LOG_TIMEOUT = 45.0
LONGER = (1, 2, 4)
"""Times its length that an answer takes, where the ones before it were over when the last of them had begun."""


class Spoiled(Exception):
    """The round's fault did not happen: what would follow from it is not played."""


@dataclass
class _Struck:
    fault: Fault
    at: float
    dependents: list[Viewer]
    until: float = 0.0
    verified: bool = False
    proof: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a round leaves."""

    injections: tuple[Injection, ...]
    record: Record
    ended: tuple[Process, ...]
    """Processes that its faults have ended, or tried to."""


class Round:
    """`play` runs the scenario; everything else is for the scenario to use."""

    def __init__(
        self,
        system: System | Running,
        scenario: Scenario,
        number: int,
        *,
        run: str,
        seed: int,
        sessions: int,
        began: float,
        replay: str,
        control: bool = False,
    ) -> None:
        self.system = system
        self.scenario = scenario
        self.number = number
        self.sessions = sessions
        self.control = control
        self.rng = random.Random(f"{seed}/{scenario.name}/{number}")
        self.crowd = Crowd(lambda: self.door(), system.api_key, self.rng)
        self.door: Callable[[], str] = lambda: system.url
        """Where viewers connect; a scenario may put a link there."""
        self.figures: dict[str, list[float]] = {}
        self.purged: set[str] = set()
        """Sessions whose log lost its beginning: judged from where it begins now; their viewers may be told `reset`."""
        self.renamed: set[str] = set()
        """Sessions whose log is of another incarnation: their viewers may be told `reset`."""
        self.excused: set[Viewer] = set()
        """Viewers that are not expected at the end, because the fault is theirs."""
        self.stack = AsyncExitStack()
        self._run = run
        self._zero = began
        self._replay = replay
        self._struck: list[_Struck] = []
        self._broken: list[tuple[str, Broken]] = []
        self._loop = asyncio.get_running_loop()

    # -- for scenarios -----------------------------------------------------------------------------------------------

    def script(self, seconds: float, **fields: object) -> Script:
        """An answer that takes so many seconds, at a rate and in bursts drawn by chance.

        Its own silences are 20 to 50 ms, so that what a viewer sees beyond is the fault's doing.
        """
        rate, burst = self.rng.choice(((30, 1), (40, 1), (50, 1), (50, 2), (100, 4)))
        drawn = {
            "tokens": max(1, int(seconds * rate)),
            "rate": rate,
            "burst": burst,
            "jitter": self.rng.choice((0, 0, 0.25)),
            "seed": self.rng.randrange(1, 10**6),
        }
        return Script(**{**drawn, **fields})  # type: ignore[arg-type]

    async def work(self, seconds: float, *, sessions: int = 0, viewers: int = 1, **script: object) -> list[Watched]:
        """Put a crowd to work on answers of so many seconds, and wait until everybody is in the middle of one.

        Somebody's may be over by then. Where everybody's is, another crowd gets longer ones; raises Spoiled at last.
        """
        for longer in LONGER:
            scripts = [self.script(longer * seconds, **script) for _ in range(sessions or self.sessions)]
            watched = await self.crowd.gather(scripts, viewers=viewers)
            async with asyncio.timeout(UNDERWAY_TIMEOUT):
                await self.crowd.underway()
            if self.going(watched):
                return watched
        raise Spoiled("every answer was over when the last one had begun")

    def going(self, watched: Sequence[Watched]) -> list[Watched]:
        """Those of them that somebody still watches: directly after `work`, at least one."""
        return [one for one in watched if not all(viewer.over for viewer in one.viewers)]

    def aim(self, victim: Process) -> Process:
        """The victim itself, or in a control run a decoy."""
        return self.system.decoy if self.control else victim

    def pick(self, role: str) -> Process:
        """One process of a role, by chance."""
        return self.rng.choice(self.system.processes(role))

    def busiest(self, role: str) -> Process:
        """The process of a role that most running viewers depend on."""
        return max(self.system.processes(role), key=lambda one: len(self.crowd.on(one.id)))

    async def hurt(self, fault: Fault, dependents: Sequence[Viewer] | None = None) -> None:
        """Strike, and have it proven. `dependents`: who is looked at for stalls, everybody running if None.

        Raises Spoiled where the fault did not happen.
        """
        depending = list(self.crowd.running() if dependents is None else dependents)
        struck = _Struck(fault, self._loop.time(), depending)
        self._struck.append(struck)
        self.stack.push_async_callback(self._undo, struck)
        try:
            await fault.strike()
            struck.proof = await fault.happened()
        except DidNotHappen as why:
            struck.proof = str(why)
            raise Spoiled(str(why)) from why
        except Exception as why:
            struck.proof = repr(why)
            raise
        struck.verified = True

    def spoil(self, why: str) -> NoReturn:
        """The last fault struck when nothing was left that it could have hurt: it counts as one that did not happen.

        Raises Spoiled.
        """
        for struck in self._struck[-1:]:
            struck.verified, struck.proof = False, why
        raise Spoiled(why)

    async def heal(self, fault: Fault) -> None:
        """Undo a fault now rather than at the end of the round."""
        for struck in self._struck:
            if struck.fault is fault:
                await self._undo(struck)

    def broken(self, rule: str, session: str, detail: str) -> None:
        """A guarantee that only the scenario can judge was broken."""
        self._broken.append((session, Broken(rule, detail)))

    def figure(self, name: str, seconds: float) -> None:
        self.figures.setdefault(name, []).append(seconds)

    # -- playing -----------------------------------------------------------------------------------------------------

    async def play(self) -> Verdict:
        """Play and judge. Raises nothing that the system under test could cause."""
        began = self._loop.time()
        async with self.stack, self.crowd:
            try:
                async with asyncio.timeout(PLAY_TIMEOUT):
                    await self.scenario.play(self)
                await self.system.whole()
            except Spoiled as why:
                self._spoiled(str(why))
            except TimeoutError as error:
                self.broken("stuck", "", f"the scenario ran out of time: {error}")
            except (*FAILED, KeyError, ValueError) as error:
                self.broken("stuck", "", f"a question of the scenario failed: {error!r}")
            except NotAdmitted as error:
                self.broken("stuck", "", f"not admitted: {error}")
            except NotBack as error:
                self.broken("stuck", "", str(error))
            for struck in self._struck:
                await self._undo(struck)
            for viewer in self.crowd.viewers:
                viewer.go_on()
            scripts = [asked.script for one in self.crowd.watched for asked in one.asked if asked.script is not None]
            longest = max((script.tokens / (script.rate or script.tokens or 1) for script in scripts), default=0.0)
            for late in await self.crowd.over(OVER_TIMEOUT + longest):
                if late not in self.excused:
                    failure = self.crowd.failure(late)
                    then = "none" if failure is None else repr(failure)
                    self.broken("stuck", late.sid, f"{len(late.events)} events, then {then}: {late.events[-1:]}")
            over = self._loop.time()
            tokens, generations, taken, resets = await self._judge()
        return self._verdict(began, over, tokens, generations, taken, resets)

    def _spoiled(self, why: str) -> None:
        """What struck is recorded as not verified; where nothing could strike, that is. A control run counts proofs
        that failed, and here none was looked for."""
        if not self._struck and not self.control:
            now = self._loop.time()
            self._struck.append(_Struck(Fault("nobody", _nothing, _no_proof), now, [], until=now, proof=why))

    async def _undo(self, struck: _Struck) -> None:
        if struck.until:
            return
        struck.until = self._loop.time()
        try:
            await struck.fault.undo()
        except FAILED as error:
            self.broken("stuck", "", f"{struck.fault.victim} could not be given back: {error!r}")

    async def _judge(self) -> tuple[int, int, int, int]:
        tokens = generations = taken = resets = 0
        for one in self.crowd.watched:
            if not one.asked:
                continue
            try:
                async with asyncio.timeout(LOG_TIMEOUT):
                    frames, incarnation = await read_log(self.system.bus, one.sid)
            except FAILED:
                self.broken("stuck", one.sid, "the log could not be read")
                continue
            except FrameMalformed as error:
                self.broken("chain", one.sid, str(error))
                continue
            whole = one.sid not in self.purged
            generations += len(one.asked)
            tokens += sum(frame.n for frame in frames)
            went_on = takeovers(frames)
            taken += len(went_on)
            if not self.scenario.takeovers:
                for how in went_on:
                    self.broken("takeover", one.sid, f"every worker lived, and {how}")
            self._broken += [(one.sid, broken) for broken in check_log(frames, one.asked, whole=whole)]
            for viewer in one.viewers:
                if viewer in self.excused:
                    continue
                if self.scenario.keeps_connections:
                    self._broken += [(one.sid, Broken("connection", how)) for how in viewer.lost]
                resets += sum(event.name == "reset" for event in viewer.events)
                earned = not whole or one.sid in self.renamed
                found = check_transcript(viewer.events, frames, one.asked, incarnation, resets=earned, whole=whole)
                self._broken += [(one.sid, broken) for broken in found]
        return tokens, generations, taken, resets

    def _verdict(self, began: float, over: float, tokens: int, generations: int, taken: int, resets: int) -> Verdict:
        injections = []
        for index, struck in enumerate(self._struck):
            horizon = self._struck[index + 1].at if index + 1 < len(self._struck) else over
            injections.append(
                Injection(
                    run=self._run,
                    scenario=self.scenario.name,
                    round=self.number,
                    victim=struck.fault.victim,
                    at=struck.at - self._zero,
                    until=struck.until - self._zero,
                    verified=struck.verified,
                    proof=struck.proof,
                    stalls=tuple(
                        stall
                        for viewer in struck.dependents
                        if struck.verified and (stall := longest_silence(viewer, struck.at, horizon, self._zero))
                    ),
                )
            )
        record = Record(
            run=self._run,
            scenario=self.scenario.name,
            round=self.number,
            began=began - self._zero,
            ended=self._loop.time() - self._zero,
            sessions=len(self.crowd.watched),
            generations=generations,
            tokens=tokens,
            connections=sum(viewer.connections for viewer in self.crowd.viewers),
            takeovers=taken,
            resets=resets,
            violations=tuple(Violation(broken.rule, sid, broken.detail) for sid, broken in self._broken),
            figures={name: tuple(seconds) for name, seconds in self.figures.items()},
            replay=self._replay,
        )
        ended = tuple(one for struck in self._struck for one in struck.fault.ends)
        return Verdict(tuple(injections), record, ended)


async def _nothing() -> None:
    return


async def _no_proof() -> str:
    return ""


def longest_silence(viewer: Viewer, at: float, horizon: float, zero: float) -> Stall | None:
    """The longest time between two stored events of a viewer that ended after `at` and began before `horizon`."""
    longest: Stall | None = None
    before = None
    for event in viewer.events:
        if not event.stored:
            continue
        if before is not None and event.at > at and before < horizon:
            seconds = event.at - before
            if longest is None or seconds > longest.seconds:
                longest = Stall(round(before - zero, 4), round(seconds, 4))
        before = event.at
    return longest
