"""The page of operators is what is generated now."""

from __future__ import annotations

import os

from operator_table import PAGE, page


def test_page() -> None:
    text = page()
    if os.environ.get("SYMGRAD_UPDATE_GOLDEN") == "1":
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, (
        "run SYMGRAD_UPDATE_GOLDEN=1 python -m pytest tests/test_operator_table.py"
    )
