"""Memory that calls use again and again: where it begins, what is in it, and what pages it stands on."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest

from codegen.memory import LARGE, LARGE_PAGE, zeros
from codegen.target import CACHE_LINE


@pytest.mark.parametrize("count", [1, 64, 1000, LARGE - 1, LARGE, LARGE + 4097])
def test_zeros_on_whole_lines(count: int) -> None:
    memory = zeros(count)
    assert memory.shape == (count,)
    assert not memory.any()
    assert memory.ctypes.data % CACHE_LINE == 0
    memory[:] = 1
    assert memory.flags.writeable
    assert memory.sum() == count


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="for systems that have large pages and tell of them",
)
def test_much_memory_asks_for_large_pages() -> None:
    """Of its own: the system has none, by default, for memory that is shared with other processes."""
    memory = zeros(3 * LARGE_PAGE)
    start = memory.ctypes.data
    assert start % LARGE_PAGE == 0
    maps = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    spans = {m: [int(x, 16) for x in m.split()[0].split("-")] for m in maps if m}
    (own,) = [m for m, (first, last) in spans.items() if first <= start < last]
    flags = re.search(r"VmFlags:(.*)", own)
    assert flags is not None
    assert "hg" in flags[1].split()
    assert own.split()[1].endswith("p")


def test_too_much_memory_is_said_to_be() -> None:
    with pytest.raises(MemoryError, match=r"the system has no [0-9,]+ bytes"):
        zeros(1 << 60)


def test_any_refusal_is_one_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    with pytest.raises(MemoryError):
        zeros(LARGE)
    assert zeros(LARGE - 1).shape == (LARGE - 1,)
