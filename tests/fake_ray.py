"""A fake of Ray in one process: tasks finish in any order and may be lost."""

from __future__ import annotations

import pickle
import random
import sys
from types import SimpleNamespace

import pytest

from tsm_jax.data.prepare import cluster_node, jobs


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class FakeRay:
    """A cluster with `cores` cores.

    Attributes:
        work: function that runs a task; the real one unless a test replaces it.
        lose: function from an item of a task to whether the task is lost.
        seconds: time that `at_once` reports for an item.
        most: largest number of simultaneous tasks.
        tasks: items of each finished or lost task, in the order of their end.
    """

    def __init__(self, cores: int = 2):
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.util = SimpleNamespace(get_node_ip_address=lambda: "10.0.0.7")
        self.cores, self.most, self.tasks = cores, 0, []
        self.memory = 8 << 30
        self.seconds = 1.0
        self.rng = random.Random(0)
        self.work = cluster_node.work
        self.lose = lambda item: False
        self._waiting = {}
        self._prepared = {}

    def at_once(self, pickled, items):
        """Runs a task in this process."""
        if pickled not in self._prepared:
            order = self._prepared[pickled] = pickle.loads(pickled)
            order.prepare()
        answers = []
        for item, path in items:
            result = jobs._result(self._prepared[pickled].function, item)
            if isinstance(result, jobs._Raised):
                return [*answers, cluster_node.Done("10.0.0.7", stopped=result.text)]
            answers.append(self.done(result, path))
        return answers

    def done(self, result, path):
        """Returns a node's report about an item."""
        size = cluster_node.size_of(path)
        return cluster_node.Done("10.0.0.7", self.seconds, pickle.dumps(result), size=size)

    @property
    def items(self):
        """Returns the items of all finished or lost tasks."""
        return [item for task in self.tasks for item in task]

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": float(self.cores)}

    def nodes(self):
        resources = {"CPU": float(self.cores), "memory": float(self.memory)}
        return [{"NodeID": "7", "Resources": resources}]

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "7")

    def remote(self, **options):
        assert options == {"num_cpus": 1, "max_retries": 0}
        return lambda function: SimpleNamespace(remote=self._submit)

    def _submit(self, *arguments):
        reference = object()
        self._waiting[reference] = arguments
        self.most = max(self.most, len(self._waiting))
        return reference

    def wait(self, references, timeout):
        assert set(references) == set(self._waiting)
        return [self.rng.choice(references)], []

    def get(self, reference):
        order, items = self._waiting.pop(reference)
        self.tasks.append([item for item, _ in items])
        if any(self.lose(item) for item in self.tasks[-1]):
            raise RayError("the node died")
        return self.work(order, items)

    def cancel(self, reference):
        del self._waiting[reference]


@pytest.fixture
def fake_ray(monkeypatch):
    """Replaces Ray, which need not be installed."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(cluster_node, "_current", None)
    monkeypatch.setitem(vars(sys.modules["__main__"]), "__file__", None)
    monkeypatch.setattr(cluster_node.os, "chdir", lambda folder: None)
    yield fake
    if cluster_node._current is not None:
        cluster_node._current[1].close()
