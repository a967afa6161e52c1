"""What users of define-by-run autograd look for: each section of the page is a test."""

# pyright: basic
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import run_blocks

import symgrad as sg

TEXT = (Path(sg.__file__).parent / "docs" / "autograd.md").read_text(encoding="utf-8")
START, *SECTIONS = TEXT.split("\n## ")


def test_sections() -> None:
    """One section for each line of the comparison."""
    wanted = (
        "requires_grad backward() gradient=v zero_grad register_hook detach grad_fn create_graph autograd.Function "
        "masked_select reshape bmm numpy() cuda optim.SGD deployment"
    )
    titles = [section.partition("\n")[0] for section in SECTIONS]
    assert len(titles) == len(wanted.split())
    assert all(word in title for word, title in zip(wanted.split(), titles, strict=True))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_section(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert run_blocks("autograd.md", START, names) == 1
    assert run_blocks("autograd.md", section, names) == 1
