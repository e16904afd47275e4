"""How a model is played, and how it is shown that it can fail."""

from __future__ import annotations

import re
import traceback

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from broker.bus.errors import OkomeError

STEPS = 40  # at most, of one interleaving


def plays(machine: type[RuleBasedStateMachine], *, examples: int, steps: int = STEPS) -> None:
    """So many interleavings, none of which breaks what must be true."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def finds(machine: type[RuleBasedStateMachine], saying: str, *, examples: int = 4000, steps: int = STEPS) -> None:
    """With a rule taken out of the production code, the model says so, in words that match `saying`.

    Which interleavings are drawn depends on the code that is loaded (hypothesis draws on its constants), so how many
    it takes changes with every change: so many are more than were ever needed, and the first that fails is the last.
    """
    with pytest.raises((AssertionError, OkomeError, Flaky)) as caught:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    said = "".join(traceback.format_exception(caught.value))
    assert re.search(saying, said), said
