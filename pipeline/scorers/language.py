"""`language`: how probable it is that a caption is in a wanted language."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def language_scores(
    languages: Sequence[str | None],
    probabilities: Sequence[float | None],
    english: Sequence[float | None],
    wanted: Collection[str],
) -> list[float | None]:
    """Turn the stored language measures of each caption into its `language` score.

    `languages`, `probabilities` and `english` are `language`, `language_score` and `english_score`
    as `pipeline.filters.text.measure_captions` stores them; `wanted` are ISO 639 codes. Where
    English is wanted, its own probability counts, which was asked for with a prior that spares
    short captions; a more probable wanted language counts for its probability p. Where English is
    not wanted and another language was found, the score is 1 - p, the most that is left for the
    wanted ones: an unsure guess leaves the doubt, a sure wrong language scores near 0. Null where
    no language was found (no letters). Rounded to 4 decimals.

    Raises `ValueError` if the sequences differ in length.
    """
    scores: list[float | None] = []
    for language, probability, of_english in zip(languages, probabilities, english, strict=True):
        if language is None or probability is None:
            scores.append(None)
            continue
        candidates = [of_english] if "en" in wanted and of_english is not None else []
        if language in wanted:
            candidates.append(probability)
        score = max(candidates) if candidates else 1.0 - probability
        scores.append(round(min(max(score, 0.0), 1.0), 4))
    return scores
