"""Where the user wrote a thing, and the errors that say so."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from types import CodeType, FrameType

import numpy as np

from symgrad.record import record

# Functions of NumPy call back into nodes they are given; their lines say nothing to the user.
_PACKAGES = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, np.__file__))


@record
class Loc:
    """A place in the user's program: a code object and an instruction, resolved to a line only when printed."""

    code: CodeType
    instruction: int

    @property
    def line(self) -> int:
        """The line number of the instruction."""
        return _line(self.code, self.instruction)

    @property
    def file(self) -> str:
        return self.code.co_filename

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"


@lru_cache(maxsize=1024)
def _line(code: CodeType, instruction: int) -> int:
    for start, end, line in code.co_lines():
        if start <= instruction < end:
            return line or code.co_firstlineno
    return code.co_firstlineno


@record
class FileLoc:
    """A place in the user's program that was read back from a model file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"


_internal: dict[str, bool] = {}


def user_loc(depth: int = 1) -> Loc | None:
    """The innermost frame that is neither symgrad's own nor NumPy's."""
    frame: FrameType | None = sys._getframe(depth)  # pyright: ignore[reportPrivateUsage] the documented way costs 50 times as much
    while frame is not None:
        code = frame.f_code
        inside = _internal.get(code.co_filename)
        if inside is None:
            inside = _internal[code.co_filename] = code.co_filename.startswith(_PACKAGES)
        if not inside:
            return Loc(code, frame.f_lasti)
        frame = frame.f_back
    return None


class SymgradError(Exception):
    """Base of every error symgrad raises on purpose."""


class ShapeError(SymgradError, ValueError):
    """Shapes do not fit."""


class DTypeError(SymgradError, TypeError):
    """Data types do not fit."""


class GraphError(SymgradError, ValueError):
    """A node, name or graph is used where it cannot be."""


class GradientError(SymgradError, ValueError):
    """A derivative was asked for that does not exist or is not defined without more information."""


class FormatError(SymgradError, ValueError):
    """A model file is malformed."""


class CompileError(SymgradError, RuntimeError):
    """A program cannot be compiled or run on this machine."""
