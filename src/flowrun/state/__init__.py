"""Runs and where they are kept: records, the store protocol, serializers, stores, the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.door import lazy_exports
from flowrun.state.memory import InMemoryStateStore, StateStore
from flowrun.state.protocol import (
    ByteStoreProtocol,
    Change,
    RunQuery,
    StateStoreProtocol,
)
from flowrun.state.records import (
    AttemptRecord,
    CarriedResult,
    EncodedResult,
    NoResult,
    Reason,
    RunRecord,
    RunStatus,
    RunSummary,
    TaskRecord,
    TaskStatus,
    TransitionError,
    items_by_task,
)

if TYPE_CHECKING:
    from flowrun.state.json_serializer import JsonSerializer
    from flowrun.state.pickle_serializer import PickleSerializer
    from flowrun.state.serializers import ResultSerializer
    from flowrun.state.sqlite import SqliteStateStore

__all__ = [
    "AttemptRecord",
    "ByteStoreProtocol",
    "CarriedResult",
    "Change",
    "EncodedResult",
    "InMemoryStateStore",
    "JsonSerializer",
    "NoResult",
    "PickleSerializer",
    "Reason",
    "ResultSerializer",
    "RunQuery",
    "RunRecord",
    "RunStatus",
    "RunSummary",
    "SqliteStateStore",
    "StateStore",
    "StateStoreProtocol",
    "TaskRecord",
    "TaskStatus",
    "TransitionError",
    "items_by_task",
]

# A run in memory needs neither SQLite nor a serializer.
__getattr__ = lazy_exports(
    __name__,
    {
        "flowrun.state.pickle_serializer": ("PickleSerializer",),
        "flowrun.state.json_serializer": ("JsonSerializer",),
        "flowrun.state.serializers": ("ResultSerializer",),
        "flowrun.state.sqlite": ("SqliteStateStore",),
    },
)
