"""Programs in files: one safetensors file with the graph as JSON text and the arrays as tensors.

The text stands in the header's metadata under `symgrad`. It is an object with

    format    1; a file of another format is refused
    dims      symbolic extents: [[factor, [[atom, power], ...]], ...], where an atom is a name,
              ["quotient", extent, extent] or ["joint", extent, extent]
    types     [data type, [extent, ...]], where an extent is an integer or [index into dims]
    literals  [data type, shape, hex of the bytes], or the name of a tensor
    places    [file, line] of the user's program
    programs  objects; each may call those before it, the last one is the program of the file

and a program is an object of name, seed, streams, inputs, outputs, output_names, updates, removed, values (the tensor
of each param and state) and nodes: [operator, inputs, attributes, type, place or null, scope, index of the node it is
the derivative of or null, order of the derivative]. Inputs are indexes of earlier nodes, so nothing can be cyclic.

Nothing in a file is code, and loading computes nothing but types: every node is inferred again and compared with what
the file says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from symgrad import container
from symgrad.decode import decode
from symgrad.encode import Writer
from symgrad.errors import FormatError
from symgrad.graph import Node
from symgrad.program import Program
from symgrad.prune import Outputs, Phase, prune

_KEY = "symgrad"


def export(
    path: container.Path,
    outputs: Outputs,
    inputs: Sequence[Node] | None = None,
    *,
    phase: Phase = "infer",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Prune to the outputs and write the result as one self-contained file.

    Outputs, inputs and phase are those of `prune`; `metadata` is text kept beside the program. An existing file is
    replaced at once or, when writing fails, left as it was. Equal programs give equal bytes. GraphError when an output
    needs an input that is not listed.
    """
    save_program(path, prune(outputs, inputs, phase), metadata=metadata)


def load(path: container.Path) -> Program:
    """The program in a file. FormatError says what is wrong with a file and where; no code in it is ever run."""
    return load_program(path)


def save_program(path: container.Path, program: Program, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a program with the current values of its params and states; see `export`."""
    texts = dict(metadata or {})
    if _KEY in texts:
        raise FormatError(f"the metadata key {_KEY!r} is taken by the program itself; choose another")
    writer = Writer()
    text = writer.document(program)
    texts[_KEY] = container.canonical_json(text).decode("ascii")
    container.write(path, writer.tensors, texts)


def load_program(path: container.Path) -> Program:
    """The program in a file; see `load`."""
    contents = container.read(path)
    try:
        if _KEY not in contents.metadata:
            raise FormatError(f"the header's metadata has no {_KEY!r}: a file of tensors, but not a symgrad program")
        return decode(contents.metadata[_KEY], contents.tensors)
    except FormatError as error:
        raise FormatError(f"{os.fspath(path)}: {error}") from None


def read_metadata(path: container.Path) -> dict[str, str]:
    """The text that was stored beside the program of a file."""
    return {name: text for name, text in container.read(path).metadata.items() if name != _KEY}
