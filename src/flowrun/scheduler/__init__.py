"""One run, from ready tasks to its end; the engine's limits; resume plans."""

from flowrun.config import SchedulerConfig
from flowrun.scheduler.handle import RunHandle
from flowrun.scheduler.options import RunOptions
from flowrun.scheduler.resume_plan import PlannedTask, ResumePlan

__all__ = ["PlannedTask", "ResumePlan", "RunHandle", "RunOptions", "SchedulerConfig"]
