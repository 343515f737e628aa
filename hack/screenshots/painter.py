"""An engine that paints landscapes instead of running a model: skies, ridges, water and trees by words of the prompt.

A stand-in for the documentation's pictures, which need something to look at on a machine without a GPU; the process,
protocol, steps and previews are the product's. Prompt and seed decide every pixel. A task with `HOLD_WORD` in its
prompt stops half-way until the engine ends or the task is canceled; one with a key of `FAILURES` fails.
"""

import hashlib
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from fluxpool_contract.families import TINY
from fluxpool_worker.engine.generator import (
    GenerationCanceledError,
    LatentPreview,
    RejectedError,
    Rendering,
    StartPhases,
)
from fluxpool_worker.engine.process import run_engine
from fluxpool_worker.engine.protocol import EngineSpec, GenerationInputs

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
HOLD_WORD: Final = "keeper"
FAILURES: Final = {
    "logo": RejectedError("the prompt asks for a trademark, which this pool does not draw"),
    "cover": RuntimeError("the text encoder returned NaN for token 3"),
}
_STEP_SECONDS: Final = 0.04
_PAUSE_SECONDS: Final = 2.0
_SKIES: Final[dict[str, tuple[Colour, Colour, Colour]]] = {
    "dawn": ((70, 88, 150), (244, 164, 140), (255, 226, 176)),
    "dusk": ((38, 36, 92), (176, 84, 128), (255, 170, 96)),
    "golden": ((86, 132, 178), (250, 196, 120), (255, 232, 178)),
    "night": ((8, 12, 38), (24, 40, 86), (62, 92, 140)),
    "storm": ((48, 58, 72), (104, 118, 130), (178, 186, 188)),
    "winter": ((120, 152, 190), (198, 216, 232), (244, 246, 250)),
    "desert": ((70, 130, 190), (246, 206, 150), (255, 236, 200)),
}
"""By a word of the prompt: colours above, half-way and at the horizon."""


class Painter:
    """Paints one picture for each seed."""

    model = "painter"
    family = TINY
    device = "none"

    def generate(
        self,
        inputs: GenerationInputs,
        *,
        on_step: Callable[[int, int], None],
        is_canceled: Callable[[], bool],
        on_preview: Callable[[LatentPreview], None] | None = None,
    ) -> Rendering:
        """The contract is that of `Generator.generate`."""
        for word, failure in FAILURES.items():
            if word in inputs.prompt:
                raise failure
        pictures = tuple(
            paint(inputs.prompt, seed=inputs.seed + index, width=inputs.width, height=inputs.height)
            for index in range(inputs.n)
        )
        began = time.monotonic()
        total_steps = inputs.steps * inputs.n
        for step in range(1, total_steps + 1):
            is_held = step == total_steps // 2 and HOLD_WORD in inputs.prompt
            # Steps in quick succession are not all told: the one that is held is told after a pause.
            time.sleep(_PAUSE_SECONDS if is_held else _STEP_SECONDS)
            if is_canceled():
                raise GenerationCanceledError
            if on_preview is not None and inputs.preview_every_steps and step % inputs.preview_every_steps == 0:
                index = (step - 1) // inputs.steps
                share = (step - index * inputs.steps) / inputs.steps
                small = _half_done(pictures[index], share=share, seed=inputs.seed + step)
                on_preview(LatentPreview(step, total_steps, index, small.copy))
            on_step(step, total_steps)
            while is_held and not is_canceled():
                time.sleep(_STEP_SECONDS)
        return Rendering(images=pictures, timings_ms={"denoise": (time.monotonic() - began) * 1000})


def paint(prompt: str, *, seed: int, width: int, height: int) -> Pixels:
    """A landscape of that size."""
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    chance = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    words = prompt.lower()
    sky = next((colours for word, colours in _SKIES.items() if word in words), None)
    if sky is None:
        sky = list(_SKIES.values())[int(chance.integers(len(_SKIES)))]
    picture = _sky(sky, width=width, height=height)
    horizon = float(chance.uniform(0.56, 0.68))
    _sun(picture, chance, horizon=horizon, is_night="night" in words)
    has_water = any(word in words for word in ("sea", "lake", "harbour", "lighthouse", "river", "coast", "boat"))
    ridges = 4 if "mountain" in words or "glacier" in words else 3
    for number in range(ridges):
        share = (number + 1) / ridges
        base = horizon - 0.13 * (1 - share) + (0.02 if has_water else 0.2) * share
        relief = (0.2 if "mountain" in words or "glacier" in words else 0.11) * (1.15 - 0.7 * share)
        _ridge(picture, chance, base=base, relief=relief, colour=_mixed(sky[2], _dark(sky[0]), 0.35 + 0.6 * share))
    if has_water:
        _water(picture, chance, horizon=horizon + 0.03)
    if "lighthouse" in words:
        _lighthouse(picture, chance, sky=sky, horizon=horizon)
    elif "forest" in words or "tree" in words or "fox" in words:
        _trees(picture, chance, colour=_dark(sky[0]))
    return np.asarray(_grain(picture.filter(ImageFilter.GaussianBlur(width / 1600)), chance))


def _sky(colours: tuple[Colour, Colour, Colour], *, width: int, height: int) -> Image.Image:
    rows = np.linspace(0, 1, height)
    column = np.stack([np.interp(rows, (0, 0.38, 0.66), [colour[part] for colour in colours]) for part in range(3)], 1)
    return Image.fromarray(np.broadcast_to(column[:, None, :], (height, width, 3)).astype(np.uint8))


def _sun(picture: Image.Image, chance: np.random.Generator, *, horizon: float, is_night: bool) -> None:
    width, height = picture.size
    x, y = width * chance.uniform(0.2, 0.8), height * chance.uniform(0.22, horizon - 0.1)
    radius = min(width, height) * chance.uniform(0.035, 0.06)
    if is_night:
        draw = ImageDraw.Draw(picture)
        for _ in range(160):
            star_x, star_y = chance.uniform(0, width), chance.uniform(0, horizon * height) * chance.uniform()
            size = width / 900 * chance.uniform(0.4, 1.4)
            draw.ellipse((star_x - size, star_y - size, star_x + size, star_y + size), fill=(226, 232, 255))
    for scale, opacity in ((6.0, 26), (3.4, 40), (2.0, 60), (1.0, 255)):
        light = Image.new("L", picture.size)
        size = radius * scale
        ImageDraw.Draw(light).ellipse((x - size, y - size, x + size, y + size), fill=opacity)
        soft = light.filter(ImageFilter.GaussianBlur(size / 4 if scale > 1 else width / 700))
        picture.paste((255, 246, 224), mask=soft)


def _ridge(picture: Image.Image, chance: np.random.Generator, *, base: float, relief: float, colour: Colour) -> None:
    width, height = picture.size
    x = np.arange(width)
    line = np.zeros(width)
    for octave in range(7):
        points = 3 * 2**octave
        values = chance.uniform(-1, 1, points + 2)
        line += np.interp(x, np.linspace(0, width, points + 2), values) * 0.56**octave
    tops = height * (base - relief * line / 2)
    ImageDraw.Draw(picture).polygon(
        [(0, height), *zip(x.tolist(), tops.tolist(), strict=True), (width, height)], fill=colour
    )


def _water(picture: Image.Image, chance: np.random.Generator, *, horizon: float) -> None:
    width, height = picture.size
    top = int(height * horizon)
    below = height - top
    mirrored = picture.crop((0, max(0, top - below), width, top)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    pixels = np.asarray(mirrored.resize((width, below))).astype(float)
    rows = np.arange(below)
    shifts = (np.sin(rows / (3 + rows / 14)) * (1 + rows / 10) * chance.uniform(0.6, 1.1)).astype(int)
    moved = np.stack([np.roll(row, shift, axis=0) for row, shift in zip(pixels, shifts, strict=True)])
    shade = np.linspace(0.92, 0.62, below)[:, None, None]
    picture.paste(Image.fromarray((moved * shade).clip(0, 255).astype(np.uint8)), (0, top))


def _lighthouse(
    picture: Image.Image, chance: np.random.Generator, *, sky: tuple[Colour, Colour, Colour], horizon: float
) -> None:
    width, height = picture.size
    unit = min(width, height)
    x, foot = width * chance.uniform(0.22, 0.78), height * (horizon + 0.05)
    dark = _dark(sky[0])
    draw = ImageDraw.Draw(picture)
    draw.ellipse((x - 0.24 * unit, foot - 0.035 * unit, x + 0.24 * unit, foot + 0.06 * unit), fill=dark)
    top, low, high = foot - 0.36 * unit, 0.04 * unit, 0.026 * unit
    for band in range(6):
        share, following = band / 6, (band + 1) / 6
        left, right = low + (high - low) * share, low + (high - low) * following
        upper, lower = foot + (top - foot) * following, foot + (top - foot) * share
        colour = _mixed((236, 232, 226), sky[1], 0.25) if band % 2 == 0 else _mixed((178, 52, 48), sky[0], 0.25)
        draw.polygon([(x - left, lower), (x + left, lower), (x + right, upper), (x - right, upper)], fill=colour)
    draw.rectangle((x - 1.3 * high, top - 0.008 * unit, x + 1.3 * high, top), fill=dark)
    draw.rectangle((x - 0.7 * high, top - 0.05 * unit, x + 0.7 * high, top - 0.008 * unit), fill=(255, 238, 170))
    draw.polygon([(x - high, top - 0.05 * unit), (x + high, top - 0.05 * unit), (x, top - 0.085 * unit)], fill=dark)
    beam = Image.new("L", picture.size)
    lamp = top - 0.03 * unit
    for side in (-1, 1):
        ImageDraw.Draw(beam).polygon(
            [(x, lamp), (x + side * width, lamp - 0.16 * unit), (x + side * width, lamp + 0.05 * unit)], fill=70
        )
    picture.paste((255, 244, 200), mask=beam.filter(ImageFilter.GaussianBlur(unit / 60)))


def _trees(picture: Image.Image, chance: np.random.Generator, *, colour: Colour) -> None:
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    for _ in range(26):
        x, tall = chance.uniform(-0.05, 1.05) * width, chance.uniform(0.12, 0.34) * height
        foot = height * chance.uniform(0.9, 1.04)
        for layer in range(5):
            wide = tall * 0.2 * (1 - layer / 6)
            low = foot - tall * layer / 6
            shade = _mixed(colour, (0, 0, 0), 0.1 + 0.05 * (layer % 2))
            draw.polygon([(x - wide, low), (x + wide, low), (x, low - tall * 0.36)], fill=shade)


def _grain(picture: Image.Image, chance: np.random.Generator) -> Pixels:
    pixels = np.asarray(picture).astype(float) + chance.normal(0, 2.2, (picture.height, picture.width, 1))
    return pixels.clip(0, 255).astype(np.uint8)


def _half_done(picture: Pixels, *, share: float, seed: int) -> Pixels:
    """What a preview shows of it: noise that becomes the picture."""
    small = np.asarray(Image.fromarray(picture).resize((picture.shape[1] // 8, picture.shape[0] // 8)))
    noise = np.random.default_rng(seed).integers(0, 256, small.shape)
    return (small * share + noise * (1 - share)).astype(np.uint8)


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _dark(colour: Colour) -> Colour:
    return _mixed(colour, (6, 8, 18), 0.72)


def load(_spec: EngineSpec, _phases: StartPhases) -> Painter:
    """Nothing to load."""
    return Painter()


if __name__ == "__main__":
    run_engine(load)
