"""Keeping the arena under a limit: kernels run again for values that would otherwise be kept for a long time.

A value that is written before the peak of the arena and read after it need not live in between: the kernels it comes
from can run again before it is read, on values that are kept. Which are kept is decided for each segment of what runs
before the peak, by a minimum cut between the values the segment starts from and those of it that are read after the
peak, with bytes as capacities: what is cut is kept, what lies behind is computed again. Few long segments keep little
and compute much at a time, many short ones the reverse; all are tried with the memory plan as the judge, and then the
new peak is treated in the same way. The same machine code runs on the same operands, so every value has the same bits.
Nothing depends on what is a forward or a backward pass.

Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost" (2016), for segments; a minimum cut for
what to keep is how AOTAutograd of PyTorch divides operators into a forward and a backward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from codegen.footprint import Peak, peak_of
from codegen.place import Placed
from codegen.plan import Work, again_name, original

if TYPE_CHECKING:
    import networkx as nx

# Peaks that are treated one after the other.
ROUNDS = 40
# How the number of segments shrinks from one trial to the next.
FEWER = 0.7
# Shares of the segments, from the first on, that are tried where all together are not within the limit.
SHARES = (0.25, 0.5, 0.75, 0.9)
LABEL = " (again)"


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighboring works before the peak: what of their values is read after it, and what the cut keeps for that.

    `freed` are the bytes it saves at the peak, `ns` the time to compute again what is not kept.
    """

    alive: tuple[str, ...]
    cut: tuple[str, ...]
    freed: int
    ns: float


@dataclass(frozen=True, slots=True)
class Trial:
    """Works in an order, the nanoseconds of those that run again, and how all of it is placed."""

    works: tuple[Work, ...]
    ns: float
    placed: Placed
    peak: Peak

    @property
    def bytes(self) -> int:
        return self.placed.memory.bytes

    def merit(self, limit: int) -> tuple[float, ...]:
        """What is least for the best trial: time of those within the limit, else bytes and how often they peak."""
        return (limit, 0, self.ns) if self.bytes <= limit else (self.bytes, self.peak.count, self.ns)


def within(limit: int, works: Sequence[Work], place: Callable[[Sequence[Work]], Placed]) -> Placed:
    """A placing with an arena of at most so many bytes, or else the smallest that is found.

    `place` orders and places works. Of placings that fit, the one that takes the least time is preferred.
    """
    placed = place(works)
    best = Trial(tuple(works), 0.0, placed, peak_of(placed.works, placed.memory))
    for _ in range(ROUNDS):
        if best.bytes <= limit or (lower := _lower(best, limit, place)) is None:
            break
        best = lower
    return best.placed


def _lower(base: Trial, limit: int, place: Callable[[Sequence[Work]], Placed]) -> Trial | None:
    """The trial of the most merit, if it has more than the base."""
    crossing = _Crossing(base)
    best = base

    def tried(segments: Sequence[Segment]) -> Trial:
        nonlocal best
        works, ns = crossing.recomputed(segments)
        placed = place(works)
        trial = Trial(tuple(works), base.ns + ns, placed, peak_of(placed.works, placed.memory))
        if trial.merit(limit)[:2] < base.merit(limit)[:2]:
            best = trial if best is base else min(best, trial, key=lambda t: t.merit(limit))
        return trial

    for segments in crossing.divisions():
        if tried(segments).bytes > limit:
            # What is read soon after the peak gains little there and takes memory when it is computed again.
            for count in sorted({int(share * len(segments)) for share in SHARES} - {0}):
                tried(segments[:count])
            continue
        for some in (segments, sorted(segments, key=lambda s: s.ns / s.freed)):
            low, high = 0, len(some)  # the first so many do not fit, and fit
            while high - low > 1:
                middle = (low + high) // 2
                if tried(some[:middle]).bytes > limit:
                    low = middle
                else:
                    high = middle
    return best if best is not base else None


class _Crossing:
    """The works of a trial in the order in which they run, and the values that cross its peak."""

    def __init__(self, base: Trial) -> None:
        placed = base.placed
        own = {w.writes[0]: w for w in base.works}
        peak = base.peak.work
        # Without the works that only copy values to outputs and states: placing makes them anew.
        before = [own[w.writes[0]] for w in placed.works[: peak + 1] if w.writes[0] in own]
        self.peak = len(before)
        self.works = [*before, *(own[w.writes[0]] for w in placed.works[peak + 1 :] if w.writes[0] in own)]
        self.fixed = placed.fixed
        self.size = {v: p.size for v, p in placed.memory.places.items()}
        self.writer = {v: k for k, w in enumerate(before) for v in w.writes if v not in self.fixed and self.size[v]}
        self.count = Counter(original(v) for w in self.works for v in w.writes)
        read = {v for w in self.works[self.peak :] for v in w.reads}
        self.alive = {
            k: alive for k, w in enumerate(before) if (alive := [v for v in w.writes if v in read and v in self.writer])
        }

    def divisions(self) -> Iterator[list[Segment]]:
        """The works before the peak in ever fewer segments, of about as many bytes that cross the peak each."""
        count, last = float(len(self.alive)), 0
        while count >= 1:
            if int(count) != last and (segments := self._segments(int(count))):
                yield segments
            last, count = int(count), count * FEWER

    def _segments(self, count: int) -> list[Segment]:
        """At most so many segments: those that free something."""
        total, seen = sum(self.size[v] for alive in self.alive.values() for v in alive), 0
        parts: list[list[int]] = [[] for _ in range(count)]
        for k, alive in self.alive.items():
            parts[seen * count // total].append(k)
            seen += sum(self.size[v] for v in alive)
        out: list[Segment] = []
        kept: set[str] = set()
        after = -1
        for part in parts:
            if part:
                segment = self._segment(after, [v for k in part for v in self.alive[k]], kept)
                after = part[-1]
                kept.update(segment.cut if segment.freed > 0 else segment.alive)
                out += [segment] if segment.freed > 0 else []
        return out

    def _segment(self, after: int, alive: list[str], kept: set[str]) -> Segment:
        """The segment of the works after a number, with the cut of the fewest bytes more than those of kept values."""
        import networkx as nx

        inside, outside = self._sources(alive, lambda v: self.writer[v] > after)
        number = {v: 2 * k for k, v in enumerate([*outside, *inside])}
        graph: nx.DiGraph[int] = nx.DiGraph()
        source, sink = -1, -2
        graph.add_nodes_from((source, sink))
        for value, n in number.items():
            graph.add_edge(n, n + 1, capacity=0 if value in kept else self.size[value])
        for value in outside:
            graph.add_edge(source, number[value])
        for value in inside:
            for read in self.works[self.writer[value]].reads:
                if read in number:
                    graph.add_edge(number[read] + 1, number[value])
        for value in alive:
            graph.add_edge(number[value] + 1, sink)
        found = nx.minimum_cut(graph, source, sink)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        before, _ = cast("tuple[set[int], set[int]]", found[1])
        cut = [v for v, n in number.items() if n in before and n + 1 not in before]
        again, _ = self._sources([v for v in alive if v not in cut], lambda v: v not in cut)
        works = dict.fromkeys(self.writer[v] for v in again)
        held = sum(self.size[v] for v in cut if v not in kept)
        freed = sum(self.size[v] for v in alive) - held
        return Segment(tuple(alive), tuple(cut), freed, sum(self.works[k].ns for k in works))

    def _sources(self, values: Iterable[str], within: Callable[[str], bool]) -> tuple[list[str], list[str]]:
        """The values and those they are computed from, as far as those are within; and the first ones beyond."""
        inside = {v: None for v in values if within(v)}
        outside: dict[str, None] = {v: None for v in values if not within(v)}
        stack = list(inside)
        while stack:
            for read in self.works[self.writer[stack.pop()]].reads:
                if read not in self.writer or read in inside:
                    continue
                if not within(read):
                    outside[read] = None
                    continue
                inside[read] = None
                stack.append(read)
        return list(inside), list(outside)

    def recomputed(self, segments: Sequence[Segment]) -> tuple[list[Work], float]:
        """The works with those of the segments run again before their values are read after the peak; their time."""
        cut = {v for s in segments for v in s.cut}
        gone = {v for s in segments for v in s.alive} - cut
        kept = ({v for alive in self.alive.values() for v in alive} - gone) | cut
        copies: dict[str, str] = {}
        count = self.count.copy()
        again: list[Work] = []
        out = self.works[: self.peak]
        for work in self.works[self.peak :]:
            for value in work.reads:
                if value in gone:
                    ready = len(again)
                    self._run_again(value, kept, copies, count, again)
                    out += again[ready:]
            out.append(_reading(work, copies))
        return out, sum(w.ns for w in again)

    def _run_again(
        self, value: str, kept: set[str], copies: dict[str, str], count: Counter[str], again: list[Work]
    ) -> None:
        """Add the works that compute a value again from what is kept, unless it was computed again before."""
        stack = [value]
        while stack:
            value = stack[-1]
            work = self.works[self.writer[value]]
            missing = [r for r in work.reads if r in self.writer and r not in kept and r not in copies]
            if missing and value not in copies:
                stack += missing
                continue
            stack.pop()
            if value not in copies:
                made = _reading(work, copies)
                for own in work.writes:
                    copies[own] = again_name(own, count[original(own)])
                    count[original(own)] += 1
                names = tuple(copies[v] if v in work.writes else v for v in made.values)
                # What it checks it has checked before.
                again.append(
                    replace(made, values=names, label=f"{work.label.removesuffix(LABEL)}{LABEL}", checks=False)
                )


def _reading(work: Work, copies: Mapping[str, str]) -> Work:
    """The work reading copies where there are any."""
    reads = {v: copies[v] for v in work.reads if v in copies}
    return replace(work, values=tuple(reads.get(v, v) for v in work.values)) if reads else work
