"""Running passes: each maps a program to a program; between them the result is verified, shown and timed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

from symgrad.program import Program
from symgrad.settings import Settings, settings
from symgrad.verify import verify

Pass: TypeAlias = Callable[[Program], Program]


def run(program: Program, pipeline: Iterable[Pass], asked: Settings | None = None) -> Program:
    """The program after every pass, in order.

    With `verify`, every result is checked. With `debug` of 1, one line per pass goes to stderr; with 2, also the
    program after it, or `unchanged`. With `dump`, the program after each pass is written to that folder. `asked`
    replaces the settings of the process.
    """
    asked = settings() if asked is None else asked
    text = str(program) if asked.debug >= 2 or asked.dump else ""
    for step, one in enumerate(pipeline):
        name = pass_name(one)
        start = time.perf_counter()
        before, program = program, one(program)
        elapsed = time.perf_counter() - start
        if asked.verify:
            verify(program, after=name)
        if asked.debug >= 1:
            counts = f"{len(before.nodes)} -> {len(program.nodes)} nodes"
            print(f"symgrad: {name}: {elapsed * 1e3:.2f} ms, {counts}", file=sys.stderr)
        if not asked.debug >= 2 and not asked.dump:
            continue
        earlier, text = text, str(program)
        if asked.debug >= 2:
            print("unchanged" if text == earlier else text, file=sys.stderr)
        if asked.dump:
            write_dump(asked.dump, f"{program.name}.{step:02d}.{name}.txt", text)
    return program


def pass_name(one: Pass) -> str:
    """The name of a pass, bound arguments aside."""
    inner = getattr(one, "func", one)
    return getattr(inner, "__name__", type(inner).__name__)


def write_dump(folder: str, name: str, text: str, *, append: bool = False) -> None:
    """Write a text into a file of the dump folder, which is made if need be. The file never leaves the folder."""
    os.makedirs(folder, exist_ok=True)
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    with open(os.path.join(folder, name), "a" if append else "w", encoding="utf-8") as file:
        file.write(text + "\n")
