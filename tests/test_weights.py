"""What the weights that come with `sapnet` make of photos unlike those of the public sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import EXAMPLES
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

from sapnet_cli import Derainer
from sapnet_cli.hub import locate_weights
from sapnet_cli.model.checkpoint import load_checkpoint

SIDE, LENGTH = 192, 25
WHITE = 1.0, 1.0, 1.0


@pytest.fixture(scope="module")
def derainer() -> Derainer:
    return Derainer(precision="fp32")


@pytest.fixture(scope="module", params=["china.jpg", "rocket.jpg"])
def dry(derainer: Derainer, request: pytest.FixtureRequest) -> NDArray[np.uint8]:
    """A photo without rain: of an example, what `derainer` leaves."""
    with Image.open(EXAMPLES / request.param) as example:
        return derainer.derain(np.asarray(example.convert("RGB")))[100 : 100 + SIDE, 100 : 100 + SIDE]


@pytest.mark.parametrize("deviation", [2, 5])
def test_noise_of_a_sensor_is_no_rain(deviation: float, dry: NDArray[np.uint8], derainer: Derainer) -> None:
    noise = np.random.default_rng(0).normal(0, deviation, dry.shape)
    noisy = np.clip(np.rint(dry + noise), 0, 255).astype(np.uint8)
    kept = peak_signal_noise_ratio(noisy, derainer.derain(noisy))
    assert kept > 38


@pytest.mark.parametrize(
    ("angle", "lamp"), [(-60, WHITE), (-40, WHITE), (0, WHITE), (40, WHITE), (60, WHITE), (0, (1, 0.75, 0.45))]
)
def test_most_rain_of_a_storm_goes(
    angle: float, lamp: tuple[float, float, float], dry: NDArray[np.uint8], derainer: Derainer
) -> None:
    """Streaks by their angle to the vertical, in degrees, in white light or under sodium lamps."""
    random = np.random.default_rng(0)
    drops = (random.random(dry.shape[:2]) < 0.1 / LENGTH) * random.uniform(0.3, 0.7, dry.shape[:2])
    line, middle = np.zeros((LENGTH, LENGTH), np.uint8), LENGTH // 2
    right, down = (round(middle * part) for part in (np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))))
    cv2.line(line, (middle - right, middle - down), (middle + right, middle + down), 255, 1, cv2.LINE_AA)
    streaks = cv2.GaussianBlur(cv2.filter2D(drops.astype(np.float32), -1, line / np.float32(255)), (0, 0), 0.7)
    rainy = 255 - (255 - dry) * (1 - np.clip(1.5 * streaks, 0, 1)[..., None])
    rainy, truth = (np.rint(picture * lamp).astype(np.uint8) for picture in (rainy, dry))
    before, after = (mean_squared_error(truth, picture) for picture in (rainy, derainer.derain(rainy)))
    assert before > 100, "there is rain"
    assert after < 0.5 * before


@pytest.mark.parametrize("name", ["sapnet-general", "sapnet-light", "sapnet-heavy"])
def test_all_know_what_rain_is_to_them(name: str) -> None:
    assert load_checkpoint(locate_weights(name)).rain_means is not None


def test_rain_that_stays_goes_where_it_is_insisted_on(shared: Path) -> None:
    """Of a photo that the default takes for dry."""
    with Image.open(shared / "data" / "real_rain" / "20.jpg") as image:
        rainy = np.asarray(image.convert("RGB"))[:320, :320]
    derained = Derainer(precision="fp32", insist=2).derain(rainy)
    assert np.abs(derained.astype(float) - rainy).mean() > 2
    assert abs(float(derained.mean()) - float(rainy.mean())) < 4, "the scene stays as bright as it is"


def page() -> NDArray[np.uint8]:
    """Light text on dark."""
    image = Image.new("RGB", (480, 320))
    draw = ImageDraw.Draw(image)
    for top in range(8, 320, 13):
        text = r"if it is illicit, all fill 1001 lines; ||| /// \\\ The quick brown fox jumps over the lazy dog"
        draw.text((8, top), text, (255, 255, 255), ImageFont.load_default(10))
    return np.asarray(image)


def colours() -> NDArray[np.uint8]:
    """Every hue on a disc, from white in its middle to the purest, which darkens towards black around it."""
    down, right = np.mgrid[-184:184, -184:184]
    hue, radius = np.arctan2(right, down) / np.pi * 90 + 90, np.hypot(down, right)
    hsv = np.stack([hue % 180, np.clip(radius * 2, 0, 255), np.clip(511 - radius * 3, 0, 255)], 2)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


@pytest.mark.parametrize("draw", [page, colours])
def test_what_is_drawn_without_rain_stays(draw: Callable[[], NDArray[np.uint8]], derainer: Derainer) -> None:
    drawn = draw()
    assert peak_signal_noise_ratio(drawn, derainer.derain(drawn)) > 38
