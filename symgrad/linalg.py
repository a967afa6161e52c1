"""Linear algebra beyond products: what `sg.linalg` is made of."""

from __future__ import annotations

from symgrad.norms import vector_norm

__all__ = ["vector_norm"]
