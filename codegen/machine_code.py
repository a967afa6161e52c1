"""Machine code for kernels: each distinct one is made once per process, from the cache or while others are lowered."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from codegen import jit, threads
from codegen.cache import ObjectCache, object_key
from codegen.emit import emit, module_text
from codegen.loop import Kernel
from codegen.loop_print import kernel_text
from codegen.target import Target
from codegen.tiling import Choice
from codegen.writer import scratch_layout

Tell = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Compiled:
    """Machine code of one kernel and the library that keeps it mapped."""

    address: int
    scratch_bytes: int
    library: jit.Library


@dataclass(slots=True)
class KernelStore:
    """Compiled kernels by target and loop text, so that equal kernels are compiled once per process.

    A kernel lives as long as an executable that runs it. `choices` are what was measured to be fastest, by the keys
    they are kept under. One build at a time may use a store.
    """

    compiled: weakref.WeakValueDictionary[tuple[str, str], Compiled] = field(
        default_factory=weakref.WeakValueDictionary[tuple[str, str], "Compiled"]
    )
    choices: dict[str, Choice] = field(default_factory=dict[str, Choice])


class Assembly:
    """The machine code of one build.

    What the store and the cache lack is compiled by the batch: from `begin` on where a kernel is known early, else from
    `finish` on. Each kernel is an object of its own, named by its text, so that another build finds it in the cache
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
        self._texts: dict[int, tuple[Kernel, str]] = {}  # by identity: what works share is printed once
        self._found: dict[str, Compiled] = {}
        self._objects: dict[str, bytes] = {}
        self._numbers: dict[str, int] = {}
        self._keys: dict[str, str] = {}
        self._driver = threads.missing_driver() if target == jit.host_target() else None
        if self._driver is not None and not self._stands(self._driver, f"level {threads.DRIVER_LEVEL}"):
            self._numbers[self._driver] = batch.add(self._driver, threads.DRIVER_LEVEL)

    def begin(self, kernel: Kernel) -> None:
        """Make the code of a kernel, unless it stands or is being made."""
        text = self._text(kernel)
        if text in self._found or text in self._objects or text in self._numbers:
            return
        if (stands := self._store.compiled.get((self._target.name, text))) is not None:
            self._found[text] = stands
            return
        if self._stands(text):
            return
        module = module_text([emit(kernel, _symbol(text), self._target)], self._target)
        if self._tell is not None:
            self._tell("llvm", module)
        self._numbers[text] = self._batch.add(module)

    def _stands(self, text: str, options: str = "") -> bool:
        """Whether the object is in the cache; it is taken from there then."""
        if self._cache is None:
            return False
        key = self._keys[text] = object_key(text, self._target, options)
        if (code := self._cache.find(key)) is not None:
            self._objects[text] = code
        return code is not None

    def finish(self, kernels: Sequence[Kernel]) -> list[Compiled]:
        """The code of these kernels, with what is new in one library."""
        for kernel in kernels:
            self.begin(kernel)
        wanted = {text: kernel for kernel in kernels if (text := self._text(kernel)) not in self._found}
        for text, number in self._numbers.items():
            code = self._objects[text] = self._batch.object(number)
            if self._cache is not None:
                self._cache.keep(self._keys[text], code)
        if self._driver is not None:
            threads.offer_driver(self._objects[self._driver])
        if wanted:
            library = jit.link([self._objects[text] for text in wanted], map(_symbol, wanted))
            for text, kernel in wanted.items():
                made = Compiled(library.address(_symbol(text)), scratch_layout(kernel)[1], library)
                self._found[text] = self._store.compiled[self._target.name, text] = made
        return [self._found[self._text(kernel)] for kernel in kernels]

    def _text(self, kernel: Kernel) -> str:
        known = self._texts.get(id(kernel))
        if known is None:
            known = self._texts[id(kernel)] = kernel, kernel_text(kernel)
        return known[1]


def _symbol(text: str) -> str:
    return "k" + hashlib.sha256(text.encode()).hexdigest()[:16]
