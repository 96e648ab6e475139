"""`language`: how probable it is that a caption is in a wanted language."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def language_scores(
    languages: Sequence[str | None],
    probabilities: Sequence[float | None],
    wanted: Collection[str],
) -> list[float | None]:
    """Turn the stored language measure of each caption into its `language` score.

    `languages` and `probabilities` are the most probable language of each caption and its
    probability, as `pipeline.filters.text.measure_captions` stores them; `wanted` are ISO 639-1
    codes. In a wanted language the score is that probability p. In another one it is 1 - p, the
    most that is left for the wanted ones: short captions are often guessed wrong with a low p and
    deserve the doubt, a sure wrong language scores near 0. Null where nothing was measured.

    Raises `ValueError` if the two sequences differ in length.
    """
    scores: list[float | None] = []
    for language, probability in zip(languages, probabilities, strict=True):
        if language is None or probability is None:
            scores.append(None)
            continue
        p = min(max(float(probability), 0.0), 1.0)
        scores.append(round(p if language in wanted else 1.0 - p, 4))
    return scores
