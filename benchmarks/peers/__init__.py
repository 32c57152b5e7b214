"""The same work done by others, each in an environment of its own.

A module here has ``KINDS``: what it can do, with the signature that the floors have; and
``CANNOT``: why it cannot do the rest. It is imported only in its own environment.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """Another library.

    Attributes:
        module: Its module here.
        title: Its name.
        distribution: What its version is asked of.
        requirements: What is installed.
        more: What it does that flowrun does not.
    """

    module: str
    title: str
    distribution: str
    requirements: tuple[str, ...]
    more: str


PEERS = (
    Peer(
        "hamilton",
        "Hamilton",
        "sf-hamilton",
        ("sf-hamilton",),
        "names every column's lineage, checks the types between functions, adapters and a UI",
    ),
    Peer(
        "pipefunc",
        "pipefunc",
        "pipefunc",
        ("pipefunc", "numpy", "pandas", "xarray"),
        "maps over arrays and parameter sweeps, submits to clusters, tracks resources",
    ),
    Peer(
        "dask_threaded",
        "Dask, threads",
        "dask",
        ("dask",),
        "splits arrays and data frames into tasks by itself, rewrites graphs before it runs them",
    ),
    Peer(
        "dask_distributed",
        "Dask, distributed",
        "distributed",
        ("dask[distributed]",),
        "runs on many machines, keeps data where it is needed, has a live dashboard",
    ),
    Peer(
        "luigi",
        "Luigi",
        "luigi",
        ("luigi", "setuptools<81"),
        "knows targets in HDFS, S3 and databases, runs what is missing, shares a scheduler",
    ),
    Peer(
        "prefect",
        "Prefect",
        "prefect",
        ("prefect", "fastapi<0.140"),
        "a server with a UI, schedules, deployments, events, caching, workers elsewhere",
    ),
    Peer(
        "dagster",
        "Dagster",
        "dagster",
        ("dagster",),
        "assets with lineage and partitions, a UI, schedules and sensors, checks of data",
    ),
    Peer(
        "dbos",
        "DBOS",
        "dbos",
        ("dbos", "pysqlite3-binary"),
        "workflows that go on by themselves after a crash, queues over many processes,"
        " messages, Postgres",
    ),
    Peer(
        "redun",
        "redun",
        "redun",
        ("redun",),
        "keeps a call graph by hashes of code and values and reruns only what changed",
    ),
    Peer(
        "pydantic_graph",
        "pydantic-graph",
        "pydantic-graph",
        ("pydantic-graph",),
        "state machines with loops and typed decisions, joins with reducers, serves agents",
    ),
    Peer(
        "doit",
        "doit",
        "doit",
        ("doit",),
        "knows files: runs only what is out of date, command-line tasks, watches",
    ),
)
