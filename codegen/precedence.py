"""Which kernel runs before which: an order that stays valid while values take over the memory of others."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codegen.plan import Work


class Precedence:
    """Works in an order in which values are written before they are read, and what else was asked for.

    A position is kept for every work, so that most constraints are added without a search: only works between the two
    of a constraint that stand the wrong way round are looked at and moved. After D. J. Pearce and P. H. J. Kelly, A
    dynamic topological sort algorithm for directed acyclic graphs, 2006.
    """

    def __init__(self, works: Sequence[Work]) -> None:
        """ValueError when works wait for each other."""
        self.writer = {v: k for k, w in enumerate(works) for v in w.writes}
        self.readers: dict[str, list[int]] = {}
        for k, work in enumerate(works):
            for value in work.reads:
                self.readers.setdefault(value, []).append(k)
        # One place more stands for "every work that can report a failure has run".
        self.checked = len(works)
        self.before: list[set[int]] = [set() for _ in range(len(works) + 1)]
        self.after: list[set[int]] = [set() for _ in range(len(works) + 1)]
        for value, readers in self.readers.items():
            if (writer := self.writer.get(value)) is not None:
                for k in readers:
                    if k != writer:
                        self._link(writer, k)
        for k, work in enumerate(works):
            if work.checks:
                self._link(k, self.checked)
        self.position = [0] * (len(works) + 1)
        ordered = self._ordered()
        if len(ordered) <= len(works):
            raise ValueError("works wait for each other")
        for position, k in enumerate(ordered):
            self.position[k] = position

    def take_over(self, value: str, target: str) -> bool:
        """Let a value be written where another one stands: after every other reader of that one, and after every work
        that can report a failure. False where some of those need the value; nothing changes then.
        """
        own = self.writer[value]
        checks = self.before[self.checked]
        earlier = [*self.readers.get(target, ()), *(checks if own in checks else (self.checked,))]
        added: list[int] = []
        for k in earlier:
            if k == own or k in self.before[own]:
                continue
            if self.position[k] > self.position[own] and not self._reorder(k, own):
                for other in added:
                    self.before[own].discard(other)
                    self.after[other].discard(own)
                return False
            self._link(k, own)
            added.append(k)
        return True

    def ordered(self) -> list[int]:
        """The works by number, each as early as its own number and the constraints let it be."""
        return [k for k in self._ordered() if k != self.checked]

    def _ordered(self) -> list[int]:
        waits = [len(before) for before in self.before]
        ready = [k if k != self.checked else -1 for k, count in enumerate(waits) if not count]
        heapq.heapify(ready)
        out: list[int] = []
        while ready:
            k = heapq.heappop(ready)
            k = self.checked if k < 0 else k
            out.append(k)
            for other in self.after[k]:
                waits[other] -= 1
                if not waits[other]:
                    heapq.heappush(ready, other if other != self.checked else -1)
        return out

    def _link(self, first: int, second: int) -> None:
        self.before[second].add(first)
        self.after[first].add(second)

    def _reorder(self, first: int, second: int) -> bool:
        """Move works so that `first`, which stands later, comes before `second`. False when it depends on it."""
        position = self.position
        low, high = position[second], position[first]
        later = self._reached(second, self.after, low, high)
        if first in later:
            return False
        earlier = self._reached(first, self.before, low, high)
        moved = [*sorted(earlier, key=position.__getitem__), *sorted(later, key=position.__getitem__)]
        for k, place in zip(moved, sorted(position[k] for k in moved), strict=True):
            position[k] = place
        return True

    def _reached(self, start: int, neighbors: Sequence[set[int]], low: int, high: int) -> set[int]:
        found = {start}
        stack = [start]
        while stack:
            for k in neighbors[stack.pop()]:
                if k not in found and low <= self.position[k] <= high:
                    found.add(k)
                    stack.append(k)
        return found


def order(works: Sequence[Work], homes: Mapping[str, str]) -> list[Work] | None:
    """The works so that values are written before they are read, and memory is taken over after its last reader.

    `homes` gives the values whose memory others take over. Nothing is taken over before every work that can report a
    failure has run. None when no such order exists.
    """
    try:
        precedence = Precedence(works)
    except ValueError:
        return None
    taken = (precedence.take_over(value, target) for value, target in homes.items() if value in precedence.writer)
    return [works[k] for k in precedence.ordered()] if all(taken) else None
