"""The breaker: what keeps failing is left alone, but for a probe now and then."""

from __future__ import annotations

from broker.bus.breaker import FAILURES_TO_OPEN, OPEN_SECONDS, Breaker


def test_the_breaker_opens_probes_and_closes() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.allows(0.0)
        breaker.failed(0.0)
    assert not breaker.allows(0.1)
    assert breaker.allows(OPEN_SECONDS), "one probe"
    assert not breaker.allows(OPEN_SECONDS), "and only one"
    breaker.succeeded()
    assert breaker.allows(OPEN_SECONDS)
