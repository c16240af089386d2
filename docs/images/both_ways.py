"""Draws both_ways.webp: films forwards and backwards, and what two networks call them.

tsm train quickstart
tsm train quickstart --model.shift=none
python docs/images/both_ways.py

The films are the first validation clips of four classes, one of each pair; nothing is chosen by its
answer. Each is given to both networks as it is and reversed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

import tsm_jax
from tsm_jax.data.decode import decode_frames
from tsm_jax.data.lists import read_video_list

DATA = Path("data/quickstart")
NETWORKS = {"with the shift": "output/quickstart", "without": "output/quickstart,shift=none"}
TARGET = Path(__file__).with_name("both_ways.webp")

FRAMES, MILLISECONDS, PAUSE = 24, 70, 500  # of a film; of a frame; after the last one
WIDTH, SIDE, GAP, ROW = 720, 216, 24, 21  # pixels
INK, PALE, RIGHT, WRONG = "#24292f", "#d0d7de", "#1a7f37", "#cf222e"


def font(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(f"DejaVu Sans:weight={weight}"), size)


def films() -> Iterator[tuple[int, np.ndarray]]:
    """A class and the frames, uint8 `[N, H, W, 3]`, of its first validation clip."""
    entries = read_video_list(DATA / "val.list", prefix=str(DATA), num_classes=8)
    for label in (6, 4, 0, 2):  # grow, rotate, left, up
        path = next(entry.path for entry in entries if entry.label == label)
        yield label, np.stack(decode_frames(path, np.arange))


def panel(
    film: np.ndarray, label: int, pair: Sequence[int], scores: dict[str, np.ndarray], names
) -> list[Image.Image]:
    """A film that plays over the scores of the two classes of its pair."""
    half = (WIDTH - GAP) // 2
    plain, bold = font(14), font(14, "bold")
    still = Image.new("RGB", (half, SIDE + 172), "white")
    draw = ImageDraw.Draw(still)
    y = SIDE + 12
    for network, found in scores.items():
        best = int(found.argmax())
        mark, color = ("✓", RIGHT) if best == label else ("✗", WRONG)
        draw.text((0, y), f"{network}: ", INK, plain)
        x = draw.textlength(f"{network}: ", plain)
        draw.text((x, y), f"{names[best].replace('_', ' ')} {mark}", color, bold)
        for i, index in enumerate(pair):
            top = y + ROW * (i + 1) + 4
            draw.text((0, top), names[index].replace("_", " "), INK, font(12))
            bar = (half - 210) * float(found[index])
            draw.rectangle((170, top + 2, half - 40, top + 13), PALE)
            draw.rectangle((170, top + 2, 170 + bar, top + 13), INK)
            draw.text((half - 34, top), f"{found[index]:.2f}", INK, font(12))
        y += 3 * ROW + 20
    panels = []
    for i in np.linspace(0, len(film) - 1, FRAMES).round().astype(int):
        image = Image.fromarray(film[i])
        image = image.resize((round(image.width * SIDE / image.height), SIDE))
        shown = still.copy()
        shown.paste(image, ((half - image.width) // 2, 0))
        panels.append(shown)
    return panels


def main() -> None:
    networks = {name: tsm_jax.load(path) for name, path in NETWORKS.items()}
    names = next(iter(networks.values())).labels
    pages: list[Image.Image] = []
    times: list[int] = []
    for label, film in films():
        pair = (label, label + 1)
        sides = []
        for shown, right in ((film, label), (film[::-1].copy(), label + 1)):
            scores = {}
            for name, network in networks.items():
                scores[name] = np.zeros(len(names))
                for prediction in network.predict(shown, top_k=len(names)):
                    scores[name][prediction.index] = prediction.score
            sides.append(panel(shown, right, pair, scores, names))
            print(names[right], {name: s.round(3).tolist() for name, s in scores.items()})
        for left, right_ in zip(*sides, strict=True):
            page = Image.new("RGB", (WIDTH, left.height + 28), "white")
            draw = ImageDraw.Draw(page)
            draw.text((0, 2), "a film", INK, font(15, "bold"))
            draw.text((WIDTH // 2 + GAP // 2, 2), "the same, backwards", INK, font(15, "bold"))
            page.paste(left, (0, 28))
            page.paste(right_, (WIDTH // 2 + GAP // 2, 28))
            pages.append(page)
            times.append(MILLISECONDS)
        times[-1] += PAUSE
    pages[0].save(
        TARGET, save_all=True, append_images=pages[1:], duration=times, loop=0, quality=55, method=4
    )
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
