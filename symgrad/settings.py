"""What the environment asks for. The one place where environment variables are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache

from symgrad.record import record


@record
class Settings:
    """How much to show and check, and where to keep things.

    `debug` is the level of SYMGRAD_DEBUG (0 to 6), `dump` the folder of SYMGRAD_DUMP, `verify` whether every pass is
    followed by the verifier, `profile` whether kernels are timed, `threads` the number of workers, None for one per
    processor. `cache` is the folder of SYMGRAD_CACHE, "off", or nothing for the user's own cache folder.
    """

    debug: int = 0
    dump: str | None = None
    verify: bool = False
    profile: bool = False
    threads: int | None = None
    cache: str = ""


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings an environment asks for. ValueError names the variable that is not understood."""
    threads = _integer(environment, "SYMGRAD_NUM_THREADS", 1)
    return Settings(
        debug=_integer(environment, "SYMGRAD_DEBUG", 0, 6) or 0,
        dump=environment.get("SYMGRAD_DUMP") or None,
        verify=_switch(environment, "SYMGRAD_VERIFY"),
        profile=_switch(environment, "SYMGRAD_PROFILE"),
        threads=threads,
        cache=_folder(environment, "SYMGRAD_CACHE"),
    )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once, at the first use."""
    return read_settings(os.environ)


def _integer(environment: Mapping[str, str], name: str, least: int, most: int | None = None) -> int | None:
    text = environment.get(name, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {wanted}, got {text!r}")
    return int(text)


def _folder(environment: Mapping[str, str], name: str) -> str:
    text = environment.get(name, "")
    if text in ("0", "1"):  # meant as a switch, it would name a folder here
        raise ValueError(f"{name} must be a folder or 'off', got {text!r}")
    return text


def _switch(environment: Mapping[str, str], name: str) -> bool:
    text = environment.get(name, "")
    if text not in ("", "0", "1"):
        raise ValueError(f"{name} must be 0 or 1, got {text!r}")
    return text == "1"
