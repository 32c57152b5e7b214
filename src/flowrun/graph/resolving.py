"""Which tasks a task depends on: what its ``deps`` and its parameters name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.errors import (
    AmbiguousDependencyError,
    CrossDagDependencyError,
    GraphError,
    MissingDependencyError,
    UnfilledParameterError,
    UnknownExecutorError,
    UnknownLimitError,
    close_match,
    listed,
)
from flowrun.graph.call_plan import plan_call
from flowrun.registry import TaskTemplate, TriggerRule, callable_name, unresolved_annotation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from flowrun.config import Limit
    from flowrun.graph.problems import Problems
    from flowrun.registry import Dependency, TaskFunction, TaskRegistry, TaskSpec
    from flowrun.registry.map_spec import MapSpec


class Resolver:
    """Resolve the dependencies of one DAG's tasks, and note what is wrong with them.

    Args:
        specs: The tasks, as declared.
        registry: Where callables and other DAGs' tasks are looked up.
        executors: Names of the executors that tasks may use.
        limits: The limits that tasks may use.
        problems: Receives the mistakes.

    Attributes:
        setups: By teardown, the names of what it tears down.
    """

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        registry: TaskRegistry,
        executors: Collection[str],
        limits: Mapping[str, Limit],
        problems: Problems,
    ) -> None:
        self._known = {spec.name: None for spec in specs}
        self._registry = registry
        self._executors = executors
        self._limits = limits
        self._problems = problems
        self.setups: dict[str, tuple[str, ...]] = {}

    def dependencies(self, spec: TaskSpec) -> tuple[str, ...]:
        """Return the names of a task's dependencies; note mistakes."""
        found: dict[str, None] = {}  # an ordered set: a fan-in may have 100,000
        if spec.teardown_of:
            self._add_listed(spec, spec.teardown_of, found)
            self.setups[spec.name] = tuple(found)
        self._add_listed(spec, spec.deps, found)
        for parameter in spec.signature.required:  # G4
            if spec.signature.wants_upstream or parameter not in self._known:
                self._add_unfilled(spec, parameter)
            else:
                found[parameter] = None
        if spec.trigger_rule is not TriggerRule.ALL_SUCCESS or spec.teardown_of:
            self._check_defaults(spec, found.keys() - self.setups.get(spec.name, ()))
        if spec.signature.leaves_star_arguments:
            self._check_star_arguments(spec, tuple(found))
        if spec.mapping is not None:
            self._check_mapping(spec, spec.mapping, tuple(found))
        self._check_resources(spec)
        return tuple(found)

    def _add_listed(
        self, spec: TaskSpec, dependencies: Sequence[Dependency], found: dict[str, None]
    ) -> None:
        for dependency in dependencies:
            name = dependency if isinstance(dependency, str) else self._name_of(spec, dependency)
            if name is None:
                continue
            if name not in self._known:
                self._add_missing(spec, name)
            elif name in found:
                problem = f"task {spec.name!r} lists dependency {name!r} twice; list it once"
                self._problems.add(GraphError, problem)
            else:
                found[name] = None

    def _check_mapping(self, spec: TaskSpec, mapping: MapSpec, names: tuple[str, ...]) -> None:
        passed = set(plan_call(spec.signature, names).passed_on(names))
        for source in mapping.over:
            name: str | None
            if isinstance(source, str):
                label, name = source, source if source in names else None
            else:
                label = callable_name(source)
                places = [place for place, each in enumerate(spec.deps) if each is source]
                name = names[places[0]] if places and places[0] < len(names) else None
            if name is None:
                self._problems.add(
                    GraphError,
                    f"task {spec.name!r} is mapped over {label!r}, which is none of its"
                    f" dependencies; name a parameter after it, or list it in deps."
                    f"{close_match(label, names)}",
                )
            elif name not in passed:
                self._problems.add(
                    UnfilledParameterError,
                    f"task {spec.name!r} is mapped over {label!r} and would never see an element;"
                    f" give it a parameter {name!r}, or read upstream[{name!r}]",
                )

    def _check_resources(self, spec: TaskSpec) -> None:
        if spec.executor is not None and spec.executor not in self._executors:
            self._problems.add(
                UnknownExecutorError,
                f"task {spec.name!r} uses executor {spec.executor!r}; the engine has"
                f" {listed(sorted(self._executors))}: pass executors={{{spec.executor!r}: ...}} to"
                f" build_default_engine.{close_match(spec.executor, self._executors)}",
            )
        for name, weight in spec.uses:
            self._check_limit(spec, name, weight)

    def _check_limit(self, spec: TaskSpec, name: str, weight: int) -> None:
        limit = self._limits.get(name)
        if limit is None:
            problem = (
                f"task {spec.name!r} uses the limit {name!r}; the engine has"
                f" {listed(sorted(self._limits))}: pass limits={{{name!r}: ...}} to"
                f" build_default_engine.{close_match(name, self._limits)}"
            )
            self._problems.add(UnknownLimitError, problem)
        elif limit.count is not None and weight > limit.count:
            problem = (
                f"task {spec.name!r} uses {weight} of the limit {name!r}, which is {limit.count};"
                " it could never start: lower the weight or raise the limit"
            )
            self._problems.add(UnknownLimitError, problem)

    def _check_defaults(self, spec: TaskSpec, names: Collection[str]) -> None:
        """A dependency may have no result, which a parameter must allow for."""
        cause = f"with trigger_rule={str(spec.trigger_rule)!r}"
        if spec.teardown_of:
            cause = "when a teardown runs"
        for parameter in spec.signature.required:
            if parameter in names:
                problem = (
                    f"task {spec.name!r} requires the parameter {parameter!r}, and {cause} that"
                    " dependency may have no result; give the parameter a default, or declare"
                    " 'upstream', which holds the results that there are"
                )
                self._problems.add(UnfilledParameterError, problem)

    def _name_of(self, spec: TaskSpec, function: TaskFunction) -> str | None:
        """Return the task that a callable stands for; ``None``, with a problem, if unclear."""
        homes = self._registry.homes(function)
        here = [name for dag, name in homes if dag == spec.dag]
        if len(here) == 1:
            return here[0]
        if here:
            self._problems.add(
                AmbiguousDependencyError,
                f"task {spec.name!r} depends on the callable {callable_name(function)!r}, which is"
                f" registered as {listed(here)}; name the one that is meant: deps=[{here[0]!r}]",
            )
        elif homes:
            self._add_cross(spec, homes[0][1], homes[0][0])
        else:
            what = f"the callable {callable_name(function)!r}, which is not registered as a task"
            remedy = f"decorate it with @engine.task(dag={spec.dag!r})"
            if isinstance(function, TaskTemplate):
                what = "a template, and a template is not a task"
                remedy = "list a task that its bind() has registered"
            self._problems.add(
                MissingDependencyError, f"task {spec.name!r} depends on {what}; {remedy}"
            )
        return None

    def _add_cross(self, spec: TaskSpec, dependency: str, dag: str | None) -> None:
        home = f"DAG {dag!r}" if dag is not None else "no DAG"
        self._problems.add(
            CrossDagDependencyError,
            f"task {spec.name!r} depends on {dependency!r}, a cross-DAG dependency:"
            f" that task belongs to {home}; a task can only depend on tasks of its own DAG, so"
            f" register it in {self._problems.dag_name!r} too, or run the DAGs one after the other",
        )

    def _add_missing(self, spec: TaskSpec, dependency: str) -> None:
        dags = self._registry.dags_with(dependency)
        named = [dag for dag in dags if dag is not None]
        if named:
            self._add_cross(spec, dependency, named[0])
            return
        hint = self._hint(dependency)
        if dags:
            hint = f" A task of that name belongs to no DAG: give it dag={spec.dag!r}."
        self._problems.add(
            MissingDependencyError,
            f"task {spec.name!r} has a missing dependency: this DAG has no task"
            f" {dependency!r:.200}. Register the task, or correct deps.{hint}",
        )

    def _add_unfilled(self, spec: TaskSpec, parameter: str) -> None:
        if spec.signature.wants_upstream:
            remedy = (
                "a task that declares 'upstream' gets no named results: read"
                f" upstream[{parameter!r}], or remove 'upstream'"
            )
        elif (annotation := unresolved_annotation(spec.function, parameter)) is not None:
            remedy = (
                f"its annotation {annotation!r} cannot be resolved at run time: if that is"
                " RunContext under another name, import it outside 'if TYPE_CHECKING:', or under"
                f" its own name. Else name the parameter after a task.{self._hint(parameter)}"
            )
        else:
            remedy = (
                "name it after a task of this DAG, give it a default, annotate it as"
                f" RunContext[...], or bind it in a template.{self._hint(parameter)}"
            )
        problem = f"task {spec.name!r} requires the parameter {parameter!r}, which nothing fills"
        self._problems.add(UnfilledParameterError, f"{problem}; {remedy}")

    def _check_star_arguments(self, spec: TaskSpec, names: tuple[str, ...]) -> None:
        passed = set(plan_call(spec.signature, names).passed_on(names))
        lost = [name for name in names if name not in passed]
        if lost:
            self._problems.add(
                UnfilledParameterError,
                f"task {spec.name!r} has *args, and results are never passed to those:"
                f" {listed(lost)} would be lost; declare a parameter 'upstream' and read"
                f" upstream[{lost[0]!r}], or name a parameter after each dependency",
            )

    def _hint(self, name: str) -> str:
        # It searches all tasks. For problems that the error does not show that would cost tasks
        # times problems (G2).
        return "" if self._problems.are_many else close_match(name, self._known)
