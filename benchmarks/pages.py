"""Pages per CPU second, against matplotlib drawing the same page, in one process and one run.

    python -m benchmarks.pages [--pages 200] [--json]

The peer draws as ecg_plot and ecg-image-kit do: one matplotlib figure, major and minor grid from ticks, a line
per lead, text, then pixels or savefig as PNG. The floor copies a blank page and encodes it. Ratios hold better than
absolute figures: the machine's load is printed beside them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from components.pages.codec import encode_png
from components.pages.draw import PalettePage, draw, draw_palette
from components.pages.layout import LAYOUTS, LEADS, segments
from components.pages.spec import STYLES, canonical_spec, spec

RATE = 100
SMALL, LARGE = (352, 256), (1100, 850)


def signals(count: int) -> list[NDArray[np.int16]]:
    """Beats of random rate and size with noise, int16 [12, 1000] microvolts."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        phase = np.arange(1000) / RATE * rng.uniform(0.8, 2.0) % 1.0
        beat = sum(
            height * np.exp(-(((phase - at) / width) ** 2))
            for height, at, width in ((0.12, 0.2, 0.03), (1.1, 0.37, 0.013), (-0.3, 0.4, 0.013), (0.3, 0.65, 0.06))
        )
        leads = rng.normal(0, 0.8, (12, 1)) * beat + rng.normal(0, 0.01, (12, 1000))
        made.append((leads * 1000).astype(np.int16))
    return made


def matplotlib_page(signal: NDArray[np.int16], size: tuple[int, int], png: bool = False) -> bytes:
    """The canonical page as a matplotlib script draws it: RGBA bytes, or a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    width_mm, height_mm = 264.0, 264.0 * size[1] / size[0]
    figure = Figure(figsize=(11, 11 * size[1] / size[0]), dpi=size[0] / 11)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width_mm)
    axes.set_ylim(height_mm, 0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(5))
        axis.set_minor_locator(MultipleLocator(1))
    axes.grid(which="minor", color="#ffd6d6", linewidth=0.6)
    axes.grid(which="major", color="#f4a0a0", linewidth=0.6)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    for s in segments(LAYOUTS["3x4+1"], 10, 10, height_mm - 6, 250, 25):
        first = int(s.start_s * RATE)
        values = signal[s.lead, first : first + int(s.seconds * RATE)] / 1000 * 10
        axes.plot(s.x_mm + np.arange(len(values)) / RATE * 25, s.baseline_mm - values, color="black", linewidth=0.9)
        axes.text(s.x_mm + 1, s.baseline_mm - 7, LEADS[s.lead], fontsize=9)
        if s.column == 0:
            x, y = np.array([0, 1.5, 1.5, 6.5, 6.5, 8]), np.array([0, 0, -10, -10, 0, 0])
            axes.plot(1 + x, s.baseline_mm + y, color="black", linewidth=0.9)
    axes.text(3, height_mm - 2, "25 mm/s  10 mm/mV  0.05-150 Hz", fontsize=8)
    if not png:
        canvas.draw()
        return bytes(canvas.buffer_rgba())
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def seconds_per_page(work: Callable[[int], object], pages: int) -> float:
    """CPU seconds, the better of two halves, after a warm-up that compiles and fills caches."""
    for i in range(min(pages, 40)):
        work(i)
    half = max(1, pages // 2)
    spent = []
    for part in range(2):
        start = time.process_time()
        for i in range(half):
            work(part * half + i)
        spent.append((time.process_time() - start) / half)
    return min(spent)


def measure(pages: int) -> list[tuple[str, float, str]]:
    """Rows of (case, CPU milliseconds per page, the case it is compared with)."""
    ecgs = signals(16)
    canonical = canonical_spec(*LARGE)
    blank = PalettePage(np.zeros(LARGE[::-1], np.uint8), np.full((96, 3), 255, np.uint8))
    few = max(4, pages // 20)

    def ecg(i: int) -> NDArray[np.int16]:
        return ecgs[i % len(ecgs)]

    def styled(style: str, size: tuple[int, int]) -> Callable[[int], object]:
        return lambda i: draw(ecg(i), RATE, spec(i, style, *size))

    peers = {"png": "matplotlib 1100x850, PNG", "large": "matplotlib 1100x850", "small": "matplotlib 352x256"}
    cases: list[tuple[str, Callable[[int], object], int, str]] = [
        (peers["png"], lambda i: matplotlib_page(ecg(i), LARGE, png=True), few, "png"),
        ("clean 1100x850, PNG", lambda i: encode_png(draw_palette(ecg(i), RATE, canonical)), pages, "png"),
        (
            "floor: copy and encode 1100x850",
            lambda i: encode_png(PalettePage(blank.index.copy(), blank.colours)),
            pages,
            "png",
        ),
        (peers["large"], lambda i: matplotlib_page(ecg(i), LARGE), few, "large"),
        ("scanned 1100x850", styled("scanned", LARGE), max(10, pages // 4), "large"),
        (peers["small"], lambda i: matplotlib_page(ecg(i), SMALL), few, "small"),
        *((f"{style} 352x256", styled(style, SMALL), pages, "small") for style in STYLES),
    ]
    return [(name, seconds_per_page(work, count) * 1000, peers[peer]) for name, work, count, peer in cases]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=200, help="pages per case (the peer draws a twentieth)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    arguments = parser.parse_args()
    result = measure(arguments.pages)
    spent = {name: ms for name, ms, _ in result}
    load = os.getloadavg()[0]
    if arguments.json:
        print(json.dumps({"ms_per_page": spent, "pages": arguments.pages, "load": load, "cpus": os.cpu_count()}))
        return
    print(f"{'case':34}{'ms/page':>9}{'pages/CPU-s':>13}{'x matplotlib':>14}")
    for name, ms, peer in result:
        print(f"{name:34}{ms:9.2f}{1000 / ms:13.0f}{spent[peer] / ms:14.0f}")
    print(f"n = {arguments.pages} pages a case, load {load:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
