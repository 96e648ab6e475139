"""How well near-duplicates are found at each radius; the result is in docs/decisions.md.

    python -m pipeline.filters.duplicates_bench FOLDER_OF_IMAGES [--limit 1000]

Each image gets copies as the web makes them: re-encoded as JPEG of quality 50 and 80 and as WebP,
resized to a half and to three quarters. A copy is found if it gets its original's label; an
original that gets another original's label was merged wrongly, if the folder has no copies itself.
Each image also gets one edited copy, which should stay: a disc in its middle, a third of its
shorter side across, changes colour (its channels change places) and keeps its texture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.filters.duplicates import near_duplicates
from pipeline.filters.image import measure_image

_COPIES = (
    ("jpeg 50", ".jpg", 1.0, [cv2.IMWRITE_JPEG_QUALITY, 50]),
    ("jpeg 80", ".jpg", 1.0, [cv2.IMWRITE_JPEG_QUALITY, 80]),
    ("webp 80", ".webp", 1.0, [cv2.IMWRITE_WEBP_QUALITY, 80]),
    ("half", ".jpg", 0.5, [cv2.IMWRITE_JPEG_QUALITY, 90]),
    ("three quarters", ".jpg", 0.75, [cv2.IMWRITE_JPEG_QUALITY, 90]),
)


def _copies(data: bytes) -> list[bytes]:
    image = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    copies = []
    for _, extension, scale, options in _COPIES:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        copies.append(cv2.imencode(extension, small, options)[1].tobytes())
    return copies


def _edited(data: bytes) -> bytes:
    image = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    height, width = image.shape[:2]
    disc = np.zeros((height, width), np.uint8)
    cv2.circle(disc, (width // 2, height // 2), max(1, min(height, width) // 6), 1, -1)
    changed = np.where(disc[:, :, None] == 1, image[:, :, [1, 2, 0]], image)
    return cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def _measured(files: list[bytes]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    measures = [measure_image(data) for data in files]
    hashes = np.array([item.phash for item in measures], dtype=np.uint64)
    colours = np.frombuffer(b"".join(item.colours or b"" for item in measures), np.uint8)
    return hashes, colours.reshape(len(files), -1)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=1000, help="images taken, in order of name")
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.iterdir() if path.is_file())
    originals = [path.read_bytes() for path in paths[: arguments.limit]]
    originals = [data for data in originals if measure_image(data).decode_error is None]
    count = len(originals)
    copies = [copy for data in originals for copy in _copies(data)]
    hashes, colours = _measured(originals + copies)
    edits = _measured([edit for data in originals for edit in (data, _edited(data))])
    source = np.repeat(np.arange(count), len(_COPIES))
    print(f"{count} images, {len(copies)} copies")
    print(
        "| radius | tolerance | copies found | worst kind | originals merged | edits merged |\n"
        + "|---" * 6
        + "|"
    )
    for radius in (0, 2, 4, 6, 8):
        for tolerance in (4, 8, 12, None):
            labels = near_duplicates(hashes, radius, colours=colours, tolerance=tolerance)
            found = (labels[count:] == labels[source]).reshape(count, len(_COPIES)).mean(axis=0)
            worst = int(found.argmin())
            merged = int((labels[:count] != np.arange(count)).sum())
            kind = f"{_COPIES[worst][0]} {found[worst]:.3f}"
            pairs = near_duplicates(edits[0], radius, colours=edits[1], tolerance=tolerance)
            edited = (pairs[1::2] == np.arange(0, 2 * count, 2)).mean()
            row = (radius, tolerance, f"{found.mean():.3f}", kind, merged, f"{edited:.3f}")
            print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    _main()
