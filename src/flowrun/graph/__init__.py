"""Build validated, immutable graphs from the task specs of DAGs."""

from flowrun.graph.call_plan import MISSING, NO_PARAMS, Arguments, CallPlan
from flowrun.graph.graph import Graph
from flowrun.graph.graphs import Graphs
from flowrun.graph.overriding import override

__all__ = ["MISSING", "NO_PARAMS", "Arguments", "CallPlan", "Graph", "Graphs", "override"]
