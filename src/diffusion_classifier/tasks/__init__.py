"""Benchmarks by name: the data set, its class names, prompts, and the settings that were published."""

from .caption_tasks import CAPTION_TASKS
from .class_tasks import TASKS
from .open import find_preset, find_task, open_caption_task, open_task
from .task import CaptionTask, Preset, Task
from .task_prompts import Prompts, class_prompts

__all__ = [
    "CAPTION_TASKS",
    "TASKS",
    "CaptionTask",
    "Preset",
    "Prompts",
    "Task",
    "class_prompts",
    "find_preset",
    "find_task",
    "open_caption_task",
    "open_task",
]
