"""Who ended although nobody had ended it: restarts, held against what the faults of a run have ended. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from compose.chaos.whole import Process


class Deaths:
    """Of one system, from what runs at the beginning on. Engines are not looked at: their workers end them as well."""

    def __init__(self, processes: Iterable[Process]) -> None:
        self._seen = {one.id: one.restarts for one in processes}
        self._owed: Counter[str] = Counter()
        """Ends whose restart was not seen yet: a supervisor may hear of one after the round is over."""

    def by_themselves(self, processes: Iterable[Process], ended: Iterable[Process]) -> list[Process]:
        """Those that were restarted more often since the last time than `ended` says; one process ends once.

        Restarts that have become fewer are counted anew: the supervisor itself was started again.
        """
        for id, _ in {(one.id, one.pid) for one in ended}:
            self._owed[id] += 1
        fell = []
        for one in processes:
            if one.role == "engine":
                continue
            before = self._seen.get(one.id, 0)
            restarts = one.restarts - before if one.restarts >= before else one.restarts
            if restarts > self._owed[one.id]:
                fell.append(one)
            self._owed[one.id] = max(0, self._owed[one.id] - restarts)
            self._seen[one.id] = one.restarts
        return fell
