"""The rules for the names of tasks and DAGs."""

from __future__ import annotations

import re

from flowrun.errors import TaskDefinitionError, TaskTypeError

_LONGEST_NAME = 200
# The general categories Cc and Cs, in full; loading unicodedata would take longer.
_UNFIT_FOR_NAMES = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")


def validate_name(
    name: object, *, what: str, task_name: object = "?", dag_name: str | None = None
) -> None:
    """Check the name of a task or of a DAG.

    Args:
        name: The name.
        what: What it names: ``"task"`` or ``"DAG"``.
        task_name: The task that declares it, for the error about a DAG's name.
        dag_name: The DAG of the task, for the error about a task's name.

    Raises:
        TaskTypeError: It is not a ``str``.
        TaskDefinitionError: It is empty, over 200 characters, or has a control character or
            a lone surrogate in it.
    """
    kind = TaskDefinitionError
    if not isinstance(name, str):
        kind = TaskTypeError
        problem = f"must be a str, not {type(name).__name__}"
    elif not name:
        problem = "must not be empty; give it one"
    elif len(name) > _LONGEST_NAME:
        problem = (
            f"may have {_LONGEST_NAME} characters, this one has {len(name)}"
            f" and starts with {name[:40]!r}; shorten it"
        )
    elif unfit := _UNFIT_FOR_NAMES.search(name):
        problem = (
            f"must be printable text; {name!a} has the character {unfit[0]!a} at index"
            f" {unfit.start()}; remove line ends and control characters"
        )
    else:
        return
    where = (name, dag_name) if what == "task" else (task_name, None)
    raise kind(*where, f"the name of a {what} {problem}")
