"""Model files: round trips, determinism, atomic writing, and hostile input."""

# pyright: basic
from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from symgrad import container, nn, serialize
from symgrad import functions as sg
from symgrad.encode import attr_form
from symgrad.errors import FormatError, GraphError
from symgrad.evaluate import evaluate
from symgrad.grad import grad
from symgrad.graph import Graph, Node
from symgrad.opdef import OPS
from symgrad.ops.build import apply
from symgrad.program import Program
from symgrad.prune import prune
from symgrad.types import Dim, int32


def model() -> tuple[Graph, Node, Node]:
    g = Graph(seed=7)
    x = g.input("x", ("batch", 6))
    w = g.param("w", np.linspace(-1, 1, 30, dtype=np.float32).reshape(6, 5))
    b = g.param("b", np.zeros(5, np.float32))
    with g.scope("head"):
        out = nn.softmax(nn.dropout(nn.gelu(nn.linear(x, w, b)), 0.5))
    return g, x, out


def assert_same(a: Program, b: Program) -> None:
    assert len(a.nodes) == len(b.nodes)
    assert [n.op.name for n in a.nodes] == [n.op.name for n in b.nodes]
    assert [n.type for n in a.nodes] == [n.type for n in b.nodes]
    assert [n.name for n in a.inputs] == [n.name for n in b.inputs]
    assert a.output_names == b.output_names
    assert a.removed == b.removed
    assert [old.name for old, _ in a.updates] == [old.name for old, _ in b.updates]
    assert [(n.scope, str(n.loc), n.order) for n in a.nodes] == [(n.scope, str(n.loc), n.order) for n in b.nodes]


def test_every_attribute_has_a_stored_form():
    for op in OPS.values():
        for attr in op.attrs:
            assert attr_form(op.name, attr)


def test_round_trip_of_an_exported_model(tmp_path: Path):
    _, x, out = model()
    path = tmp_path / "m.safetensors"
    serialize.export(path, {"probs": out, "best": sg.argmax(out, axis=-1)}, [x], metadata={"author": "me"})
    program = serialize.load(path)
    assert_same(prune({"probs": out, "best": sg.argmax(out, axis=-1)}, [x]), program)
    assert str(program.inputs[0].type) == "float32[batch, 6]"
    data = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    got = evaluate(list(program.outputs), {program.inputs[0]: data})
    np.testing.assert_array_equal(got[0], evaluate(out, {x: data}))
    assert serialize.read_metadata(path) == {"author": "me"}
    assert any(n.scope == "head/" for n in program.nodes)
    assert "test_serialize.py:" in str(program)
    # Any safetensors reader opens it.
    tensors = safetensors.numpy.load_file(path)
    assert [t.shape for t in tensors.values()] == [(6, 5)]


def test_round_trip_of_a_training_program(tmp_path: Path):
    g, x, out = model()
    loss = sg.mean(out * out)
    gradient = grad(loss, g.params[0])
    program = Program(g, (x,), (loss, gradient), ((g.params[0], g.params[0] - gradient),), None, "train")
    serialize.save_program(tmp_path / "t", program)
    loaded = serialize.load(tmp_path / "t")
    assert_same(program, loaded)
    assert loaded.name == "train"
    assert [p.name for p in loaded.graph.params] == ["w", "b"]
    np.testing.assert_array_equal(loaded.graph.named("w").value, g.params[0].value)
    derived = [n for n in loaded.nodes if n.gradient_of is not None]
    assert derived
    assert all(n.gradient_of.graph is loaded.graph for n in derived if n.gradient_of is not None)
    assert loaded.graph.seed == 7
    # A loaded graph is an ordinary one.
    grad(loaded.outputs[0], loaded.graph.params)


def test_special_values_keep_every_bit(tmp_path: Path):
    g = Graph()
    words = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x00000001, 0x7F800000, 0x7F812345], np.uint32)
    small, large = words.view(np.float32), np.tile(words, 40).view(np.float32)
    outputs: list[Node] = [g.const(small), g.const(large), g.const(np.array(-0.0)), g.const(np.zeros((0, 3)))]
    outputs += [g.const(np.array([True, False])), g.const(np.arange(100, dtype=np.uint8)), g.const(2**64 - 1)]
    outputs += [g.const(np.array(-(2**63))), g.const(np.array([True] * 70))]
    serialize.save_program(tmp_path / "c", Program(g, (), tuple(outputs)))
    loaded = serialize.load(tmp_path / "c")
    for before, after in zip(outputs, loaded.outputs, strict=True):
        a, b = before.attrs[0].array, after.attrs[0].array
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def test_symbolic_extents_round_trip(tmp_path: Path):
    g = Graph()
    n, m = Dim.named("n"), Dim.named("m")
    x = g.input("x", (n, m))
    flat = sg.reshape(x, (n * m,))
    halves = apply("slice", flat, starts=(0,), stops=(n * m,), steps=(2,))
    joint = g.input("y", (n,)) + g.input("z", (m,))
    both = apply("concat", halves, joint, axis=0)
    program = Program(g, tuple(g.inputs), (both, sg.sum(x) * n))
    serialize.save_program(tmp_path / "d", program)
    loaded = serialize.load(tmp_path / "d")
    assert [o.type for o in loaded.outputs] == [o.type for o in program.outputs]
    feeds = [np.ones((4, 1), np.float32), np.ones(4, np.float32), np.ones(1, np.float32)]
    a = evaluate(list(program.outputs), dict(zip(program.inputs, feeds, strict=True)))
    b = evaluate(list(loaded.outputs), dict(zip(loaded.inputs, feeds, strict=True)))
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def test_sub_programs_round_trip(tmp_path: Path):
    inner = Graph()
    a = inner.input("a", (3,))
    body = Program(inner, (a,), (sg.exp(a) + 1.0,), name="body")
    middle = Graph()
    c = middle.input("c", (3,))
    twice = Program(middle, (c,), (apply("call", apply("call", c, program=body), program=body),), name="twice")
    g = Graph()
    x = g.input("x", (3,))
    program = Program(g, (x,), (apply("call", x, program=twice),))
    serialize.save_program(tmp_path / "s", program)
    loaded = serialize.load(tmp_path / "s")
    data = np.array([0.1, 0.2, 0.3], np.float32)
    np.testing.assert_array_equal(
        evaluate(loaded.outputs[0], {loaded.inputs[0]: data}), evaluate(program.outputs[0], {x: data})
    )


def test_equal_programs_give_equal_bytes(tmp_path: Path):
    for name in ("a", "b"):
        _, x, out = model()
        serialize.export(tmp_path / name, {"out": out}, [x], metadata={"b": "1", "a": "2"})
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes()
    serialize.save_program(tmp_path / "c", serialize.load(tmp_path / "a"), metadata={"a": "2", "b": "1"})
    assert first == (tmp_path / "c").read_bytes()
    # Nothing of the machine that wrote the file is in it.
    assert os.fsencode(os.path.dirname(__file__)) not in first


def test_every_process_writes_the_same_bytes(tmp_path: Path):
    code = (
        "import sys, numpy as np\n"
        "from symgrad import serialize\n"
        "from symgrad.graph import Graph\n"
        "g = Graph()\n"
        "parts = [g.param(f'p{k}', np.full(20 + k, k, (np.float32, np.float64)[k % 2])) for k in range(8)]\n"
        "texts = {f'm{k}': str(k) for k in range(int(sys.argv[2]))}\n"
        "serialize.export(sys.argv[1], {p.name: p for p in parts}, [], metadata=texts)\n"
    )
    for count in (0, 7):
        files = set()
        for seed in ("0", "1"):
            path = tmp_path / seed
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            root = Path(__file__).parent.parent
            subprocess.run([sys.executable, "-c", code, path, str(count)], env=environment, cwd=root, check=True)
            files.add(path.read_bytes())
            assert serialize.read_metadata(path) == {f"m{k}": str(k) for k in range(count)}
            assert len(safetensors.numpy.load_file(path)) == 8
        assert len(files) == 1


def test_any_layout_is_stored_by_value(tmp_path: Path):
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    arrays = {"T": base.T, "step": base[::2, ::-3], "big": base.astype(">i4"), "row": np.broadcast_to(base[0], (3, 6))}
    arrays |= {"scalar": np.array(2.5), "none": np.zeros((0, 2), np.bool_)}
    container.write(tmp_path / "f", arrays, {})
    found = container.read(tmp_path / "f")
    assert found.metadata == {}
    assert found.tensors.keys() == arrays.keys()
    for name, array in found.tensors.items():
        assert array.dtype == arrays[name].dtype.newbyteorder("=")
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, arrays[name], strict=False)
        assert array.shape == arrays[name].shape


def test_what_cannot_be_stored_is_refused(tmp_path: Path):
    for arrays, texts in (({}, {"a": "\ud800"}), ({}, {"\ud800": ""}), ({"\ud800": np.zeros(1)}, {})):
        with pytest.raises(FormatError, match="surrogate"):
            container.write(tmp_path / "f", arrays, texts)
    with pytest.raises(FormatError, match=r"too large|more than"):
        container.write(tmp_path / "f", {}, {"a": "x" * 100_000_001})
    assert os.listdir(tmp_path) == []


def test_long_chain(tmp_path: Path):
    g = Graph(rules={})
    x = node = g.input("x", ("n",))
    for _ in range(50_000):
        node = apply("sin", apply("negative", node))
    serialize.save_program(tmp_path / "long", Program(g, (x,), (node,)))
    assert len(serialize.load(tmp_path / "long").nodes) == 100_001


def test_export_names_a_missing_input(tmp_path: Path):
    g = Graph()
    x, y = g.input("x", (2,)), g.input("y", (2,))
    with pytest.raises(GraphError, match="'y'"):
        serialize.export(tmp_path / "m", x + y, [x])
    assert os.listdir(tmp_path) == []
    with pytest.raises(FormatError, match="symgrad"):
        serialize.export(tmp_path / "m", x, [x], metadata={"symgrad": "mine"})


@pytest.mark.parametrize("broken", ["replace", "fsync", "write"])
def test_a_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str):
    _, x, out = model()
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError("no space")

    class Full(io.FileIO):
        """A file on a full disk."""

        def write(self, data: object, /) -> int:
            raise OSError("no space")

    monkeypatch.setattr(os, *(("fdopen", Full) if broken == "write" else (broken, fail)))
    with pytest.raises(OSError, match="no space"):
        serialize.export(path, out, [x])
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.safetensors"]
    os.chmod(path, 0o640)
    serialize.export(path, out, [x])
    assert os.stat(path).st_mode & 0o777 == 0o640
    serialize.load(path)


# Hostile input.


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    g, x, out = model()
    extra = g.input("i", (Dim.named("batch") * 2 + 1,), int32)
    taken = sg.take(out, apply("slice", extra, starts=(0,), stops=extra.shape, steps=(3,)), axis=0)
    path = tmp_path_factory.mktemp("stored") / "m"
    loss = sg.mean(out)
    update = (g.params[0], g.params[0] - grad(loss, g.params[0]))
    program = Program(g, (x, extra), (taken, g.const(np.arange(40.0))), (update,), ("a", "b"))
    serialize.save_program(path, program)
    return path.read_bytes()


def load_bytes(tmp_path: Path, data: bytes) -> Program | None:
    """The program, or None when the file is refused; anything but a FormatError fails the test."""
    path = tmp_path / "f"
    path.write_bytes(data)
    message = ""
    try:
        program = serialize.load(path)
    except FormatError as error:
        message = str(error)
        program = None
    if program is None:
        assert message.startswith(str(path))
        return None
    str(program)
    program.summary()
    return program


def split(data: bytes) -> tuple[dict[str, object], dict[str, object], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["symgrad"]), data[8 + length :]


def joined(header: dict, document: object, body: bytes) -> bytes:
    header = {**header, "__metadata__": {"symgrad": document if isinstance(document, str) else json.dumps(document)}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_the_sample_loads(tmp_path: Path, stored: bytes):
    assert load_bytes(tmp_path, stored) is not None
    assert load_bytes(tmp_path, joined(*split(stored))) is not None


def test_flipped_and_cut_bytes(tmp_path: Path, stored: bytes):
    rng = random.Random(0)
    refused = 0
    for case in range(150):
        data = bytearray(stored)
        if case % 3 == 2:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(1 + case % 2 * 3):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        refused += load_bytes(tmp_path, bytes(data)) is None
    assert refused > 100


def paths_of(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key in value:
            found += paths_of(value[key], (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += paths_of(item, (*path, index))
    return found


REPLACEMENTS = [
    None, True, -1, 0, 1, 2, 10**6, 2**62, 2**64, 10**300, 1.5, "", "x", "\ud800", "add", "float64", [], [0], [[]],
    {}, [1, 2, 3], ["quotient", [0], 0], ["joint", [0], [0]], [[0], [0]], ["float32", [2**40, 2**40]],
]  # fmt: skip


def test_edited_fields(tmp_path: Path, stored: bytes):
    rng = random.Random(1)
    header, document, body = split(stored)
    places = paths_of(document)
    for _ in range(500):
        copy = json.loads(json.dumps(document))
        for _ in range(rng.choice((1, 1, 2))):
            *parents, last = rng.choice(places)
            target = copy
            try:
                for step in parents:
                    target = target[step]
                if rng.random() < 0.2:
                    del target[last]
                elif rng.random() < 0.3:
                    target[last] = target[rng.choice(list(target) if isinstance(target, dict) else range(len(target)))]
                else:
                    target[last] = rng.choice(REPLACEMENTS)
            except (LookupError, TypeError):
                continue
        load_bytes(tmp_path, joined(header, copy, body))


def test_edited_header(tmp_path: Path, stored: bytes):
    rng = random.Random(2)
    header, document, body = split(stored)
    places = [p for p in paths_of(header) if p[0] != "__metadata__"]
    for _ in range(100):
        copy = json.loads(json.dumps(header))
        *parents, last = rng.choice(places)
        target = copy
        for step in parents:
            target = target[step]
        target[last] = rng.choice(REPLACEMENTS)
        assert load_bytes(tmp_path, joined(copy, document, body)) is None


def tensor_header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def entry(begin: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at least 8"),
        (pickle.dumps({"a": 1}), "header length"),
        (b"PK\x03\x04" + bytes(60), "header length"),
        (struct.pack("<Q", 2**63) + b"{}", "header length"),
        (struct.pack("<Q", 2) + b"[]", "JSON object"),
        (struct.pack("<Q", 2) + b"{}", "no 'symgrad'"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "nested"),
        (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "twice"),
        (struct.pack("<Q", 9) + b'{"a":NaN}', "NaN"),
        (struct.pack("<Q", 5007) + b'{"a":' + b"1" * 5000 + b" }", "too long"),
        (struct.pack("<Q", 3) + b'"\xff"', "UTF-8"),
        (tensor_header(a=entry(0, 4, [2**40, 2**40])) + bytes(4), "overflow"),
        (tensor_header(a=entry(0, 0, [2**32, 2**32])), "overflow"),
        (tensor_header(a=entry(0, 4, [3])) + bytes(4), "invalid shape"),
        (tensor_header(a=entry(0, 4, [1], "F64")) + bytes(4), "invalid shape"),
        (tensor_header(a=entry(0, 4, [4]), b=entry(2, 6, [4])) + bytes(6), "invalid offset for tensor `b`"),
        (tensor_header(a=entry(0, 4, [4]), b=entry(5, 6, [1])) + bytes(6), "invalid offset for tensor `b`"),
        (tensor_header(a=entry(1, 5, [4])) + bytes(5), "invalid offset for tensor `a`"),
        (tensor_header(a=entry(5, 1, [4])) + bytes(5), "invalid offset for tensor `a`"),
        (tensor_header(a=[0, 4, [4]]) + bytes(4), "tensor 'a': expected an object"),
        (tensor_header(a=["U8", [4], [0, 4]]) + bytes(4), "tensor 'a': expected an object"),
        (tensor_header(a={**entry(0, 4, [4]), "code": []}) + bytes(4), "tensor 'a': expected an object"),
        (tensor_header(__metadata__=None), "__metadata__: expected an object"),
        (tensor_header(__metadata__={"symgrad": 1}), "expected a string"),
        (tensor_header(a=entry(0, 1, [1]), A=entry(0, 1, [1])).replace(b'"A"', b'"a"') + bytes(1), "twice"),
        (struct.pack("<Q", 18) + b'{"a":1,"\\u0061":2}', "twice"),
        (tensor_header(__metadata__={"a": "1", "b": "2"}).replace(b'"b"', b'"a"'), "twice"),
        (tensor_header(a=entry(0, 4, [4])) + bytes(5), "5 bytes"),
        (tensor_header(a=entry(0, 4, [4])) + bytes(3), "3 bytes"),
        (tensor_header(a=entry(0, 1, [1], "BOOL")) + b"\x02", "neither 0 nor 1"),
        (tensor_header(a=entry(0, 2, [1], "BF16")) + bytes(2), "BF16"),
        (tensor_header(a=entry(0, 1, [True])) + bytes(1), "expected usize"),
        (tensor_header(a=entry(0, 0, [0] * 65)), "at most 64 sizes"),
        (tensor_header(a=entry(0, 1, [2], "F4")) + bytes(1), "F4"),
        (tensor_header(a=entry(0, 0, [0, 2**62, 2**62])), "tensor 'a'"),
    ],
)
def test_refused_containers(tmp_path: Path, data: bytes, message: str):
    path = tmp_path / "f"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message):
        serialize.load(path)


def document_with(nodes: list[object], **changes: object) -> dict[str, object]:
    program: dict[str, object] = {
        "name": "p", "seed": 0, "streams": 0, "nodes": nodes, "inputs": [0], "outputs": [len(nodes) - 1],
        "output_names": None, "updates": [], "removed": [], "values": {},
    }  # fmt: skip
    tables = {
        "dims": [[[1, [["n", 1]]]]],
        "types": [["float32", [3]], ["float32", [[0]]]],
        "literals": [],
        "places": [],
    }
    program |= {k: v for k, v in changes.items() if k in program}
    tables |= {k: v for k, v in changes.items() if k in tables}
    return {"format": changes.get("format", 1), **tables, "programs": changes.get("programs", [program])}


X = ["input", [], ["x", [3], "float32"], 0, None, "", None, 0]


def node(op: str, inputs: list[object], attrs: list[object] | None = None, kind: object = 0) -> list[object]:
    return [op, inputs, attrs or [], kind, None, "", None, 0]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (document_with([X], format=2), "format 1"),
        (document_with([X], format=True), "format 1"),
        (document_with([X, node("os.system", [0])]), r"programs\[0\]: nodes\[1\]: no operator"),
        (document_with([X, node("exp", [1])]), "earlier nodes"),
        (document_with([X, node("exp", [2]), node("exp", [1])]), "earlier nodes"),
        (document_with([X, node("exp", [-1])]), "earlier nodes"),
        (document_with([X, node("exp", [True])]), "earlier nodes"),
        (document_with([X, node("exp", [0, 0])]), "does not take"),
        (document_with([X, node("add", [])]), "does not take"),
        (document_with([X, node("add", [0])]), "does not take"),
        (document_with([X, node("exp", [0], kind=1)]), r"gives float32\[3\], but the file says float32\[n\]"),
        (document_with([X, node("exp", [0], kind=7)]), "index into"),
        (document_with([X, node("exp", [0]), node("exp", [0])]), "repeats"),
        (document_with([X, X]), "repeats"),
        (document_with([X, ["input", [], ["x", [[0]], "float32"], 1, None, "", None, 0]]), "occurs twice"),
        (document_with([["input", [], ["", [3], "float32"], 0, None, "", None, 0]]), "empty"),
        (document_with([X, node("sum", [0], [[True]])]), "expected an integer"),
        (document_with([X, node("sum", [0], [0])]), "expected a list"),
        (document_with([X, node("sum", [0], [[5]])]), "does not take"),
        (document_with([X, node("sum", [0], [])]), "list of 1"),
        (document_with([X, node("astype", [0], ["complex64"])]), "data type"),
        (document_with([X, node("const", [], [0])]), "literals"),
        (document_with([X], literals=["w"]), "missing"),
        (document_with([X], literals=[["float32", [2], "00"]]), "1 bytes"),
        (document_with([X], literals=[["float32", [1], "zz"]]), "hexadecimal"),
        (document_with([X], literals=[["float32", [2**40, 2**40], "00"]]), "bytes"),
        (document_with([X], dims=[[]]), "canonical"),
        (document_with([X], dims=[[[0, [["n", 1]]]]]), "canonical"),
        (document_with([X], dims=[[[1, [["n", 1]]], [1, [["n", 1]]]]]), "canonical"),
        (document_with([X], dims=[[[1, [["n", 10**6]]]]]), "integer from"),
        (document_with([X], dims=[[[1, [[["quotient", 4, 2], 1]]]]]), "no part"),
        (document_with([X], dims=[[[1, [[["quotient", 4, 0], 1]]]]]), "no part"),
        (document_with([X], dims=[[[1, [[["quotient", [0], 2], 1]]]]]), "no index"),
        (document_with([X], inputs=[]), "not listed"),
        (document_with([X], inputs=[0, 0]), "different"),
        (document_with([X, node("exp", [0])], inputs=[1]), "each an input"),
        (document_with([X], outputs=[3]), "no index"),
        (document_with([X], output_names=["a", "b"]), "2 names"),
        (document_with([X], updates=[[0, 0]]), "cannot be updated"),
        (document_with([X], values={"w": "w"}), "unknown"),
        (document_with([["param", [], ["x", [3], "float32"], 0, None, "", None, 0]], inputs=[]), "missing"),
        (document_with([X], programs=[]), "no program"),
        (document_with([X, node("call", [0], [0])]), "programs"),
        ({**document_with([X]), "code": "import os"}, "unknown"),
        ("[" * 5000, "nested"),
        ("nonsense", "not JSON"),
    ],
)
def test_refused_programs(tmp_path: Path, document: object, message: str):
    path = tmp_path / "f"
    path.write_bytes(joined({}, document, b""))
    with pytest.raises(FormatError, match=message):
        serialize.load(path)


def test_tensors_are_used_once(tmp_path: Path):
    header = {"w": entry(0, 12, [3], "F32")}
    path = tmp_path / "f"
    path.write_bytes(joined(header, document_with([X]), bytes(12)))
    with pytest.raises(FormatError, match="not used"):
        serialize.load(path)
    path.write_bytes(joined(header, document_with([X], literals=["w", "w"]), bytes(12)))
    with pytest.raises(FormatError, match="used twice"):
        serialize.load(path)


def doubling_dims(count: int) -> list[object]:
    dims: list[object] = [[[1, [["n", 1]]]]]
    for k in range(count):
        dims.append([[1, [[["quotient", [k], 7], 1], [["quotient", [k], 9], 1]]]])
    return dims


def nested_calls(count: int) -> list[object]:
    programs: list[object] = [document_with([X, node("exp", [0])])["programs"][0]]  # type: ignore[index]
    for k in range(count):
        body = document_with([X, node("call", [0], [k]), node("call", [1], [k])])
        programs.append(body["programs"][0])  # type: ignore[index]
    return programs


def test_bombs_cost_little(tmp_path: Path):
    wide = [[1, [[f"n{k}", 1]]] for k in range(30)]
    huge = [2**62] * 30
    bombs: list[object] = [
        document_with([X], dims=doubling_dims(60)),
        document_with([X], dims=[wide], types=[["float32", [[0]] * 40]]),
        document_with([X], programs=nested_calls(200)),
    ]
    tracemalloc.start()
    started = time.perf_counter()
    for bomb in bombs:
        assert load_bytes(tmp_path, joined({}, bomb, b"")) is None
    # Large shapes are only numbers until something is computed.
    literal = [["float32", [], "0000803f"]]
    types = [["float32", [3]], ["float32", []], ["float32", huge]]
    nodes = [X, node("const", [], [0], 1), node("broadcast", [1], [huge], 2)]
    assert load_bytes(tmp_path, joined({}, document_with(nodes, literals=literal, types=types), b"")) is not None
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert time.perf_counter() - started < 5


def resident_peak() -> int:
    """The most memory this process has had, in bytes; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def test_loading_takes_a_small_multiple_of_the_file(tmp_path: Path):
    size = 60_000_000
    path = tmp_path / "f"
    container.write(path, {"a": np.zeros(size, np.uint8)}, {})
    numbers = b",".join([b"0"] * 5_000_000)
    bomb = b'{"a":{"dtype":"U8","data_offsets":[0,0],"shape":[' + numbers + b"]}}"
    assert load_bytes(tmp_path, struct.pack("<Q", len(bomb)) + bomb) is None
    container.write(path, {"a": np.zeros(size, np.uint8)}, {})
    before = resident_peak()
    assert container.read(path).tensors["a"].nbytes == size
    assert resident_peak() - before < 3 * size
    # A large file of another kind is not read at all.
    with open(path, "r+b") as file:
        file.write(b"PK\x03\x04" + bytes([255] * 4))
    tracemalloc.start()
    with pytest.raises(FormatError, match="header length"):
        container.read(path)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_only_regular_files_are_read(tmp_path: Path):
    with pytest.raises(FormatError, match="regular"):
        serialize.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        serialize.load(tmp_path / "none")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FormatError, match="regular"):
            serialize.load(tmp_path / "pipe")
