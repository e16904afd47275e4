"""`okome up --data DIR` killed with everything at once and started again, as `okome chaos` plays it, once each.

The incarnation's rules are among it: a log that lost its end gets another one, a whole log keeps its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from compose.chaos.household import Household
from compose.chaos.round import Round, Verdict
from compose.chaos.scenarios import CATALOGUE
from compose.chaos.world import RECOVERY

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def household(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Household]:
    async with Household(RECOVERY, tmp_path_factory.mktemp("recovery")) as system:
        yield system


async def play(system: Household, name: str, number: int) -> Verdict:
    """One round of a scenario with three running answers."""
    now = asyncio.get_running_loop().time()
    return await Round(system, CATALOGUE[name], number, run="", seed=1, sessions=3, began=now, replay="").play()


async def test_everything_may_be_killed_at_once_and_every_answer_ends_whole_once(household: Household) -> None:
    """Every viewer comes back with its cursor, sees every frame once, and nobody is told `reset`."""
    verdict = await play(household, "everything-killed", 1)
    assert [injection.verified for injection in verdict.injections] == [True]
    assert verdict.record.violations == ()
    assert (verdict.record.generations, verdict.record.takeovers, verdict.record.resets) == (3, 3, 0)


@pytest.mark.parametrize(("rule", "number"), [("from below the floors", 1), ("behind the floors", 2)])
async def test_a_log_that_lost_its_end_is_renamed_and_no_old_cursor_is_honoured(
    household: Household, rule: str, number: int
) -> None:
    """One that is whole keeps its name, unless the machine was started anew: a loss behind the floors is only told by
    that. Answers that had ended are whole again."""
    verdict = await play(household, "store-cut", number)
    assert rule in verdict.injections[0].proof
    assert [injection.verified for injection in verdict.injections] == [True]
    assert verdict.record.violations == ()
    assert verdict.record.resets >= 3
    assert verdict.record.generations == 6
