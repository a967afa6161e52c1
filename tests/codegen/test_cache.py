"""Machine code on disk: used again, never when damaged or made for another machine, by many processes at once."""

# pyright: basic
from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import symgrad as sg
from codegen import cache as caching
from codegen import jit
from codegen.build import build
from codegen.cache import MAGIC, ObjectCache, object_key
from codegen.machine_code import KernelStore
from codegen.threads import serial_entry
from symgrad.errors import CompileError
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.record import replace
from symgrad.settings import read_settings

ROOT = Path(__file__).parent.parent.parent
TARGET = jit.host_target()
serial_entry()  # the driver is made now, and is in no cache of these tests


def _program() -> tuple[Program, np.ndarray]:
    graph = sg.Graph()
    x = graph.input("x", (5,))
    return Program(graph, (x,), (sg.exp(x) * 3.0,), name="cached"), np.linspace(0, 1, 5, dtype=np.float32)


def _compiled(cache: ObjectCache | None) -> None:
    """Build in a store of its own, as a new process would."""
    program, _ = _program()
    build(program, KernelStore(), cache=cache)
    if cache is not None:
        cache.settle()


def _never() -> bytes:
    raise AssertionError("this object is in the cache")


def kept(cache: ObjectCache, key: str, code: bytes) -> bytes:
    """The object under a key, kept there if it is not."""
    if cache.find(key) is None:
        cache.keep(key, code)
    cache.settle()
    return cache.find(key) or b""


def _files(folder: Path) -> dict[str, int]:
    """What is in a folder, by name, with the number of the file: what is written again has another."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_code_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compiled(ObjectCache(tmp_path))
    made = _files(tmp_path)
    assert len(made) == 2  # the code of a kernel, and the plan
    monkeypatch.setattr(jit.Batch, "add", lambda *args: _never())
    _compiled(ObjectCache(tmp_path))
    assert _files(tmp_path) == made
    with pytest.raises(AssertionError):
        _compiled(None)


def test_cached_code_computes_the_same(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, symgrad as sg\n"
        "g = sg.Graph(); x = g.input('x', ('n', 7)); w = g.param('w', np.ones((7, 3), np.float32))\n"
        "y = sg.nn.softmax(sg.tanh(x) @ w)\n"
        "f = sg.compile([x], [y, sg.grad(sg.sum(y * y), w)])\n"
        "results = f(np.linspace(-1, 1, 21, dtype=np.float32).reshape(3, 7))\n"
        "sys.stdout.write(b''.join(a.tobytes() for a in results).hex())"
    )
    environment = {**os.environ, "SYMGRAD_CACHE": str(tmp_path)}
    results: list[bytes] = []
    files: list[set[str]] = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True, capture_output=True)
        results.append(done.stdout)
        files.append({p.name for p in (tmp_path / "objects").iterdir()})
    assert results[0] == results[1] != b""
    assert files[0] == files[1]
    assert len(files[0]) > 2


def test_only_kernels_that_changed_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel has an entry of its own, whatever it is compiled together with."""
    made: list[str] = []
    add = jit.Batch.add
    monkeypatch.setattr(jit.Batch, "add", lambda self, text, level: (made.append(text), add(self, text, level))[1])

    def count(width: int) -> int:
        made.clear()
        graph = sg.Graph()
        x = graph.input("x", (5, 8))
        y = sg.nn.softmax(sg.sum(sg.exp(x), axis=0))
        z = sg.sum(sg.tanh(graph.input("z", (width, 3))), axis=1)
        cache = ObjectCache(tmp_path)
        build(optimize(Program(graph, tuple(graph.inputs), (y, z)), "infer"), KernelStore(), cache=cache)
        cache.settle()
        return len(made)

    first = count(7)
    assert first >= 2
    assert (count(7), count(9), count(9)) == (0, 1, 0)


DAMAGES = {
    "flipped": lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
    "header": lambda data: data[:3] + b"?" + data[4:],
    "checksum": lambda data: data[: len(MAGIC)] + bytes(32) + data[len(MAGIC) + 32 :],
    "short": lambda data: data[: len(data) // 2],
    "long": lambda data: data + b"\0",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_made_again(tmp_path: Path, damage: str) -> None:
    cache = ObjectCache(tmp_path)
    assert kept(cache, "key", b"code" * 50) == b"code" * 50
    path = tmp_path / "key"
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    assert kept(cache, "key", b"code" * 50) == b"code" * 50
    assert path.read_bytes() == whole
    assert cache.find("key") == b"code" * 50


def test_the_key_has_everything_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        object_key("a", TARGET),
        object_key("ab", TARGET),
        object_key("b", TARGET),
        object_key("a", TARGET, "level 3"),
        object_key("a", replace(TARGET, cpu="another")),
        object_key("a", replace(TARGET, features=TARGET.features + ",+new")),
        object_key("a", replace(TARGET, l2=TARGET.l2 * 2)),
    }
    assert object_key("a", TARGET) in keys
    monkeypatch.setattr(jit, "versions", lambda: "llvmlite 99")
    keys.add(object_key("a", TARGET))
    monkeypatch.setattr(caching, "_sources", lambda: "other sources")
    keys.add(object_key("a", TARGET))
    assert len(keys) == 9


@pytest.mark.skipif(os.name != "posix", reason="modes of folders")
def test_the_folder_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    kept(ObjectCache(open_to_all), "key", b"code")
    assert open_to_all.stat().st_mode & 0o777 == 0o700
    assert (open_to_all / "key").stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(CompileError, match="belongs to another user"):
        ObjectCache(open_to_all)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CompileError, match="cannot be kept in"):
        ObjectCache(tmp_path / "file" / "objects")


def test_what_cannot_be_written_is_not_kept(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    cache.keep("key", b"code")
    cache.settle()
    assert cache.find("key") is None


def test_the_size_is_bounded(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit=100_000)
    now = time.time()
    for k in range(60):
        kept(cache, f"{k:02}", bytes(5_000))
        os.utime(tmp_path / f"{k:02}", (now - 100 + k, now - 100 + k))
    left = sorted(p.name for p in tmp_path.iterdir())
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 110_000
    assert left == [f"{k:02}" for k in range(60 - len(left), 60)]  # the oldest have gone


def test_half_written_files_go(tmp_path: Path) -> None:
    (tmp_path / "tmp-old").write_bytes(b"half")
    os.utime(tmp_path / "tmp-old", (1, 1))
    (tmp_path / "tmp-new").write_bytes(b"half")
    kept(ObjectCache(tmp_path), "key", b"code")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key", "tmp-new"]


def test_many_processes_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from codegen.cache import ObjectCache\n"
        "cache = ObjectCache(Path(sys.argv[1]), limit=40_000)\n"
        "for turn in range(60):\n"
        "    for k in range(6):\n"
        "        want = bytes([(turn + k) % 9]) * 5_000\n"
        "        found = cache.find(str((turn + k) % 9))\n"
        "        assert found in (None, want)\n"
        "        if found is None: cache.keep(str((turn + k) % 9), want)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) for _ in range(4)]
    assert [p.wait() for p in running] == [0] * 4
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("tmp-")]


def test_nobody_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    replaced = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (free.wait(), replaced(*paths)))
    cache = ObjectCache(tmp_path)
    for k in range(3):
        cache.keep(f"{k}", bytes([k]))
    assert [cache.find(f"{k}") for k in range(3)] == [bytes([k]) for k in range(3)]
    assert ObjectCache(tmp_path).find("0") is None
    free.set()
    cache.settle()
    assert [ObjectCache(tmp_path).find(f"{k}") for k in range(3)] == [bytes([k]) for k in range(3)]
    cache.settle()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_child_writes_what_it_keeps(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from codegen.cache import ObjectCache\n"
        "sync = os.fsync\n"
        "os.fsync = lambda file: (time.sleep(0.2), sync(file))\n"
        "cache = ObjectCache(Path(sys.argv[1]))\n"
        "cache.keep('parent', b'parent')\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    cache.keep('child', b'child')\n"
        "    cache.settle()\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=60)
    assert [ObjectCache(tmp_path).find(name) for name in ("parent", "child")] == [b"parent", b"child"]


def test_shown_text_is_made(tmp_path: Path) -> None:
    """Asked for the LLVM text, a process makes it although the object is in the cache."""
    code = (
        "import numpy as np, symgrad as sg; g = sg.Graph(); x = g.input('x', (3,))\n"
        "sg.compile([x], sg.sin(x))(np.ones(3, np.float32))"
    )
    for debug in ("0", "5"):
        environment = {**os.environ, "SYMGRAD_CACHE": str(tmp_path), "SYMGRAD_DEBUG": debug}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, check=True, capture_output=True, text=True
        )
        assert ("define void @k" in done.stderr) == (debug == "5")


def test_settings() -> None:
    assert read_settings({}).cache == ""
    assert read_settings({"SYMGRAD_CACHE": "off"}).cache == "off"
