"""Extraction and packing: what is written, repeated, or fails."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tsm_jax import prepare
from tsm_jax.data.decode import every_frame
from tsm_jax.data.frames import FrameSource
from tsm_jax.data.lists import read_frame_list, read_video_list
from tsm_jax.data.packed import nearest_kept, open_packed
from tsm_jax.data.sampling import spread_frames
from tsm_jax.data.sources import TrainClips, VideoSource
from tsm_jax.errors import UserError


def start(*arguments) -> subprocess.Popen:
    """Starts `python -m tsm_jax.prepare ...` in a separate process."""
    return subprocess.Popen(
        [sys.executable, "-m", "tsm_jax.prepare", *map(str, arguments)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.DEVNULL,
    )


def digest(folder: Path) -> dict[str, str]:
    """Returns the hash of every file below a folder, and every folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


def run(command, *arguments):
    prepare.main([command, *map(str, arguments), "--processes", "1"])


def frames(video_list, videos, output, *more):
    run("frames", "--list", video_list, "--prefix", videos, "--output", output, *more)


def pack(video_list, videos, output, *more):
    arguments = ["--source", "videos", "--list", video_list, "--prefix", videos]
    run("pack", *arguments, "--output", output, "--clips_per_shard", 3, *more)


@pytest.fixture(scope="module")
def made(videos, tmp_path_factory) -> Path:
    """A list, its clips as folders of frames with a list, and packed with 8 frames each."""
    root = tmp_path_factory.mktemp("made")
    names = sorted(str(path.relative_to(videos)) for path in videos.rglob("*.mp4"))
    lines = [f"{name} {int(name[0] == 'b')}\n" for name in names]
    (root / "all.list").write_text("".join(lines))
    frames(root / "all.list", videos, root / "frames", "--write_list", root / "frames.list")
    pack(root / "all.list", videos, root / "packed", "--frames_per_clip", 8)
    return root


def test_frames_are_those_of_the_videos(videos, video_list, tmp_path, capsys):
    output, frame_list = tmp_path / "frames", tmp_path / "frames.list"
    frames(video_list, videos, output, "--write_list", frame_list, "--quality", 100)
    lines = frame_list.read_text().splitlines()
    assert lines[0] == "a/clip0 23 0" and lines[-1] == "b b/clip2 22 1"
    assert len(lines) == 6
    assert {p.name for p in output.iterdir()} == {"a", "b b", "extraction.json", "failed.txt"}
    assert "a/clip9.mp4" in (output / "failed.txt").read_text()
    assert "6 of 7 videos extracted" in capsys.readouterr().out
    source = FrameSource(
        read_frame_list(frame_list, prefix=str(output), num_classes=2), "img_{:05}.jpg"
    )
    pictures = source.read(0, np.arange)
    decoded = list(every_frame(videos / "a" / "clip0.mp4"))
    assert len(pictures) == len(decoded) == 23
    assert np.abs(np.array(pictures).astype(int) - np.array(decoded)).mean() < 3


def test_the_short_side_is_made_smaller_never_larger(videos, video_list, tmp_path):
    for short_side, expected in ((24, (24, 32)), (256, (48, 64))):
        output = tmp_path / str(short_side)
        frames(video_list, videos, output, "--short_side", short_side, "--keep_extension")
        picture = cv2.imread(str(output / "b b" / "clip0.mp4" / "img_00001.jpg"))
        assert picture is not None and picture.shape[:2] == expected


def test_finished_work_is_not_repeated_and_options_do_not_mix(videos, video_list, made):
    output = made / "frames"
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*.jpg")}
    frames(video_list, videos, output)
    assert before and {p: p.stat().st_mtime_ns for p in output.rglob("*.jpg")} == before
    with pytest.raises(UserError, match="use the same options"):
        frames(video_list, videos, output, "--short_side", 32)


def test_one_folder_for_two_videos_is_refused(videos, video_list, tmp_path, make_video):
    (tmp_path / "a").mkdir()
    for name in ("x.mp4", "x.avi"):
        (tmp_path / "a" / name).write_bytes(b"")
    with pytest.raises(UserError, match="add --keep_extension"):
        run("frames", "--videos", tmp_path, "--output", tmp_path / "frames")


def test_an_error_of_every_video_stops_the_run_at_the_first(videos, video_list, tmp_path):
    """Otherwise, a full disk would silently make the data set smaller."""
    (tmp_path / "frames" / "a").mkdir(parents=True)
    (tmp_path / "frames" / "a" / "clip0").write_bytes(b"a file where the folder belongs")
    with pytest.raises(UserError, match=r"cannot write .*a/clip0: Not a directory"):
        frames(video_list, videos, tmp_path / "frames")
    assert not (tmp_path / "frames" / "failed.txt").exists()


def test_a_packed_folder_that_cannot_be_written(videos, video_list, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write .*file/packed: Not a directory"):
        pack(video_list, videos, tmp_path / "file" / "packed")

    class FullDisk:
        def __init__(self, *_):
            pass

        def write(self, data):
            raise RuntimeError("write() failed: No space left on device;\nat byte 40960")

    from array_record.python import array_record_module

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", FullDisk)
    with pytest.raises(UserError, match="cannot write .*packed: .*No space left"):
        pack(video_list, videos, tmp_path / "packed")


def test_frames_do_not_go_among_the_videos(videos, video_list):
    for arguments in (["--videos", videos], ["--list", video_list, "--prefix", videos]):
        with pytest.raises(UserError, match="is the folder of the videos"):
            run("frames", *arguments, "--output", f"{videos}/../{videos.name}")


def test_packed_clips_are_those_of_the_list(videos, video_list, tmp_path, capsys):
    output = tmp_path / "packed"
    pack(video_list, videos, output, "--frames_per_clip", 0, "--quality", 100)
    assert "a/clip9.mp4" in (output / "failed.txt").read_text()
    source = open_packed(str(output), num_classes=2)
    assert [source.label(i) for i in range(len(source))] == [0, 0, 0, 1, 1, 1]
    decoded = list(every_frame(videos / "a" / "clip0.mp4"))
    pictures = source.read(0, np.arange)
    assert len(pictures) == 23
    assert np.abs(np.array(pictures).astype(int) - np.array(decoded)).mean() < 3


def test_a_packed_folder_keeps_its_list_options_and_bytes(videos, video_list, made, tmp_path):
    output, again = tmp_path / "packed", tmp_path / "again"
    shutil.copytree(made / "packed", output)
    complete = digest(output)
    pack(video_list, videos, output, "--frames_per_clip", 8)
    assert digest(output) == complete
    pack(video_list, videos, again, "--frames_per_clip", 8, "--clips_per_shard", 512)
    assert digest(again) != complete  # other shards
    with pytest.raises(UserError, match="from another list or with other options"):
        pack(video_list, videos, output, "--frames_per_clip", 8, "--quality", 50)
    (output / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="is incomplete"):
        open_packed(str(output), num_classes=2)


def test_tensorflow_datasets_opens_it(made):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(made / "packed")
    records = builder.as_data_source(split="clips")
    assert len(records) == 6
    example = records[5]
    assert np.array(example["frames"]).shape == (8, 48, 64, 3)
    assert (example["label"], example["num_frames"]) == (1, 22)
    assert example["name"] == b"b b/clip2.mp4"


def test_frames_are_packed_byte_by_byte(made, tmp_path):
    output = made / "frames"
    arguments = ["--source", "frames", "--list", made / "frames.list", "--prefix", output]
    run("pack", *arguments, "--output", tmp_path / "packed")
    record = open_packed(str(tmp_path / "packed"), 2).records[0]
    for name in ("img_00001.jpg", "img_00023.jpg"):
        assert (output / "a" / "clip0" / name).read_bytes() in record


def test_three_sources_show_the_same_clips(videos, video_list, tmp_path):
    output, frame_list = tmp_path / "frames", tmp_path / "frames.list"
    video_list.write_text("\n".join(x for x in video_list.read_text().splitlines() if "9" not in x))
    frames(video_list, videos, output, "--write_list", frame_list, "--quality", 100)
    pack(video_list, videos, tmp_path / "packed", "--quality", 100)
    sources = [
        VideoSource(read_video_list(video_list, prefix=str(videos), num_classes=2)),
        FrameSource(
            read_frame_list(frame_list, prefix=str(output), num_classes=2), "img_{:05}.jpg"
        ),
        open_packed(str(tmp_path / "packed"), num_classes=2),
    ]
    readers = [TrainClips(source, 4, 32, flip=True, seed=3) for source in sources]
    for index in range(6):
        expected, *others = [reader.read(index, epoch=1) for reader in readers]
        for other in others:
            assert other["label"] == expected["label"]
            difference = np.abs(other["video"].astype(int) - expected["video"])
            assert difference.mean() < 3


@pytest.mark.parametrize(
    ("num_frames", "kept", "expected"), [(300, 64, 2.4), (64, 64, 0), (65, 64, 1), (10, 1, 5)]
)
def test_the_nearest_kept_frame_stands_in(num_frames, kept, expected):
    positions = spread_frames(num_frames, kept)
    assert len(set(positions.tolist())) == kept and positions.max() < num_frames
    indices = np.arange(num_frames)
    nearest = positions[nearest_kept(indices, num_frames, kept)]
    assert np.abs(nearest - indices).max() <= expected
    brute = np.abs(positions[None] - indices[:, None]).min(1)
    np.testing.assert_array_equal(np.abs(nearest - indices), brute)


def commands(videos: Path, video_list: Path, processes: int = 2):
    common = ["--list", video_list, "--prefix", videos, "--processes", processes]
    return {
        "frames": ["frames", *common, "--output"],
        "pack": ["pack", "--source", "videos", *common, "--clips_per_shard", 1, "--output"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frames", "pack"])
def test_killed_at_ten_random_moments(videos, video_list, tmp_path, name):
    command = commands(videos, video_list)[name]
    started = time.monotonic()
    assert start(*command, tmp_path / "undisturbed").wait() == 0
    seconds = time.monotonic() - started
    rng = random.Random(1)
    killed, expected = 0, digest(tmp_path / "undisturbed")
    for _ in range(10):
        process = start(*command, tmp_path / "killed")
        time.sleep(rng.uniform(0.2, 1) * seconds)
        process.kill()
        if process.wait() == 0:  # it finished before it was killed
            assert digest(tmp_path / "killed") == expected
            shutil.rmtree(tmp_path / "killed")
        killed += process.returncode < 0
    assert killed
    assert start(*command, tmp_path / "killed").wait() == 0
    assert digest(tmp_path / "killed") == expected


@pytest.mark.parametrize("name", ["frames", "pack"])
def test_killed_while_it_writes(videos, video_list, tmp_path, name):
    """Like the test above, but once, as soon as the first result exists."""
    command = commands(videos, video_list, processes=1)[name]
    output = tmp_path / "killed"
    process = start(*command, output)
    pattern = "a/*" if name == "frames" else "*array_record*"
    while process.poll() is None and not any(output.glob(pattern)):
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (output / "dataset_info.json").exists()
    prepare.main([str(word) for word in (*command, output)])
    prepare.main([str(word) for word in (*command, tmp_path / "undisturbed")])
    assert digest(output) == digest(tmp_path / "undisturbed")
