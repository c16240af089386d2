"""Where a run's time goes, and how much of it is left."""

from __future__ import annotations

import time

from tsm_jax.config import Plan

# Of a new time in the moving average: about the last 50 steps count, and the last 3 validations.
_STEP_WEIGHT, _VALIDATION_WEIGHT = 0.02, 0.5


class StepTimer:
    """Where a training step's time goes, averaged since the last `lap`."""

    def __init__(self) -> None:
        self.lap()

    def lap(self) -> None:
        """Starts a new interval."""
        self._start, self._steps, self._reading = time.perf_counter(), 0, 0.0

    def count(self, reading_seconds: float) -> None:
        """Counts a step, which waited `reading_seconds` for its batch."""
        self._steps += 1
        self._reading += reading_seconds

    @property
    def batch_seconds(self) -> float | None:
        """None if no step has been timed, as after the first one, which compiles."""
        return (time.perf_counter() - self._start) / self._steps if self._steps else None

    @property
    def reader_seconds(self) -> float | None:
        return self._reading / self._steps if self._steps else None


class MovingAverage:
    """An exponential moving average that the first values enter as a plain mean."""

    def __init__(self, weight: float):
        self._weight, self._count = weight, 0
        self.value: float | None = None

    def add(self, value: float) -> None:
        self._count += 1
        weight = max(self._weight, 1 / self._count)
        self.value = value if self.value is None else self.value + weight * (value - self.value)


class RemainingTime:
    """The time to the end of a run, its validations included.

    Args:
        plan: of the run.
        validation_steps: a validation's work in training steps, until one has been timed.
    """

    def __init__(self, plan: Plan, validation_steps: float):
        self._plan, self._validation_steps = plan, validation_steps
        self.step = MovingAverage(_STEP_WEIGHT)  # seconds
        self.validation = MovingAverage(_VALIDATION_WEIGHT)  # seconds

    def seconds(self, done: int, validated: float = 0.0) -> float | None:
        """From `done` steps on; None before a step was timed.

        Args:
            done: steps. After the last one of an epoch its validation is still to come.
            validated: how much of that validation is done, 0 to 1.
        """
        if self.step.value is None:
            return None
        validation = self.validation.value
        if validation is None:
            validation = self._validation_steps * self.step.value
        begun = max(done - 1, 0) // self._plan.steps_per_epoch  # epochs before the one under way
        epochs = self._plan.total_steps // self._plan.steps_per_epoch
        steps = (self._plan.total_steps - done) * self.step.value
        return steps + (epochs - begun - validated) * validation
