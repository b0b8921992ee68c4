"""The web page in a real Chromium: its size, its first paint, and whether a large photograph blocks it.

    python -m benchmarks.page [BUNDLE]       needs chromium on the PATH; without a BUNDLE, a small one with random weights
    python -m benchmarks.page --recording    only the frames of a recording of 24 h, 2 leads of 250 Hz

A task of the main thread longer than 50 ms is a long task (W3C). Measured is the longest one while a photograph of 12
megapixels is shown, segmented, toggled, zoomed and moved. A recording is panned at several zooms, one step per frame: measured
are the time from frame to frame, 16.7 ms at 60 per second, and the part of it in which the worker draws.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from playwright.sync_api import Browser, Page, Worker, sync_playwright

from benchmarks.ludb import DAY_LEADS, DAY_RATE, write_day
from models.engines.host_info import host_info
from models.readers import read_file
from service.server_process import background_server
from service.web_page import load_static_files
from tests.fixtures_bundles import synthetic_image
from tests.fixtures_images import encode_image
from tests.service.signal_bundle import write_signal_bundle
from tests.service.tiny_bundle import write_tiny_bundle

RESULT = Path(__file__).parent / "results" / "page.json"
PAGE_LOADS = 15
OBSERVER_SCRIPT = """
    window.tasks = [];
    new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((each) => each.duration)))
        .observe({ type: "longtask", buffered: true });
    window.gap = 0;
    const { port1, port2 } = new MessageChannel();
    let last = performance.now();
    port1.onmessage = () => {
        const now = performance.now();
        window.gap = Math.max(window.gap, now - last);
        last = now;
        setTimeout(() => port2.postMessage(0), 5);
    };
    port2.postMessage(0);
"""


# Draws one view per frame, from the last view that the page sent. Returns the times of the frames and of drawing, in ms.
FRAMES_SCRIPT = """async (moves) => {
    const frames = [], draws = [], request = self.requestAnimationFrame, first = self.lastView;
    self.requestAnimationFrame = (draw) => request.call(self, (now) => {
        const start = performance.now();
        draw(now);
        frames.push(now);
        draws.push(performance.now() - start);
    });
    for (const move of moves) {
        onmessage({ data: { type: "view", view: { ...first, ...move } } });
        await new Promise((done) => request.call(self, done));
    }
    self.requestAnimationFrame = request;
    self.lastView = first;
    return [frames, draws];
}"""
REMEMBER_SCRIPT = """() => {
    const handle = self.onmessage;
    self.onmessage = (event) => {
        if (event.data.type === "view") self.lastView = event.data.view;
        return handle(event);
    };
}"""
FRAMES = 120
SPANS = {"24 h": 24 * 3600, "1 h": 3600, "10 min": 600, "1 min": 60, "10 s": 10, "1 s": 1}  # seconds across the view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument(
        "--recording", action="store_true", help="only the frames of a recording; keeps the other figures"
    )
    arguments = parser.parse_args()
    bundle = arguments.bundle
    if arguments.recording:
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=[] if os.geteuid() else ["--no-sandbox"]
            )
            result = json.loads(RESULT.read_text()) | {"recording": measure_recording(browser, Path(folder))}
            browser.close()
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result["recording"], indent=2))
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=sandbox)
        with background_server(bundle or write_tiny_bundle(Path(folder) / "small")) as url:
            result = {
                "machine": host_info(),
                "browser": browser.version,
                "bytes": {name: len(file.body) for name, file in load_static_files().items()},
                "first_paint_ms": measure_first_paint(browser, url),
                "photograph": measure_photo(browser, url, Path(folder) / "photograph.jpg"),
                "recording": measure_recording(browser, Path(folder)),
            }
        browser.close()
    result["bytes"]["all"] = sum(result["bytes"].values())
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def measure_first_paint(browser: Browser, url: str) -> dict[str, float]:
    """First contentful paint after navigation, each time with an empty cache."""
    paints = []
    for _ in range(PAGE_LOADS):
        context = browser.new_context()
        page = context.new_page()
        page.goto(url, wait_until="networkidle")
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        context.close()
    return {"median": statistics.median(paints), "longest": max(paints), "openings": PAGE_LOADS}


def measure_photo(browser: Browser, url: str, file: Path) -> dict[str, Any]:
    noise = np.random.default_rng(0).normal(0, 6, (3000, 4000, 3))
    image = np.clip(synthetic_image(3000, 4000) + cv2.blur(noise, (3, 3)), 0, 255).astype(np.uint8)
    file.write_bytes(encode_image(image, "JPEG", quality=92))
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.add_init_script(OBSERVER_SCRIPT)
    page.goto(url, wait_until="networkidle")
    stages = {"opening": read_blocking(page)}
    page.set_input_files("#file", str(file))
    page.wait_for_selector("#result:not([hidden])", timeout=120_000)
    page.wait_for_timeout(1500)
    stages["shown and segmented"] = read_blocking(page)
    for box in page.locator(".rows input").all():
        box.uncheck()
        box.check()
    page.wait_for_timeout(1000)
    stages["classes toggled"] = read_blocking(page)
    page.mouse.move(500, 400)
    for _ in range(12):
        page.mouse.wheel(0, -120)
    page.mouse.down()
    page.mouse.move(700, 500, steps=40)
    page.mouse.up()
    page.mouse.move(300, 300, steps=60)
    page.wait_for_timeout(1000)
    stages["zoomed, moved, read out"] = read_blocking(page)
    return {"megapixels": 12, "bytes": file.stat().st_size, "longest_ms": stages, "timing": page.inner_text("#timing")}


def measure_recording(browser: Browser, folder: Path) -> dict[str, Any]:
    """Pan a recording of 24 h at several zooms, with a bundle whose network is made by hand."""
    record = folder / "day.zip"
    record.write_bytes(read_file(write_day(folder)))
    os.environ |= {
        "MASKSERVE_MAX_BODY_BYTES": str(2**28),
        "MASKSERVE_MAX_PIXELS": str(10**8),
        "MASKSERVE_TIMEOUT_SECONDS": "600",
    }
    with background_server(write_signal_bundle(folder / "signals")) as url:
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.add_init_script(OBSERVER_SCRIPT)
        page.goto(url, wait_until="networkidle")
        page.wait_for_selector("text=Segment a recording")
        worker = page.workers[-1]
        worker.evaluate(REMEMBER_SCRIPT)
        page.set_input_files("#file", str(record))
        page.wait_for_selector("#result:not([hidden])", timeout=600_000)
        page.wait_for_timeout(2000)
        blocking = read_blocking(page)
        spans = {name: time_frames(worker, seconds) for name, seconds in SPANS.items()}
        return {
            "hours": 24,
            "leads": DAY_LEADS,
            "rate": DAY_RATE,
            "shown": blocking,
            "frames": spans,
            "timing": page.inner_text("#timing"),
            "machine": host_info(),
        }


def time_frames(worker: Worker, seconds: int) -> dict[str, float]:
    """Pan by 1% of the view per frame; of the whole recording, zoom instead."""
    whole = worker.evaluate("() => self.lastView.to - self.lastView.from")
    steps = min(whole, seconds * DAY_RATE)
    moves = []
    for frame in range(FRAMES):
        shown = steps if steps < whole else whole * (1 - frame / 1000)
        start = (whole - shown) * 0.3 + (0.01 * frame * shown if steps < whole else 0)
        moves.append({"from": start, "to": start + shown})
    frames, draws = worker.evaluate(FRAMES_SCRIPT, moves)
    gaps = np.diff(frames)
    return {
        "frame_ms": round(float(np.median(gaps)), 1),
        "frame_ms_95": round(float(np.percentile(gaps, 95)), 1),
        "draw_ms": round(float(np.median(draws)), 1),
        "draw_ms_95": round(float(np.percentile(draws, 95)), 1),
    }


def read_blocking(page: Page) -> dict[str, float]:
    """Since the last call: the longest task of the main thread (0: none above 50 ms), and the longest wait for it."""
    task, gap = page.evaluate("[Math.max(0, ...tasks), gap]")
    page.evaluate("tasks.length = 0; gap = 0")
    return {"task": round(task, 1), "turn": round(gap, 1)}


if __name__ == "__main__":
    main()
