from __future__ import annotations

import pytest

from tsm_jax.errors import UserError
from tsm_jax.weights.labels import check_labels, labels_for, read_labels


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
        (b"a\n\x1b[31mred\nb\n", r"line 2 is '\\x1b\[31mred'; take out control characters"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, content, message):
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
        (["a", "b\nc", "d"], r"x: label 2 is 'b\\nc'; take out"),  # it would become two lines
        (["a", "b ", "c"], "x: label 2 is 'b '; take out"),
        (["a", "\ud800", "c"], "x: label 2 is .*; take out"),
    ],
)
def test_names_that_do_not_fit(names, message):
    with pytest.raises(UserError, match=message) as caught:
        check_labels(names, 3, "x: label")
    assert str(caught.value).isprintable()


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="cannot read the labels .*absent: No such file"):
        read_labels(tmp_path / "absent", 3)
    with pytest.raises(UserError, match="cannot read the labels .*: it is a folder"):
        read_labels(tmp_path, 3)
