"""The operators. Importing this package fills the table `symgrad.opdef.OPS`."""

from symgrad.ops import contract, control, indexed, pointwise, reduce, source, view

__all__ = ["contract", "control", "indexed", "pointwise", "reduce", "source", "view"]
