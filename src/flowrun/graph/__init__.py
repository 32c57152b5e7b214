"""Task specs of one DAG -> a validated, immutable ``Graph``."""

from flowrun.graph.call_plan import Arguments, CallPlan
from flowrun.graph.graph import Graph

__all__ = ["Arguments", "CallPlan", "Graph"]
