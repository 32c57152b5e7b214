"""Build validated, immutable graphs from the task specs of DAGs."""

from flowrun.graph.call_plan import MISSING, Arguments, CallPlan
from flowrun.graph.graph import Graph
from flowrun.graph.graphs import Graphs

__all__ = ["MISSING", "Arguments", "CallPlan", "Graph", "Graphs"]
