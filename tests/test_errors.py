"""The exception tree: as it is drawn, as a caller expects it, and whole after a journey."""

from __future__ import annotations

import asyncio
import builtins
import copy
import inspect
import pickle
import re
from typing import Any

import pytest

import flowrun
from flowrun import errors
from flowrun.errors import FlowrunError, close_match, listed
from flowrun.report import build_report
from flowrun.state import RunRecord

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, FlowrunError)
}


def drawn() -> dict[str, tuple[str | None, list[str]]]:
    """Return name -> (parent, builtin bases) as the module's docstring draws them."""
    found: dict[str, tuple[str | None, list[str]]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^(    [│ ├└─]*)([A-Z]\w+)\b(?: \(([\w., ]+)\))?", line)
        if match is None:
            continue
        depth = (len(match[1]) - 4) // 4
        parent = path[depth - 1] if depth else None
        path[depth:] = [match[2]]
        found[match[2]] = (parent, [base.strip() for base in (match[3] or "").split(",") if base])
    return found


def test_every_class_is_drawn_and_every_drawn_one_exists() -> None:
    assert drawn().keys() == CLASSES.keys()


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_class_stands_where_it_is_drawn(name: str) -> None:
    parent, bases = drawn()[name]
    kind = CLASSES[name]
    if parent is not None:
        assert CLASSES[parent] in kind.__bases__
    for base in bases:
        named = getattr(builtins, base, None) or getattr(asyncio, base.rpartition(".")[2])
        assert issubclass(kind, named)


MADE: list[FlowrunError] = [
    errors.FlowrunError("x"),
    errors.DefinitionError("x"),
    errors.TaskDefinitionError("t", "d", "p"),
    errors.TaskTypeError("t", None, "p"),
    errors.ParameterError("d", "day", "p"),
    errors.OverrideError("d", "t", "p"),
    errors.GraphError("d", ["p", "q"]),
    errors.MissingDependencyError("d", ["p"]),
    errors.CrossDagDependencyError("d", ["p"]),
    errors.AmbiguousDependencyError("d", ["p"]),
    errors.CycleError("d", ["p"]),
    errors.UnfilledParameterError("d", ["p"]),
    errors.UnknownExecutorError("d", ["p"]),
    errors.UnknownLimitError("d", ["p"]),
    errors.UnknownDagError("d", ["e"], ["t"]),
    errors.UnknownTaskError("d", "t", ["u"]),
    errors.UnknownRunError("r"),
    errors.ContextError("x"),
    errors.EngineClosedError("resume"),
    errors.WrongCallError("x"),
    errors.NoCurrentAttemptError(),
    errors.ResumeError("r", "p"),
    errors.RunAliveError("r", "p"),
    errors.RunFailedError(build_report(RunRecord("r", "d", 1.0, {}, error="why"))),
    errors.RetryAfter(2.5),
    errors.SkipTask(),
    errors.AlreadyResumedError("r", "p"),
    errors.RunCancelledError("r", "closed"),
    errors.TaskTimeoutError("x"),
    errors.AttemptCancelledError("x"),
    errors.NonRetryableError("x"),
    errors.RetryAfter(3.0, "m"),
    errors.SkipTask("m"),
    errors.ExecutorError("x"),
    errors.NotPicklableError("x"),
    errors.ProcessDiedError("x"),
    errors.RemoteTaskError("m.E", "text"),
    errors.ResultError("x"),
    errors.ResultNotStorableError("p", "r", "t"),
    errors.ResultNotReadableError("x"),
    errors.StoreError("x"),
    errors.StoreFileError("x"),
    errors.StoreBusyError("x"),
    errors.StoreFullError("x"),
    errors.DamagedRecordError("r", "t", "p"),
    errors.RunLostError("r"),
    errors.ForkedStoreError("x"),
]


def test_every_class_is_made_here() -> None:
    assert {type(error).__name__ for error in MADE} == CLASSES.keys()


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_error_travels_whole(error: FlowrunError, protocol: int) -> None:  # A5
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)


class Refused(errors.NonRetryableError):
    """A user's own error, whose constructor does not take the message."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"the server answered {code}")
        self.code = code


def test_users_error_travels_whole_whatever_its_constructor_takes() -> None:  # A5
    error = Refused(code=404)
    error.add_note("in its process")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is Refused
    assert (str(twin), twin.code) == ("the server answered 404", 404)
    assert twin.__notes__ == ["in its process"]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_error_can_be_made_by_new_alone_as_some_picklers_do(error: FlowrunError) -> None:  # A5
    twin = type(error).__new__(type(error), *error.args)
    assert type(twin) is type(error)
    assert twin.args == error.args


def attributes(error: BaseException) -> dict[str, Any]:
    return vars(error)


def test_ids_are_attributes() -> None:
    for error, expected in (
        (errors.TaskDefinitionError("t", "d", "p"), {"task_name": "t", "dag_name": "d"}),
        (errors.CycleError("d", ["p", "q"]), {"dag_name": "d", "problems": ("p", "q")}),
        (errors.UnknownTaskError("d", "t", iter("u")), {"dag_name": "d", "available": ("u",)}),
        (errors.RunCancelledError("r"), {"run_id": "r", "cause": "cancelled"}),
        (errors.ResumeError("r", "p"), {"run_id": "r", "problem": "p"}),
        (errors.ResultNotStorableError("p", "r", "t"), {"run_id": "r", "task_name": "t"}),
        (errors.DamagedRecordError("r", None, "p"), {"run_id": "r", "task_name": None}),
    ):
        assert expected.items() <= attributes(error).items()


def test_messages_say_where_and_what_to_do() -> None:
    assert str(errors.TaskDefinitionError("t", "d", "p")) == "task 't' (DAG 'd'): p"
    assert str(errors.TaskDefinitionError("t", None, "p")) == "task 't' (no DAG): p"
    assert str(errors.GraphError("d", ["p"])) == "DAG 'd': p"
    assert str(errors.GraphError("d", ["p", "q"])) == "DAG 'd' has 2 mistakes:\n  - p\n  - q"
    assert "engine.list_runs()" in str(errors.UnknownRunError("r"))
    assert "build_default_engine()" in str(errors.EngineClosedError())
    assert str(errors.DamagedRecordError("r", None, "p")) == "damaged record of run 'r': p"
    assert "task 't'" in str(errors.DamagedRecordError("r", "t", "p"))


def test_unknown_run_shows_its_message_as_it_is_although_it_is_a_key_error() -> None:
    error = errors.UnknownRunError("r")
    assert isinstance(error, KeyError)
    assert str(error).startswith("no run 'r' in the state store")


def test_unknown_dag_suggests_and_tells_what_belongs_to_none() -> None:
    text = str(errors.UnknownDagError("dialy", ["daily", "hourly"]))
    assert "available DAGs: 'daily', 'hourly'" in text
    assert text.endswith("Did you mean 'daily'?")
    assert "declare one with @engine.task(dag=...)" in str(errors.UnknownDagError("d", []))
    text = str(errors.UnknownDagError("d", [], ["lost"]))
    assert "These tasks belong to no DAG: 'lost'; give them dag=..." in text
    assert "No task is registered" not in text


def test_unknown_task_suggests_and_lists_no_more_than_a_screen() -> None:
    names = [f"step_{number}" for number in range(1000)]
    text = str(errors.UnknownTaskError("d", "stp_7", names))
    assert "Did you mean 'step_7'?" in text
    assert "and 980 more" in text


def test_close_match_is_silent_without_one() -> None:
    assert close_match("extrct", ["extract", "load"]) == " Did you mean 'extract'?"
    assert close_match("zzz", ["extract"]) == ""
    assert close_match(7, ["7"]) == ""
    assert close_match("x", []) == ""


def test_lists_are_cut_short() -> None:
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed(["a", "b", "c"], most=2) == "'a', 'b' and 1 more"


@pytest.mark.parametrize("hostile", ["\x1b[31m", "\u202e", "\ud800", "a\nb", b"\xff", 7, None])
def test_hostile_values_cannot_draw_on_a_terminal(hostile: Any) -> None:  # V1
    for error in (
        errors.UnknownRunError(hostile),
        errors.UnknownTaskError("d", hostile, []),
        errors.UnknownDagError(hostile, []),
        errors.TaskDefinitionError(hostile, None, "p"),
    ):
        text = str(error)
        assert text.isprintable()
        text.encode()


def test_long_values_cannot_flood_a_message() -> None:
    for value in ("x" * 10**7, ["x"] * 10**5):
        assert len(str(errors.UnknownRunError(value))) < 400


async def test_run_that_was_not_awaited_is_named(engine: flowrun.Engine) -> None:
    engine.task("t", dag="d")(lambda: 1)
    coroutine: Any = engine.run_once("d")
    asks: list[Any] = [
        *(engine.get_run_report, engine.report_text, engine.report_html),
        *(engine.cancel, engine.plan_resume),
        lambda run_id: engine.display_dag("d", run_id=run_id),
        lambda run_id: engine.list_runs(before=run_id),
    ]
    for ask in asks:
        with pytest.raises(errors.UnknownRunError, match="write run_id = await engine.run_once"):
            ask(coroutine)
    with pytest.raises(errors.UnknownRunError, match="write run_id = await engine.run_once"):
        await engine.resume(coroutine)
    coroutine.close()
