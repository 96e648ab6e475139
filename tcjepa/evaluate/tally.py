"""What each test image adds to a measure, so that intervals can draw the test images again.

Every measure that is taken image by image is a mean of ratios of sums. Accuracy: one group, (hit,
1), the hit averaged over probe seeds. mIoU: a group per class, (intersection, union) in pixels. A
loss, or a difference of losses: one group, (value, 1). Pointing game: one group, (hits, words
pointed with); its specificity: one group, (difference, 1), or zeros for an image that has none. The
measure is the mean, over the groups whose denominators are not all zero, of sum of numerators / sum
of denominators; so one bootstrap serves all of them.

Shapes: n test images, G groups.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

TALLIES_FILE: Final = "tallies.npz"
_KEYS: Final = "keys"


@dataclass(frozen=True, eq=False)
class Tally:
    """One measure of one encoder: `sums` (n, G, 2) float32 of numerators and denominators.

    `images` has one key per test image, its uid, or its number in the set where it has none:
    tallies of two encoders are paired by it. Raises `ValueError` for other shapes, keys that occur
    twice, denominators below 0 and values that are not finite.
    """

    images: tuple[str, ...]
    sums: NDArray[np.float32]

    def __post_init__(self) -> None:
        shape = self.sums.shape
        if len(shape) != 3 or shape[0] != len(self.images) or not shape[1] or shape[2] != 2:
            raise ValueError(f"sums must be ({len(self.images)}, G, 2), got {shape}")
        if len(set(self.images)) < len(self.images):
            raise ValueError("an image is tallied twice")
        if not np.isfinite(self.sums).all() or (self.sums[..., 1] < 0).any():
            raise ValueError("tallies must be finite, and denominators not below 0")

    @classmethod
    def of_values(cls, images: Sequence[str], values: Any) -> Tally:
        """Return the tally of a mean over images of `values` (n,), such as hits or losses."""
        numerators = np.asarray(values, np.float32)
        return cls.of_ratios(images, numerators[:, None], np.ones_like(numerators)[:, None])

    @classmethod
    def of_ratios(cls, images: Sequence[str], numerators: Any, denominators: Any) -> Tally:
        """Return the tally of a mean over groups of ratios of sums; both are (n, G)."""
        both = np.asarray(numerators, np.float32), np.asarray(denominators, np.float32)
        return cls(tuple(images), np.stack(both, axis=-1))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def value(self) -> float:
        """The measure itself; nan where every denominator is 0."""
        return float(ratios(self.sums.sum(axis=0, dtype=np.float64)))


def ratios(totals: Floats) -> Floats:
    """Return the measure (…) of sums (…, G, 2) over images; nan where no group has any."""
    with np.errstate(invalid="ignore", divide="ignore"):
        groups = totals[..., 0] / totals[..., 1]
    has = totals[..., 1] > 0
    count = has.sum(axis=-1)
    total = np.where(has, groups, 0).sum(axis=-1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def keys_of(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a key per record: its `uid`; for all of them their number if one has none."""
    if all(record.get("uid") is not None for record in records):
        return tuple(str(record["uid"]) for record in records)
    return tuple(map(str, range(len(records))))


def to_bytes(tallies: Mapping[str, Tally]) -> bytes:
    """Return named tallies as a compressed npz; `from_bytes` reads them back unchanged.

    Image keys are held once for all; whole numbers, such as pixels, as the smallest unsigned
    integers that hold them.
    """
    number: dict[str, int] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for place, tally in enumerate(tallies.values()):
        rows = [number.setdefault(image, len(number)) for image in tally.images]
        arrays[f"sums {place}"] = _compact(tally.sums)
        arrays[f"rows {place}"] = np.array(rows, np.uint32)
    keys = json.dumps({"names": list(tallies), "images": list(number)})
    arrays[_KEYS] = np.frombuffer(keys.encode(), np.uint8)
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def from_bytes(content: bytes) -> dict[str, Tally]:
    """Return the tallies of a file's content, by name.

    Raises `ValueError` where it holds something else.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            keys = json.loads(arrays[_KEYS].tobytes())
            return {
                name: Tally(
                    tuple(keys["images"][row] for row in arrays[f"rows {place}"]),
                    arrays[f"sums {place}"].astype(np.float32),
                )
                for place, name in enumerate(keys["names"])
            }
    except Exception as error:  # a damaged zip fails in many ways
        raise ValueError(f"not a file of tallies: {error}") from error


def images_in(content: bytes) -> list[str]:
    """Return the keys of all images in a file's content; raises `ValueError` as `from_bytes`."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return list(json.loads(arrays[_KEYS].tobytes())["images"])
    except Exception as error:
        raise ValueError(f"not a file of tallies: {error}") from error


def _compact(sums: NDArray[np.float32]) -> NDArray[Any]:
    largest = float(sums.max(initial=0))
    if (sums < 0).any() or (sums % 1).any() or largest >= 2**32:
        return sums
    return sums.astype(np.min_scalar_type(int(largest)))


__all__ = ["TALLIES_FILE", "Tally", "from_bytes", "images_in", "keys_of", "ratios", "to_bytes"]
