"""Pixels for measuring are those that the trainer decodes, whatever an adopted tar holds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.filters.pixels import decode
from tcjepa.data.decode import decode as trained_on

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_transparent_and_deep_pictures_are_measured_as_they_are_trained_on(
    depth: type, channels: int
) -> None:
    shape = (20, 30) if channels == 1 else (20, 30, channels)
    data = cv2.imencode(".png", RNG.integers(0, np.iinfo(depth).max + 1, shape, depth))[1].tobytes()
    measured = decode(data)
    assert not isinstance(measured, str)
    seen = trained_on(data, "png", 10_000)[..., ::-1].astype(int)
    assert np.abs(measured.astype(int) - seen).max() <= 1
