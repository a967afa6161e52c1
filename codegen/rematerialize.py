"""Keeping the arena under a limit: kernels run again for values that would otherwise be kept for a long time.

A value that is written before the peak of the arena and read after it need not live in between: the kernels it comes
from can run again before it is read, on values that are kept. Which are kept is decided for each segment of what runs
before the peak, by a minimum cut between the values the segment starts from and those of it that are read after the
peak, with bytes as capacities: what is cut is kept, what lies behind is computed again. Few long segments keep little
and compute much at a time, many short ones the reverse; all are tried, and then the new peak is treated in the same
way. The same machine code runs on the same operands, so every value has the same bits. Nothing depends on what is a
forward or a backward pass.

Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost" (2016), for segments; a minimum cut for
what to keep is how AOTAutograd of PyTorch divides operators into a forward and a backward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from codegen.footprint import NEAR
from codegen.inplace import Overwriting
from codegen.place import Placed
from codegen.plan import Work, again_name, original, rounded
from symgrad.record import record, replace

if TYPE_CHECKING:
    import networkx as nx

# Peaks that are treated one after the other.
ROUNDS = 40
# How the number of segments shrinks from one trial to the next.
FEWER = 0.7
# Shares of the segments, from the first on, that are tried where all together are not within the limit.
SHARES = (0.25, 0.5, 0.75, 0.9)
# So many segments are tried one by one too.
ALONE = 40
# Trials of a peak that are placed, until one is better than what was there.
PLACED = 4
LABEL = " (again)"


class Run(NamedTuple):
    """A work with the values it reads and writes in this place, which are copies where it runs again."""

    work: Work
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    again: bool = False


class Peak(NamedTuple):
    """The run at which most bytes are alive, those bytes, and at how many runs about as many are."""

    run: int
    bytes: int
    times: int


@record
class Trial:
    """Runs in order, the nanoseconds of those that run again, and their peak."""

    runs: tuple[Run, ...]
    ns: float
    peak: Peak

    def merit(self, limit: int) -> tuple[float, ...]:
        """What is least for the best trial: time of those within the limit, else bytes and how often they peak."""
        within = self.peak.bytes <= limit
        return (limit, 0, self.ns) if within else (self.peak.bytes, self.peak.times, self.ns)


@record
class Segment:
    """Neighboring runs before the peak: what of their values is read after it, and what the cut keeps for that.

    `freed` are the bytes it saves at the peak, `ns` the time to compute again what is not kept.
    """

    alive: tuple[str, ...]
    cut: tuple[str, ...]
    freed: int
    ns: float


def within(limit: int, works: Sequence[Work], place: Callable[[Sequence[Work]], Placed]) -> Placed:
    """A placing with an arena of at most so many bytes, or else the smallest that is found.

    `place` orders and places works. Of what fits, the kernels that run again take little time.
    """
    placed = place(works)
    arena = Arena(works, placed.fixed)
    runs = _in_order([Run(w, w.reads, w.writes) for w in works], placed)
    start = Trial(runs, 0.0, arena.peak(runs))
    fast, saves_time = _descent(arena, start, placed, limit, place)
    if fast.memory.bytes <= limit or not saves_time:
        return fast
    # A way that saves time may end above a limit that the one to the fewest bytes keeps.
    small, _ = _descent(arena, start, placed, 0, place)
    return min(fast, small, key=lambda p: p.memory.bytes)


def _descent(
    arena: Arena, base: Trial, placed: Placed, limit: int, place: Callable[[Sequence[Work]], Placed]
) -> tuple[Placed, bool]:
    """Treat one peak after the other until a limit is kept, or nothing has fewer bytes or the same less often.

    And whether one of several ways was chosen for its time.
    """
    best, saves_time = placed, False
    for _ in range(ROUNDS):
        if best.memory.bytes <= limit:
            break
        gaps = max(placed.memory.bytes - base.peak.bytes, 0)
        for trial in _lower(arena, base, limit - gaps):
            saves_time |= trial.peak.bytes <= limit - gaps
            tried = place([_work(run) for run in trial.runs])
            ordered = _in_order(trial.runs, tried)
            peak = arena.peak(ordered)
            if (tried.memory.bytes, peak.times) < (placed.memory.bytes, base.peak.times):
                base, placed = Trial(ordered, trial.ns, peak), tried
                break
        else:
            break
        best = min(best, placed, key=lambda p: p.memory.bytes)
    return best, saves_time


def _in_order(runs: Iterable[Run], placed: Placed) -> tuple[Run, ...]:
    """The runs as they were placed, without works that copy values to outputs and states: placing adds them anew."""
    own = {run.writes[0]: run for run in runs}
    return tuple([own[w.writes[0]] for w in placed.works if w.writes[0] in own])


def _work(run: Run) -> Work:
    """The work to place for a run."""
    names = dict(zip((*run.work.reads, *run.work.writes), (*run.reads, *run.writes), strict=True))
    values = tuple(names[v] for v in run.work.values)
    if not run.again:
        return run.work if values == run.work.values else replace(run.work, values=values)
    # What it checks it has checked before.
    return replace(run.work, values=values, label=run.work.label + LABEL, checks=False)


class Arena:
    """What the arena holds while works run: values of so many bytes, some written over others."""

    def __init__(self, works: Sequence[Work], fixed: frozenset[str]) -> None:
        self.fixed = fixed
        self.size: dict[str, int] = {}
        self.over: set[tuple[str, str]] = set()
        overwriting = Overwriting()
        for work in works:
            buffers = dict(zip(work.values, work.kernel.params, strict=True))
            self.size |= {v: rounded(b.size * b.dtype.itemsize) for v, b in buffers.items()}
            for new in work.writes:
                shape = buffers[new].size, buffers[new].dtype.itemsize
                fitting = [v for v in work.reads if (buffers[v].size, buffers[v].dtype.itemsize) == shape]
                self.over |= {(new, v) for v in fitting if v not in fixed and overwriting.may(work, new, v)}

    def bytes(self, value: str) -> int:
        """The bytes a value takes in the arena: none where it lives elsewhere."""
        return 0 if value in self.fixed else self.size[original(value)]

    def peak(self, runs: Sequence[Run]) -> Peak:
        """The peak of runs in this order."""
        last = {v: k for k, run in enumerate(runs) for v in (*run.reads, *run.writes)}
        change = np.zeros(len(runs) + 2, np.int64)
        for k, run in enumerate(runs):
            left = [v for v in run.reads if last[v] == k]
            for new in run.writes:
                size = self.bytes(new)
                old = next((v for v in left if size and (original(new), original(v)) in self.over), None)
                if old is not None:
                    left.remove(old)
                change[k + (old is not None)] += size
                change[max(last[new], k + (old is not None) - 1) + 1] -= size
        used = np.cumsum(change)
        run = int(np.argmax(used))
        return Peak(run, int(used[run]), int(np.count_nonzero(used > NEAR * used[run])))


def _lower(arena: Arena, base: Trial, limit: int) -> list[Trial]:
    """Some trials of the most merit, if that is more than the base has."""
    crossing = Crossing(arena, base)
    found: dict[tuple[float, ...], Trial] = {}

    def tried(segments: Sequence[Segment]) -> bool:
        runs, ns = crossing.recomputed(segments)
        trial = Trial(tuple(runs), base.ns + ns, arena.peak(runs))
        within = trial.peak.bytes <= limit
        # Of trials above the limit that peak alike one is enough, the fastest.
        merit = trial.merit(limit) if within else trial.merit(limit)[:2]
        if merit[:2] < base.merit(limit)[:2] and (merit not in found or ns < found[merit].ns - base.ns):
            found[merit] = trial
        return within

    for segments in crossing.divisions():
        if not tried(segments):
            # What is read soon after the peak gains little there and takes memory when it is computed again.
            for count in sorted({int(share * len(segments)) for share in SHARES} - {0}):
                tried(segments[:count])
            if len(segments) <= ALONE:
                for segment in segments:
                    tried([segment])
            continue
        for some in (segments, sorted(segments, key=lambda s: s.ns / s.freed)):
            low, high = 0, len(some)  # the first so many are not within the limit, and are
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if tried(some[:middle]) else (middle, high)
    return [found[merit] for merit in sorted(found)[:PLACED]]


class Crossing:
    """The values that cross the peak of a trial."""

    def __init__(self, arena: Arena, base: Trial) -> None:
        self.arena = arena
        self.runs = base.runs
        self.peak = base.peak.run + 1
        before, after = self.runs[: self.peak], self.runs[self.peak :]
        self.writer = {v: k for k, run in enumerate(before) for v in run.writes if arena.bytes(v)}
        self.count = Counter(original(v) for run in self.runs for v in run.writes)
        read = {v for run in after for v in run.reads}
        crossing = [[v for v in run.writes if v in read and v in self.writer] for run in before]
        self.alive = {k: values for k, values in enumerate(crossing) if values}

    def divisions(self) -> Iterator[list[Segment]]:
        """What runs before the peak in ever fewer segments, of about as many bytes that cross the peak each."""
        count, last = float(len(self.alive)), 0
        while count >= 1:
            if int(count) != last and (segments := self._segments(int(count))):
                yield segments
            last, count = int(count), count * FEWER

    def _bytes(self, values: Iterable[str]) -> int:
        return sum(map(self.arena.bytes, values))

    def _segments(self, count: int) -> list[Segment]:
        """At most so many segments: those that free something."""
        total, seen = sum(map(self._bytes, self.alive.values())), 0
        parts: list[list[int]] = [[] for _ in range(count)]
        for k, alive in self.alive.items():
            parts[seen * count // total].append(k)
            seen += self._bytes(alive)
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
        """The segment of the runs after a number, with the cut of the fewest bytes more than those of kept values."""
        import networkx as nx

        inside, outside = self._sources(alive, lambda v: self.writer[v] > after)
        number = {v: 2 * k for k, v in enumerate([*outside, *inside])}
        graph: nx.DiGraph[int] = nx.DiGraph()
        source, sink = -1, -2
        graph.add_nodes_from((source, sink))
        for value, n in number.items():
            graph.add_edge(n, n + 1, capacity=0 if value in kept else self.arena.bytes(value))
        for value in outside:
            graph.add_edge(source, number[value])
        for value in inside:
            for read in self.runs[self.writer[value]].reads:
                if read in number:
                    graph.add_edge(number[read] + 1, number[value])
        for value in alive:
            graph.add_edge(number[value] + 1, sink)
        found = nx.minimum_cut(graph, source, sink)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        before, _ = cast("tuple[set[int], set[int]]", found[1])
        cut = {v: None for v, n in number.items() if n in before and n + 1 not in before}
        again, _ = self._sources([v for v in alive if v not in cut], lambda v: v not in cut)
        runs = dict.fromkeys(self.writer[v] for v in again)
        freed = self._bytes(alive) - self._bytes(v for v in cut if v not in kept)
        return Segment(tuple(alive), tuple(cut), freed, sum(self.runs[k].work.ns for k in runs))

    def _sources(self, values: Iterable[str], within: Callable[[str], bool]) -> tuple[list[str], list[str]]:
        """The values and those they are computed from, as far as those are within; and the first ones beyond."""
        inside: dict[str, None] = {}
        outside: dict[str, None] = {}
        stack = list(values)
        while stack:
            value = stack.pop()
            if value in inside or value in outside:
                continue
            if not within(value):
                outside[value] = None
                continue
            inside[value] = None
            stack += [v for v in self.runs[self.writer[value]].reads if v in self.writer]
        return list(inside), list(outside)

    def recomputed(self, segments: Sequence[Segment]) -> tuple[list[Run], float]:
        """The runs, with those again that what is gone needs before it is read after the peak, and their time."""
        cut = {v for s in segments for v in s.cut}
        gone = {v for s in segments for v in s.alive} - cut
        kept = ({v for alive in self.alive.values() for v in alive} - gone) | cut
        copies: dict[str, str] = {}
        count = self.count.copy()
        out = list(self.runs[: self.peak])
        ns = 0.0
        for run in self.runs[self.peak :]:
            for value in run.reads:
                if value in gone and value not in copies:
                    again = self._again(value, kept, copies, count)
                    ns += sum(one.work.ns for one in again)
                    out += again
            out.append(run._replace(reads=_named(run.reads, copies)) if copies else run)
        return out, ns

    def _again(self, value: str, kept: set[str], copies: dict[str, str], count: Counter[str]) -> list[Run]:
        """The runs that compute a value again from what is kept and what has copies."""
        out: list[Run] = []
        stack = [value]
        while stack:
            value = stack[-1]
            run = self.runs[self.writer[value]]
            missing = [v for v in run.reads if v in self.writer and v not in kept and v not in copies]
            if missing and value not in copies:
                stack += missing
                continue
            stack.pop()
            if value in copies:
                continue
            reads = _named(run.reads, copies)
            for own in run.writes:
                copies[own] = again_name(own, count[original(own)])
                count[original(own)] += 1
            out.append(Run(run.work, reads, _named(run.writes, copies), again=True))
        return out


def _named(values: tuple[str, ...], copies: Mapping[str, str]) -> tuple[str, ...]:
    return tuple([copies.get(v, v) for v in values])
