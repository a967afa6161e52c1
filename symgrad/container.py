"""The safetensors container: named arrays and text in one file, checked in full before anything is made of it.

The safetensors library writes and reads the bytes. Here is what it leaves open: a file is replaced as a whole or not at
all, equal contents give equal bytes, the size of the header is checked before anything is made of it, and what the
library lets pass is refused (repeated keys, unknown fields, other data types, booleans that are neither 0 nor 1).
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
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from symgrad.errors import FormatError
from symgrad.record import record
from symgrad.types import DTYPES, DType

if TYPE_CHECKING:
    from symgrad.types import Array

Path: TypeAlias = "str | os.PathLike[str]"

_PREFIX = 8
_MAX_HEADER = 100_000_000  # the library's own bound, needed before the library is asked
_MAX_DEPTH = 64
_MAX_RANK = 64
_DTYPE_OF_CODE = {
    "BOOL": DTYPES["bool"],
    "I8": DTYPES["int8"],
    "I16": DTYPES["int16"],
    "I32": DTYPES["int32"],
    "I64": DTYPES["int64"],
    "U8": DTYPES["uint8"],
    "U16": DTYPES["uint16"],
    "U32": DTYPES["uint32"],
    "U64": DTYPES["uint64"],
    "F32": DTYPES["float32"],
    "F64": DTYPES["float64"],
}
# Possessive and never failing, so that a hostile text costs one pass: an unfinished string ends with the text.
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


@record
class Contents:
    """What a file holds: text by name, and read-only arrays over the bytes that were read."""

    metadata: dict[str, str]
    tensors: dict[str, Array]


def read(path: Path) -> Contents:
    """Read and check a file. FormatError says what is wrong with it and where; nothing but this file is opened."""
    # Opening a pipe would wait for a writer, so look before opening.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FormatError(f"{os.fspath(path)} is not a regular file")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # A large file of another kind is refused before it is read.
            _header_length(file.read(_PREFIX), size)
            file.seek(0)
            data = file.read(size)
        return parse(data)
    except FormatError as error:
        raise FormatError(f"{os.fspath(path)}: {error}") from None


def parse(data: bytes) -> Contents:
    """Check the bytes of a file and give what they hold."""
    from safetensors import SafetensorError, deserialize  # pyright: ignore[reportUnknownVariableType] it has no types

    # First what the library lets pass, and what would make it allocate many times the size of the file.
    end = _PREFIX + _header_length(data[:_PREFIX], len(data))
    metadata, names = _header(parse_json(data[_PREFIX:end], "header"))
    try:
        found = cast("dict[str, dict[str, Any]]", dict(cast("list[Any]", deserialize(data))))
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing: ")
        raise FormatError(f"header: {reason} ({len(data) - end} bytes of tensors follow the header)") from None
    # The library's own order differs from run to run.
    return Contents(metadata, {name: _tensor(name, found[name]) for name in names})


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

    Equal contents give equal bytes. The file is safe on the disk when the call returns. FormatError when the header
    would be larger than the format allows, or a text is not Unicode.
    """
    import safetensors.numpy

    try:
        # The library takes the memory of an array as it lies.
        dense = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        data = safetensors.numpy.save(dense, dict(metadata))
    except safetensors.SafetensorError as error:
        raise FormatError(f"the program does not fit a safetensors file: {error}") from None
    except UnicodeEncodeError as error:
        raise FormatError(f"{_brief(error.object)}: a lone surrogate cannot be stored as text") from None
    # Older releases of the library write headers that they then refuse to read.
    body = _PREFIX + _header_length(data[:_PREFIX], len(data))
    head = data[:body]
    if len(metadata) > 1:
        # The library writes several texts in an order that differs from run to run; by name it is always the same.
        text = canonical_json(json.loads(head[_PREFIX:]))
        text += b" " * (-len(text) % _PREFIX)
        head = len(text).to_bytes(_PREFIX, "little") + text
        _header_length(head[:_PREFIX], len(head))
    with _replacing(path) as file:
        file.write(head)
        file.write(memoryview(data)[body:])


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


def _header_length(prefix: bytes, size: int) -> int:
    """The length of the header of a file of `size` bytes that starts with `prefix`."""
    if len(prefix) < _PREFIX:
        raise FormatError(f"a safetensors file has at least {_PREFIX} bytes, this one has {len(prefix)}")
    length = int.from_bytes(prefix[:_PREFIX], "little")
    if length > size - _PREFIX:
        raise FormatError(
            f"byte 0: the header length is {length}, but only {size - _PREFIX} bytes follow; "
            "this is no safetensors file, or it was cut short"
        )
    if length > _MAX_HEADER:
        raise FormatError(f"byte 0: the header length is {length}, more than {_MAX_HEADER}")
    return length


def _header(value: Any) -> tuple[dict[str, str], list[str]]:
    """The metadata and the names of the tensors. What an entry says of its bytes is left to the library."""
    if not isinstance(value, dict):
        raise FormatError(f"header: expected a JSON object, got {_brief(value)}")
    entries = cast("dict[str, Any]", value)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise FormatError(f"header, __metadata__: expected an object, got {_brief(metadata)}")
    for name, entry in entries.items():
        where = f"header, tensor {_brief(name)}"
        if not isinstance(entry, dict) or set(cast("dict[str, Any]", entry)) != {"dtype", "shape", "data_offsets"}:
            raise FormatError(f"{where}: expected an object of dtype, shape and data_offsets, got {_brief(entry)}")
        shape = cast("dict[str, Any]", entry)["shape"]
        if not isinstance(shape, list) or len(cast("list[Any]", shape)) > _MAX_RANK:
            raise FormatError(f"{where}: shape {_brief(shape)} is no list of at most {_MAX_RANK} sizes")
    return cast("dict[str, str]", metadata), list(entries)


def _tensor(name: str, entry: dict[str, Any]) -> Array:
    dtype = _DTYPE_OF_CODE.get(entry["dtype"])
    if dtype is None:
        raise FormatError(
            f"header, tensor {_brief(name)}: dtype {entry['dtype']} is none of {', '.join(_DTYPE_OF_CODE)}"
        )
    try:
        return from_little_endian(memoryview(entry["data"]).toreadonly(), dtype, entry["shape"])
    except FormatError as error:
        raise FormatError(f"tensor {_brief(name)}: {error}") from None


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
