"""One HTML page of before and after: a slider over each picture, with nothing to install and nothing fetched.

The pictures are embedded. Of a large one the middle is shown, at full size: a page with two hundred megapixels in it
helps nobody.
"""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.images import Picture
    from foveal.runtime.restorer import Restorer
    from foveal.runtime.upscaler import Upscaler

__all__ = ["MARK", "Pair", "make_pair", "write_page"]

MARK = '<meta name="generator" content="foveal">'
# Of a source, in pixels: what fits a screen after it was enlarged.
_SHOWN = 160_000
# Pictures of up to this many values are embedded without loss.
_EXACT = 480_000


@dataclass(frozen=True)
class Pair:
    """A picture before and after.

    Args:
        title: shown above.
        note: one line shown below.
        before: data URI of the source, not enlarged.
        after: data URI of the result.
        width: width of the result shown, in pixels.
        height: height of the result shown.
    """

    title: str
    note: str
    before: str
    after: str
    width: int
    height: int


def _data_uri(pixels: NDArray, icc: bytes | None) -> str:
    """Pixels, (H, W, C), as an embedded WebP: without loss when small, else at a quality where none can be seen."""
    from PIL import Image

    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    file = io.BytesIO()
    options = {"icc_profile": icc} if icc and image.mode.startswith("RGB") else {}
    image.save(file, "WEBP", lossless=pixels.size <= _EXACT, quality=95, method=2, **options)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def make_pair(upscaler: Upscaler | Restorer, picture: Picture, title: str, note: str = "") -> Pair:
    """A picture, or the middle of a large one, before and after.

    Args:
        upscaler: upscaler that enlarges it.
        picture: the source.
        title: shown above.
        note: one line shown below.

    Returns:
        The pair.
    """
    height, width = picture.pixels.shape[:2]
    shrink = min(1.0, (_SHOWN / (height * width)) ** 0.5)
    h, w = max(1, int(height * shrink)), max(1, int(width * shrink))
    top, left = (height - h) // 2, (width - w) // 2
    # The surroundings that the network looks at come along and are cut off again.
    m, s = upscaler.card.margin, upscaler.scale
    y0, x0 = max(0, top - m), max(0, left - m)
    around: Any = np.ascontiguousarray(picture.pixels[y0 : top + h + m, x0 : left + w + m])
    part = replace(picture, pixels=around)
    large = upscaler(part).pixels[(top - y0) * s : (top - y0 + h) * s, (left - x0) * s : (left - x0 + w) * s]
    icc = picture.metadata.icc
    if shrink < 1:
        note = (
            f"{note}; the middle, {w}×{h} of {width}×{height}" if note else f"the middle, {w}×{h} of {width}×{height}"
        )
    before = _data_uri(picture.pixels[top : top + h, left : left + w], icc)
    return Pair(title, note, before, _data_uri(large, icc), w * s, h * s)


def write_page(path: Path, pairs: list[Pair], *, title: str = "Before and after") -> None:
    """Write the page.

    Args:
        path: path of the HTML file; an existing one is replaced.
        pairs: the pictures.
        title: title of the page.
    """
    figures = "\n".join(_figure(pair, index) for index, pair in enumerate(pairs))
    page = _PAGE.replace("{title}", html.escape(title)).replace("{mark}", MARK).replace("{figures}", figures)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _figure(pair: Pair, index: int) -> str:
    title, note = html.escape(pair.title), html.escape(pair.note)
    return f"""<figure style="--width: {pair.width}px; --ratio: {pair.width} / {pair.height}">
<h2 id="t{index}">{title}</h2>
<div class="view" tabindex="0" role="group" aria-labelledby="t{index}"><div class="pair">
<img class="before" src="{pair.before}" alt="before: {title}" draggable="false">
<img class="after" src="{pair.after}" alt="after: {title}" draggable="false">
<span class="line"></span>
</div></div>
<input type="range" min="0" max="100" step="0.5" value="50" aria-label="{title}: left before, right after">
<figcaption><span>before</span><span>{note}</span><span>after</span></figcaption>
</figure>"""


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{mark}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --zoom: 1; --cut: 50%; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1400px; padding: 0 1rem 3rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
form { position: sticky; top: 0; z-index: 2; display: flex; gap: 1.5rem; flex-wrap: wrap; padding: .6rem 0;
  background: Canvas; }
figure { margin: 1.5rem 0; max-width: var(--width); }
.view { overflow: auto; max-height: 85vh; }
.pair { position: relative; width: calc(100% * var(--zoom)); aspect-ratio: var(--ratio); touch-action: pan-x pan-y;
  background: repeating-conic-gradient(#8884 0 25%, #0000 0 50%) 0 0 / 20px 20px; }
.pair img { position: absolute; inset: 0; width: 100%; height: 100%; user-select: none; }
.before { clip-path: inset(0 calc(100% - var(--cut)) 0 0); }
.after { clip-path: inset(0 0 0 var(--cut)); }
.pixelated .before { image-rendering: pixelated; }
.line { position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 3px #000; pointer-events: none; }
figure input { width: 100%; margin: .3rem 0 0; }
figcaption { display: flex; justify-content: space-between; gap: 1rem; font-size: .85rem; }
</style>
</head>
<body class="pixelated">
<h1>{title}</h1>
<form>
<label>Zoom <input id="zoom" type="range" min="1" max="8" step="0.25" value="1"> <output id="shown">1×</output></label>
<label><input id="smooth" type="checkbox"> smooth “before”</label>
</form>
{figures}
<script>
"use strict";
const zoom = document.getElementById("zoom");
const views = [...document.querySelectorAll(".view")];
// Zoom and place are shared by all pictures, so the same spot can be compared; each picture has its own slider.
zoom.addEventListener("input", () => {
  const places = views.map(v => [
    (v.scrollLeft + v.clientWidth / 2) / v.scrollWidth, (v.scrollTop + v.clientHeight / 2) / v.scrollHeight]);
  document.documentElement.style.setProperty("--zoom", zoom.value);
  document.getElementById("shown").textContent = zoom.value + "×";
  views.forEach((v, i) => {
    v.scrollLeft = places[i][0] * v.scrollWidth - v.clientWidth / 2;
    v.scrollTop = places[i][1] * v.scrollHeight - v.clientHeight / 2;
  });
});
document.getElementById("smooth").addEventListener("change", event => {
  document.body.classList.toggle("pixelated", !event.target.checked);
});
for (const figure of document.querySelectorAll("figure")) {
  const slider = figure.querySelector("input"), pair = figure.querySelector(".pair");
  const set = value => { slider.value = value; pair.style.setProperty("--cut", slider.value + "%"); };
  slider.addEventListener("input", () => set(slider.value));
  const follow = event => {
    if (event.buttons !== 1) return;
    const box = pair.getBoundingClientRect();
    set(100 * (event.clientX - box.left) / box.width);
  };
  pair.addEventListener("pointerdown", follow);
  pair.addEventListener("pointermove", follow);
}
</script>
</body>
</html>
"""
