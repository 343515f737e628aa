"""Processes collect the folders in different orders, and all of them."""

import pytest

from kit.plugins.collecting import order

pytestmark = pytest.mark.on_change

SIZES = {"a": 10, "b": 50, "c": 20, "d": 20}


@pytest.mark.parametrize(("index", "expected"), [(0, "abcd"), (1, "bcda"), (2, "cdab"), (3, "abcd")])
def test_each_process_begins_at_its_part_of_the_bytes(index: int, expected: str) -> None:
    assert "".join(order(SIZES, index=index, count=3)) == expected


def test_a_single_process_keeps_the_order() -> None:
    assert order(SIZES, index=0, count=1) == [*SIZES]
