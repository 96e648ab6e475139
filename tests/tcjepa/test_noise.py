import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schema import Caption
from tcjepa import keyed
from tcjepa.data.errors import CacheFullError
from tcjepa.noise import CaptionNoise, NoiseConfig, derange
from tcjepa.noise_words import EDITS
from tests.tcjepa.shards import caption

RATE = st.floats(0, 1)
COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=40)


class Index:
    def __init__(self, counts: list[int], cache_dir: Path, fingerprint: str = "f") -> None:
        self.fingerprint, self.cache_dir = fingerprint, cache_dir
        self._counts = np.array(counts, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._counts)

    def uid_bits(self) -> Any:
        return keyed.bits(keyed.key("uids"), len(self._counts))

    def caption_counts(self) -> Any:
        return self._counts

    def uid(self, row: int) -> str:
        return f"{int(self.uid_bits()[row]):016x}" + "0" * 16


def derangement(rate: float, seed: int = 0) -> NoiseConfig:
    return NoiseConfig(kind="derangement", rate=rate, seed=seed)


def donors_of(counts: list[int], rate: float, number: int, seed: int = 0) -> np.ndarray:
    uids = keyed.bits(keyed.key("uids"), len(counts))
    return derange(uids, np.array(counts, dtype=np.int32), derangement(rate, seed), number)


@given(COUNTS, RATE, st.integers(0, 5), st.integers(0, 9))
def test_never_ones_own_caption_and_the_multiset_stays(
    counts: list[int], rate: float, number: int, seed: int
) -> None:
    donors = donors_of(counts, rate, number, seed)
    swapped = np.flatnonzero(donors >= 0)
    assert (donors[swapped] != swapped).all()
    assert all(counts[row] > number for row in swapped)
    assert all(counts[donor] > 0 for donor in donors[swapped])
    if len(swapped) > 1:  # what is given away is what is received
        assert sorted(donors[swapped].tolist()) == swapped.tolist()


@given(COUNTS, st.integers(0, 5))
def test_rate_one_swaps_every_caption(counts: list[int], number: int) -> None:
    donors = donors_of(counts, 1.0, number)
    having = [row for row, count in enumerate(counts) if count > number]
    alone = sum(count > 0 for count in counts) < 2
    assert np.flatnonzero(donors >= 0).tolist() == ([] if alone else having)


@given(COUNTS, RATE, RATE, st.integers(0, 3))
def test_noisy_sets_are_nested(counts: list[int], one: float, other: float, number: int) -> None:
    low, high = sorted((one, other))
    fewer, more = (donors_of(counts, rate, number) >= 0 for rate in (low, high))
    assert not (fewer & ~more).any()


def test_expected_share() -> None:
    for rate in (0.1, 0.4, 0.6):
        share = np.mean([(donors_of([8] * 4000, rate, n) >= 0).mean() for n in range(8)])
        assert abs(share - rate) < 0.014  # 5 standard deviations


def test_donors_form_one_cycle() -> None:
    donors = donors_of([1] * 50, 1.0, 0)
    row, seen = 0, set()
    while row not in seen:
        seen.add(row)
        row = int(donors[row])
    assert len(seen) == 50


def test_numbers_and_seeds_swap_apart() -> None:
    maps = [donors_of([4] * 50, 0.5, number, seed) for number in (0, 1) for seed in (0, 1)]
    assert len({tuple(found.tolist()) for found in maps}) == 4


def test_map_is_shared_through_the_cache(tmp_path: Path) -> None:
    first = CaptionNoise(derangement(0.5), Index([2] * 20, tmp_path))
    donors = [first.donor(row, 1) for row in range(20)]
    files = list(tmp_path.glob("donors-*.npy"))
    assert len(files) == 1
    again = CaptionNoise(derangement(0.5), Index([2] * 20, tmp_path))
    assert [again.donor(row, 1) for row in range(20)] == donors
    other = CaptionNoise(derangement(0.5), Index([2] * 20, tmp_path, fingerprint="g"))
    assert [other.donor(row, 1) for row in range(20)] == donors  # same uids, same map
    assert len(list(tmp_path.glob("donors-*.npy"))) == 2


_SWEEPS = """
import sys
from pathlib import Path
from tcjepa.data.staging import sweep
print(flush=True)
while True:
    sweep(Path(sys.argv[1]))
"""


def test_a_sweep_of_another_process_spares_a_map_under_way(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SWEEPS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sweeper:
        try:
            assert sweeper.stdout is not None and sweeper.stdout.readline() == b"\n"
            noise = CaptionNoise(derangement(1.0), Index([9] * 500_000, tmp_path))
            for number in range(9):
                assert noise.donor(0, number) > 0
        finally:
            sweeper.kill()
    assert len(list(tmp_path.glob("donors-*.npy"))) == 9


def test_no_room_for_a_map(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    noise = CaptionNoise(derangement(1.0), Index([1] * 50_000, tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        with pytest.raises(CacheFullError, match=r"no room for donors-.*data\.cache_dir"):
            noise.donor(0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob(".tmp-*"))


def captions_of(row: int) -> list[Caption]:
    return [caption(f"{source} {row}", source) for source in ("alt", "vlm:a", "vlm:b")]


def test_text_is_the_donors(tmp_path: Path) -> None:
    index = Index([3] * 20, tmp_path)
    noise = CaptionNoise(derangement(0.5), index)
    for number in range(3):
        before, after = Counter[str](), Counter[str]()
        for row in range(20):
            uid, own = index.uid(row), captions_of(row)
            text = noise.text(row, uid, number, own, captions_of)
            donor = noise.donor(row, number)
            assert noise.is_noisy(row, uid, number) == (donor >= 0)
            assert text == captions_of(donor if donor >= 0 else row)[number]["text"]
            before[own[number]["text"]] += 1
            after[text] += 1
        assert before == after


def test_swap_keeps_the_source_where_the_donor_has_it(tmp_path: Path) -> None:
    """Row 0 has no alt text, so its caption 0 is no counterpart of row 1's."""
    lists = [[caption("generated", "vlm:a"), caption("late alt", "alt")], [caption("alt", "alt")]]
    index = Index([2, 1], tmp_path)
    noise = CaptionNoise(derangement(1.0), index)
    assert noise.text(1, index.uid(1), 0, lists[1], lists.__getitem__) == "late alt"
    assert noise.text(0, index.uid(0), 0, lists[0], lists.__getitem__) == "alt"  # none alike
    assert noise.text(0, index.uid(0), 1, lists[0], lists.__getitem__) == "alt"  # 1 mod 1


@pytest.mark.parametrize(
    ("donated", "sources", "lent"),
    [
        (["weak:relation", "strong:count"], None, "strong:count"),  # of the same captioner
        (["weak:relation", "alt"], ["alt", "strong:*"], "alt"),  # of those that are read
        (["weak:relation", "alt"], None, "weak:relation"),  # of the same number
        (["weak:relation"], ["alt"], "weak:relation"),  # nothing else: the rate holds
    ],
)
def test_what_is_lent_is_as_near_in_source_as_the_donor_has(
    tmp_path: Path, donated: list[str], sources: list[str] | None, lent: str
) -> None:
    index = Index([1, 1], tmp_path)
    noise = CaptionNoise(derangement(1.0), index, sources)
    own = [caption("own", "strong:relation")]
    theirs = [caption(source, source) for source in donated]
    assert noise.text(0, index.uid(0), 0, own, lambda _: theirs) == lent


@given(st.integers(0, 40), st.integers(0, 100))
def test_a_share_is_of_the_decimal_that_was_written(count: int, percent: int) -> None:
    words = [str(number) for number in range(count)]
    strength = percent / 100
    kept = -(-(100 - percent) * count // 100)
    assert len(EDITS["truncate"](words, strength, 0)) == min(count, max(1, kept))


WORDS = st.lists(st.text("abcdeXYZ", min_size=1, max_size=6), max_size=12)


@given(WORDS, st.floats(0, 1), st.integers(0, 2**64), st.sampled_from(sorted(EDITS)))
def test_edits_are_functions_and_keep_a_word(
    words: list[str], strength: float, some_key: int, kind: str
) -> None:
    before = list(words)
    edited = EDITS[kind](words, strength, some_key)
    assert edited == EDITS[kind](words, strength, some_key)
    assert words == before
    assert bool(edited) == bool(words)


@given(WORDS, st.integers(0, 2**64))
def test_edits_of_strength_zero_and_one(words: list[str], some_key: int) -> None:
    for edit in EDITS.values():
        assert edit(words, 0.0, some_key) == words
    assert len(EDITS["drop_words"](words, 1.0, some_key)) == min(1, len(words))
    assert EDITS["truncate"](words, 1.0, some_key) == words[:1]
    assert sorted(EDITS["shuffle_words"](words, 1.0, some_key)) == sorted(words)
    wrong = EDITS["typos"](words, 1.0, some_key)
    assert all(a != b and len(a) == len(b) for a, b in zip(words, wrong, strict=True))


@given(WORDS, st.floats(0, 1), st.integers(0, 2**64))
def test_dropping_keeps_order_and_truncation_the_start(
    words: list[str], strength: float, some_key: int
) -> None:
    left = iter(words)
    assert all(word in left for word in EDITS["drop_words"](words, strength, some_key))
    cut = EDITS["truncate"](words, strength, some_key)
    assert cut == words[: len(cut)]


def test_drop_and_typos_hit_the_configured_share() -> None:
    words = ["word"] * 5000
    assert abs(len(EDITS["drop_words"](words, 0.3, 1)) / 5000 - 0.7) < 0.033
    assert abs(sum(w != "word" for w in EDITS["typos"](words, 0.3, 1)) / 5000 - 0.3) < 0.033


@pytest.mark.parametrize("kind", sorted(EDITS))
def test_edited_share_and_truth(tmp_path: Path, kind: str) -> None:
    index = Index([1] * 2000, tmp_path)
    noise = CaptionNoise(NoiseConfig(kind=kind, rate=0.4, strength=1.0), index)
    swaps = donors_of([1] * 2000, 0.4, 0) >= 0
    own = [caption("one two three four five six")]
    for row in range(0, 2000, 10):
        uid = index.uid(row)
        text = noise.text(row, uid, 0, own, captions_of)
        assert noise.is_noisy(row, uid, 0) == swaps[row]  # the same captions for every kind
        changed = text != own[0]["text"]
        assert changed == swaps[row] or kind == "shuffle_words"


def test_no_noise_reads_nothing(tmp_path: Path) -> None:
    for config in (NoiseConfig(), derangement(0.0)):
        noise = CaptionNoise(config, Index([3] * 5, tmp_path / "absent"))
        assert not noise.active and noise.donor(0, 0) == -1
        assert noise.text(0, "0" * 32, 1, captions_of(0), captions_of) == "vlm:a 0"
