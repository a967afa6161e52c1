"""The texts of kernels and schedules of representative programs, for a machine that is written down.

After a change that is meant to change them: SYMGRAD_UPDATE_GOLDEN=1 python -m pytest tests/codegen/test_golden.py,
and read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kernel_cases import WIDE, kernels_of, program_of

from codegen.loop_print import kernel_text

FOLDER = Path(__file__).parent.parent / "golden"
NAMES = (
    "broadcast",
    "transpose",
    "softmax",
    "layer_norm",
    "column_sum",
    "dense",
    "concat_pad",
    "take",
    "scatter_add",
    "momentum",
    "convolution",
    "pooling",
)


def text_of(name: str) -> str:
    """Each group of a case: what it holds, its naive kernel, and the steps and kernels of its schedule."""
    parts: list[str] = []
    for low in kernels_of(program_of(name), WIDE):
        group = low.group
        nodes = ", ".join(n.op.name for n in group.nodes)
        parts.append(f"{group.anchor.value} over {list(group.domain)}, reduced {list(group.axes)}: {nodes}")
        parts.append(kernel_text(low.naive))
        for part in low.scheduled:
            parts += ["\n".join(map(str, part.steps)) or "no steps", kernel_text(part.kernel)]
    return "\n\n".join(parts) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    path = FOLDER / f"{name}.txt"
    text = text_of(name)
    if os.environ.get("SYMGRAD_UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, (
        f"{path.name} is not what is generated now; if that is meant, run with SYMGRAD_UPDATE_GOLDEN=1"
    )


def test_texts_are_deterministic() -> None:
    assert text_of("softmax") == text_of("softmax")


def test_no_golden_is_left_over() -> None:
    assert {p.stem for p in FOLDER.glob("*.txt")} == set(NAMES)
