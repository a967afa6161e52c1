"""Settings of every test run: the checkers of programs and memory plans are on."""

from __future__ import annotations

import os

os.environ["SYMGRAD_VERIFY"] = "1"
