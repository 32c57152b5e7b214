"""The rules for the names of tasks and DAGs."""

from __future__ import annotations

import re

from flowrun.errors import TaskDefinitionError, TaskTypeError

LONGEST_NAME = 200
"""Characters that the name of a task or of a DAG may have."""

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
    if type(name) is str and 0 < len(name) <= LONGEST_NAME and name.isprintable():
        return
    task = name if what == "task" else task_name
    dag = dag_name if what == "task" else None
    if not isinstance(name, str):
        problem = f"the name of a {what} must be a str, not {type(name).__name__}"
        raise TaskTypeError(task, dag, problem)
    if not name:
        problem = f"the name of a {what} must not be empty; give it one"
        raise TaskDefinitionError(task, dag, problem)
    if len(name) > LONGEST_NAME:
        problem = (
            f"the name of a {what} may have {LONGEST_NAME} characters, this one has {len(name)}"
            f" and starts with {name[:40]!r}; shorten it"
        )
        raise TaskDefinitionError(task, dag, problem)
    unfit = _UNFIT_FOR_NAMES.search(name)
    if unfit is not None:
        problem = (
            f"the name {name!a} of a {what} has the character {unfit[0]!a} at index"
            f" {unfit.start()}; names are made of printable text, without line ends or control"
            " characters"
        )
        raise TaskDefinitionError(task, dag, problem)
