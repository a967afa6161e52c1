"""What scalar operations cost."""

from __future__ import annotations

from collections.abc import Mapping

# Cost of evaluating a pointwise operator again, in additions; one load and store of an element count about 4.
COSTS: Mapping[str, int] = {
    "exp": 20, "log": 24, "log1p": 30, "expm1": 30, "sin": 40, "cos": 40, "tan": 60, "tanh": 30, "sigmoid": 30,
    "erf": 40, "power": 60, "divide": 6, "reciprocal": 6, "sqrt": 8, "rsqrt": 12, "philox": 120,
}  # fmt: skip
