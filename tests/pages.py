"""Pages of the documentation, run."""

# pyright: basic
from __future__ import annotations

import re
from typing import Any


def python_blocks(text: str) -> list[str]:
    """The Python code of a Markdown text, block by block."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def run_blocks(name: str, text: str, names: dict[str, Any]) -> int:
    """Run every Python block, one after the other, with these names; how many there were."""
    blocks = python_blocks(text)
    for block in blocks:
        exec(compile(block, name, "exec"), names)
    return len(blocks)
