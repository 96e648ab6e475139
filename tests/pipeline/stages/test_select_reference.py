"""The verdict over all parts, against a plain reference that compares all with all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.filters.config import FilterConfig
from pipeline.settings import build
from pipeline.storage import Directory
from tests.pipeline.stages.measured_rows import FAILED, IMAGES, TEXTS, Row, run_select, uid


def near(first: str, second: str) -> bool:
    (_, hash1, colour1), (_, hash2, colour2) = IMAGES[first], IMAGES[second]
    assert hash1 is not None
    assert hash2 is not None
    assert colour1 is not None
    assert colour2 is not None
    return (hash1 ^ hash2).bit_count() <= 4 and abs(colour1 - colour2) <= 12


BAD = {"E": "too_small", "F": "undecodable"}


def group_rows(rows: list[Row]) -> list[dict[str, Any]]:
    """Return why each row is dropped, if it is, and the row that leads its group."""
    ranked = sorted(
        range(len(rows)),
        key=lambda i: (
            rows[i].split == "train",
            -((IMAGES[rows[i].image][0] or 0) ** 2),
            uid(rows[i].image),
        ),
    )
    first = {row.image: i for i, row in reversed([(i, rows[i]) for i in ranked])}
    leader = {i: i for i in first.values()}
    free = [i for i in ranked if i in leader and rows[i].image not in BAD]
    while free:
        centre, *others = free
        for other in others:
            if near(rows[centre].image, rows[other].image):
                leader[other] = centre
        free = [i for i in others if leader[i] == i]
    judged = []
    for i, row in enumerate(rows):
        own = first[row.image]
        reason = BAD.get(row.image)
        if own != i:
            reason = "exact_duplicate"
        elif leader[own] != i:
            reason = "near_duplicate"
        judged.append({"reason": reason, "lead": leader[own]})
    return judged


def reference(
    rows: list[Row], *, drop_image: bool, limit: float, blocked: bool, most: float
) -> list[dict[str, Any]]:
    """Judge the fetched rows one by one; `blocked` drops stars and green squares."""
    own = dict(TEXTS)
    if blocked:
        own |= {"a red star": "blocked_word", "two green squares": "blocked_word"}
    judged = group_rows(rows)
    stands_on = {text: len({r.image for r in rows if text in r.captions}) for text in TEXTS}
    caption_reasons = [
        [own[t] or ("repeated" if stands_on[t] > limit else None) for t in row.captions]
        for row in rows
    ]
    for i, row in enumerate(rows):
        dropped = judged[judged[i]["lead"]]["reason"] is not None
        caption_reasons[i] = [
            reason or ("image_dropped" if dropped else None) for reason in caption_reasons[i]
        ]
        assert len(caption_reasons[i]) == len(row.captions)
    for i, verdict in enumerate(judged):
        if verdict["reason"] is not None:
            continue
        pool: list[str] = []
        said: set[str] = set()
        group = [j for j in range(len(rows)) if judged[j]["lead"] == i]
        for j in sorted(group, key=lambda j: (j != i, j)):
            for place, text in enumerate(rows[j].captions):
                if caption_reasons[j][place] is not None:
                    continue
                if text in said:
                    caption_reasons[j][place] = "duplicate_text"
                elif len(pool) >= most:
                    caption_reasons[j][place] = "too_many_captions"
                else:
                    pool.append(text)
                said.add(text)
        verdict["captions"] = pool
        if drop_image and not pool:
            verdict["reason"] = "no_good_caption"
    return [
        {
            "uid": uid(row.image),
            "split": row.split,
            "reason": verdict["reason"],
            "representative": uid(rows[verdict["lead"]].image) if verdict["lead"] != i else None,
            "pooled_by": uid(rows[verdict["lead"]].image) if verdict["lead"] != i else None,
            "captions": verdict.get("captions") if verdict["reason"] is None else None,
            "caption_reasons": reasons,
        }
        for i, (row, verdict, reasons) in enumerate(zip(rows, judged, caption_reasons, strict=True))
    ]


ROW = st.builds(
    Row,
    st.sampled_from([*IMAGES, FAILED]),
    st.lists(st.sampled_from(list(TEXTS)), max_size=3).map(tuple),
    st.sampled_from(["train", "test"]),
)


#: Of four captions of one image two are kept: the third is one too many, the fourth a repeat.
CROWDED = [
    [Row("A", ("a red star", "two green squares", "a blue ring"))],
    [Row("A", ("a red star",))],
]


@settings(max_examples=80, deadline=None)
@example(parts=CROWDED, drop_image=False, limit=None, rules=(None, [], 2))
@example(parts=CROWDED, drop_image=True, limit=None, rules=(0.8, [], 1))
@given(
    parts=st.lists(st.lists(ROW, max_size=6), min_size=1, max_size=3),
    drop_image=st.booleans(),
    limit=st.sampled_from([1, 2, None]),
    rules=st.tuples(
        st.sampled_from([None, 0.8]),
        st.sampled_from([[], ["star", "GREEN squares"]]),
        st.sampled_from([None, 1, 2]),
    ),
)
def test_select_is_the_plain_reference(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[list[Row]],
    drop_image: bool,
    limit: int | None,
    rules: tuple[float | None, list[str], int | None],
) -> None:
    similarity, blocked, most = rules
    run = Directory(tmp_path_factory.getbasetemp() / "select")
    repeats = {"max_repeats": limit, "min_repeats": limit or 1}
    config = build(
        FilterConfig,
        {
            "on_bad_caption": "drop_image" if drop_image else "drop_caption",
            "caption": {"repeats": repeats, "pool_similarity": similarity, "max_per_image": most},
            "block": {"words": blocked},
        },
    )
    found, report = run_select(run, parts, config)
    fetched = [row for part in parts for row in part if row.image != FAILED]
    numbers = [
        n for n, row in enumerate(row for part in parts for row in part) if row.image != FAILED
    ]
    expected = reference(
        fetched,
        drop_image=drop_image,
        limit=limit or float("inf"),
        blocked=bool(blocked),
        most=most or float("inf"),
    )
    assert [row.pop("row") for row in found] == numbers
    assert found == expected
    # The sums hold: what is kept of the captions is what the kept images have.
    kept = [row for row in found if row["reason"] is None]
    assert report.counts == {"fetched": len(fetched), "kept": len(kept)}
    survivors = sum(r is None for row in found for r in row["caption_reasons"])
    assert survivors == sum(len(row["captions"]) for row in kept)
    assert len({row["uid"] for row in kept}) == len(kept)
