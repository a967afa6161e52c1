"""Settings of every test run: the checkers of programs and memory plans are on, machine code is not kept."""

from __future__ import annotations

import os

os.environ["SYMGRAD_VERIFY"] = "1"
os.environ["SYMGRAD_CACHE"] = "off"
