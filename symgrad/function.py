"""Compiled functions: what a call checks, binds and returns."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np

from symgrad.bind import bind_shape, bind_sizes
from symgrad.errors import CompileError, DTypeError, GraphError, ShapeError
from symgrad.graph import Node, checked_extent, describe
from symgrad.program import Program
from symgrad.record import record, replace
from symgrad.sparse import SparseMatrix, scipy_sparse
from symgrad.storage import aligned_empty
from symgrad.types import Dim, as_dtype, static_shape

if TYPE_CHECKING:
    from symgrad.types import Array

Shapes: TypeAlias = tuple[tuple[int, ...], ...]


class Executable(Protocol):
    """What code generation returns: a program bound to memory. `outputs` are what it returns, as the caller sees it."""

    program: Program
    outputs: tuple[Node, ...]

    def run(self, arrays: Sequence[Array]) -> int: ...

    def report(self) -> str: ...


class Entry(Protocol):
    """Takes calls before Python does, for the sizes it serves; see `attach` of code generation."""

    served: set[Shapes]

    def serve(self, shapes: Shapes, executable: Any, makers: Sequence[Callable[[], Array] | None]) -> None: ...


# Code is generated for one function at a time. A fork waits for it, so that the child finds the lock free.
_building = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_building.acquire, after_in_parent=_building.release, after_in_child=_building.release)


@record
class Structure:
    """How the outputs of a call are arranged: `kind` is Node, list, tuple or dict; `keys` are those of a dict.

    `matrices` has for each output the sparse matrix it holds the entries of, or None; it is empty where all are arrays.
    """

    kind: type
    keys: tuple[str, ...] = ()
    matrices: tuple[SparseMatrix | None, ...] = ()

    def pack(self, values: list[Any]) -> Any:
        """The outputs in the structure that was asked for."""
        if self.matrices:
            values = [v if m is None else m.to_scipy(v) for v, m in zip(values, self.matrices, strict=True)]
        if self.kind is Node:
            return values[0]
        if self.kind is dict:
            return dict(zip(self.keys, values, strict=True))
        return values if self.kind is list else tuple(values)

    def unpack(self, value: Any, name: str) -> list[Any]:
        """The parts of something in this structure, as given for `out`."""
        if self.kind is Node:
            return [value]
        if self.kind is dict:
            if not isinstance(value, Mapping) or set(value) != set(self.keys):  # pyright: ignore[reportUnknownArgumentType]
                raise GraphError(f"{name}: out must be a dict with the keys {', '.join(self.keys)}")
            return [value[key] for key in self.keys]
        if not isinstance(value, list | tuple):
            raise GraphError(f"{name}: out must be a {self.kind.__name__} of arrays, got {type(value).__name__}")
        return list(cast("Sequence[Any]", value))


def flatten(outputs: Any) -> tuple[list[Node], Structure]:
    """The nodes of outputs given as a node, list, tuple or dict, and their structure.

    A sparse matrix stands for the node of its entries. ImportError where there is one and SciPy is not installed.
    """
    if isinstance(outputs, Node):
        return [outputs], Structure(Node)
    if isinstance(outputs, SparseMatrix):
        scipy_sparse()
        return [outputs.data], Structure(Node, (), (outputs,))
    if isinstance(outputs, Mapping):
        named = cast("Mapping[Any, Any]", outputs)
        if wrong := [key for key in named if not isinstance(key, str)]:
            raise GraphError(f"the names of outputs in a dict are text, got {wrong[0]!r}")
        nodes, structure = list(named.values()), Structure(dict, tuple(named))
    elif isinstance(outputs, list | tuple):
        nodes = list(cast("Sequence[Any]", outputs))
        structure = Structure(list if isinstance(outputs, list) else tuple)
    else:
        raise GraphError(f"outputs must be a node, or a list, tuple or dict of nodes, got {type(outputs).__name__}")
    matrices = tuple([n if isinstance(n, SparseMatrix) else None for n in nodes])
    if any(m is not None for m in matrices):
        scipy_sparse()
        structure = replace(structure, matrices=matrices)
        nodes = [n if m is None else m.data for n, m in zip(nodes, matrices, strict=True)]
    for node in nodes:
        if not isinstance(node, Node):
            nested = isinstance(node, list | tuple | Mapping)
            advice = "outputs do not nest: give one flat list, tuple or dict" if nested else "lift values with g.const"
            raise GraphError(f"outputs must be nodes, got {type(node).__name__}; {advice}")
    return nodes, structure


# Outputs of at least this many bytes are worth recycling: the page faults of fresh memory would cost more than many a
# kernel that fills it.
RECYCLED_BYTES = 1 << 18
# Memory kept per output, in arrays.
KEPT = 2


def _references(kept: list[tuple[Array, Array]]) -> int:
    # The same loop as in Recycler.take: what a tuple, a loop variable and the call count for differs between
    # versions of Python.
    for owner, _ in kept:
        return sys.getrefcount(owner)
    return 0


def _owned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """An array with unspecified content that starts with a line of memory, after the one that owns its memory."""
    array = aligned_empty(shape, dtype)
    assert array.base is not None
    return array.base, array


# Counts of references say who holds an array in CPython, and only while one thread runs at a time.
_COUNTS_ARE_EXACT = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
# References to an array that only its recycler holds.
_UNUSED = _references([_owned((1,), np.dtype(np.float32))])


def recycler(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Callable[[], Array] | None:
    """What gives arrays of one type with unspecified content that alias nothing in use; None where they are not large
    enough for anything but `numpy.empty`."""
    if _COUNTS_ARE_EXACT and math.prod(shape) * dtype.itemsize >= RECYCLED_BYTES:
        return Recycler(shape, dtype).take
    return None


class Recycler:
    """Arrays of one type, whose memory is used again once nobody refers to it any more.

    Every view of an array NumPy makes refers to the array that owns the memory, so an owner that nobody else refers
    to cannot be seen by anyone.
    """

    __slots__ = ("_kept", "dtype", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self._kept: list[tuple[Array, Array]] = []

    def take(self) -> Array:
        """An array with unspecified content."""
        for owner, array in self._kept:
            if sys.getrefcount(owner) == _UNUSED:
                return array[...]
        owned = _owned(self.shape, self.dtype)
        if len(self._kept) < KEPT:
            self._kept.append(owned)
        return owned[1][...]


@record
class Binding:
    """A program compiled for the sizes of one call."""

    executable: Executable
    recyclers: tuple[Callable[[], Array] | None, ...]
    allocators: tuple[Callable[[], Array], ...]


class Function:
    """A compiled function. Call it with arrays, by position or by name.

    Inputs are read and never written; they are copied only when they are not contiguous, aligned and in native byte
    order. Outputs are fresh arrays, or those given as `out`, in the structure that was asked for; a sparse matrix is a
    `scipy.sparse.csr_array`, and in `out` the array of its entries. The first call with new sizes of symbolic
    dimensions compiles for them; the result is kept. A call may come from any thread.

    Errors: ShapeError and DTypeError for inputs that do not fit, GraphError for missing or unknown names, IndexError
    for indices out of range; params and states are unchanged then.
    """

    # Set once calls arrive in native code, which finds here what it has to know.
    __slots__ = ("__dict__", "__weakref__", "_entry")

    def __init__(
        self,
        program: Program,
        structure: Structure,
        make: Callable[[Program, Mapping[str, int]], Executable],
        attach: Callable[..., Entry | None] | None = None,
    ) -> None:
        self.program = program
        self.structure = structure
        self.name = program.name
        self._make = make
        self._inputs = program.inputs
        self._dtypes = [n.dtype.np for n in program.inputs]
        self._single = structure.kind is Node and not structure.matrices
        self._bindings: dict[Shapes, Binding] = {}
        self._state_lock = program.graph.lock if program.states else None
        self._attach = attach
        self._native: Entry | None = None

    def __repr__(self) -> str:
        return f"<Function {self.name}: {len(self._inputs)} inputs, compiled for {len(self._bindings)} sizes>"

    def __call__(self, *args: Any, out: Any = None, **named: Any) -> Any:
        if named or len(args) != len(self._inputs):
            args = self._by_name(args, named)
        arrays: list[Array] = []
        for value, dtype in zip(args, self._dtypes, strict=True):
            array: Array = value
            if type(array) is not np.ndarray or array.dtype is not dtype or not array.flags.carray:
                array = self._converted(len(arrays), value)
            arrays.append(array)
        shapes = tuple([a.shape for a in arrays])
        binding = self._bindings.get(shapes) or self._bind(shapes, lambda: bind_sizes(self._inputs, arrays))
        if self._native is not None and shapes not in self._native.served:
            self._serve(shapes, binding)
        outputs = [make() for make in binding.allocators] if out is None else self._given(out, binding, arrays)
        if self._state_lock is None:
            status = binding.executable.run(arrays + outputs)
        else:
            with self._state_lock:
                status = binding.executable.run(arrays + outputs)
        if status:
            raise self._index_error(binding)
        return outputs[0] if self._single else self.structure.pack(outputs)

    @property
    def is_compiled(self) -> bool:
        """Whether there is machine code for some sizes."""
        return bool(self._bindings)

    def report(self) -> str:
        """For every set of sizes compiled so far: kernels, operations, bytes, arena; with SYMGRAD_PROFILE=1 times."""
        if not self._bindings:
            return f"{self.name}: not compiled yet; it compiles at the first call"
        return "\n".join(
            f"{self.name} for inputs {', '.join(map(str, shapes)) or 'none'}\n{binding.executable.report()}"
            for shapes, binding in self._bindings.items()
        )

    def prepare(self, **sizes: int) -> Function:
        """Compile now for these sizes of the symbolic dimensions, instead of at the first call."""
        known = sorted({name for n in self._inputs for d in n.shape if isinstance(d, Dim) for name in d.names()})
        for name, size in sizes.items():
            if name not in known:
                raise ShapeError(
                    f"{self.name}.prepare: no input has a dimension {name!r}; they have {', '.join(known) or 'none'}"
                )
            checked_extent(f"{self.name}.prepare: {name}", size)
        if missing := [name for name in known if name not in sizes]:
            raise ShapeError(f"{self.name}.prepare: give the size of dimension {missing[0]!r}")
        shapes = tuple(bind_shape(n.shape, sizes) for n in self._inputs)
        self._bind(shapes, lambda: sizes)
        return self

    def _bind(self, shapes: Shapes, sizes: Callable[[], Mapping[str, int]]) -> Binding:
        with _building:
            if (found := self._bindings.get(shapes)) is not None:
                return found
            executable = self._make(self.program, sizes())
            types = [(static_shape(n.shape), n.dtype.np) for n in executable.outputs]
            recyclers = tuple(recycler(*one) for one in types)
            plain = [partial(np.empty, *one) for one in types]
            allocators = tuple(a or b for a, b in zip(recyclers, plain, strict=True))
            binding = self._bindings[shapes] = Binding(executable, recyclers, allocators)
            if self._attach is not None and not self.structure.matrices:
                kind, keys = self.structure.kind, self.structure.keys
                names = [str(n.name) for n in self._inputs]
                self._native = self._attach(self, names, self._dtypes, kind, keys, self._state_lock)
                self._attach = None
            return binding

    def _serve(self, shapes: Shapes, binding: Binding) -> None:
        with _building:
            if self._native is not None and shapes not in self._native.served:
                self._native.serve(shapes, binding.executable, binding.recyclers)

    def _by_name(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        names = [str(n.name) for n in self._inputs]
        if len(args) > len(names):
            raise GraphError(f"{self.name} takes {len(names)} inputs ({', '.join(names)}), got {len(args)}")
        given = dict(zip(names, args, strict=False))
        for name, value in named.items():
            if name not in names:
                raise GraphError(f"{self.name} has no input {name!r}; it takes {', '.join(names) or 'none'}")
            if name in given:
                raise GraphError(f"{self.name}: input {name!r} is given twice")
            given[name] = value
        missing = [n for n in names if n not in given]
        if missing:
            raise GraphError(f"{self.name}: missing {', '.join(missing)}; it takes {', '.join(names)}")
        return tuple(given[n] for n in names)

    def _converted(self, k: int, value: Any) -> Array:
        """An array in the layout that kernels read; lists and Python numbers take the dtype of the input."""
        node, dtype = self._inputs[k], self._dtypes[k]
        if isinstance(value, Node):
            raise GraphError(f"{self.name}: {describe(node)} got a node, {describe(value)}; a call takes arrays")
        if isinstance(value, np.ma.MaskedArray):
            raise DTypeError(f"{self.name}: {describe(node)} got a masked array; fill it with .filled(value)")
        given: Array = (
            np.asarray(cast("Array", value))
            if isinstance(value, np.ndarray | np.generic)
            else _weak(self.name, node, value)
        )
        if as_dtype(given.dtype) is not node.dtype:
            raise DTypeError(
                f"{self.name}: {describe(node)} got {given.dtype}; convert it with .astype({node.dtype.name!r})"
            )
        array = given.astype(dtype, order="C", copy=False)
        if not array.flags.c_contiguous or not array.flags.aligned:
            array = np.array(array, dtype, order="C")
        return array

    def _given(self, out: Any, binding: Binding, arrays: Sequence[Array]) -> list[Array]:
        outputs = self.structure.unpack(out, self.name)
        nodes = binding.executable.outputs
        if len(outputs) != len(nodes):
            raise GraphError(f"{self.name}: out must hold {len(nodes)} arrays, got {len(outputs)}")
        for k, (array, node) in enumerate(zip(outputs, nodes, strict=True)):
            shape, dtype = node.shape, node.dtype.np
            if not _is_array(array):
                raise GraphError(f"{self.name}: out[{k}] must be an array, got {type(array).__name__}")
            if array.shape != shape:
                raise ShapeError(f"{self.name}: out[{k}] must have shape {shape}, got {array.shape}")
            if array.dtype != dtype:
                raise DTypeError(f"{self.name}: out[{k}] must be {dtype}, got {array.dtype}")
            if not array.flags.carray:
                raise GraphError(f"{self.name}: out[{k}] must be writable, C-contiguous and aligned")
            others = (*arrays, *outputs[:k])
            if any(np.may_share_memory(array, other) for other in others):
                raise GraphError(f"{self.name}: out[{k}] shares memory with an input or another output")
        return outputs

    def _index_error(self, binding: Binding) -> IndexError:
        checks = [n for n in binding.executable.program.nodes if n.op.name == "check_index"]
        places = ", ".join(dict.fromkeys(f"{describe(n)} into an extent of {n.attrs[0]}" for n in checks))
        return IndexError(f"{self.name}: an index is out of range in {places}; params and states are unchanged")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _weak(function: str, node: Node, value: Any) -> Array:
    """A Python number or nested list as an array of the input's dtype, if no value changes kind."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{function}: {describe(node)}: {error}") from None
    except TypeError as error:
        raise DTypeError(f"{function}: {describe(node)}: {error}") from None
    if array.size == 0 and array.dtype == np.float64:
        return array.astype(node.dtype.np)
    ranks = "biuf"
    kind = "i" if array.dtype.kind == "u" else array.dtype.kind
    wanted = "i" if node.dtype.kind == "u" else node.dtype.kind
    if kind not in ranks or ranks.index(kind) > ranks.index(wanted):
        raise DTypeError(f"{function}: {describe(node)} got {array.dtype} values; convert them")
    if wanted == "i" and kind == "i":
        info = np.iinfo(node.dtype.np)
        if array.size and (int(array.min()) < info.min or int(array.max()) > info.max):
            raise DTypeError(f"{function}: {describe(node)}: values do not fit {node.dtype}")
    with np.errstate(over="ignore"):
        result = array.astype(node.dtype.np)
    if wanted == "f" and not np.array_equal(np.isfinite(array), np.isfinite(result)):
        raise DTypeError(f"{function}: {describe(node)}: values do not fit {node.dtype}")
    return result


def check_program(program: Program) -> None:
    """Raise for inputs, outputs and updates that cannot make a function."""
    graph = program.graph
    for node in program.inputs:
        if node.op.name != "input":
            raise GraphError(f"compile: {describe(node)} is not an input; declare it with g.input, or substitute it")
    if len({n.id for n in program.inputs}) != len(program.inputs):
        raise GraphError("compile: an input is listed twice")
    for node in (*program.inputs, *program.roots, *(old for old, _ in program.updates)):
        if node.graph is not graph:
            raise GraphError(f"compile: {describe(node)} belongs to {node.graph!r}, not to {graph!r}")
    listed = {n.id for n in program.inputs}
    for node in program.inputs_read:
        if node.id not in listed:
            raise GraphError(f"compile: the outputs or updates need {describe(node)}; add it to the inputs")
    seen: set[int] = set()
    for old, new in program.updates:
        if old.op.name not in ("param", "state"):
            raise GraphError(f"compile: {describe(old)} cannot be updated; only params and states can")
        if old.id in seen:
            raise GraphError(f"compile: {describe(old)} is updated twice")
        seen.add(old.id)
        if old.type != new.type:
            error = ShapeError if old.shape != new.shape else DTypeError
            raise error(f"compile: the update of {describe(old)} has another type: {describe(new)}")
    if not program.roots:
        raise CompileError("compile: there are no outputs and no updates")
