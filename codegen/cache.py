"""Machine code on disk: objects that were compiled before, for this machine and by this code, and plans of programs.

One file per object, named by what it was made from. Objects are native code: a damaged one can end the process, and one
from somebody else can do anything. So a file is used only if its checksum fits, from a folder nobody else can write.

A disk takes about a millisecond to have a file for sure. Nobody waits for that: a thread writes what is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import threading
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from codegen import jit
from codegen.target import Target
from symgrad.errors import CompileError

MAGIC = b"symgrad object 1\n"
LIMIT = 256 << 20
BLOCK = 4096
# Temporary files of processes that ended while writing are removed after so many seconds.
STALE_SECONDS = 3600

_lock = threading.Lock()  # for what waits to be written, in any folder

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def object_key(text: str, target: Target, options: str = "") -> str:
    """The name of the object of a kernel: its text, the target, the options, and all that makes code of it."""
    digest = _common(target, options, jit.versions(), _sources()).copy()
    digest.update(text.encode())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _common(target: Target, *parts: str) -> Any:
    digest = hashlib.sha256()
    for part in (repr(target), *parts):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest


@lru_cache(maxsize=1)
def _sources() -> str:
    """A fingerprint of the sources: another version of them, or one that is being worked on, makes other code."""
    digest = hashlib.sha256()
    for package in ("codegen", "symgrad", "symgrad.ops"):
        for file in sorted(resources.files(package).iterdir(), key=lambda f: f.name):
            if file.name.endswith(".py"):
                data = file.read_bytes()
                digest.update(f"{package} {file.name} {len(data)}\n".encode())
                digest.update(data)
    return digest.hexdigest()


class ObjectCache:
    """Objects in a folder of their own, at most about `limit` bytes of them; the oldest go first.

    Any number of threads and processes may use a folder at once. What cannot be written is not kept, and what is
    damaged is made again. A process does not end before what it keeps is written. CompileError for a folder that is not
    ours alone.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder = folder
        self.limit = limit
        self._unchecked: int | None = None  # bytes written since the folder was measured; None before the first time
        self._pending: dict[str, bytes] = {}
        self._writer: threading.Thread | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_private(folder)
        except OSError as error:
            raise CompileError(f"the cache of machine code cannot be kept in {folder}: {error}") from error

    def find(self, key: str) -> bytes | None:
        """The object with this key, whole as it was kept, or None."""
        with _lock:
            if (code := self._pending.get(key)) is not None:
                return code
        path = self.folder / key
        try:
            data = path.read_bytes()
        except OSError:
            return None
        start = len(MAGIC) + hashlib.sha256().digest_size
        code = data[start:]
        if data[:start] != MAGIC + hashlib.sha256(code).digest():
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return code

    def keep(self, key: str, code: bytes) -> None:
        """Keep an object under a key, if the folder can be written. It is on the disk soon."""
        with _lock:
            self._pending[key] = code
            if self._writer is not None and self._writer.is_alive():
                return
            self._writer = threading.Thread(target=self._write_pending, name="symgrad cache")
            with contextlib.suppress(RuntimeError):  # the interpreter ends: what is kept now is not kept
                self._writer.start()

    def settle(self) -> None:
        """Wait until all that was kept is on the disk."""
        with _lock:
            writer = self._writer
        if writer is not None and writer.is_alive():
            writer.join()
        else:
            self._write_pending()  # a process that was forked has no thread

    def _write_pending(self) -> None:
        while True:
            with _lock:
                if not self._pending:
                    self._writer = None
                    return
                key, code = next(iter(self._pending.items()))
            self._write(key, code)
            with _lock:
                if self._pending.get(key) is code:
                    del self._pending[key]

    def _write(self, key: str, code: bytes) -> None:
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(prefix="tmp-", dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(MAGIC + hashlib.sha256(code).digest() + code)
                # On the disk before it has its name: a crash leaves no entry without its bytes.
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / key)
        except OSError:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            return
        if self._unchecked is None or self._unchecked > self.limit // 16:
            self._shrink()
        self._unchecked = (self._unchecked or 0) + _occupied(len(code))

    def _shrink(self) -> None:
        """Remove the files used longest ago down to three quarters of the limit, and those left half written."""
        self._unchecked = 0
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                info = path.stat()
                found.append((info.st_mtime, _occupied(info.st_size), path))
        if not found:
            return
        newest = max(when for when, _, _ in found)
        total = sum(size for _, size, _ in found)
        goal = self.limit if total <= self.limit else self.limit * 3 // 4
        for when, size, path in sorted(found):
            stale = path.name.startswith("tmp-") and newest - when > STALE_SECONDS
            if total <= goal and not stale:
                continue
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def _occupied(size: int) -> int:
    """About how many bytes of a disk a file takes: whole blocks, and its entry."""
    return (size // BLOCK + 2) * BLOCK


def _check_private(folder: Path) -> None:
    """CompileError unless the folder belongs to this user and nobody else can write into it."""
    if os.name != "posix":
        return  # a folder in the user's profile is the user's
    info = folder.stat()
    if info.st_uid != os.getuid():
        raise CompileError(f"the cache of machine code cannot be kept in {folder}: it belongs to another user")
    if stat.S_IMODE(info.st_mode) & 0o077:
        folder.chmod(0o700)
