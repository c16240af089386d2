"""Labels of mirrored clips: the published pairs, no others, and no class without a partner."""

from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.data.moving_shapes import LABELS
from tsm_jax.data.protocols import PROTOCOLS, eval_protocol
from tsm_jax.data.sources import SyntheticSource, TrainClips
from tsm_jax.data.transforms import mirrored_labels, with_direction
from tsm_jax.errors import UserError
from tsm_jax.weights.labels import dataset_labels, labels_for

# The names in Something-Something that contain left or right (all 174 names may not be
# redistributed): three pairs, and four names that only contain the letters. Keys: number when
# sorted, which is V2's, and number in V1's file.
SOMETHING = {
    (86, 66): "Pulling something from left to right",
    (87, 52): "Pulling something from right to left",
    (93, 30): "Pushing something from left to right",
    (94, 41): "Pushing something from right to left",
    (166, 2): "Turning the camera left while filming something",
    (167, 4): "Turning the camera right while filming something",
    (21, 80): "Laying something on the table on its side, not upright",
    (50, 104): "Plugging something into something but pulling it right out as you remove your hand",
    (117, 112): "Putting something that cannot actually stand upright upright on the table",
    (119, 87): "Putting something upright on the table",
}


def something(version):
    names = {numbers[version != 2]: name for numbers, name in SOMETHING.items()}
    return [names.get(number, f"Doing something {number}") for number in range(174)]


# mmaction2's maps of its numbers, and Jester's turns, which it lacks. For the sorted names, the
# maps of the TSM descendants GST, TEA and TANet.
PAIRS = {
    "sthv1": [(2, 4), (30, 41), (52, 66)],
    "sthv2": [(86, 87), (93, 94), (166, 167)],
    "jester_mmaction2": [(0, 1), (6, 7), (14, 15)],
    "jester": [(11, 12), (16, 17), (21, 22)],
}


def names_of(name):
    return something(int(name[-1])) if name.startswith("sthv") else dataset_labels(name)


def swaps(names):
    return [(a, b) for a, b in enumerate(mirrored_labels(names)) if a < b]


@pytest.mark.parametrize("name", PAIRS)
def test_the_published_pairs_and_no_others(name):
    names = names_of(name)
    assert swaps(names) == PAIRS[name]
    mirrored = np.array(mirrored_labels(names))
    np.testing.assert_array_equal(mirrored[mirrored], np.arange(len(names)))
    order = np.random.default_rng(0).permutation(len(names))  # by names, whatever the order
    shuffled = [names[k] for k in order]
    pairs = {frozenset((names[a], names[b])) for a, b in PAIRS[name]}
    assert {frozenset((shuffled[a], shuffled[b])) for a, b in swaps(shuffled)} == pairs


def test_other_data_sets_have_no_pairs():
    assert swaps(labels_for(400)) == swaps(labels_for(101)) == []
    assert swaps(LABELS) == [(0, 1), (4, 5)]


def test_spellings():
    names = ["TurnLeft", "turn-right", "anti-clockwise", "Clock", "clockwise", "leftover food"]
    names += ["looking leftwards", "looking rightwards", "upright", "向左", "向右", "left behind"]
    assert swaps(names) == [(0, 1), (2, 4), (6, 7), (9, 10)]
    assert with_direction(names) == [names[i] for i in (0, 1, 2, 4, 6, 7, 9, 10)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wave left", "wave"], "'wave left' has no opposite class 'wave right'"),
        (["move left and right", "b"], "has no opposite class 'move right and left'"),
        (["turn left", "Turn_Left", "turn right"], "'turn left' and 'Turn_Left' name the same"),
        (["spin counter-clockwise", "b"], "has no opposite class 'spin clockwise'"),
    ],
)
def test_a_class_without_its_mirror_image_is_an_error(names, message):
    with pytest.raises(UserError, match=message) as error:
        mirrored_labels(names)
    assert "--config.data.flip=False" in str(error.value)


def test_labels_of_mirrored_clips_are_swapped_and_of_no_others():
    source = SyntheticSource(6, 3, height=40, width=50)
    plain = TrainClips(source, 4, 32, flip=False, seed=1, mirrored_labels=(0, 2, 1))
    swapped = TrainClips(source, 4, 32, flip=True, seed=1, mirrored_labels=(0, 2, 1))
    mirrored = 0
    for epoch in range(8):
        for i in range(6):
            a, b = (clips.read(i, epoch) for clips in (plain, swapped))
            same = np.array_equal(a["video"], b["video"])
            assert a["label"] == source.label(i)
            assert b["label"] == (source.label(i) if same else (0, 2, 1)[source.label(i)])
            mirrored += not same
    assert 10 < mirrored < 38


def test_views_are_not_mirrored_where_left_and_right_are_classes():
    for name in PROTOCOLS:
        protocol = eval_protocol(name, short_side=40, crop_size=32)
        protocol.check_labels(something(2)[:50])
        if "ten_crop" in name:
            with pytest.raises(UserError, match=f"{name} mirrors .* 'Sliding Two Fingers L"):
                protocol.check_labels(names_of("jester"))
        else:
            protocol.check_labels(names_of("jester"))
