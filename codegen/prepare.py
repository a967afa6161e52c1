"""The last rewrites of a static program: operators in the shapes that kernels are made for."""

from __future__ import annotations

from symgrad.program import Program


def prepare(program: Program) -> Program:
    """The program with reductions and contractions in forms that lowering handles well."""
    return program
