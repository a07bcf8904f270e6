"""The bounds, and how a value outside of one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from fastecho import limits
from fastecho.errors import ConfigError


@pytest.mark.parametrize("value", [1, 5, 1000])
def test_a_value_within_is_given_back(value: int) -> None:
    assert limits.within("x", value, 1, 1000) == value


@pytest.mark.parametrize("value", [0, 1001, -1, 2**70, 5.0, "5", None, True])
def test_any_other_is_refused_by_name_and_range(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        limits.within("a thing", value, 1, 1000)
    assert str(caught.value) == f"a thing must be a whole number from 1 to 1,000, not {value!r}"


def test_no_sum_of_limits_overflows_a_ssize_t_of_four_bytes() -> None:
    largest = limits.MAX_FRAME_CEILING + limits.MAX_PREFIX + limits.MAX_LENGTH_OFFSET
    assert largest + limits.MAX_DELIMITER + 10 < 2**31


def test_a_peer_has_room_for_what_sockets_show() -> None:
    address = "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255%interfacename]:65535"
    for shown in (address, "unix:" + "p" * 108):
        assert len(shown) <= limits.MAX_PEER
