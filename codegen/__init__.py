"""Code generation: static programs to machine code. Used through `symgrad.compile`."""

# Loading symgrad first keeps either package importable by itself: its api module imports this one.
import symgrad as _symgrad  # noqa: F401  # pyright: ignore[reportUnusedImport]
