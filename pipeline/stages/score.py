"""Stage `score`: score every caption of every kept image of a part."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.filters.language import detector
from pipeline.schema import SCORES
from pipeline.scorers.agreement import (
    Agreement,
    EncoderEvidence,
    Evidence,
    Reference,
    Said,
    WordEvidence,
)
from pipeline.scorers.config import ClipAlignmentConfig, EncoderAgreementConfig, ScoreConfig
from pipeline.scorers.embedding import EmbedConfig
from pipeline.scorers.language import language_scores
from pipeline.scorers.model_check import check_dual_encoder, check_text_encoder
from pipeline.scorers.quality import quality_score
from pipeline.settings import ConfigError
from pipeline.stages.captioned import CAPTION, Captioned, captioned
from pipeline.stages.fit import fit, fit_settings, read_model, read_references
from pipeline.stages.task import StageReport, Task

VERSION = 5

#: The scores of a caption, and beside them the raw `cosine` of `alignment: clip` (null for others):
#: thresholds that users know are cosines.
_SPANS = pa.list_(pa.list_(pa.int32()))
_SCORED_CAPTION = pa.struct(
    [
        *CAPTION,
        *((score, pa.float32()) for score in SCORES),
        ("cosine", pa.float32()),
        ("nouns", _SPANS),
        ("attributes", _SPANS),
    ]
)
_CHUNK = 8192  # pairs of unit vectors held at once

_Spans = list[list[int]]
_Optional = list[float | None]


def check(config: ScoreConfig, embed: EmbedConfig | None = None) -> None:
    """Raise `ConfigError` if a model that scores need cannot be there: package, folder, kind."""
    if isinstance(config.alignment, ClipAlignmentConfig) and embed is None:
        raise ConfigError(
            "score.alignment: clip needs a model; give embed: {model: openai/clip-vit-base-patch32}"
        )
    if embed is not None:
        check_dual_encoder("embed", embed.model)
    if isinstance(config.agreement, EncoderAgreementConfig):
        check_text_encoder("score.agreement", config.agreement.model)


def resources(config: ScoreConfig, embed: EmbedConfig | None = None) -> dict[str, float]:
    """Return the Dask resources of a `fit` or `score` task: the most that a model of it asks."""
    asked = [embed.resources] if embed and isinstance(config.alignment, ClipAlignmentConfig) else []
    if isinstance(config.agreement, EncoderAgreementConfig):
        asked.append(config.agreement.resources)
    names = {name for one in asked for name in one}
    return {name: max(one.get(name, 0.0) for one in asked) for name in sorted(names)}


def score(
    task: Task, part: str, config: ScoreConfig, embed: EmbedConfig | None = None
) -> StageReport:
    """Write row, uid and scored captions of each image of a part that `select` kept.

    Raises `ConfigError` if a model cannot be loaded.
    """
    found = captioned(task.run, part)
    rows = score_captions(found, config, embed)
    scored = {
        "row": found.rows,
        "uid": pa.array(found.uids, pa.string()),
        "captions": pa.array(rows, pa.list_(_SCORED_CAPTION)),
    }
    task.write(part, pa.table(scored))
    return StageReport(counts={"images": len(rows), "captions": sum(map(len, rows))})


def score_captions(
    found: Captioned, config: ScoreConfig, embed: EmbedConfig | None = None
) -> list[list[dict[str, Any]]]:
    """Return the captions of each image with their scores, `cosine` and spans, by the run's `fit`.

    An image may be there more than once, with other captions.
    """
    from threadpoolctl import threadpool_limits

    references = read_references(found.run) if config.agreement is not None else []
    texts = _Texts(found, references)
    with threadpool_limits(limits=1):  # sums in another order would be other scores
        alignment, cosine = _alignment(found, texts, config, embed)
        agreement = _agreement(found, texts, references, config)
    language = _language(texts.listed, config)
    rows: list[list[dict[str, Any]]] = []
    number = 0
    for captions in found.captions:
        row = []
        for caption in captions:
            place = texts.place[caption["text"]]
            scores: dict[str, float | None] = {
                "wording": texts.wording[place] if config.wording else None,
                "language": language[place],
                "alignment": alignment[number],
                "agreement": agreement[number],
            }
            scores["quality"] = quality_score(scores, config.quality)
            nouns, attributes = texts.spans[place]
            spans = {"nouns": nouns, "attributes": attributes}
            row.append({**caption, **scores, "cosine": cosine[number], **spans})
            number += 1
        rows.append(row)
    return rows


class _Texts:
    """What is known of each distinct text of a part (and of the references), tagged once.

    `place` finds a text's number in `listed`, `wording` and `spans` (nouns, attributes); `claims`
    also covers the references.
    """

    def __init__(self, found: Captioned, references: list[Reference]) -> None:
        from pipeline.scorers.claims import claims_of
        from pipeline.scorers.wording import wording_parts
        from pipeline.scorers.words import spans_of, tag_texts

        self.listed = list(dict.fromkeys(found.texts))
        self.place = {text: number for number, text in enumerate(self.listed)}
        self.wording: list[float] = []
        self.spans: list[tuple[_Spans, _Spans]] = []
        self.claims: dict[str, frozenset[str]] = {}
        further = [r.text for r in references if r.text not in self.place]
        everything = [*self.listed, *dict.fromkeys(further)]
        for number, (text, words) in enumerate(zip(everything, tag_texts(everything), strict=True)):
            self.claims[text] = claims_of(words)
            if number < len(self.listed):
                self.wording.append(wording_parts(words).score)
                self.spans.append(spans_of(words))


def _language(texts: list[str], config: ScoreConfig) -> _Optional:
    if config.language is None:
        return [None] * len(texts)
    found = [detector().detect(text.strip()) for text in texts]
    return language_scores(
        [language.code for language in found],
        [language.score for language in found],
        [language.english_score for language in found],
        config.language.languages,
    )


def _alignment(
    found: Captioned, texts: _Texts, config: ScoreConfig, embed: EmbedConfig | None
) -> tuple[_Optional, _Optional]:
    """Return alignment and cosine of each caption; None where there is none."""
    from pipeline.scorers import alignment, alignment_clip

    nothing: _Optional = [None] * len(found.texts)
    if config.alignment is None or not nothing:
        return nothing, nothing
    model = read_model(found.run)
    if not isinstance(config.alignment, ClipAlignmentConfig):
        if not isinstance(model, alignment.LinearAlignment):
            return nothing, nothing
        images = found.vectors("filter", "features")
        scores = alignment.score(model, images, found.texts, found.owner, found.uids)
        return _optional(scores), nothing
    from pipeline.scorers.dual_encoder import load_dual_encoder

    assert embed is not None, "alignment: clip needs the embed section"
    images = found.vectors("embed", "embedding")
    encoded = load_dual_encoder(embed).texts(texts.listed)
    places = np.array([texts.place[text] for text in found.texts])
    cosines = np.concatenate(
        [
            alignment_clip.cosines(images, encoded[places[at:stop]], found.owner[at:stop])
            for at in range(0, len(places), _CHUNK)
            for stop in [at + _CHUNK]
        ]
    )
    if not isinstance(model, alignment_clip.ClipAlignment):
        return nothing, _optional(cosines)
    return _optional(alignment_clip.score(model, cosines)), _optional(cosines)


def _agreement(
    found: Captioned, texts: _Texts, references: list[Reference], config: ScoreConfig
) -> _Optional:
    """Return the agreement of each caption; None where there is none."""
    if not references:
        return [None] * len(found.texts)
    agreement = Agreement(references, _evidence(texts, references, config))
    return [
        value
        for uid, captions in zip(found.uids, found.captions, strict=True)
        for value in agreement.scores(uid, [Said(**caption) for caption in captions])
    ]


def _evidence(texts: _Texts, references: list[Reference], config: ScoreConfig) -> Evidence:
    if not isinstance(config.agreement, EncoderAgreementConfig):
        return WordEvidence(texts.claims, references)
    from pipeline.scorers.text_encoder import load_text_encoder

    known = list(texts.claims)
    encoded = load_text_encoder(config.agreement).encode(known)
    return EncoderEvidence(dict(zip(known, encoded, strict=True)), references)


def _optional(values: NDArray[np.float32]) -> _Optional:
    return [None if math.isnan(value) else float(value) for value in values]


__all__ = ["VERSION", "check", "fit", "fit_settings", "resources", "score", "score_captions"]
