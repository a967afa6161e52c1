"""symgrad: symbolic graphs, derivatives as nodes of the same graph, results as machine code.

import symgrad as sg

g = sg.Graph()
x = g.input("x", ("n",))
f = sg.compile([x], sg.grad(sg.sum(sg.tanh(x)), x))
"""

from symgrad import init, nn, optim, random
from symgrad.api import compile
from symgrad.errors import (
    CompileError,
    DTypeError,
    FormatError,
    GradientError,
    GraphError,
    ShapeError,
    SymgradError,
)
from symgrad.evaluate import evaluate
from symgrad.function import Function
from symgrad.functions import *  # noqa: F403
from symgrad.functions import __all__ as _functions
from symgrad.grad import grad, hvp, jvp, vjp
from symgrad.graph import Graph, Node, ancestors, depends_on
from symgrad.program import Program
from symgrad.prune import prune
from symgrad.serialize import export, load
from symgrad.tower import derivative
from symgrad.types import (
    DType,
    bool_,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)

__version__ = "0.1.0"
__all__ = [
    "CompileError",
    "DType",
    "DTypeError",
    "FormatError",
    "Function",
    "GradientError",
    "Graph",
    "GraphError",
    "Node",
    "Program",
    "ShapeError",
    "SymgradError",
    "ancestors",
    "bool_",
    "compile",
    "depends_on",
    "derivative",
    "evaluate",
    "export",
    "float32",
    "float64",
    "grad",
    "hvp",
    "init",
    "int8",
    "int16",
    "int32",
    "int64",
    "jvp",
    "load",
    "nn",
    "optim",
    "prune",
    "random",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "vjp",
]
__all__ += _functions  # pyright: ignore[reportUnsupportedDunderAll] the array functions list themselves
