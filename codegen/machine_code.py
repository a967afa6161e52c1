"""Machine code for kernels: each distinct one is made once per process, from the cache or while others are lowered."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from codegen import jit, threads
from codegen.cache import ObjectCache, object_key
from codegen.emit import emit, module_text
from codegen.loop import Accumulate, Kernel, statements_of
from codegen.loop_print import kernel_text
from codegen.target import Target
from codegen.tiling import Choice
from codegen.writer import scratch_layout

Tell = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Compiled:
    """Machine code of one kernel, its name, and the library that keeps it mapped."""

    name: str
    address: int
    scratch_bytes: int
    library: jit.Library


@dataclass(slots=True)
class KernelStore:
    """Compiled kernels by name, so that equal kernels are compiled once per process.

    A kernel lives as long as an executable that runs it. `choices` are what was measured to be fastest, by the keys
    they are kept under. One build at a time may use a store.
    """

    compiled: weakref.WeakValueDictionary[str, Compiled] = field(
        default_factory=weakref.WeakValueDictionary[str, "Compiled"]
    )
    choices: dict[str, Choice] = field(default_factory=dict[str, Choice])


def kernel_name(text: str, target: Target) -> str:
    """The name of a kernel: of its loops and the machine they are for."""
    return f"k{hashlib.sha256(f'{target!r}{text}'.encode()).hexdigest()}"


def _effort(kernel: Kernel) -> int:
    """The level of code generation for a kernel.

    The products of a register tile are written in the order they run best in. LLVM's last scheduling, which takes a
    tenth of the time, changes nothing there that was measured; normalizations of rows take 2 to 8 % less time with it.
    """
    return 1 if any(isinstance(s, Accumulate) and s.combine == "fma" for s in statements_of(kernel.body)) else 2


class Assembly:
    """The machine code of one build.

    What the store and the cache lack is compiled by the batch: from `begin` on where a kernel is known early, else from
    `finish` on. Each kernel is an object of its own, kept under its name, so that another build finds it in the cache
    whatever the kernels around it are.
    """

    def __init__(
        self, store: KernelStore, target: Target, batch: jit.Batch, cache: ObjectCache | None, tell: Tell | None
    ) -> None:
        self._store = store
        self._target = target
        self._batch = batch
        self._cache = cache
        self._tell = tell
        self._names: dict[int, tuple[Kernel, str]] = {}  # by identity: what works share is printed once
        self._found: dict[str, Compiled] = {}
        self._objects: dict[str, bytes] = {}
        self._numbers: dict[str, int] = {}
        self._keys: dict[str, str] = {}
        self._driver = threads.missing_driver() if target == jit.host_target() else None
        if self._driver is not None and not self._stands(self._driver, f"level {threads.DRIVER_LEVEL}"):
            self._numbers[self._driver] = batch.add(self._driver, threads.DRIVER_LEVEL)

    def begin(self, kernel: Kernel) -> None:
        """Make the code of a kernel, unless it stands or is being made."""
        name = self._name(kernel)
        if self._has(name):
            return
        module = module_text([emit(kernel, name, self._target)], self._target)
        if self._tell is not None:
            self._tell("llvm", module)
        self._numbers[name] = self._batch.add(module, _effort(kernel))

    def _has(self, name: str) -> bool:
        """Whether a kernel's code stands, is in the cache, or is being made."""
        if name in self._found or name in self._objects or name in self._numbers:
            return True
        if (made := self._store.compiled.get(name)) is not None:
            self._found[name] = made
            return True
        return self._stands(name)

    def _stands(self, name: str, options: str = "") -> bool:
        """Whether the object is in the cache; it is taken from there then."""
        if self._cache is None:
            return False
        key = self._keys[name] = object_key(name, self._target, options)
        if (code := self._cache.find(key)) is not None:
            self._objects[name] = code
        return code is not None

    def finish(self, kernels: Sequence[Kernel]) -> list[Compiled]:
        """The code of these kernels, with what is new in one library."""
        for kernel in kernels:
            self.begin(kernel)
        names = [self._name(kernel) for kernel in kernels]
        self._collect()
        self._link({name: scratch_layout(k)[1] for name, k in zip(names, kernels, strict=True)})
        return [self._found[name] for name in names]

    def recall(self, code: Sequence[tuple[str, int]]) -> list[Compiled] | None:
        """The code of kernels by name and bytes of scratch memory, if it stands or is in the cache."""
        if not all(self._has(name) for name, _ in code):
            return None
        self._collect()
        self._link(dict(code))
        return [self._found[name] for name, _ in code]

    def _collect(self) -> None:
        """Take and keep what the batch has made."""
        for name, number in self._numbers.items():
            code = self._objects[name] = self._batch.object(number)
            if self._cache is not None:
                self._cache.keep(self._keys[name], code)
        if self._driver is not None:
            threads.offer_driver(self._objects[self._driver])

    def _link(self, scratch: Mapping[str, int]) -> None:
        """Link what is not found yet of the kernels that take so many bytes of scratch memory, by name."""
        wanted = [name for name in scratch if name not in self._found]
        if not wanted:
            return
        library = jit.link([self._objects[name] for name in wanted], wanted)
        for name in wanted:
            made = Compiled(name, library.address(name), scratch[name], library)
            self._found[name] = self._store.compiled[name] = made

    def _name(self, kernel: Kernel) -> str:
        known = self._names.get(id(kernel))
        if known is None:
            known = self._names[id(kernel)] = kernel, kernel_name(kernel_text(kernel), self._target)
        return known[1]
