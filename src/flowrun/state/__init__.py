"""Runs and where they are kept: records, the store protocol, serializers, stores, the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.door import lazy_exports
from flowrun.state.memory import InMemoryStateStore, StateStore
from flowrun.state.protocol import Change, RunQuery, StateStoreProtocol
from flowrun.state.records import (
    AttemptRecord,
    NoResult,
    Reason,
    RunRecord,
    RunStatus,
    RunSummary,
    TaskRecord,
    TaskStatus,
)

if TYPE_CHECKING:
    from flowrun.state.pickle_serializer import PickleSerializer
    from flowrun.state.serializers import JsonSerializer, ResultSerializer
    from flowrun.state.sqlite import SqliteStateStore

__all__ = [
    "AttemptRecord",
    "Change",
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
]

# A run in memory needs neither SQLite nor a serializer.
__getattr__ = lazy_exports(
    __name__,
    {
        "flowrun.state.pickle_serializer": ("PickleSerializer",),
        "flowrun.state.serializers": ("JsonSerializer", "ResultSerializer"),
        "flowrun.state.sqlite": ("SqliteStateStore",),
    },
)
