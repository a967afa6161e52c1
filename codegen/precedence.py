"""Orders that stay valid while constraints are added: which kernel runs before which."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codegen.plan import Work


class TopologicalOrder:
    """Things in an order in which each comes after those it waits for; more to wait for can be added.

    Things have numbers. A position is kept for each, so that most constraints are added without a search: only things
    between the two of a constraint that stand the wrong way round are looked at and moved. After D. J. Pearce and P. H.
    J. Kelly, A dynamic topological sort algorithm for directed acyclic graphs, 2006.
    """

    def __init__(self) -> None:
        self.before: dict[int, set[int]] = {}
        self.after: dict[int, set[int]] = {}
        self.position: dict[int, int] = {}

    def append(self, thing: int, before: Iterable[int] = ()) -> None:
        """Add a thing at the end, after some that stand already."""
        self.position[thing] = len(self.position)
        self.before[thing] = set(before)
        self.after[thing] = set()
        for other in self.before[thing]:
            self.after[other].add(thing)

    def constrain(self, earlier: Iterable[int], thing: int) -> bool:
        """Let some come before a thing. False, and nothing changes, where one of them waits for the thing."""
        added: list[int] = []
        for other in earlier:
            if other in self.before[thing]:
                continue
            if self.position[other] > self.position[thing] and not self._reorder(other, thing):
                for one in added:
                    self.before[thing].discard(one)
                    self.after[one].discard(thing)
                return False
            self.before[thing].add(other)
            self.after[other].add(thing)
            added.append(other)
        return True

    def _reorder(self, first: int, second: int) -> bool:
        """Move things so that `first`, which stands later, comes before `second`. False when it waits for that one."""
        position = self.position
        low, high = position[second], position[first]
        later = self._reached(second, self.after, low, high)
        if first in later:
            return False
        earlier = self._reached(first, self.before, low, high)
        moved = [*sorted(earlier, key=position.__getitem__), *sorted(later, key=position.__getitem__)]
        for k, place in zip(moved, sorted([position[k] for k in moved]), strict=True):
            position[k] = place
        return True

    def _reached(self, start: int, neighbors: Mapping[int, set[int]], low: int, high: int) -> set[int]:
        found = {start}
        stack = [start]
        while stack:
            for k in neighbors[stack.pop()]:
                if k not in found and low <= self.position[k] <= high:
                    found.add(k)
                    stack.append(k)
        return found


# Stands for "every work that can report a failure has run".
_CHECKED = -1


class Precedence:
    """Works in an order in which values are written before they are read, and memory is taken over after that."""

    def __init__(self, works: Sequence[Work]) -> None:
        """ValueError when works wait for each other."""
        self.writer = {v: k for k, w in enumerate(works) for v in w.writes}
        self.readers: dict[str, list[int]] = {}
        for k, work in enumerate(works):
            for value in work.reads:
                self.readers.setdefault(value, []).append(k)
        before = {k: {self.writer[v] for v in w.reads if v in self.writer} - {k} for k, w in enumerate(works)}
        before[_CHECKED] = {k for k, w in enumerate(works) if w.checks}
        self._order = TopologicalOrder()
        for k in _earliest(before):
            self._order.append(k, before[k])
        if len(self._order.position) < len(before):
            raise ValueError("works wait for each other")

    def take_over(self, value: str, target: str) -> bool:
        """Let a value be written where another one stands: after every other reader of that one, and after every work
        that can report a failure. False where some of those need the value; nothing changes then.
        """
        own = self.writer[value]
        checks = self._order.before[_CHECKED]
        earlier = [*self.readers.get(target, ()), *(checks if own in checks else (_CHECKED,))]
        return self._order.constrain([k for k in earlier if k != own], own)

    def ordered(self) -> list[int]:
        """The works by number, each as early as its own number and the constraints let it be."""
        return [k for k in _earliest(self._order.before) if k != _CHECKED]


def _earliest(before: Mapping[int, set[int]]) -> Iterator[int]:
    """Of the things that wait for nothing more, the one with the least number, and so on."""
    after: dict[int, list[int]] = {k: [] for k in before}
    for k, others in before.items():
        for other in others:
            after[other].append(k)
    waits = {k: len(others) for k, others in before.items()}
    ready = [k for k, count in waits.items() if not count]
    heapq.heapify(ready)
    while ready:
        k = heapq.heappop(ready)
        yield k
        for other in after[k]:
            waits[other] -= 1
            if not waits[other]:
                heapq.heappush(ready, other)


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
