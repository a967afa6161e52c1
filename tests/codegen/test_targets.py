"""Kernels for machines other than this one: the text of every target is accepted and lowered by LLVM."""

import numpy as np
import pytest

import symgrad as sg
from codegen import jit
from codegen.build import build
from codegen.machine_code import KernelStore
from codegen.target import Target
from symgrad.optimize import optimize

NEON = Target(
    name="aarch64-128",
    triple="aarch64-unknown-linux-gnu",
    cpu="neoverse-n1",
    features="+neon",
    vector_bytes=16,
    registers=32,
    fma=True,
    masked=False,
)


def programs() -> dict[str, sg.Program]:
    g = sg.Graph()
    x, w = g.input("x", (37, 50)), g.param("w", np.zeros((50, 70), np.float32))
    t = g.input("t", (37,), sg.int32)
    loss = sg.mean(sg.nn.softmax_cross_entropy(sg.nn.gelu(x @ w), t))
    d = sg.grad(loss, w)
    views = sg.concat([sg.flip(x, axis=1), sg.pad(x[::2], ((0, 18), (0, 0)))], axis=0)
    return {
        "training": sg.Program(g, (x, t), (loss,), tuple(sg.optim.momentum([w], [d], lr=0.1, beta=0.9))),
        "views": sg.Program(g, (x,), (views, sg.argmax(x, axis=0), sg.sin(x), sg.astype(x, sg.int8))),
    }


@pytest.mark.parametrize("name", programs())
def test_neon_lowers(name):
    """The module of each program becomes AArch64 assembly; contractions are made of fused multiply-adds on vectors."""
    modules: list[str] = []

    def keep(stage: str, text: str) -> None:
        if stage == "llvm":
            modules.append(text)
            raise DoneError

    program = optimize(programs()[name], "train", {})
    with pytest.raises(DoneError):
        build(program, KernelStore(), target=NEON, report=keep)
    text = jit.assembly(modules[0], NEON)
    assert ".4s" in text
    assert name != "training" or "fmla\tv" in text


class DoneError(Exception):
    """What is wanted has been seen; code for another machine cannot be linked here."""
