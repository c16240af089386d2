"""The jitted steps: compiled once, and the same on one device and on eight."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tsm_jax.accuracy import warning
from tsm_jax.models.network import Network
from tsm_jax.models.tsm import TSM
from tsm_jax.training.mesh import make_mesh, put_batch, replicated
from tsm_jax.training.optimizer import make_optimizer, make_schedule
from tsm_jax.training.state import init_state
from tsm_jax.training.steps import evaluate, make_eval_step, make_train_step

CLASSES, STEPS, BATCH = 4, 4, 16


def batch(step, size=BATCH):
    rng = np.random.default_rng(step)
    return {
        "video": rng.integers(0, 256, (size, 1, 4, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
        "mask": np.ones(size, bool),
    }


class CountingNetwork(Network):
    """Records, each time one of its steps is traced, whether it is for training."""

    def __init__(self, make_model):
        super().__init__(make_model)
        self.traced = []

    def apply(self, *arguments, train=False, **keywords):
        self.traced.append(train)
        return super().apply(*arguments, train=train, **keywords)


class Training:
    """A small training on some devices.

    Given `states`, each of its steps starts from the state before that step: over several steps, a
    float32 network amplifies rounding errors.
    """

    def __init__(
        self,
        num_devices,
        batch_norm_group,
        *,
        accumulation_steps=1,
        remat=False,
        states=None,
        steps=STEPS,
        frozen=(),
        class_weights=None,
    ):
        self.mesh = make_mesh(jax.devices()[:num_devices])
        network = self.network = CountingNetwork(
            lambda: TSM(
                "toy",
                num_classes=CLASSES,
                num_segments=4,
                width=8,
                dropout=0.5,
                batch_norm_group=batch_norm_group,
                remat=remat,
            )
        )
        schedule = make_schedule(
            0.01,
            schedule="step",
            boundaries=(2,),
            decay_factor=0.1,
            warmup_steps=0,
            total_steps=STEPS,
        )
        optimizer = make_optimizer(
            schedule,
            momentum=0.9,
            weight_decay=1e-4,
            decay="weights",
            clip_norm=20.0,
            fc_weight_multiplier=5.0,
            fc_bias_multiplier=10.0,
            frozen=frozen,
        )
        common = {"mesh": self.mesh}
        self.train_step = make_train_step(
            network,
            optimizer,
            schedule,
            seed=3,
            class_weights=class_weights,
            frozen=frozen,
            accumulation_steps=accumulation_steps,
            **common,
        )
        self.eval_step = make_eval_step(network, **common)
        self.state = init_state(network, optimizer, 3, self.mesh)
        self.metrics, self.states = [], []
        for step in range(steps):
            if states is not None:
                copy = jax.tree.map(np.array, states[step])
                if frozen:  # whose velocities are arranged in another way; all are 0 at first
                    copy = copy._replace(opt_state=jax.tree.map(np.array, self.state.opt_state))
                self.state = jax.device_put(copy, replicated(self.mesh))
            self.states.append(jax.tree.map(np.array, self.state))
            self.state, metrics = self.train_step(self.state, put_batch(batch(step), self.mesh))
            self.metrics.append(jax.device_get(metrics))


@pytest.fixture(scope="module")
def one_device():
    return Training(1, batch_norm_group=4)


@pytest.fixture(scope="module")
def eight_devices(one_device):
    return Training(8, batch_norm_group=4, states=one_device.states)


def test_eight_devices_give_the_same_steps_as_one(one_device, eight_devices):
    for name in ("loss", "grad_norm", "learning_rate", "count"):
        np.testing.assert_allclose(
            [metrics[name] for metrics in eight_devices.metrics],
            [metrics[name] for metrics in one_device.metrics],
            rtol=1e-5,
        )
    assert len({float(metrics["loss"]) for metrics in one_device.metrics}) == STEPS
    assert len(eight_devices.state.params["head.fc.kernel"].sharding.device_set) == 8


@pytest.mark.parametrize(("devices", "parts"), [(2, 2), pytest.param(1, 4, marks=pytest.mark.slow)])
def test_accumulated_parts_give_the_same_as_the_whole_batch(one_device, devices, parts):
    accumulated = Training(
        devices, batch_norm_group=4, accumulation_steps=parts, states=one_device.states
    )
    for name in ("loss", "grad_norm", "count", "top1"):
        np.testing.assert_allclose(
            [metrics[name] for metrics in accumulated.metrics],
            [metrics[name] for metrics in one_device.metrics],
            rtol=1e-5,
        )
    _assert_same_tensors(accumulated.state, one_device.state)


@pytest.mark.slow
def test_remat_keeps_the_result(one_device):
    with_remat = Training(1, batch_norm_group=4, remat=True, states=one_device.states)
    _assert_same_tensors(with_remat.state, one_device.state)


def _assert_same_tensors(actual, expected):
    for tensors, wanted in (
        (actual.params, expected.params),
        (actual.batch_stats, expected.batch_stats),
    ):
        for name, array in wanted.items():
            np.testing.assert_allclose(tensors[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_each_step_function_compiles_once(one_device):
    mesh = one_device.mesh
    state = one_device.state
    evaluate(one_device.eval_step, state.params, state.batch_stats, [batch(0), batch(1)], mesh)
    assert sorted(one_device.network.traced) == [False, True]


def test_the_learning_rate_follows_the_schedule(one_device):
    rates = [float(metrics["learning_rate"]) for metrics in one_device.metrics]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_evaluation_does_not_depend_on_batches_or_padding(one_device, eight_devices):
    clips = {name: np.concatenate([batch(7)[name], batch(8)[name]]) for name in batch(7)}

    def batches(size):
        for start in range(0, 32, size):
            part = {name: array[start : start + size] for name, array in clips.items()}
            missing = size - len(part["label"])
            yield {
                name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
                for name, array in part.items()
            }

    state = one_device.state
    results = [
        evaluate(
            training.eval_step, state_on.params, state_on.batch_stats, batches(size), training.mesh
        )
        for training, state_on, size in (
            (one_device, state, 32),
            (one_device, state, 12),
            (eight_devices, jax.device_get(state), 24),
        )
    ]
    assert results[0]["count"] == 32
    assert 0 < results[0]["mean_recall"] < 1
    for result in results[1:]:
        assert result == {**results[0], "loss": pytest.approx(results[0]["loss"], rel=1e-5)}


@pytest.mark.parametrize("devices", [1, 8])
def test_the_top1_of_a_constant_prediction_is_the_share_of_its_class(
    one_device, eight_devices, devices
):
    """The four classes have 14, 4, 3 and 3 of 24 clips; the network only knows the first class."""
    training = one_device if devices == 1 else eight_devices
    labels = np.repeat([0, 1, 2, 3], [14, 4, 3, 3]).astype(np.int32)
    clips = {**batch(7, 24), "label": labels}
    constant = {
        "head.fc.kernel": np.zeros(one_device.state.params["head.fc.kernel"].shape, np.float32),
        "head.fc.bias": np.array([1, 0, 0, 0], np.float32),
    }
    state = jax.device_get(training.state)
    batches = [{name: array[i : i + 8] for name, array in clips.items()} for i in (0, 8, 16)]
    metrics = evaluate(
        training.eval_step,
        {**state.params, **constant},
        state.batch_stats,
        batches,
        training.mesh,
    )
    assert metrics["top1"] == metrics["largest_class_share"] == 14 / 24
    assert metrics["mean_recall"] == 0.25
    assert (metrics["most_answered_class"], metrics["most_answered_share"]) == (0, 1.0)
    assert "top5" not in metrics
    assert "(0: 'normal')" in warning(metrics, ["normal", "b", "c", "d"])


def test_class_weights_and_frozen_parts_change_gradients_but_not_metrics(one_device):
    """One step with both: the logged loss is unweighted, and only frozen parts are unchanged."""
    frozen = ("backbone.stem", "backbone.expand")
    other = Training(
        1,
        batch_norm_group=4,
        states=one_device.states[:1],
        steps=1,
        class_weights=np.array([2.0, 0.5, 1.0, 0.5]),
        frozen=frozen,
    )
    (metrics,), expected = other.metrics, one_device.metrics[0]
    assert metrics["loss"] == pytest.approx(float(expected["loss"]), rel=1e-6)
    assert metrics["grad_norm"] != pytest.approx(float(expected["grad_norm"]), rel=0.01)
    before, after = one_device.states[0].params, other.state.params
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith(frozen), name
