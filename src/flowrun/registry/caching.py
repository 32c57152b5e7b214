"""``Cache``: what lets a task take its result from an earlier run, and when it may do so."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from flowrun.errors import listed
from flowrun.policy import check_seconds

if TYPE_CHECKING:
    import ast

KeyFunction = Callable[[Any], object]
"""Given the run's ``RunContext`` (``None`` if it has none), returns what of it counts."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Let a task take the result of an earlier success in the same store.

    It is taken when the inputs, bound values, parameters, ``version`` and the source of the
    task's own function are the same.

    Args:
        ttl_s: Seconds after which a result is too old; ``None`` for no limit.
        version: Change it when something else that the result depends on has changed: a helper
            function, a global, a library.
        key: A function that is given the run's context, and returns what of it counts. A task
            with a ``RunContext`` parameter needs one.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: ``ttl_s`` is not finite and above 0.

    Example:
        >>> Cache(ttl_s=86_400, version="2").version
        '2'
    """

    ttl_s: float | None = None
    version: str = ""
    key: KeyFunction | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if self.ttl_s is not None:
            check_seconds("ttl_s of a Cache", self.ttl_s, none="for no end")
        if not isinstance(self.version, str):
            msg = f'version of a Cache must be a text, like "2", not {self.version!r:.80}'
            raise TypeError(msg)
        if self.key is not None and not callable(self.key):
            msg = f"key of a Cache must be a function of the run's context, not {self.key!r:.80}"
            raise TypeError(msg)


def checked_cache(
    cache: object, function: object, context_parameter: str | None, *, retains: bool
) -> tuple[Cache | None, str]:
    """Return a task's cache, and the source of its function; nothing is read without a cache.

    Args:
        cache: What was given.
        function: The task's callable, without what is bound to it.
        context_parameter: Its parameter for the run's context.
        retains: Whether the task's result is retained.
    """
    if cache is None:
        return None, ""
    if not isinstance(cache, Cache):
        msg = f"cache must be a Cache or None, not {cache!r:.80}; write cache=Cache()"
        raise TypeError(msg)
    if not retains:
        msg = "retain_result=False drops the result that cache= would keep; leave one of them out"
        raise ValueError(msg)
    if context_parameter is not None and cache.key is None:
        msg = (
            f"with cache= and the RunContext parameter {context_parameter!r}, say what of the"
            f" context counts: Cache(key=lambda {context_parameter}: ...)"
        )
        raise ValueError(msg)
    if not isinstance(function, types.FunctionType):
        msg = (
            f"cache= is for functions, whose source says what they do, not for a"
            f" {type(function).__name__}; write a function that calls it"
        )
        raise ValueError(msg)  # noqa: TRY004 - a callable is of the right type
    if function.__closure__:
        msg = (
            "cache= cannot see the outer variables that the function uses"
            f" ({listed(function.__code__.co_freevars)}); make them parameters, which a template"
            " binds"
        )
        raise ValueError(msg)
    return cache, _source(function.__code__)


def _source(code: types.CodeType) -> str:
    """Return the source of a function as it is now: later its file may have changed."""
    import inspect  # noqa: PLC0415 - for caches only

    try:
        if code.co_name != "<lambda>":
            return _normalized(inspect.getsource(code))
        lines, _ = inspect.findsource(code)
    except OSError as error:
        msg = (
            f"cache= needs the source of the function ({error}); define it in a file or a"
            " notebook, or leave cache= out"
        )
        raise ValueError(msg) from None
    # getsource() may end a lambda before its last line, and so may the positions of what is left of
    # it when constants were folded: what it was compiled to counts, too.
    last = max(end or line or 0 for line, end, _, _ in code.co_positions())
    return "".join([*lines[code.co_firstlineno - 1 : last], _compiled(code)])


def _compiled(code: types.CodeType) -> str:
    """Return what code was compiled to, without where it stands."""
    constants = [
        _compiled(each) if isinstance(each, types.CodeType) else repr(each)
        for each in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _normalized(source: str) -> str:
    """Return source without comments and decorators, whose options change no result."""
    import ast  # noqa: PLC0415 - for caches only
    import textwrap  # noqa: PLC0415 - for caches only

    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:  # a text in it is less indented than the function
        return source
    cast("ast.FunctionDef", tree.body[0]).decorator_list = []
    return ast.unparse(tree)
