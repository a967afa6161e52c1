"""The safetensors container: named arrays and text in one file, checked in full before anything is made of it.

A file is eight bytes with the length of the header, little-endian; the header, a JSON object that gives each tensor
its data type, shape and byte range, and under `__metadata__` text by name; then the bytes of the tensors. The ranges
cover the rest of the file without a gap or an overlap. What is written here any safetensors reader opens.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from symgrad.errors import FormatError
from symgrad.types import DTYPES, DType

if TYPE_CHECKING:
    from symgrad.types import Array

Path: TypeAlias = "str | os.PathLike[str]"

_PREFIX = 8
_MAX_HEADER = 100_000_000  # what the safetensors library accepts
_MAX_DEPTH = 64
_MAX_RANK = 64
_CODES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float32": "F32",
    "float64": "F64",
}
_DTYPE_OF_CODE = {code: DTYPES[name] for name, code in _CODES.items()}
# Possessive and never failing, so that a hostile text costs one pass: an unfinished string ends with the text.
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds: text by name, and read-only arrays over the bytes that were read."""

    metadata: dict[str, str]
    tensors: dict[str, Array]


def read(path: Path) -> Contents:
    """Read and check a file. FormatError says what is wrong with it and where; nothing but this file is opened."""
    # Opening a pipe would wait for a writer, so look before opening.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FormatError(f"{os.fspath(path)} is not a regular file")
    with open(path, "rb") as file:
        data = file.read()
    try:
        return parse(data)
    except FormatError as error:
        raise FormatError(f"{os.fspath(path)}: {error}") from None


def parse(data: bytes) -> Contents:
    """Check the bytes of a file and give what they hold."""
    if len(data) < _PREFIX:
        raise FormatError(f"a safetensors file has at least {_PREFIX} bytes, this one has {len(data)}")
    length = int.from_bytes(data[:_PREFIX], "little")
    if length > len(data) - _PREFIX:
        raise FormatError(
            f"byte 0: the header length is {length}, but only {len(data) - _PREFIX} bytes follow; "
            "this is no safetensors file, or it was cut short"
        )
    if length > _MAX_HEADER:
        raise FormatError(f"byte 0: the header length is {length}, more than {_MAX_HEADER}")
    header = parse_json(data[_PREFIX : _PREFIX + length], "header")
    if not isinstance(header, dict):
        raise FormatError(f"header: expected a JSON object, got {_brief(header)}")
    entries = cast("dict[str, Any]", header)
    metadata = _metadata(entries.pop("__metadata__", {}))
    return Contents(metadata, _tensors(entries, memoryview(data)[_PREFIX + length :]))


def parse_json(text: bytes, what: str) -> Any:
    """The value of a JSON text. FormatError for what the standard forbids, repeated keys and deep nesting."""
    structure = np.frombuffer(_JSON_STRING.sub(b"", text), np.uint8)
    opens = (structure == ord("[")) | (structure == ord("{"))
    closes = (structure == ord("]")) | (structure == ord("}"))
    depth = np.cumsum(opens.astype(np.int8) - closes.astype(np.int8), dtype=np.int64)
    if depth.size and int(depth.max()) > _MAX_DEPTH:
        raise FormatError(f"{what}: nested {int(depth.max())} deep, more than {_MAX_DEPTH}")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FormatError(f"{what}: byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"{what}: not JSON at character {error.pos}: {error.msg}") from None
    except FormatError as error:
        raise FormatError(f"{what}: {error}") from None
    except ValueError:
        # What is left after the two above: an integer of more digits than Python converts.
        raise FormatError(f"{what}: a number is too long") from None


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a file at once: either it is there in full, or what stood there before is unchanged.

    Equal contents give equal bytes. The file is safe on the disk when the call returns.
    """
    # Wider types first, so that every tensor is aligned to its own elements.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        array = tensors[name]
        header[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = canonical_json(header)
    text += b" " * (-len(text) % _PREFIX)
    if len(text) > _MAX_HEADER:
        raise FormatError(f"the program needs a header of {len(text)} bytes, more than the format's {_MAX_HEADER}")
    with _replacing(path) as file:
        file.write(len(text).to_bytes(_PREFIX, "little"))
        file.write(text)
        for name in names:
            file.write(little_endian(tensors[name]))


def little_endian(array: Array) -> bytes:
    """The bytes of an array in row-major order, each element little-endian."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def from_little_endian(data: bytes | memoryview, dtype: DType, shape: Sequence[int]) -> Array:
    """The array with these bytes. FormatError when the size does not fit, or a boolean is neither 0 nor 1."""
    if math.prod(shape) * dtype.itemsize != len(data):
        raise FormatError(f"{dtype}{list(shape)} does not have {len(data)} bytes")
    if dtype.kind == "b" and bool((np.frombuffer(data, np.uint8) > 1).any()):
        raise FormatError("a boolean is neither 0 nor 1")
    array = np.frombuffer(data, dtype.np.newbyteorder("<")).astype(dtype.np, copy=False)
    try:
        return array.reshape(tuple(shape))
    except ValueError as error:
        # A shape without elements may still have extents NumPy cannot hold.
        raise FormatError(f"{dtype}{list(shape)}: {error}") from None


@contextmanager
def _replacing(path: Path) -> Generator[IO[bytes], None, None]:
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".{os.path.basename(target)}.{secrets.token_hex(8)}")
    # The process's own file mode, not the private one of the tempfile module.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    if os.name == "posix":
        entry = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise FormatError(f"header, __metadata__: expected an object, got {_brief(value)}")
    for name, text in cast("dict[str, Any]", value).items():
        if not isinstance(text, str):
            raise FormatError(f"header, __metadata__ {_brief(name)}: expected text, got {_brief(text)}")
    return cast("dict[str, str]", value)


def _tensors(entries: dict[str, Any], body: memoryview) -> dict[str, Array]:
    ranges: list[tuple[int, int, str]] = []
    types: dict[str, tuple[DType, list[int]]] = {}
    for name, entry in entries.items():
        where = f"header, tensor {_brief(name)}"
        dtype, shape, begin, end = _entry(entry, where)
        size = math.prod(shape) * dtype.itemsize
        if end - begin != size:
            raise FormatError(f"{where}: {dtype}{shape} has {size} bytes, but data_offsets are {begin} to {end}")
        ranges.append((begin, end, name))
        types[name] = (dtype, shape)
    at = 0
    for begin, end, name in sorted(ranges):
        if begin != at:
            what = "overlaps the tensor before it" if begin < at else "leaves a gap before it"
            raise FormatError(f"header, tensor {_brief(name)}: starts at {begin} and {what}, which ends at {at}")
        at = end
    if at != len(body):
        raise FormatError(f"the tensors end at byte {at} of the data, but the file has {len(body)} bytes of it")
    tensors: dict[str, Array] = {}
    for begin, end, name in ranges:
        dtype, shape = types[name]
        try:
            tensors[name] = from_little_endian(body[begin:end], dtype, shape)
        except FormatError as error:
            raise FormatError(f"tensor {_brief(name)}: {error}") from None
    return tensors


def _entry(entry: Any, where: str) -> tuple[DType, list[int], int, int]:
    if not isinstance(entry, dict) or set(cast("dict[str, Any]", entry)) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: expected an object of dtype, shape and data_offsets, got {_brief(entry)}")
    fields = cast("dict[str, Any]", entry)
    code = fields["dtype"]
    dtype = _DTYPE_OF_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise FormatError(f"{where}: dtype {_brief(code)} is none of {', '.join(_DTYPE_OF_CODE)}")
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not _are_sizes(shape) or len(shape) > _MAX_RANK:
        raise FormatError(f"{where}: shape {_brief(shape)} is no list of at most {_MAX_RANK} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise FormatError(f"{where}: data_offsets {_brief(offsets)} are not two sizes")
    return dtype, shape, offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in cast("list[Any]", value))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise FormatError(f"the key {_brief(key)} occurs twice in one object")
        seen.add(key)
    raise AssertionError("unreachable: fewer keys than pairs")


def _no_constant(text: str) -> Any:
    raise FormatError(f"{text} is not JSON")


def _brief(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
