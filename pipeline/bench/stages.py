"""What measuring and scoring cost on one core, with a JPEG's decoding as the yardstick."""

from __future__ import annotations

import time

import cv2
import simplejpeg
from threadpoolctl import threadpool_limits

from pipeline.filters.image import measure_image
from pipeline.filters.pixels import thumbnail_of
from pipeline.filters.text import measure_captions
from pipeline.scorers.alignment_images import image_features
from pipeline.scorers.alignment_text import text_features
from pipeline.scorers.config import LinearAlignmentConfig
from pipeline.scorers.wording import wording_scores
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.render import render_jpeg
from pipeline.sources.scenes.rows import rows
from pipeline.sources.scenes.world import scene
from pipeline.timing import Bench, Case, measure

_YARDSTICK = "JPEG decode (an image)"


def bench_stages(count: int, rounds: int) -> Bench:
    """Compare the work on `count` images and their alt texts, in items per CPU second.

    A ratio of 0.5 means that an item costs as much as decoding two of the images.
    """
    world = ScenesConfig(train=count, test=0)
    images = [render_jpeg(scene(world, "train", index)) for index in range(count)]
    thumbnails = [thumbnail_of(data) for data in images]
    texts = [text for row in rows(world) for text in row["captions"]]
    width = LinearAlignmentConfig().text_width

    def decode() -> int:
        for data in images:
            simplejpeg.decode_jpeg(data)
        return count

    cases = [
        Case(_YARDSTICK, decode),
        Case("image measures (an image)", lambda: len([measure_image(data) for data in images])),
        Case("alignment features (an image)", lambda: len(image_features(thumbnails))),
        Case("caption measures (a caption)", lambda: len(measure_captions(texts))),
        Case("wording (a caption)", lambda: len(wording_scores(texts))),
        Case("alignment features (a caption)", lambda: len(text_features(texts, width))),
    ]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(limits=1):
            return measure(
                "measures and scores", "items per CPU second", cases, rounds,
                baseline=_YARDSTICK, clock=time.process_time,
            )  # fmt: skip
    finally:
        cv2.setNumThreads(threads)
