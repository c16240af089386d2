"""Compares the input pipeline with the decoder alone (its floor) and with torch's DataLoader.

    python benchmarks/data_pipeline.py --work_dir /tmp/data_pipeline

Creates clips of 10 s at 340x256 pixels and 30 frames per second as H.264 mp4, folders of JPEG
frames and packed shards. They show the videos of --videos, scaled to that size, or moving noise.
Prints a line of JSON for every measurement. If torch is installed, it also measures a torch
DataLoader with Pillow's transforms, the usual approach. Every measurement is repeated and the best
result is reported, because other load on the machine can only slow it down.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from PIL import Image

from tsm_jax import prepare
from tsm_jax.data.decode import every_frame
from tsm_jax.data.frames import FrameSource
from tsm_jax.data.lists import read_frame_list, read_video_list
from tsm_jax.data.packed import open_packed
from tsm_jax.data.pipeline import Reading
from tsm_jax.data.sampling import draw_multi_scale_crop, random_frame_of_each_segment
from tsm_jax.data.sources import Source, TrainClips, VideoSource
from tsm_jax.host import keep_freed_memory
from tsm_jax.measure.data import clip_reader, one_core, pipeline

WIDTH, HEIGHT, FRAMES = 340, 256, 300
TEMPLATE = "img_{:05}.jpg"
T, SIZE = 8, 224


def make_data(work_dir: Path, videos: Path | None, count: int) -> None:
    """Creates `videos/`, `frames/`, `packed/` and their lists, unless they exist."""
    if (work_dir / "packed" / "dataset_info.json").exists():
        return
    (work_dir / "videos" / "class").mkdir(parents=True, exist_ok=True)
    found = sorted(videos.rglob("*.avi")) if videos else []
    sources = found[:: max(1, len(found) // count)]
    for i in range(count):
        frames = real_frames(sources[i % len(sources)]) if sources else noise_frames(i)
        write_mp4(work_dir / "videos" / "class" / f"clip_{i:02}.mp4", frames)
    root = str(work_dir)
    lists, frames, packed = f"{root}/train.list", f"{root}/frames", f"{root}/packed"
    prepare.main(["lists", "folders", "--videos", f"{root}/videos", "--output", lists])
    common = ["--list", lists, "--prefix", f"{root}/videos"]
    prepare.main(["frames", *common, "--output", frames, "--write_list", f"{root}/frames.list"])
    common = ["--list", f"{root}/frames.list", "--prefix", frames, "--source", "frames"]
    prepare.main(["pack", *common, "--output", packed])


def real_frames(path: Path) -> np.ndarray:
    """Returns a real video, played forwards and backwards in turn: uint8 `[300, 256, 340, 3]`."""
    frames = [cv2.resize(frame, (WIDTH, HEIGHT)) for frame in every_frame(path)]
    return np.stack([(frames + frames[::-1])[i % (2 * len(frames))] for i in range(FRAMES)])


def noise_frames(seed: int) -> np.ndarray:
    """Returns a video of a smooth moving image: uint8 `[300, 256, 340, 3]`."""
    small = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = cv2.resize(small, (WIDTH * 2, HEIGHT * 2), interpolation=cv2.INTER_CUBIC)
    return np.stack([picture[i // 2 :, i:][:HEIGHT, :WIDTH] for i in range(FRAMES)])


def write_mp4(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def open_sources(work_dir: Path) -> dict[str, Source]:
    videos = read_video_list(work_dir / "train.list", prefix=f"{work_dir}/videos", num_classes=1)
    frames = read_frame_list(work_dir / "frames.list", prefix=f"{work_dir}/frames", num_classes=1)
    return {
        "frames": FrameSource(frames, TEMPLATE),
        "packed": open_packed(str(work_dir / "packed"), num_classes=1),
        "videos": VideoSource(videos),
    }


def choose(index: int) -> Callable[[int], np.ndarray]:
    return lambda n: random_frame_of_each_segment(n, T, np.random.default_rng(index))


def picture_floor(source: Source) -> Callable[[int], Any]:
    """Returns a function that only decodes eight JPEG files that are already in memory."""
    assert isinstance(source, FrameSource)
    data = [
        [
            np.fromfile(os.path.join(entry.path, TEMPLATE.format(i + 1)), np.uint8)
            for i in choose(k)(FRAMES)
        ]
        for k, entry in enumerate(source.entries)
    ]
    return lambda i: [cv2.imdecode(d, cv2.IMREAD_COLOR_RGB) for d in data[i % len(data)]]


def video_floor(source: Source) -> Callable[[int], Any]:
    """Returns a function that only decodes the same frames with decord."""
    import decord  # pyright: ignore[reportMissingImports]

    def read(i: int) -> Any:
        reader = decord.VideoReader(source.name(i % len(source)), num_threads=1)
        return reader.get_batch(choose(i)(len(reader))).asnumpy()

    return read


def pillow_clip(source: FrameSource, index: int) -> np.ndarray:
    """Decodes, crops, resizes and flips with Pillow, the usual approach: float32 `[T, 3, S, S]`."""
    entry = source.entries[index % len(source)]
    rng = np.random.default_rng(index)
    crop = draw_multi_scale_crop(HEIGHT, WIDTH, SIZE, rng)
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    frames = []
    for i in choose(index)(FRAMES):
        with Image.open(os.path.join(entry.path, TEMPLATE.format(i + 1))) as image:
            image = image.convert("RGB").crop(box)
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if index % 2:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        frames.append(np.asarray(image))
    video = np.stack(frames).transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((video - mean[:, None, None]) / std[:, None, None]).astype(np.float32)


def torch_loader(source: FrameSource, workers: int, clips: int) -> dict[str, float] | None:
    """Measures a torch DataLoader over `pillow_clip`; returns None without torch."""
    try:
        import torch.utils.data as torch_data  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    class Clips(torch_data.Dataset):
        def __len__(self) -> int:
            return clips + 16

        def __getitem__(self, index: int) -> np.ndarray:
            return pillow_clip(source, index)

    batches = iter(torch_data.DataLoader(Clips(), batch_size=16, num_workers=workers))
    next(batches)
    started = time.perf_counter()
    measured = sum(len(batch) for batch in batches)
    seconds = time.perf_counter() - started
    return {"clips_per_second": measured / seconds, "ms_per_clip": 1000 * seconds / measured}


def best_of(repeats: int, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    return min((measure() for _ in range(repeats)), key=lambda result: result["ms_per_clip"])


def print_json(measure: str, **values: Any) -> None:
    print(json.dumps({"measure": measure, **values}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--videos", type=Path, help="folder of real .avi files")
    parser.add_argument("--count", type=int, default=32, help="clips to create (default: 32)")
    parser.add_argument(
        "--clips", type=int, default=128, help="clips per measurement (default: 128)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()  # as training does; a picture otherwise takes OpenCV twice the time
    make_data(options.work_dir, options.videos, options.count)
    sources = open_sources(options.work_dir)
    floors = {"videos": video_floor(sources["videos"])}
    floors["frames"] = floors["packed"] = picture_floor(sources["frames"])
    for name, source in sources.items():
        # Measure each floor next to its pipeline, so both run under the same conditions.
        clips = options.clips // 4 if name == "videos" else options.clips
        train = TrainClips(source, T, SIZE, flip=True, seed=0)
        floor = best_of(options.repeats, lambda: one_core(floors[name], clips))  # noqa: B023
        alone = best_of(options.repeats, lambda: one_core(clip_reader(train), clips))  # noqa: B023
        ratio = alone["cpu_ms_per_clip"] / floor["cpu_ms_per_clip"]
        print_json("decoder alone", source=name, **floor)
        print_json("training clip", source=name, times_floor=round(ratio, 2), **alone)
        for threads, workers in ((1, 0), (2, 0), (3, 0), (1, 2)):
            reading = Reading(threads=threads, workers=workers)
            whole = best_of(options.repeats, lambda: pipeline(train, reading, clips))  # noqa: B023
            share = alone["ms_per_clip"] / 2 / whole["ms_per_clip"]
            print_json(
                "pipeline",
                source=name,
                threads=threads,
                workers=workers,
                share_of_two_cores=round(share, 2),
                **whole,
            )
    pillow = best_of(
        options.repeats,
        lambda: one_core(lambda i: pillow_clip(sources["frames"], i), options.clips),  # type: ignore[arg-type]
    )
    print_json("Pillow clip", source="frames", **pillow)
    for workers in (0, 2):
        peer = torch_loader(sources["frames"], workers, options.clips)  # type: ignore[arg-type]
        if peer:
            print_json("torch DataLoader", source="frames", workers=workers, **peer)


if __name__ == "__main__":
    main()
