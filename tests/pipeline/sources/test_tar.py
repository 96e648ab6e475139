"""Walking tars: the same members as `tarfile` finds, and nothing worse than a counted damage."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.tar import BLOCK, Damage, Member, members, samples, split_name


def tar_of(entries: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def walk(data: bytes) -> list[Member | Damage]:
    return list(members(io.BytesIO(data)))


def found(data: bytes) -> list[tuple[str, bytes]]:
    return [
        (m.name, data[m.offset : m.offset + m.size]) for m in walk(data) if isinstance(m, Member)
    ]


# GNU, POSIX and old headers; names beyond 100 characters take extended headers or a prefix.
NAME = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=60
).filter(lambda name: name not in (".", ".."))
NAMES = st.lists(NAME, min_size=1, max_size=4).map("/".join)


@settings(max_examples=150)
@given(
    entries=st.lists(st.tuples(NAMES, st.binary(max_size=1200)), max_size=6),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_members_are_those_that_tarfile_finds(entries: list[tuple[str, bytes]], form: int) -> None:
    data = tar_of(entries, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar]
    assert [(m.name, m.offset, m.size) for m in walk(data)] == expected
    assert all(m.whole for m in walk(data))


def test_posix_prefixes_directories_links_and_concatenated_tars() -> None:
    buffer = io.BytesIO()
    long = "folder" * 12 + "/" + "x" * 60 + ".jpg"
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), ("f", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            tar.addfile(info)
        info = tarfile.TarInfo(long)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert found(buffer.getvalue()) == [(long, b"abc")]
    joined = tar_of([("a.txt", b"1")]) + buffer.getvalue() + tar_of([("b.txt", b"2")])
    assert [name for name, _ in found(joined)] == ["a.txt", long, "b.txt"]
    assert not any(isinstance(m, Damage) for m in walk(joined))


def test_sizes_beyond_octal_are_read_and_not_believed() -> None:
    info = tarfile.TarInfo("huge.jpg")
    info.size = 2**40
    data = info.tobuf(tarfile.GNU_FORMAT) + b"abc"
    assert walk(data) == [Member("huge.jpg", BLOCK, 2**40, whole=False)]


def test_an_extended_header_cannot_make_us_read_much() -> None:
    """`tarfile` reads a pax header of any size into memory."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**35
    reads: list[int] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reads.append(size if size is not None and size >= 0 else 2**62)
            return super().read(size)

    bomb = Counting(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
    assert list(members(bomb)) == [Damage(0)]
    assert max(reads) <= 1 << 20


@pytest.mark.parametrize("cut", [0, 100, 511, 512, 700, 1023, 1024, 1536, 2047])
def test_a_cut_tar_ends_with_what_is_whole(cut: int) -> None:
    """Two members of 512 bytes: headers at 0 and 1024."""
    data = tar_of([("a.jpg", b"a" * 512), ("b.jpg", b"b" * 512)])[:cut]
    whole = [m.name for m in walk(data) if isinstance(m, Member) and m.whole]
    assert whole == (["a.jpg"] if cut >= 1024 else [])
    clean = cut in (1024,)  # nothing tells a tar that ends between members from a shorter one
    assert clean == all(isinstance(m, Member) and m.whole for m in walk(data))


def test_after_a_damaged_header_the_walk_goes_on() -> None:
    data = bytearray(tar_of([(f"{n}.jpg", bytes([n]) * 700) for n in range(5)]))
    start = 2 * 1536  # a header and two blocks of data per member
    data[start : start + 60] = random.Random(0).randbytes(60)
    names = [m.name if isinstance(m, Member) else m for m in walk(bytes(data))]
    assert names == ["0.jpg", "1.jpg", Damage(start), "3.jpg", "4.jpg"]


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>" * 100, b"\x1f\x8b" + b"x" * 2000])
def test_what_is_no_tar_is_one_damage(data: bytes) -> None:
    assert walk(data) == [Damage(0)]
    assert [sample.error for sample in samples(io.BytesIO(data))] == ["damaged_tar"]


def test_an_empty_archive_is_sound() -> None:
    assert walk(tar_of([])) == []


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 40))
def test_whatever_bytes_are_changed_the_walk_ends_in_order(seed: int, flips: int) -> None:
    data = bytearray(tar_of([(f"k{n}.jpg", bytes([n]) * (n * 300)) for n in range(6)]))
    dice = random.Random(seed)
    for _ in range(flips):
        data[dice.randrange(len(data))] = dice.randrange(256)
    places = [m.offset for m in walk(bytes(data))]
    assert places == sorted(places)
    assert len(list(samples(io.BytesIO(bytes(data))))) <= len(places)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0001.jpg", ("0001", "jpg")),
        ("a/b/0001.seg.PNG", ("a/b/0001", "seg.png")),
        ("a.b/0001.txt", ("a.b/0001", "txt")),
        ("./x.jpg", ("x", "jpg")),
        (".hidden.jpg", (None, "")),
        ("a/._x.jpg", (None, "")),
        ("README", (None, "")),
        ("a/", (None, "")),
    ],
)
def test_keys_follow_webdataset(name: str, expected: tuple[str | None, str]) -> None:
    assert split_name(name) == expected


def test_samples_are_those_that_webdataset_reads(
    tmp_path: Path, image: Callable[..., bytes]
) -> None:
    path = tmp_path / "x.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for n in range(5):
            extra = {"seg.png": image(".png", n)} if n % 2 else {}
            writer.write({"__key__": f"d/{n:03d}", "jpg": image(seed=n), "txt": f"no {n}", **extra})
    expected = [
        (s["__key__"], {k for k in s if not k.startswith("__")})
        for s in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    with path.open("rb") as file:
        assert [(s.key, set(s.members)) for s in samples(file)] == expected


def test_what_is_wrong_with_a_sample() -> None:
    data = tar_of(
        [
            ("a.jpg", b"1"),
            ("a.txt", b"1"),
            ("b.txt", b"2"),
            ("a.jpg", b"again"),
            ("c.jpg", b"3"),
            ("c.jpg", b"twice"),
            ("../up.jpg", b"4"),
            ("/etc/passwd.jpg", b"5"),
            ("x/../../up.jpg", b"6"),
            ("bell\x07.jpg", b"7"),
        ]
    )
    assert [(s.key, s.error) for s in samples(io.BytesIO(data))] == [
        ("a", None),
        ("b", None),
        ("a", "duplicate_key"),
        ("c", None),
        ("c", "duplicate_key"),
        ("../up", "bad_name"),
        ("/etc/passwd", "bad_name"),
        ("x/../../up", "bad_name"),
        ("bell\x07", "bad_name"),
    ]
