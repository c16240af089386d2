from __future__ import annotations

import pytest

from tsm_jax.errors import UserError
from tsm_jax.weights.labels import (
    check_labels,
    check_same_order,
    dataset_labels,
    labels_for,
    read_labels,
)


def test_kinetics_400():
    labels = labels_for(400)
    assert labels is not None and len(set(labels)) == 400
    assert (labels[0], labels[5], labels[399]) == ("abseiling", "archery", "zumba")


def test_ucf_101():
    labels = labels_for(101)
    assert labels is not None and len(set(labels)) == 101
    assert (labels[0], labels[2], labels[100]) == ("ApplyEyeMakeup", "Archery", "YoYo")


def test_other_numbers_have_none():
    assert labels_for(10) is None


def test_a_users_file(tmp_path):
    (tmp_path / "labels.txt").write_bytes("\ufeffdrive\r\nair drumming \r\nçà".encode())
    assert read_labels(tmp_path / "labels.txt", 3) == ["drive", "air drumming", "çà"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a\nb\n", "has 2 labels, but the model has 3 classes"),
        (b"", "has 0 labels"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\na\n", "line 3 repeats 'a' of line 1"),
        (b"\xff\xfe", "UTF-8"),
        (b"a\n\x1b[31mred\nb\n", r"line 2 is '\\x1b\[31mred'; remove control characters"),
    ],
)
def test_invalid_label_files(tmp_path, content, message):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_labels(tmp_path / "labels.txt", 3)
    assert str(tmp_path / "labels.txt") in str(caught.value)


@pytest.mark.parametrize(
    "names, message",
    [
        (["a", "b"], "x: has 2 labels, but the model has 3 classes"),
        (["a", "b", "a"], "x: label 3 repeats 'a' of label 1"),
        (["a", 7, "b"], "x: label 2 is 7; a class name must be text"),
        (["a", "b\nc", "d"], r"x: label 2 is 'b\\nc'; remove"),  # would become two lines
        (["a", "b ", "c"], "x: label 2 is 'b '; remove"),
        (["a", "\ud800", "c"], "x: label 2 is .*; remove"),
    ],
)
def test_invalid_names(names, message):
    with pytest.raises(UserError, match=message) as caught:
        check_labels(names, 3, "x: label")
    assert str(caught.value).isprintable()


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="cannot read the labels .*absent: No such file"):
        read_labels(tmp_path / "absent", 3)
    with pytest.raises(UserError, match="cannot read the labels .*: it is a folder"):
        read_labels(tmp_path, 3)


def test_no_names_for_the_number_of_something_something_classes():
    assert labels_for(174) is None and labels_for(27) is None


def test_jester_in_both_orders():
    ours, theirs = dataset_labels("jester"), dataset_labels("jester_mmaction2")
    assert ours is not None and theirs is not None
    assert ours == sorted(theirs) and ours != theirs
    assert (theirs[0], theirs[26], len(theirs)) == ("Swiping Left", "Doing other things", 27)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["run", "jump", "sit down"], None),
        (["Run", "jump", "sit_down"], None),  # other spellings
        (["laufen", "springen", "sitzen"], None),  # other words
        (["class 1", "class 0", "class 2"], None),
        (["jump", "run", "sit down"], "the same classes in another order: 'jump' is number 1"),
        (["stand", "run", "jump"], "some of the same classes: 'run' is number 0"),
    ],
)
def test_the_same_classes_in_another_order_are_an_error(others, message):
    names = ["run", "jump", "sit down"]
    if message is None:
        check_same_order(names, "the model", others, "labels.txt")
        return
    with pytest.raises(UserError, match=message):
        check_same_order(names, "the model", others, "labels.txt")
