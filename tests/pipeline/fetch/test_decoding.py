"""Content codings: undone within bounds, or refused; what is not compressed stays as it is."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.decoding import decode
from pipeline.fetch.errors import FetchError


def bare(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


@given(st.binary(max_size=500))
def test_what_was_compressed_comes_back(data: bytes) -> None:
    assert decode(gzip.compress(data), "gzip", 500) == data
    assert decode(gzip.compress(data), " X-GZip ", 500) == data
    assert decode(zlib.compress(data), "deflate", 500) == data
    assert decode(bare(data), "deflate", 500) == data
    for coding in ("", "identity", "binary", "utf-8", "identity, identity"):
        assert decode(data, coding, 500) == data


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate", "br", "gzip, br", "none"]))
def test_any_body_is_decoded_or_refused(body: bytes, coding: str) -> None:
    try:
        assert len(decode(body, coding, 1000)) <= 1000
    except FetchError as error:
        assert error.reason in {"bad_encoding", "too_large"}


@pytest.mark.parametrize(("limit", "reason"), [(1000, None), (999, "too_large")])
def test_the_limit_is_exact(limit: int, reason: str | None) -> None:
    for body, coding in ((gzip.compress(bytes(1000)), "gzip"), (bare(bytes(1000)), "deflate")):
        if reason is None:
            assert decode(body, coding, limit) == bytes(1000)
        else:
            with pytest.raises(FetchError, match=reason):
                decode(body, coding, limit)


def test_an_image_that_a_server_mislabels_as_gzip_is_left_alone() -> None:
    assert decode(b"\xff\xd8\xff image", "gzip", 100) == b"\xff\xd8\xff image"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "deflate, gzip", "compress"])
def test_codings_that_are_refused(coding: str) -> None:
    with pytest.raises(FetchError, match="bad_encoding"):
        decode(gzip.compress(b"x"), coding, 100)
