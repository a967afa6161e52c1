"""LLVM: text to objects, assembly and linked code. The only module that knows llvmlite.

Nothing happens at import; the first call loads and initializes LLVM. Every call into LLVM is made under one lock that
is held over a fork, so that a child never finds LLVM in the middle of something.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from codegen.target import Target
from symgrad.errors import CompileError

if TYPE_CHECKING:
    from types import ModuleType

# The levels of code generation that are in use: see `codegen.machine_code`; 0 is for the driver.
LEVELS = (0, 1, 2)
HELPED_TURN = 1e-4
# The major versions of LLVM that are known to have the option that switches loop strength reduction off: one that does
# not would end the process.
LOOPS_LEFT_ALONE = (22,)

_lock = threading.RLock()  # reentrant: the collector may drop a Library while this thread compiles

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire,
        after_in_parent=_lock.release,
        after_in_child=_lock.release,
    )


@cache
def host_target(vector_bytes: int | None = None) -> Target:
    """This machine, or this machine held to vectors of 64, 32 or 16 bytes.

    A narrower target switches the wider instruction sets off, so that it behaves as a machine that lacks them: 32 is
    AVX2 with fused multiply-add, 16 is plain SSE2 without. CompileError when the machine has no vectors that wide.
    """
    with _lock:
        binding = _llvm()
        triple: str = binding.get_process_triple()
        cpu: str = binding.get_host_cpu_name()
        features: dict[str, bool] = dict(binding.get_host_cpu_features())
    machine = triple.partition("-")[0]
    widest = _widest_vector(machine, features)
    width = widest if vector_bytes is None else vector_bytes
    if width not in (16, 32, 64) or width > widest:
        raise CompileError(
            f"host_target: vectors of {width} bytes were asked for; this machine ({cpu}) has 16 to {widest} bytes"
        )
    is_zen = cpu.startswith("znver")
    if machine == "x86_64" and width == 64:
        features["prefer-256-bit"] = False  # LLVM's choice for some processors would halve the vectors it emits
    if machine == "x86_64" and width == 32:
        features = {name: on and not name.startswith(("avx512", "avx10", "amx")) for name, on in features.items()}
    if machine == "x86_64" and width == 16:
        cpu = "x86-64"
        features = dict.fromkeys(("avx", "avx2", "avx512f", "f16c", "fma"), False)
    l1, l2 = _cache_bytes(1, 32 << 10), _cache_bytes(2, 1 << 20)
    return Target(
        name=f"{machine}-{width * 8}",
        triple=triple,
        cpu=cpu,
        features=",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(features.items())),
        vector_bytes=width,
        registers=32 if width == 64 or _is_arm(machine) else 16,
        fma=width > 16 or _is_arm(machine),
        masked=width == 64,
        scalef=width == 64,
        spreads=width == 64,
        streams=machine == "x86_64",
        overlaps=not is_zen,  # measured on Zen 4: softmax of 4096 x 4096 takes twice as long
        l1=l1,
        l2=l2,
        near=16 << 20 if is_zen else 0,  # measured on Zen 4: one row times a matrix of 4 MiB takes 10 % less
    )


def compile_object(text: str, target: Target, *, passes: bool = False, level: int = 2) -> bytes:
    """The machine code of a module of LLVM text, as a relocatable object.

    `level` is the effort of code generation, 0 to 3. The text is translated as it stands; `passes` runs LLVM's O2
    pipeline over it first. CompileError names the line that LLVM does not accept. What LLVM accepts but cannot lower
    ends the process: emit only constructs known to work on the target.
    """
    with _compiling():
        job = _Job(text, target, level, passes)
        job.emit(0)
        return job.result()


class Batch:
    """Modules of LLVM text for one target that become objects while the caller goes on, several at a time.

    A context manager; until it is left, no other thread uses LLVM and the process does not fork. Without helpers a
    module is compiled when it is added. Errors are those of `compile_object`, for who asks for the object.

    Helpers need the interpreter for moments between calls into LLVM only, so they are given it soon: until the batch is
    left its threads take turns after HELPED_TURN seconds.
    """

    def __init__(self, target: Target, helpers: int) -> None:
        self._target = target
        self._helpers = helpers
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._jobs: list[_Job] = []
        self._idle = 0
        self._left = False
        self._turn = 0.0
        self._held = ExitStack()

    def __enter__(self) -> Batch:
        self._held.enter_context(_compiling())
        self._turn = sys.getswitchinterval()
        if self._helpers:
            sys.setswitchinterval(min(self._turn, HELPED_TURN))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            sys.setswitchinterval(self._turn)
            with self._changed:
                self._left = True
                self._waiting.clear()
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()
            _close_dropped()
        finally:
            self._held.close()

    def add(self, text: str, level: int = 2) -> int:
        """Begin to compile a module. Returns the number its object is asked for with."""
        job = _Job(text, self._target, level, passes=False)
        self._jobs.append(job)
        if not self._helpers:
            job.emit(0)
            return len(self._jobs) - 1
        with self._changed:
            self._waiting.append(job)
            if len(self._waiting) > self._idle and len(self._threads) < self._helpers:
                lane = len(self._threads) + 1
                # Made here: a helper would wait for the interpreter after every call that this takes.
                for one in LEVELS:
                    _machine(self._target, one, lane)
                thread = threading.Thread(target=self._help, args=(lane,), name=f"symgrad compiler {lane}", daemon=True)
                thread.start()
                self._threads.append(thread)
            self._changed.notify()
        return len(self._jobs) - 1

    def object(self, number: int) -> bytes:
        """The object of a module, once it is there."""
        job = self._jobs[number]
        with self._changed:
            self._changed.wait_for(lambda: job.done)
        return job.result()

    def _help(self, lane: int) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._waiting or self._left)
                self._idle -= 1
                if not self._waiting:
                    return
                job = self._waiting.popleft()
            job.emit(lane)
            with self._changed:
                self._changed.notify_all()


class _Job:
    """A module of LLVM text and the object it becomes. Only `emit` is for other threads than the one that makes it."""

    def __init__(self, text: str, target: Target, level: int, passes: bool) -> None:
        self._text = text
        self._target = target
        self._level = level
        self._passes = passes
        self._made: bytes | BaseException = b""
        self.done = False

    def emit(self, lane: int) -> None:
        """Generate code. What runs at the same time has another lane: a target machine serves one at a time."""
        try:
            machine = _machine(self._target, self._level, lane)
            with _module(self._text, self._target, self._passes, self._level) as module:
                self._made = _object_of(module, machine)
            self._text = ""
        except BaseException as error:  # whatever it is, it is raised in the thread that asks for the object
            self._made = error
        self.done = True

    def result(self) -> bytes:
        """The object, once it is done."""
        if isinstance(self._made, BaseException):
            raise self._made
        return self._made


def _object_of(module: Any, machine: Any) -> bytes:
    """The machine code of a module.

    The call goes around the binding's lock, which would let only one thread generate code. LLVM itself does so in any
    number of threads, each with a context and a target machine of its own.
    """
    from llvmlite.binding import ffi  # pyright: ignore[reportMissingTypeStubs]

    lib: Any = ffi.lib
    emit = lib.LLVMPY_TargetMachineEmitToMemory
    with ffi.OutputString() as problem:
        buffer = getattr(emit, "_cfn", emit)(machine, module, 1, problem)
        if not buffer:
            raise CompileError(f"LLVM could not make an object: {problem}")
    try:
        return ctypes.string_at(lib.LLVMPY_GetBufferStart(buffer), lib.LLVMPY_GetBufferSize(buffer))
    finally:
        lib.LLVMPY_DisposeMemoryBuffer(buffer)


def assembly(text: str, target: Target, *, passes: bool = False, level: int = 2) -> str:
    """The assembly (PTX for a CUDA target) of a module of LLVM text; errors as in `compile_object`."""
    with _compiling(), _module(text, target, passes, level) as module:
        return _machine(target, level).emit_assembly(module)


def versions() -> str:
    """The versions of LLVM and its binding, which decide what machine code becomes of a text."""
    import llvmlite  # pyright: ignore[reportMissingTypeStubs]

    return f"llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, _llvm().llvm_version_info))}"


class Library:
    """Linked machine code. Addresses are valid while the Library lives; dropping it unmaps the code.

    The code is never unmapped at interpreter exit: native threads may still sleep in it.
    """

    __slots__ = ("__weakref__", "_addresses")

    def __init__(self, tracker: Any, engine: Any, addresses: dict[str, int]) -> None:
        self._addresses = addresses
        weakref.finalize(self, _drop, tracker, engine).atexit = False

    def address(self, symbol: str) -> int:
        """Where a symbol given to `link` stands; KeyError for any other."""
        return self._addresses[symbol]


def link(objects: Iterable[bytes], symbols: Iterable[str]) -> Library:
    """Map objects made for this machine into the process and find these symbols.

    Objects may refer to each other and to what the process exports (libm, libc). CompileError when a symbol, or
    something the objects refer to, is missing. The bytes are trusted: damaged objects can end the process.
    """
    names = tuple(dict.fromkeys(symbols))
    with _lock:
        binding = _llvm()
        _close_dropped()
        builder = binding.JITLibraryBuilder().add_current_process()
        for data in objects:
            builder.add_object_img(data)
        for name in names:
            builder.export_symbol(name)
        # JITLink puts all sections of an object side by side, which the small code model relies on.
        engine = binding.create_lljit_compiler(_machine(host_target(), 2), use_jit_link=True, suppress_errors=True)
        try:
            tracker = builder.link(engine, "symgrad")
        except RuntimeError as error:
            engine.close()
            raise CompileError(
                f"link: {str(error).strip()}; this, or what it refers to, is neither in the objects nor in this process"
            ) from None
        return Library(tracker, engine, {name: tracker[name] for name in names})


# Engines nobody uses any more, until the lock is free.
_dropped: list[tuple[Any, Any]] = []


def _drop(tracker: Any, engine: Any) -> None:
    _dropped.append((tracker, engine))
    # The collector may run in a thread that a batch waits for, and the batch has the lock.
    if _lock.acquire(blocking=False):
        try:
            _close_dropped()
        finally:
            _lock.release()


def _close_dropped() -> None:
    while _dropped:
        tracker, engine = _dropped.pop()
        tracker.close()
        engine.close()


_compilers: list[object] = []  # one for each `_compiling` that is open


@contextmanager
def _compiling() -> Generator[None]:
    """Hold the lock, and let LLVM leave loops as they are: addresses move with them already.

    LLVM's loop strength reduction would look for other ways to count for a third of the time that code takes, and what
    it found kept sums in memory. The option is one of the whole process: what others compile meanwhile, which can only
    be in other threads, is correct but goes without it too. It is on afterwards, whatever it was before: there is no
    way to ask.
    """
    with _lock:
        binding, mine = _llvm(), object()
        switches = binding.llvm_version_info[0] in LOOPS_LEFT_ALONE
        try:
            _compilers.append(mine)
            if switches and len(_compilers) == 1:
                binding.set_option("symgrad", "-disable-lsr=true")
            yield
        finally:
            _compilers[:] = [one for one in _compilers if one is not mine]
            if switches and not _compilers:
                binding.set_option("symgrad", "-disable-lsr=false")


@contextmanager
def _module(text: str, target: Target, passes: bool, level: int) -> Generator[Any]:
    """The verified module of this text, in an LLVM context of its own so that nothing of it outlives the compile."""
    binding = _llvm()
    with binding.create_context() as context:
        try:
            module = binding.parse_assembly(text, context)
        except RuntimeError as error:
            raise CompileError(_explain("LLVM text does not parse", str(error), text)) from None
        with module:
            module.triple = target.triple
            module.data_layout = _data_layout(target)
            try:
                module.verify()
            except RuntimeError as error:
                raise CompileError(_explain("LLVM text is invalid", str(error), text)) from None
            if passes:
                _run_passes(binding, module, _machine(target, level))
            yield module


def _run_passes(binding: ModuleType, module: Any, machine: Any) -> None:
    """LLVM's O2 pipeline. Builder and manager serve one run: a second is slower with the one, aborts with the other."""
    from llvmlite.binding.ffi import ObjectRef  # pyright: ignore[reportMissingTypeStubs]

    with (
        binding.create_pipeline_tuning_options(speed_level=2) as options,
        binding.create_pass_builder(machine, options) as builder,
    ):
        manager = builder.getModulePassManager()
        manager.run(module, builder)
        if type(manager)._dispose is ObjectRef._dispose:  # pyright: ignore
            binding.newpassmanagers.NewPassManager._dispose(manager)  # the inherited close() frees nothing
            manager.detach()
        manager.close()


def _explain(what: str, message: str, text: str) -> str:
    """LLVM's message with the line of the text that it is about, when it names one."""
    message = message.strip()
    place = re.search(r"<string>:(\d+):(\d+): error: (.*)", message)
    if place is None:
        return f"{what}: {message}"
    number, column, reason = int(place[1]), int(place[2]), place[3]
    lines = text.splitlines()
    line = lines[number - 1].strip() if number <= len(lines) else ""
    return f"{what}: line {number}, column {column}: {reason}: {line!r}"


@cache
def _llvm() -> ModuleType:
    from llvmlite import binding  # pyright: ignore[reportMissingTypeStubs]

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


@cache
def _foreign() -> None:
    """Make the targets of other machines known: they are needed for PTX, and cost time."""
    _llvm().initialize_all_targets()
    _llvm().initialize_all_asmprinters()


@cache
def _machine(target: Target, level: int, lane: int = 0) -> Any:
    binding = _llvm()
    if target.triple != binding.get_process_triple():
        _foreign()
    try:
        known = binding.Target.from_triple(target.triple)
    except RuntimeError as error:
        raise CompileError(f"this LLVM cannot compile for {target.triple}: {error}") from None
    return known.create_target_machine(
        cpu=target.cpu,
        features=target.features,
        opt=level,
        reloc="pic",
        codemodel="small",
        jit=True,
    )


@cache
def _data_layout(target: Target) -> str:
    return str(_machine(target, 2).target_data)


def _is_arm(machine: str) -> bool:
    return machine in ("aarch64", "arm64")


def _widest_vector(machine: str, features: dict[str, bool]) -> int:
    def have(*names: str) -> bool:
        return machine == "x86_64" and all(features.get(name, False) for name in names)

    if have("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma"):
        return 64
    return 32 if have("avx2", "fma") else 16


def _cache_bytes(level: int, default: int) -> int:
    """Size of the data cache of this level as the system tells it, else the default."""
    folder = "/sys/devices/system/cpu/cpu0/cache"
    try:
        for entry in sorted(os.listdir(folder)):
            facts: dict[str, str] = {}
            for name in ("level", "type", "size"):
                with open(os.path.join(folder, entry, name), encoding="ascii") as file:
                    facts[name] = file.read().strip()
            if facts["level"] == str(level) and facts["type"] in ("Data", "Unified"):
                return int(facts["size"].removesuffix("K")) << 10
    except (OSError, ValueError):
        return default  # the system does not tell, or in other words
    return default
