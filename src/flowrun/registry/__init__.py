"""Declaring tasks: decorators, templates, ``TaskSpec``, the reading of signatures."""

from flowrun.registry.annotations import unresolved_annotation
from flowrun.registry.declaring import Declaring, TaskTemplate
from flowrun.registry.map_spec import MapSpec
from flowrun.registry.names import validate_name
from flowrun.registry.params import Param, Parameter, stored_param
from flowrun.registry.signature import UPSTREAM, Signature, inspect_callable
from flowrun.registry.task_registry import TaskRegistry, task, task_template
from flowrun.registry.task_spec import (
    TaskFunction,
    TaskOptions,
    TaskSpec,
    TemplateOptions,
    TriggerRule,
    callable_name,
)

__all__ = [
    "UPSTREAM",
    "Declaring",
    "MapSpec",
    "Param",
    "Parameter",
    "Signature",
    "TaskFunction",
    "TaskOptions",
    "TaskRegistry",
    "TaskSpec",
    "TaskTemplate",
    "TemplateOptions",
    "TriggerRule",
    "callable_name",
    "inspect_callable",
    "stored_param",
    "task",
    "task_template",
    "unresolved_annotation",
    "validate_name",
]
