"""What is public: never more than the standard library thinks, and no IPv4 in IPv6's clothes."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.addresses import is_public

V4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)
# Half of them near the edges of special networks, where a random address hardly ever falls.
EDGES = ["10.0.0.0", "100.64.0.0", "127.0.0.1", "169.254.169.254", "172.16.0.0", "192.168.0.0"]
EDGES += ["172.31.255.255", "100.127.255.255", "198.19.255.255", "224.0.0.0", "255.255.255.255"]
NEAR = st.builds(
    lambda edge, step: ipaddress.IPv4Address(
        min(2**32 - 1, max(0, int(ipaddress.IPv4Address(edge)) + step))
    ),
    st.sampled_from(EDGES),
    st.integers(-300, 300),
)


@given(V4 | NEAR)
def test_an_ipv4_address_that_the_library_calls_special_is_not_public(
    address: ipaddress.IPv4Address,
) -> None:
    special = not address.is_global or address.is_multicast or address.is_reserved
    assert not (special and is_public(address))


@given(V6)
def test_an_ipv6_address_that_the_library_calls_special_is_not_public(
    address: ipaddress.IPv6Address,
) -> None:
    special = not address.is_global or address.is_multicast or address.is_reserved
    # NAT64's network counts as reserved there; it is as public as the address inside.
    nat64 = ipaddress.IPv6Network("64:ff9b::/96")
    assert address in nat64 or not (special and is_public(address))


@given(V4 | NEAR)
def test_an_embedded_ipv4_address_is_as_public_as_itself(address: ipaddress.IPv4Address) -> None:
    value = int(address)
    nat64 = ipaddress.IPv6Address((0x64FF9B << 96) | value)
    six_to_four = ipaddress.IPv6Address((0x2002 << 112) | (value << 80) | 1)
    assert is_public(nat64) == is_public(six_to_four) == is_public(address)
    mapped = ipaddress.IPv6Address((0xFFFF << 32) | value)
    compatible = ipaddress.IPv6Address(value)
    teredo = ipaddress.IPv6Address((0x20010000 << 96) | value)
    assert not any(map(is_public, (mapped, compatible, teredo)))


@pytest.mark.parametrize(
    "text",
    ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"],
)
def test_hosts_of_the_web_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))
