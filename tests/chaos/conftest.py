"""What the tests of links share: either kind of loop."""

import pytest

from tests.chaos.place import LOOPS, Loop


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Loop:
    made: Loop = request.param
    return made
