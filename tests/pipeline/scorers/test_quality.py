from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schema import SCORES
from pipeline.scorers.config import QualityConfig, ScoreConfig
from pipeline.scorers.embedding import EmbedConfig
from pipeline.scorers.language import language_scores
from pipeline.scorers.quality import quality_score
from pipeline.settings import ConfigError, build

NAMES = [name for name in SCORES if name != "quality"]
values = st.dictionaries(st.sampled_from(NAMES), st.none() | st.floats(0, 1))


@given(values)
def test_quality_lies_between_the_scores_it_combines(scores: dict[str, float | None]) -> None:
    known = [value for value in scores.values() if value is not None]
    quality = quality_score(scores, QualityConfig())
    if not known:
        assert quality is None
    else:
        assert quality is not None
        assert min(known) - 1e-4 <= quality <= max(known) + 1e-4


@given(values, st.sampled_from(NAMES), st.floats(0, 1))
def test_a_better_score_never_lowers_quality(
    scores: dict[str, float | None], name: str, better: float
) -> None:
    value = scores.get(name)
    if value is None:
        return
    raised = {**scores, name: max(value, better)}
    before, after = (quality_score(s, QualityConfig()) for s in (scores, raised))
    assert before is not None
    assert after is not None
    assert after >= before


def test_one_bad_score_cannot_be_averaged_away() -> None:
    others = {"wording": 1.0, "language": 1.0, "agreement": 1.0}
    bad = quality_score({**others, "alignment": 0.02}, QualityConfig())
    assert bad is not None
    assert bad < 0.25
    assert quality_score({**others, "language": 0.0}, QualityConfig()) == 0.0


def test_a_weight_of_zero_leaves_a_score_out() -> None:
    config = QualityConfig(alignment=0.0)
    assert quality_score({"wording": 0.8, "alignment": 0.0}, config) == 0.8


def test_scores_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(ValueError, match="wording is 1"):
        quality_score({"wording": 1.2}, QualityConfig())


def test_language_score_is_the_probability_of_the_wanted_languages() -> None:
    found = (["en", "de", "nl", None], [0.9, 0.8, 0.3, None], [0.95, 0.1, 0.6, None])
    assert language_scores(*found, wanted=["en"]) == [0.95, 0.1, 0.6, None]
    assert language_scores(*found, wanted=["en", "de"]) == [0.95, 0.8, 0.6, None]
    assert language_scores(*found, wanted=["de"]) == [0.1, 0.8, 0.7, None]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"language": {"languages": ["english"]}}, "ISO 639"),
        ({"quality": dict.fromkeys(NAMES, 0.0)}, "all weights are 0"),
        ({"alignment": {"kind": "clipp"}}, "allowed: linear"),
        ({"quality": {"alignement": 1.0}}, "did you mean quality.alignment"),
        ({"agreement": {"kind": "encode"}}, "did you mean encoder"),
        ({"agreement": {"kind": "encoder"}}, r"agreement.model: required"),
        ({"agreement": {"kind": "encoder", "model": " "}}, "model: empty"),
        ({"agreement": {"kind": "encoder", "model": "x", "device": "gpu"}}, "allowed: auto, cpu"),
        ({"fit_images": 0}, "fit_images"),
    ],
)
def test_config_errors_name_the_key_and_the_fix(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(ScoreConfig, data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "model: required"),
        ({"model": ""}, "model: empty"),
        ({"model": "x", "device": "gpu"}, "allowed: auto, cpu"),
        ({"model": "x", "batchsize": 1}, "did you mean batch_size"),
    ],
)
def test_embed_errors_name_the_key_and_the_fix(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(EmbedConfig, data)
