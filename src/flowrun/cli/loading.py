"""Find the engine that the command line names: ``MODULE:ENGINE``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

from flowrun.context import RunContext
from flowrun.engine import Engine
from flowrun.errors import FlowrunError, close_match, listed

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import ModuleType


class UsageError(FlowrunError):
    """The command line is wrong; the text says what to type instead."""


def load_engine(place: str) -> Engine:
    """Import ``MODULE:ENGINE`` and return the engine.

    Args:
        place: A module and a name in it: an engine, or a function that returns one.

    Raises:
        UsageError: There is no such module, or no engine under that name.
    """
    module, attribute, found = _found(place, "ENGINE", "engine")
    if not isinstance(found, Engine) and callable(found):
        try:
            found = found()
        except Exception as error:
            msg = f"{place!r} made no Engine: {type(error).__name__}: {error}"
            raise UsageError(msg) from error
    if not isinstance(found, Engine):
        msg = (
            f"{place!r} is not a flowrun Engine, nor a function that returns one."
            f"{_engines_of(module, module.__name__, attribute)}"
        )
        raise UsageError(msg)
    return found


@contextmanager
def opened_context(
    place: str, params: Mapping[str, object]
) -> Generator[RunContext[Any], None, None]:
    """Have the factory ``MODULE:FACTORY`` make a run's context; close it in the end.

    Args:
        place: A module and a function in it, which returns a ``RunContext`` or a context manager
            of one.
        params: The run's parameters, which the function is given.

    Raises:
        UsageError: There is no such function, or it made no ``RunContext``.
    """
    factory = _found(place, "FACTORY", "make_context")[2]
    if not callable(factory):
        msg = f"{place!r} is no function; --context takes one that returns a RunContext"
        raise UsageError(msg)
    with ExitStack() as stack:
        try:
            made: object = factory(dict(params))
            if isinstance(made, AbstractContextManager):
                made = stack.enter_context(cast("AbstractContextManager[object]", made))
        except Exception as error:
            msg = f"{place!r} made no RunContext: {type(error).__name__}: {error}"
            raise UsageError(msg) from error
        if not isinstance(made, RunContext):
            if inspect.iscoroutine(made):
                made.close()  # else Python warns that it was never awaited
            msg = (
                f"{place!r} returned {type(made).__name__}, not a RunContext: let it return"
                " RunContext(...), or make it a context manager that yields one"
            )
            raise UsageError(msg)
        yield made


def _found(place: str, what: str, example: str) -> tuple[ModuleType, str, Any]:
    """Import ``MODULE:NAME``; return the module, the name, and what has it, or ``None``."""
    module_name, _, attribute = place.partition(":")
    if not module_name or not attribute:
        msg = f"{place!r} is not MODULE:{what}; write it like jobs.daily:{example}"
        raise UsageError(msg)
    if module_name.endswith(".py") or "/" in module_name or "\\" in module_name:
        dotted = module_name.removesuffix(".py").replace("\\", "/").strip("./").replace("/", ".")
        msg = f"{module_name!r} is a path, and MODULE is a name; write {dotted}:{attribute}"
        raise UsageError(msg)
    if "" not in sys.path:
        sys.path.insert(0, "")
    module = _imported(module_name)
    found: Any = module
    for name in attribute.split("."):
        found = getattr(found, name, None)
    return module, attribute, found


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        msg = f"cannot import {name!r}: {error}"
        # A module that the jobs import may be missing, too; then the name is right.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            msg += f".{_similar_modules(error.name)}"
        raise UsageError(msg) from error
    except ImportError as error:
        msg = f"cannot import {name!r}: {error}"
        raise UsageError(msg) from error
    except Exception as error:  # a module's own code may raise anything
        msg = f"cannot import {name!r}: {type(error).__name__}: {error}"
        raise UsageError(msg) from error


def _similar_modules(missing: str) -> str:
    """Suggest a module of the package, or of the working directory."""
    package, _, name = missing.rpartition(".")
    folders = getattr(sys.modules.get(package), "__path__", []) if package else [""]
    modules = [module.name for module in pkgutil.iter_modules(folders)]
    hint = close_match(name, modules)
    if hint and package:
        hint += f" (in {package!r})"
    if not hint and not package:
        hint = " Is the working directory the one that the module is in?"
    return hint


def _engines_of(module: ModuleType, name: str, attribute: str) -> str:
    engines = [key for key, value in vars(module).items() if isinstance(value, Engine)]
    hint = close_match(attribute, engines)
    if not hint and engines:
        hint = f" Engines in {name!r}: {listed(engines)}."
    return hint
