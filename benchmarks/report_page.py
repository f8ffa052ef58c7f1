"""What the page of an examination of 300 layers weighs, and how long it takes to open: `python benchmarks/report_page.py`."""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright
from rich.console import Console
from torch import nn

import normsmith as ns
from normsmith.bench import record

LAYERS, CHANNELS, ROUNDS = 300, 256, 5


def main() -> None:
    """Write one page, open it in fresh contexts of one Chromium; then open every tenth layer."""
    blocks = [
        block for _ in range(LAYERS) for block in (nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS))
    ]
    exam = ns.examine(nn.Sequential(*blocks), [torch.randn(4, CHANNELS, 4, 4).exp() for _ in range(4)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exam.html"
        start = time.perf_counter()
        exam.save(path)
        written, size = time.perf_counter() - start, path.stat().st_size
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            opened, shown = [], []
            for _ in range(ROUNDS):
                page = browser.new_page()
                start = time.perf_counter()
                page.goto(path.as_uri())
                page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
                opened.append(time.perf_counter() - start)
                start = time.perf_counter()
                page.locator(".entry summary").nth(LAYERS // 2).click()
                page.wait_for_function("document.querySelectorAll('.entry[open] [data-drawn]').length >= 3")
                shown.append(time.perf_counter() - start)
                page.close()
            browser.close()
    around = record.circumstances()
    Console().print(
        f"{around['machine']}: {LAYERS} layers of {CHANNELS} channels: {size / 1e6:.2f} MB, written in {written:.1f} s, "
        f"opened in {statistics.median(opened):.2f} s, a layer shown in {statistics.median(shown):.2f} s"
    )


main()
