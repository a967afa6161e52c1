"""Calls of compiled functions that arrive in native code, without a line of Python in between.

`attach` makes a function one whose calls `entry` takes first. It does so where CPython and NumPy keep their objects as
it reads them, which is looked at once; elsewhere calls stay what they are.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codegen import entry, threads
from codegen.executable import Context, Executable

if TYPE_CHECKING:
    import threading

    import numpy.typing as npt

    from symgrad.types import Array

    Words = npt.NDArray[np.int64]

Shapes = tuple[tuple[int, ...], ...]

_KINDS: Mapping[type, int] = {list: entry.LIST, tuple: entry.TUPLE, dict: entry.DICT}
# Behind the header of an object; the fields of arrays follow it.
_HEADER = object.__basicsize__
# Bytes of the fields of arrays that are read.
_FIELDS = entry.FLAGS + 4
_METHOD_FLAGS = 0x0080 | 0x0002  # METH_FASTCALL | METH_KEYWORDS
_DOC = b"__call__($self, /, *args, out=None, **named)\n--\n\nCall self as a function."


class Entry:
    """What native code knows of one function: its inputs, the structure of its outputs, the sizes it serves."""

    def __init__(
        self,
        names: Sequence[str],
        dtypes: Sequence[np.dtype[Any]],
        kind: type,
        keys: tuple[str, ...],
        lock: threading.RLock | None,
    ) -> None:
        self.served: set[Shapes] = set()
        self.record: Words = np.zeros(entry.BINDINGS + entry.SERVED, np.int64)
        self._next = 0
        self._names: list[Shapes | None] = [None] * entry.SERVED
        self._bindings: dict[Shapes, Words] = {}
        calls = (lock.acquire, lock.release) if lock is not None else None
        # Names in calls are the one object of their text.
        interned = tuple(sys.intern(name) for name in names)
        self._dtypes = tuple(dtypes)
        self._kept: list[Any] = [interned, keys, calls]
        self.record[entry.INPUTS] = len(dtypes)
        self.record[entry.KIND] = _KINDS.get(kind, entry.SINGLE)
        self.record[entry.KEYS] = self._words([id(key) for key in keys])
        if calls is not None:
            self.record[[entry.ACQUIRE, entry.RELEASE]] = [id(one) for one in calls]
        self.record[entry.DTYPES] = self._words([id(dtype) for dtype in dtypes])
        self.record[entry.NAMES] = self._words([id(name) for name in interned])

    def serve(self, shapes: Shapes, executable: Executable, makers: Sequence[Callable[[], Array] | None]) -> None:
        """Let native code take calls with these sizes, instead of those it has taken up longest ago.

        `makers` give the arrays of outputs; where there is none they are allocated. Not to be called by two threads at
        once.
        """
        binding = self._bindings.get(shapes)
        if binding is None:
            binding = self._bindings[shapes] = self._binding(shapes, executable, makers)
        place, self._next = self._next, (self._next + 1) % entry.SERVED
        gone = self._names[place]
        if gone is not None:
            self.served.discard(gone)
        self._names[place] = shapes
        self.served.add(shapes)
        self.record[entry.BINDINGS + place] = binding.ctypes.data

    def _binding(self, shapes: Shapes, executable: Executable, makers: Sequence[Callable[[], Array] | None]) -> Words:
        results: list[int] = []
        for node, maker in zip(executable.outputs, makers, strict=True):
            shape, dtype = tuple(map(int, node.shape)), node.dtype.np
            self._kept += [dtype, maker]
            results += [id(dtype), self._words(_shape(shape, dtype)), 0 if maker is None else id(maker)]
        self._kept.append(executable)
        binding = np.zeros(entry.CONTROL + 1, np.int64)
        binding[entry.SHAPES] = self._words(
            [word for one in zip(shapes, self._dtypes, strict=True) for word in _shape(*one)]
        )
        binding[entry.OUTPUTS] = len(makers)
        binding[entry.RESULTS] = self._words(results)
        binding[entry.CONTEXTS] = id(executable.contexts)
        binding[entry.LONG] = executable.is_long
        binding[entry.CONTROL] = executable.control
        return binding

    def _words(self, values: Sequence[int]) -> int:
        """The address of these words, which stay."""
        words = np.array([*values, 0], np.int64)
        self._kept.append(words)
        return int(words.ctypes.data)


def _shape(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    return (len(shape), *shape, math.prod(shape) * dtype.itemsize)


def attach(
    function: Any,
    names: Sequence[str],
    dtypes: Sequence[np.dtype[Any]],
    kind: type,
    keys: tuple[str, ...],
    lock: threading.RLock | None,
) -> Entry | None:
    """Let native code take the calls of a function first; what it does not take goes to its class's `__call__`.

    `names` and `dtypes` are those of the inputs, `kind` and `keys` the structure of the outputs, the lock is held
    during a run. The class of the function must have a slot `_entry`; all functions are of one class. None where this
    interpreter or this NumPy is not known well enough.
    """
    if not is_known():
        return None
    made = Entry(names, dtypes, kind, keys, lock)
    base: type = function.__class__
    function._entry = made.record
    function.__class__ = _native(base).made
    return made


class _Method(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class _Native(NamedTuple):
    """A class whose calls arrive in native code, and what that needs to stay."""

    made: type
    kept: object


@cache
def _native(base: type) -> _Native:
    call, table = threads.entry_symbols()
    words = (ctypes.c_int64 * len(entry.TABLE)).from_address(table)
    assert not any(words), "native code knows one class of functions"
    slow: object = base.__call__
    out = sys.intern("out")
    values = {
        **{name: _address(name) for name in _PYTHON},
        **_numpy_functions(),
        "slow": id(slow),
        "array_type": id(np.ndarray),
        "none": id(None),
        "out": id(out),
        "header": _HEADER,
        "entry_at": _slot_offset(object.__new__(base), "_entry"),
        "context_at": _slot_offset(object.__new__(Context), "record"),
    }
    words[:] = [values[name] for name in entry.TABLE]
    method = _Method(b"__call__", call, _METHOD_FLAGS, _DOC)
    descriptor = _pyfunction("PyDescr_NewMethod", ctypes.py_object, ctypes.py_object, ctypes.c_void_p)(
        base, ctypes.addressof(method)
    )
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    made = type(base.__name__, (base,), {"__slots__": (), "__call__": descriptor, **names})
    return _Native(made, (slow, method, out))


# What is called of the interpreter; all but the first two are in every version of its stable interface.
_PYTHON = tuple(name for name in entry.TABLE if name.startswith("Py") and not name.startswith("PyArray"))
# Places in NumPy's table, which never change.
_ABI_VERSION, _ARRAY_TYPE = 0, 2
_NUMPY = {"PyArray_NewFromDescr": 94, "PyArray_EquivTypes": 182}


def _pyfunction(name: str, *types: Any) -> Any:
    return ctypes.PYFUNCTYPE(*types)((name, ctypes.pythonapi))


def _address(name: str) -> int:
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


@cache
def _numpy_functions() -> dict[str, int]:
    """Where NumPy's functions are; nothing where it has no table of the kind that is known."""
    core = getattr(np, "_core", None)
    capsule = getattr(getattr(core, "_multiarray_umath", None), "_ARRAY_API", None)
    if not _pyfunction("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(capsule, None):
        return {}
    at: int = _pyfunction("PyCapsule_GetPointer", ctypes.c_size_t, ctypes.py_object, ctypes.c_char_p)(capsule, None)
    table = (ctypes.c_int64 * (max(_NUMPY.values()) + 1)).from_address(at)
    version: int = ctypes.PYFUNCTYPE(ctypes.c_uint)(table[_ABI_VERSION])()
    if version >> 24 != 2 or table[_ARRAY_TYPE] != id(np.ndarray):
        return {}
    return {name: table[place] for name, place in _NUMPY.items()}


def _slot_offset(probe: Any, name: str) -> int:
    """Where objects of a class with this slot keep it; the slots of the probe are set."""
    mark = np.zeros(1)
    setattr(probe, name, mark)
    words = (ctypes.c_int64 * (type(probe).__basicsize__ // 8)).from_address(id(probe))
    (place,) = [k for k, word in enumerate(words) if word == id(mark)]
    return 8 * place


@cache
def is_known() -> bool:
    """Whether CPython and NumPy keep objects as native code reads them, one thread at a time."""
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    # A count of references and a type, on a machine of 64 bits: builds that can run without the lock have more.
    if ctypes.sizeof(ctypes.c_void_p) != 8 or _HEADER != 16:
        return False
    if not all(hasattr(ctypes.pythonapi, name) for name in (*_PYTHON, "PyDescr_NewMethod", "PyCapsule_IsValid")):
        return False
    return bool(_numpy_functions()) and all(map(_is_read_right, _probes())) and _functions_work()


def _probes() -> list[Array]:
    """Arrays that differ in all that is read."""
    base = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    locked = np.ones((2, 3), np.float32)
    locked.flags.writeable = False
    unaligned = np.zeros(17, np.uint8)[1:].view(np.float32)
    return [base, base[1:, ::-2], base.T, np.array(2.5), np.zeros((0, 7), bool), locked, unaligned, base.astype(">i2")]


def _is_read_right(array: Array) -> bool:
    if sys.getsizeof(array) < _HEADER + _FIELDS or type(array).__basicsize__ < _HEADER + _FIELDS:
        return False
    at = id(array) + _HEADER
    if (
        ctypes.c_int64.from_address(at - 8).value != id(type(array))
        or ctypes.c_int64.from_address(at + entry.DATA).value != array.ctypes.data
        or ctypes.c_int.from_address(at + entry.RANK).value != array.ndim
        or ctypes.c_int64.from_address(at + entry.DTYPE).value != id(array.dtype)
        or ctypes.c_int.from_address(at + entry.FLAGS).value != array.flags.num
    ):
        return False
    # Only where all else is right is what should be an address taken for one.
    extents = ctypes.c_int64.from_address(at + entry.EXTENTS).value
    return array.ndim == 0 or (
        extents != 0 and tuple((ctypes.c_int64 * array.ndim).from_address(extents)) == array.shape
    )


def _functions_work() -> bool:
    """Whether NumPy's functions do what they are called for."""
    functions = _numpy_functions()
    dtype, extents = np.dtype(np.float32), (ctypes.c_int64 * 2)(3, 5)
    _pyfunction("Py_IncRef", None, ctypes.py_object)(dtype)  # the function takes it
    pointer, thing = ctypes.c_void_p, ctypes.py_object
    kinds = (thing, thing, thing, ctypes.c_int, *(pointer,) * 3, ctypes.c_int, pointer)
    make = ctypes.PYFUNCTYPE(*kinds)(functions["PyArray_NewFromDescr"])
    made = make(np.ndarray, dtype, 2, ctypes.addressof(extents), None, None, 0, None)
    equal = ctypes.PYFUNCTYPE(ctypes.c_ubyte, thing, thing)(functions["PyArray_EquivTypes"])
    return (
        type(made) is np.ndarray
        and made.shape == (3, 5)
        and made.dtype is dtype
        and made.flags.carray
        and bool(equal(dtype, np.dtype("=f4", metadata={"a": 1})))
        and not any(equal(dtype, np.dtype(other)) for other in (np.int32, np.float64, dtype.newbyteorder()))
    )
