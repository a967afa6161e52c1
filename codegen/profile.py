"""Times of kernels over many calls, beside what the machine can do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from codegen.peaks import machine_peaks
from codegen.plan import Task

# Calls whose times are kept: the latest ones.
KEPT = 1000


@dataclass(slots=True)
class Profile:
    """The times of kernels in nanoseconds, a list for each call; `idle` is the least time of a run of none."""

    kernels: int
    calls: int = 0
    idle: int = 1 << 62
    times: list[Sequence[int]] = field(default_factory=list[Sequence[int]])

    def note(self, idle: int, times: Sequence[int]) -> None:
        """One more call."""
        self.calls += 1
        self.idle = min(self.idle, idle)
        self.times.append(times)
        del self.times[:-KEPT]

    def medians(self) -> list[float]:
        """The median time of each kernel in seconds."""
        medians = [statistics.median(call[k] for call in self.times) for k in range(self.kernels)]
        return [max(0.0, m - self.idle) / 1e9 for m in medians]

    def columns(self, works: Sequence[Task], workers: int) -> list[str]:
        """A heading and a piece of text for each kernel.

        Time, share of the whole, billions of operations per second with their share of the peak in float32, and
        billions of bytes with their share of the speed of a copy. Bytes that come from a cache can exceed it.
        """
        peaks = machine_peaks(workers)
        times = self.medians()
        whole = sum(times) or 1.0
        lines = ["       time  share   GFLOP/s        GB/s        "]
        for seconds, work in zip(times, works, strict=True):
            rate, speed = (amount / seconds if seconds else 0.0 for amount in (work.flops, work.bytes))
            lines.append(
                f"{seconds * 1e6:8.1f} us {seconds / whole:5.0%} {rate / 1e9:8.1f} {rate / peaks.flops:5.0%} "
                f"{speed / 1e9:7.1f} {speed / peaks.bytes:5.0%}  "
            )
        return lines

    def summary(self, workers: int) -> str:
        """How long all kernels take, over how many calls, and the peaks they are compared with."""
        peaks = machine_peaks(workers)
        return (
            f"{sum(self.medians()) * 1e6:,.1f} us in kernels, medians of {len(self.times)} of {self.calls} calls; "
            f"peaks: {peaks.flops / 1e9:,.0f} GFLOP/s in float32, a copy at {peaks.bytes / 1e9:,.1f} GB/s"
        )


def kernel_table(
    works: Sequence[Task],
    meets: Sequence[bool],
    describe: Callable[[Task], str],
    profile: Profile | None,
    workers: int,
) -> list[str]:
    """A heading and a line per kernel, | where workers meet before it, with times when there is a profile of them."""
    head, *rest = [""] * (1 + len(works)) if profile is None else profile.columns(works, workers)
    lines = [f"      operations         bytes  {head}kernel"]
    for work, meet, column in zip(works, meets, rest, strict=True):
        lines.append(f"  {'|' if meet else ' '} {work.flops:>13,} {work.bytes:>13,}  {column}{describe(work)}")
    return lines
