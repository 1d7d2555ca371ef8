"""All tasks by name."""

from __future__ import annotations

from typing import Any

from bert_numpy.errors import BertNumpyError
from bert_numpy.model.config import BertConfig
from bert_numpy.tasks.glue import TASKS, task_named
from bert_numpy.tasks.similarity import STSB_COSINE
from bert_numpy.tasks.squad import SQUAD
from bert_numpy.tasks.task import Task, TestSet

__all__ = ["OTHERS", "TASK_NAMES", "any_task_named", "require_test_set", "task_for"]

#: The tasks that are not in :data:`bert_numpy.tasks.glue.TASKS`, by their names.
OTHERS: dict[str, Task[Any]] = {SQUAD.name: SQUAD, STSB_COSINE.name: STSB_COSINE}

#: The tasks that replace another one for models with a given head, by its name and that head.
_BY_HEAD: dict[tuple[str, str], Task[Any]] = {
    (STSB_COSINE.pairs.name, STSB_COSINE.head): STSB_COSINE
}

TASK_NAMES = (*TASKS, *OTHERS)


def any_task_named(name: str) -> Task[Any]:
    """Look up a task of GLUE or SQuAD by its name.

    Raises
    ------
    BertNumpyError
        If no task has that name.
    """
    return OTHERS.get(name.lower()) or task_named(name, tuple(OTHERS))


def task_for(task: Task[Any], config: BertConfig) -> Task[Any]:
    """Adapt a task to a model: STS-B is scored by cosine if the model embeds sentences."""
    return _BY_HEAD.get((task.name, config.head.name), task)


def require_test_set(task: Task[Any]) -> TestSet[Any]:
    """Return a task's test set.

    Raises
    ------
    BertNumpyError
        If the task has no test set.
    """
    if task.test_set is None:
        raise BertNumpyError(
            f"task {task.name}: expected a task of GLUE, as no other has a test set"
        )
    return task.test_set
