"""Runs and where they are kept: records, the store protocol, serializers, stores, the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.door import lazy_exports
from flowrun.state.memory import InMemoryStateStore, StateStore
from flowrun.state.protocol import (
    ByteStoreProtocol,
    CachedResult,
    CacheEntry,
    CacheStoreProtocol,
    Change,
    RunQuery,
    StateStoreProtocol,
)
from flowrun.state.records import (
    AttemptRecord,
    Cached,
    CarriedResult,
    EncodedResult,
    NoResult,
    Reason,
    TaskRecord,
    TaskStatus,
    TransitionError,
    items_by_task,
)
from flowrun.state.run_records import RunRecord, RunStatus, RunSummary

if TYPE_CHECKING:
    from flowrun.state.json_serializer import JsonSerializer
    from flowrun.state.pickle_serializer import PickleSerializer
    from flowrun.state.serializers import ResultSerializer
    from flowrun.state.sqlite import SqliteStateStore

__all__ = [
    "AttemptRecord",
    "ByteStoreProtocol",
    "CacheEntry",
    "CacheStoreProtocol",
    "Cached",
    "CachedResult",
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
