# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false
"""Who may import whom, and that every operator has all its parts."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import symgrad as sg
from codegen.access import view_demands
from codegen.affine import variable
from codegen.combine import beginning, combined, identity
from codegen.scalar import OPERATIONS
from codegen.scalar_builder import ScalarBuilder
from codegen.target import Target
from symgrad.errors import CompileError
from symgrad.opdef import OPS, Kind, OpDef
from symgrad.operators import apply
from symgrad.types import bool_, float32

ROOT = Path(__file__).parent.parent

# From the bottom up: a module imports from its own layer and those below. Modules not named here stand on top.
LAYERS = (
    ("record",),
    ("types",),
    ("errors",),
    ("opdef",),
    ("printer", "storage", "graph"),
    ("arguments", "program", "states"),
    ("ops", "ops.*"),
    ("operators",),
    ("shaping", "contraction", "creation", "indexing", "gathering", "functions"),
    ("composites", "cumulative", "segments", "updates"),
)
# Imports inside functions that go up or around: each is the one way a cycle of meaning is broken.
LATE = {
    ("symgrad.operators", "symgrad.indexing"),  # `node[index]` is a composite of operators
    ("symgrad.ops.control", "symgrad.evaluate"),  # the meaning of a call is the evaluation of its program
    ("symgrad.ops.control", "symgrad.grad"),  # its derivative is that of its program
}
FROM_SYMGRAD = {"record", "types", "errors", "opdef", "storage", "graph", "program"}
CTYPES = {
    "codegen.jit", "codegen.threads", "codegen.cuda", "codegen.executable", "codegen.calls",
}  # fmt: skip
# Lowering in three modules: they alone see graphs and loop programs, besides the line that calls everything.
LOWERING = {"codegen.access", "codegen.inline", "codegen.lower", "codegen.lower_scan", "codegen.lower_sort"}
GRAPHS = {"symgrad.graph", "symgrad.program", "symgrad.ops"}


@dataclass(frozen=True)
class Import:
    """One import: `when` is module, function or typing."""

    source: str
    target: str
    when: str


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for package in ("symgrad", "codegen") for p in sorted((ROOT / package).rglob("*.py"))}


def imports_of(source: str, path: Path) -> Iterator[Import]:
    """Every import of a module, those in functions and under TYPE_CHECKING too."""
    stack: list[tuple[ast.AST, str]] = [(ast.parse(path.read_text(encoding="utf-8")), "module")]
    while stack:
        node, when = stack.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(source, alias.name, when)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield Import(source, full if full in MODULES else node.module, when)
        inner = when
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == "module":
            inner = "function"
        for child in ast.iter_child_nodes(node):
            typing = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            stack.append((child, "typing" if typing and child in node.body else inner))


IMPORTS = [i for name, path in MODULES.items() for i in imports_of(name, path)]
RUNNING = [i for i in IMPORTS if i.when != "typing"]


def layer(module: str) -> int:
    name = module.removeprefix("symgrad.")
    for k, names in enumerate(LAYERS):
        if any(name == n or (n.endswith(".*") and name.startswith(n[:-1])) for n in names):
            return k
    return len(LAYERS)


def is_within(target: str, package: str) -> bool:
    return target == package or target.startswith(package + ".")


def test_imports_are_found() -> None:
    """The reader of imports sees all kinds."""
    assert Import("symgrad.graph", "symgrad.opdef", "module") in IMPORTS
    assert Import("symgrad.opdef", "symgrad.graph", "typing") in IMPORTS
    assert Import("symgrad.operators", "symgrad.indexing", "function") in IMPORTS


@pytest.mark.parametrize("when", ["module", "function"])
def test_layers(when: str) -> None:
    upward = [
        (i.source, i.target)
        for i in RUNNING
        if i.when == when
        and is_within(i.source, "symgrad")
        and i.source != "symgrad"
        and is_within(i.target, "symgrad")
        and layer(i.target) > layer(i.source)
    ]
    assert [pair for pair in upward if when == "module" or pair not in LATE] == []


def test_no_cycles() -> None:
    """Without imports in functions, which are all known, the modules stand in an order."""
    waits: dict[str, set[str]] = {name: set() for name in MODULES}
    for i in RUNNING:
        if i.when == "module" and i.target in MODULES and i.target not in (i.source, "symgrad"):
            inside = i.source.startswith(i.target + ".")
            package = i.target == "symgrad.ops" and i.source == "symgrad.ops"
            if not inside and not package:
                waits[i.source].add(i.target)
    waits["symgrad"] = set()
    while ready := [name for name, before in waits.items() if not before & waits.keys()]:
        for name in ready:
            del waits[name]
    assert waits == {}


def test_late_imports_are_known() -> None:
    inside = {
        (i.source, i.target)
        for i in RUNNING
        if i.when == "function" and i.target in MODULES and not _is_plain(i.source, i.target)
    }
    assert inside <= LATE
    assert {(i.source, i.target) for i in RUNNING} >= LATE


def _is_plain(source: str, target: str) -> bool:
    """Whether an import in a function could stand at the top: it goes down."""
    return is_within(target, "symgrad") and is_within(source, "symgrad") and layer(target) < layer(source)


def test_code_generation_knows_only_the_core() -> None:
    """The package itself imports symgrad, so that either package can be imported first."""
    strange = [
        i
        for i in IMPORTS
        if is_within(i.source, "codegen")
        and is_within(i.target, "symgrad")
        and i.target.removeprefix("symgrad.") not in FROM_SYMGRAD
        and not (i.source == "codegen" and i.target == "symgrad")
    ]
    assert strange == []


def test_only_the_interface_knows_code_generation() -> None:
    users = {i.source for i in IMPORTS if is_within(i.source, "symgrad") and is_within(i.target, "codegen")}
    assert users == {"symgrad.api"}


def test_loop_programs_know_no_graphs() -> None:
    both = {
        i.source
        for i in RUNNING
        if is_within(i.source, "codegen")
        and any(is_within(i.target, g) for g in GRAPHS)
        and Import(i.source, "codegen.loop", "module") in IMPORTS
    }
    assert both == LOWERING | {"codegen.works"}
    assert not [i for i in IMPORTS if i.source == "codegen.loop" and any(is_within(i.target, g) for g in GRAPHS)]


def test_foreign_packages_have_one_door_each() -> None:
    def users(package: str) -> set[str]:
        return {i.source for i in IMPORTS if is_within(i.target, package)}

    assert users("llvmlite") == {"codegen.jit"}
    assert users("ctypes") <= CTYPES
    assert users("scipy") == {"symgrad.sparse"}
    known = {
        "numpy",
        "networkx",
        "safetensors",
        "llvmlite",
        "matplotlib",
        "platformdirs",
        "scipy",
        "symgrad",
        "codegen",
    }
    roots = {i.target.partition(".")[0] for i in IMPORTS}
    assert roots - known <= sys.stdlib_module_names


def test_import_is_light() -> None:
    """Building and differentiating need NumPy alone; what else there is is loaded when it is used."""
    heavy = ("llvmlite", "networkx", "safetensors", "matplotlib", "scipy", "mpmath", "hypothesis")
    code = (
        "import sys, symgrad as sg\n"
        "g = sg.Graph(); x = g.input('x', (3,)); y = sg.grad(sg.sum(sg.tanh(x)), x); str(g)\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("first", ["codegen", "codegen.build", "codegen.loop", "symgrad.ops", "symgrad.types"])
def test_any_module_can_be_imported_first(first: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {first}"], cwd=ROOT, check=True)


# The table of operators


def ops_of(kind: Kind) -> list[OpDef]:
    return [op for op in OPS.values() if op.kind is kind]


def test_pointwise_operators_have_a_spelling() -> None:
    """`check_index` writes to the status of the call, which the emitter alone knows."""
    assert {op.name for op in ops_of(Kind.POINTWISE)} - OPERATIONS.keys() == {"check_index"}


def test_spellings_belong_to_operators() -> None:
    """`fma` stands in loop programs only."""
    assert OPERATIONS.keys() - {op.name for op in ops_of(Kind.POINTWISE)} == {"fma"}


VIEWS = {
    "reshape": lambda x: sg.reshape(x, (2, 1, 3)),
    "permute": lambda x: x.T,
    "broadcast": lambda x: sg.broadcast_to(x, (4, 2, 3)),
    "slice": lambda x: x[:, 1:],
    "pad": lambda x: sg.pad(x, ((1, 0), (0, 2))),
    "fence": lambda x: apply("fence", x, x * 2.0),
    "flip": lambda x: sg.flip(x, axis=0),
    "window": lambda x: apply("window", x, sizes=(2,), strides=(1,), dilations=(1,)),
    "concat": lambda x: sg.concat([x, x * 2.0], axis=0),
}


def test_views_are_lowered() -> None:
    graph = sg.Graph()
    x = graph.input("x", (2, 3))
    assert VIEWS.keys() == {op.name for op in ops_of(Kind.VIEW)}
    for name, make in VIEWS.items():
        node = make(x)
        assert node.op.name == name
        ranges = {f"d{k}": (0, int(d) - 1) for k, d in enumerate(node.shape)}
        index = tuple(variable(f"d{k}") for k in range(node.ndim))
        assert view_demands(node, index, (), ranges)


# Reductions that are others by the time code is generated.
GONE = {"sum_to", "fold"}


def test_reductions_are_spelled() -> None:
    builder = ScalarBuilder(1, Target("any", "", "", "", 16, 16, fma=True, masked=False))
    for op in ops_of(Kind.REDUCE):
        if op.name in GONE:
            continue
        dtype = bool_ if op.name in ("any", "all") else float32
        value = identity(builder, op.name, dtype)
        acc = (value, builder.const(sg.int64, 0)) if op.name.startswith("arg") else (value,)
        assert len(combined(builder, op.name, acc, acc)) == len(acc)
    for op in ops_of(Kind.SCAN):
        acc = beginning(builder, op.name, float32)
        assert len(combined(builder, op.name, acc, (acc[0], acc[0]))) == len(acc)
    with pytest.raises(CompileError):
        identity(builder, "sum_to", float32)


# Operators whose meaning is not a function of arrays: values from outside, and the choice of a phase.
WITHOUT_REFERENCE = {"input", "param", "state", "phase"}


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_operators_have_all_parts(op: OpDef) -> None:
    assert (op.ref is None) == (op.name in WITHOUT_REFERENCE)
    assert op.doc
    assert op.doc.endswith((".", "]"))
    assert op.vjp is not None or op.kind is Kind.SOURCE
    assert op.name == op.name.lower()


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_attributes_can_be_stored(op: OpDef) -> None:
    from symgrad.encode import attr_form

    for attr in op.attrs:
        assert attr_form(op.name, attr)


def test_identities_change_nothing() -> None:
    """The interpreter of loop programs and the references agree on what an empty sum is."""
    empty = np.zeros((0,), np.float32)
    for name, wanted in (("sum", 0.0), ("prod", 1.0)):
        reference = OPS[name].ref
        assert reference is not None
        assert reference(empty, axes=(0,)) == wanted
