"""Arguments that are no nodes or graphs where one is expected: which, where, and what to do instead."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar, cast

import numpy as np

from symgrad.errors import user_loc
from symgrad.graph import Graph, Node

Function = TypeVar("Function", bound=Callable[..., Any])
# Annotations as they are written in modules that postpone them.
_KINDS: dict[str, type] = {"Node": Node, "Graph": Graph}


class Unfinished:
    """Something that a method makes a node of. It has nothing of a node itself: the errors say what to do."""

    __slots__ = ()
    advice: ClassVar[str]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} is no node and has no {name!r}; {self.advice}")


def not_a_node(name: str, value: object) -> TypeError:
    """The error for a value where a function of this name expects a node."""
    return _error(name, "a node", value, _advice(value))


def one_or_more(values: object) -> list[object]:
    """What was passed for a node or several, as a list."""
    several = isinstance(values, Iterable) and not isinstance(values, Node | str)
    return list(cast("Iterable[object]", values)) if several else [values]


def node_list(name: str, values: object) -> list[Node]:
    """One node or several as a list; the error of `not_a_node` for anything else among them."""
    nodes = one_or_more(values)
    for node in nodes:
        if not isinstance(node, Node):
            raise not_a_node(name, node)
    return cast("list[Node]", nodes)


def checked(function: Function) -> Function:
    """The function, which raises TypeError for an argument that is declared as a node or graph and is none."""
    name, code, annotations = function.__name__, function.__code__, function.__annotations__
    parameters = enumerate(code.co_varnames[: code.co_argcount])
    wanted = [(k, p, _KINDS[annotations[p]]) for k, p in parameters if annotations[p] in _KINDS]
    if not wanted:
        raise ValueError(f"{name} declares no node and no graph")

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        for k, parameter, kind in wanted:
            if k < len(arguments):
                value = arguments[k]
            elif parameter in named:
                value = named[parameter]
            else:
                continue
            if isinstance(value, kind):
                continue
            if kind is Node:
                raise not_a_node(name, value)
            raise _not_a_graph(name, value)
        return function(*arguments, **named)

    return cast("Function", call)


def _not_a_graph(name: str, value: object) -> TypeError:
    return _error(name, "a graph", value, "pass node.graph" if isinstance(value, Node) else "make one with sg.Graph()")


def _error(name: str, expected: str, value: object, advice: str) -> TypeError:
    place = user_loc(2)
    where = f" (at {place})" if place is not None else ""
    got = "None" if value is None else type(value).__name__
    return TypeError(f"{name}: expected {expected}, got {got}{where}; {advice}")


def _advice(value: object) -> str:
    if isinstance(value, Unfinished):
        return value.advice
    if isinstance(value, list | tuple):
        return "use sg.stack or sg.concat on nodes, and g.const on np.asarray of numbers"
    if isinstance(value, np.ndarray | np.generic | int | float):
        return "use g.const to put an array into a graph"
    return "make one with g.input, g.param or g.const"
