"""Rain drawn on clean photos, after the optics of falling drops.

What is drawn, from the drop to the file:

- *Drops.* Diameters D follow Marshall and Palmer (1948), N(D) = 8000 exp(-4.1 R^-0.21 D) a cubic metre and
  millimetre at a rain rate of R mm/h; they fall at Atlas's terminal velocity v = 9.65 - 10.3 exp(-0.6 D) m/s, slanted
  by the wind.
- *Streaks.* During the exposure T a drop at distance z smears over v T f / z pixels, f the focal length in pixels; it
  is D f / z wide, softened by defocus. It lies on each of them for D / v only, so its opacity is D / (v T) (Garg and
  Nayar, "Vision and rain", IJCV 2007): long exposures give long, faint streaks.
- *Wind.* It slants all streaks of a picture, and gusts turn some against others.
- *Layers.* Shells of distance, from near, few, broad and blurred streaks to far, dense and fine ones, whose number
  follows from the volume that the picture sees; behind them a veil, since all drops farther away melt into mist.
- *Light.* A drop shows not what is behind it but the surroundings bent into it, mostly sky: the picture is mixed with
  that light, and with the veil's, in linear light. How much of it a drop catches differs from drop to drop, by an
  exponential distribution: among faint dots are a few bright ones.
- *Camera.* Exposure, of the clean picture too; then clipping, the sRGB curve and rounding to 8 bits; half the pictures,
  clean and rainy alike, are sharpened, which gives streaks the dark fringes that they have in photos, and half are
  compressed as JPEG, which tears fine ones into pieces.

Photos that people want derained show rain stronger than the average of this; a factor on opacity covers both.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sapnet_cli.data.pictures import Pixels

Plane = NDArray[np.float32]

DROPS_PER_CUBIC_METRE = 8000.0
SMALLEST_DROP, LARGEST_DROP = 0.6, 6.0
"""Diameters in millimetres; smaller ones are mist."""

LONGEST_STREAK = 96
"""In pixels; a longer one crosses the whole crop either way."""

GUSTS = 3
"""Directions and speeds of the streaks of one layer."""


@dataclass(frozen=True)
class RainConfig:
    """Ranges that each picture's rain is drawn from, evenly over their logarithm unless said otherwise.

    Attributes:
        rate: rain rate in mm/h: 2 is light rain, 100 a cloudburst.
        focal_length: in pixels; a photo 4000 wide by a normal lens has about 4000, shrunk to 500 about 500.
        exposure_time: in seconds.
        aperture: of the lens, in millimetres; the wider, the softer is what lies out of focus.
        slant: standard deviation of the fall's angle from the vertical over pictures, in degrees.
        turbulence: standard deviation of that angle within a picture, in degrees.
        strength: factor on the streaks' opacity.
        drops: seen for each pixel of a layer, at the most: the more, the closer streaks overlap, to a grain in the end;
            what is over goes into the veil.
        coverage: mean opacity of all streaks over a picture, at the most. Beyond, nothing is left to be seen.
        light: brightness of the light in the drops, linear, 1 for white; evenly.
        veil: opacity of mist before the picture, evenly from 0 to this.
        exposure: factors on the whole picture's linear light.
        sharpening: share of what a blur takes away that is added again, evenly from 0 to this, for half the pictures.
        jpeg: quality that half the pictures are compressed with, evenly; None compresses none.
        layers: distances in metres between which the streaks fall, near to far; each two neighbours are a layer.
    """

    rate: tuple[float, float] = (3.0, 120.0)
    focal_length: tuple[float, float] = (350.0, 2500.0)
    exposure_time: tuple[float, float] = (1 / 5000, 1 / 40)
    aperture: tuple[float, float] = (0.5, 4.0)
    slant: float = 24.0
    turbulence: tuple[float, float] = (1.0, 10.0)
    strength: tuple[float, float] = (2.0, 80.0)
    drops: tuple[float, float] = (0.02, 0.3)
    coverage: tuple[float, float] = (0.02, 0.4)
    light: tuple[float, float] = (0.35, 1.0)
    veil: float = 0.25
    exposure: tuple[float, float] = (0.8, 1.1)
    sharpening: float = 3.0
    jpeg: tuple[int, int] | None = (60, 95)
    layers: tuple[float, ...] = (0.7, 1.5, 3.0, 6.0, 12.0, 24.0)


class RainGenerator:
    """Draws rain on clean pictures; the same random generator gives the same rain.

    Args:
        config: the ranges.
        real_layers: layers of rain that were lifted off pictures, (H, W, 3) uint8 each; if there are any, half of the
            pictures get one of them, added as the public sets were made, instead of drawn streaks.
    """

    def __init__(self, config: RainConfig | None = None, real_layers: Sequence[Pixels] = ()) -> None:
        self.config, self.real_layers = config or RainConfig(), real_layers

    def draw(self, clean: Pixels, random: np.random.Generator) -> tuple[Pixels, Pixels]:
        """Rains on a picture.

        Args:
            clean: (H, W, 3) uint8.
            random: decides everything.

        Returns:
            The rainy picture and its ground truth: `clean` at the camera's exposure, sharpening and JPEG quality.
        """
        if self.real_layers and random.random() < 0.5:
            return self._add_real_layer(clean, random), clean
        config = self.config
        height, width = clean.shape[:2]
        sky = _Sky(
            rate=_log_uniform(random, *config.rate),
            slant=np.deg2rad(np.clip(random.normal(0, config.slant), -60, 60)),
            turbulence=np.deg2rad(_log_uniform(random, *config.turbulence)),
            drops=_log_uniform(random, *config.drops),
        )
        camera = _Camera(
            focal_length=_log_uniform(random, *config.focal_length),
            exposure_time=_log_uniform(random, *config.exposure_time),
            aperture=_log_uniform(random, *config.aperture),
            focus=random.uniform(3, 50),
        )
        strength = _log_uniform(random, *config.strength)
        scene = to_linear(clean) * np.float32(_log_uniform(random, *config.exposure))

        neighbours = zip(config.layers, config.layers[1:])
        shells = [_draw_layer((height, width), span, sky, camera, random) for span in neighbours]
        covered = sum(float(layer.mean()) for layer, _ in shells)
        strength = min(strength, _log_uniform(random, *config.coverage) / max(covered, 1e-6))
        seen_through = np.ones((height, width), np.float32)
        for layer, _ in shells:
            seen_through *= 1 - np.clip(layer * np.float32(strength), 0, 0.95)
        opacity = 1 - seen_through
        misty = sum(unseen for _, unseen in shells)
        tint = 1 + random.normal(0, 0.03, 3).astype(np.float32)
        light = np.clip(np.float32(random.uniform(*config.light)) * tint, 0, 1)
        # mist is at most as bright as the scene's own bright parts, or it would turn night into day
        glow = np.minimum(light, np.quantile(scene, 0.9).astype(np.float32) + 0.05)
        veil = min(config.veil, random.uniform(0, config.veil) * (1 - np.exp(-misty * strength)))
        density = (veil * _drifting((height, width), random))[..., None]
        rainy = scene * (1 - density) + glow * density
        rainy = rainy * (1 - opacity[..., None]) + light * opacity[..., None]
        sharpening = random.uniform(0, config.sharpening) if random.integers(2) else 0.0
        radius = random.uniform(0.5, 1.5)
        quality = None
        if config.jpeg is not None and random.integers(2):
            quality = int(random.integers(config.jpeg[0], config.jpeg[1] + 1))

        def developed(light: Plane) -> Pixels:
            return _compressed(_sharpened(to_srgb(light), sharpening, radius), quality)

        return developed(rainy), developed(scene)

    def _add_real_layer(self, clean: Pixels, random: np.random.Generator) -> Pixels:
        height, width = clean.shape[:2]
        layer = self.real_layers[int(random.integers(len(self.real_layers)))]
        scale = float(random.choice((1.0, 1.0, 0.67, 0.5)))
        rows, columns = round(height / scale), round(width / scale)
        if layer.shape[0] < rows or layer.shape[1] < columns:
            lacking = (max(0, rows - layer.shape[0]), max(0, columns - layer.shape[1]))
            layer = np.pad(layer, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="symmetric")
        top, left = (int(random.integers(size - part + 1)) for size, part in zip(layer.shape, (rows, columns)))
        part: Pixels = layer[top : top + rows, left : left + columns]
        if scale != 1:
            part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
        part = part[:, ::-1] if random.integers(2) else part
        strength = random.uniform(0.5, 1.0) if random.integers(2) else 1.0
        rainy: Pixels = np.clip(np.rint(clean + np.float32(strength) * part), 0, 255).astype(np.uint8)
        return rainy


def to_linear(pixels: Pixels) -> Plane:
    """From sRGB bytes to linear light in [0, 1] (IEC 61966-2-1)."""
    value = np.arange(256, dtype=np.float64) / 255
    table = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return table.astype(np.float32)[pixels]


def to_srgb(light: Plane) -> Pixels:
    """Linear light to sRGB bytes, clipped and rounded."""
    light = np.clip(light, 0, 1)
    value = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)
    pixels: Pixels = np.rint(value * 255).astype(np.uint8)
    return pixels


def _sharpened(pixels: Pixels, amount: float, radius: float) -> Pixels:
    """Unsharp masking as cameras and editors do it: on sRGB bytes, `radius` the blur's sigma in pixels."""
    if not amount:
        return pixels
    blurred = cv2.GaussianBlur(pixels, (0, 0), radius)
    sharper: Pixels = cv2.addWeighted(pixels, 1 + amount, blurred, -amount, 0).astype(np.uint8)
    return sharper


def _compressed(pixels: Pixels, quality: int | None) -> Pixels:
    """As JPEG of a quality gives it back; as it is, if none is given."""
    if quality is None:
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@dataclass(frozen=True)
class _Sky:
    """The rain of one picture; angles in radians, what they are: see `RainConfig`."""

    rate: float
    slant: float
    turbulence: float
    drops: float


@dataclass(frozen=True)
class _Camera:
    """What one picture is taken with; `focus` in metres, the rest: see `RainConfig`."""

    focal_length: float
    exposure_time: float
    aperture: float
    focus: float


def _draw_layer(
    size: tuple[int, int], span: tuple[float, float], sky: _Sky, camera: _Camera, random: np.random.Generator
) -> tuple[Plane, float]:
    """Opacity of the streaks between two distances, (H, W), and the mean opacity of those too many to be drawn."""
    near, far = span
    distance = np.sqrt(near * far)
    pixels_per_metre = camera.focal_length / distance
    steepness = 4.1 * sky.rate**-0.21
    visible = np.exp(-steepness * SMALLEST_DROP) / steepness
    # a drop large enough to fall at 8 m/s stands for the layer's streaks
    mean_length = 8.0 * camera.exposure_time * pixels_per_metre
    margin = int(np.ceil(min(1.5 * mean_length, LONGEST_STREAK) / 2)) + 2
    height, width = (side + 2 * margin for side in size)
    volume = (height / pixels_per_metre) * (width / pixels_per_metre) * (far - near)
    expected = DROPS_PER_CUBIC_METRE * visible * volume
    # drops fall through the picture during the exposure: those that were above it at its start count too
    most = sky.drops * height * width
    count = int(random.poisson(min(expected, most)))
    diameters = np.minimum(SMALLEST_DROP + random.exponential(1 / steepness, count), LARGEST_DROP)
    speeds = 9.65 - 10.3 * np.exp(-0.6 * diameters)
    widths = diameters / 1000 * pixels_per_metre
    opacities = np.minimum(1, diameters / 1000 / (speeds * camera.exposure_time)) * np.minimum(1, widths)
    blur = camera.aperture / 1000 * camera.focal_length * abs(1 / distance - 1 / camera.focus)
    sigma = float(np.sqrt((0.5 * np.median(widths) if count else 0.0) ** 2 / 3 + blur**2 + 0.45**2))
    opacities *= 0.45 / sigma  # what is spread wider is fainter
    opacities = (opacities * random.exponential(1, count)).astype(np.float32)

    places = random.integers(height * width, size=count)
    layer: Plane = np.zeros(size, np.float32)
    for gust in range(GUSTS):
        canvas = np.zeros(height * width, np.float32)
        np.add.at(canvas, places[gust::GUSTS], opacities[gust::GUSTS])
        length = float(np.clip(mean_length * random.uniform(0.5, 1.5), 1, LONGEST_STREAK))
        streak = _streak(length, sky.slant + random.normal(0, sky.turbulence), sigma)
        drawn = cv2.filter2D(canvas.reshape(height, width), cv2.CV_32F, streak, borderType=cv2.BORDER_CONSTANT)
        layer += drawn[margin:-margin, margin:-margin].astype(np.float32)
    unseen = max(0.0, expected - most) / most * float(opacities.mean()) if count else 0.0
    return layer, float(unseen)


def _streak(length: float, angle: float, sigma: float) -> Plane:
    """One streak as a kernel: a line with a Gaussian cross-section and soft ends, 1 at its middle."""
    half = int(np.ceil(length / 2 + 2 * sigma))
    half = min(half, LONGEST_STREAK)
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    along = rows * np.cos(angle) + columns * np.sin(angle)
    across = columns * np.cos(angle) - rows * np.sin(angle)
    beyond = np.maximum(np.abs(along) - length / 2, 0)
    kernel: Plane = np.exp(-(across**2 + beyond**2) / (2 * sigma**2)).astype(np.float32)
    return kernel


def _drifting(size: tuple[int, int], random: np.random.Generator) -> Plane:
    """A slowly varying field around 1, (H, W): mist is never even."""
    coarse = random.uniform(0.6, 1.4, (4, 4)).astype(np.float32)
    field = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0.3, 1.7).astype(np.float32)


def _log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(random.uniform(np.log(low), np.log(high))))
