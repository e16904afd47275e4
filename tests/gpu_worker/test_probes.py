"""One tries for all that wait for one log."""

from __future__ import annotations

from collections.abc import Callable

from gpu_worker.probes import Probes


class Waiting:
    """Several at logs `A` and `B`, and who of them was told to go."""

    def __init__(self, *places: str) -> None:
        self.probes = Probes()
        self.gone: list[str] = []
        self.go = {place: self._goer(place) for place in places}

    def _goer(self, place: str) -> Callable[[], None]:
        return lambda: self.gone.append(place)

    def wait(self, place: str) -> bool:
        return self.probes.wait(place[0], self.go[place])

    def leave(self, place: str) -> None:
        self.probes.leave(place[0], self.go[place])


def test_the_first_of_each_log_tries_and_goes_on_trying() -> None:
    those = Waiting("A1", "A2", "B1")
    assert [those.wait(place) for place in ("A1", "A2", "B1")] == [True, False, True]
    assert [those.wait(place) for place in ("A2", "A1", "B1")] == [False, True, True]
    assert those.gone == []


def test_a_log_that_was_heard_of_lets_all_its_own_go_once() -> None:
    those = Waiting("A1", "A2", "B1")
    for place in those.go:
        those.wait(place)
    those.probes.told("A")
    those.probes.told("A")
    assert those.gone == ["A1", "A2"]
    assert those.wait("A2"), "who waits next is the first"


def test_when_the_one_who_tries_leaves_the_next_one_does() -> None:
    those = Waiting("A1", "A2", "A3")
    for place in those.go:
        those.wait(place)
    those.leave("A3")
    assert those.gone == []
    those.leave("A1")
    assert those.gone == ["A2"]
    assert those.wait("A2")
    those.leave("A2")
    those.leave("A2")
    assert those.gone == ["A2"]


def test_one_who_goes_may_wait_again_at_once() -> None:
    probes = Probes()
    tries: list[bool] = []

    def go() -> None:
        tries.append(probes.wait("A", go))

    go()
    probes.told("A")
    assert tries == [True, True]
