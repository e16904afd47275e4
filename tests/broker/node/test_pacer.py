"""The pacer delays, and does nothing else: order kept, nothing lost, nothing late, the first at once."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker.node.events import Event
from broker.node.pacer import Pacer

WINDOW = 0.08

# Bursts: seconds since the one before, and the names of its events.
bursts = st.lists(
    st.tuples(
        st.floats(0, 2, allow_nan=False),
        st.lists(st.sampled_from(["token", "token", "token", "reasoning", "usage", "done"]), min_size=1, max_size=12),
    ),
    max_size=30,
)


def played(source: list[tuple[float, list[str]]], window: float = WINDOW) -> list[tuple[float, float, Event]]:
    """(came, went, event) of everything that goes through a pacer whose events are taken exactly when they are due."""
    pacer = Pacer(window)
    came: dict[int, float] = {}
    out: list[tuple[float, float, Event]] = []
    now = 0.0

    def run_until(end: float) -> None:
        nonlocal now
        while (due := pacer.due) is not None and due <= end:
            now = max(now, due)
            out.extend((came[id(event)], now, event) for event in pacer.take(now))
        now = end

    kept: list[Event] = []
    for pause, names in source:
        run_until(now + pause)
        events = [Event(name, b"{}", str(len(kept) + index)) for index, name in enumerate(names)]
        kept += events
        came |= {id(event): now for event in events}
        pacer.offer(events, now)
    run_until(now + 10)
    assert [event.cursor for _, _, event in out] == [event.cursor for event in kept], "in order, all, once"
    return out


@given(bursts)
def test_nothing_is_lost_reordered_or_kept_longer_than_the_window(source: list[tuple[float, list[str]]]) -> None:
    for came, went, _ in played(source):
        assert came <= went <= came + WINDOW + 1e-9


@given(bursts)
def test_the_first_event_after_a_pause_goes_out_at_once(source: list[tuple[float, list[str]]]) -> None:
    out = played([(0.0, ["token", "token"]), *source, (1.0, ["token", "token", "token"])])
    came, went, _ = out[-3]
    assert went == came
    assert out[0][0] == out[0][1]


@given(bursts, st.lists(st.sampled_from(["start", "attempt"]), min_size=1, max_size=2), st.integers(1, 5))
def test_the_first_token_goes_out_at_once_whatever_came_with_it(
    source: list[tuple[float, list[str]]], before: list[str], tokens: int
) -> None:
    """`start` and the first tokens come together where the engine is quick, or the node had to ask something."""
    for last in ([(1.0, [*before, *["token"] * tokens])], [(1.0, before), (0.001, ["token"] * tokens)]):
        out = played([*source, *last])
        came, went, event = out[-tokens]
        assert event.name == "token"
        assert went == came


@given(st.lists(st.floats(0.001, 0.2), max_size=60))
def test_tokens_that_come_one_by_one_are_not_delayed(pauses: list[float]) -> None:
    for came, went, _ in played([(pause, ["token"]) for pause in pauses]):
        assert went == came


def test_a_source_that_gives_bursts_is_seen_as_a_flow() -> None:
    """Ten tokens every 100 ms: raw, a gap of 100 ms between bursts; paced, none above a third of that."""
    out = played([(0.1, ["token"] * 10) for _ in range(30)])
    times = [went for _, went, _ in out][100:]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) <= 0.035
    assert sum(gap < 0.002 for gap in gaps) / len(gaps) < 0.2


def test_a_burst_too_large_for_the_pace_is_spread_over_the_window() -> None:
    """Eighteen after a stall: not one at once and the others in one jump when the window is over."""
    out = played([*[(0.05, ["token"])] * 20, (0.5, ["token"] * 18)])
    gaps = [later - earlier for earlier, later in pairwise(went for _, went, _ in out[-18:])]
    assert max(gaps) < 2 * WINDOW / 18
    assert min(gaps) > WINDOW / 18 / 2


def test_a_flush_gives_everything_in_order_and_leaves_nothing() -> None:
    pacer = Pacer(WINDOW)
    pacer.offer([Event("token", b"", "0")], 0.0)
    pacer.take(0.0)
    events = [Event("token", b"", str(index)) for index in range(1, 6)]
    pacer.offer(events, 0.05)
    assert [*pacer.take(0.05), *pacer.flush()] == events
    assert pacer.due is None
