"""The operators. Importing this package fills the table `symgrad.opdef.OPS`."""

from symgrad.ops import contract, control, elementary, indexed, order, pointwise, reduce, scan, source, view, window

__all__ = [
    "contract",
    "control",
    "elementary",
    "indexed",
    "order",
    "pointwise",
    "reduce",
    "scan",
    "source",
    "view",
    "window",
]
