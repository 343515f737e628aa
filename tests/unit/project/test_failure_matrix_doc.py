"""The failure matrix names tests that exist and run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.waiting import PATIENCE

ROOT = Path(__file__).parents[3]
MATRIX = ROOT / "docs" / "concepts" / "failure-matrix.md"
TEST_ID = re.compile(r"`(tests/[\w/]+\.py::[^`]+)`")
COLLECT_SECONDS = 150 * PATIENCE
COLLECT = """
import json, sys
import pytest

class Marks:
    def pytest_collection_finish(self, session):
        marks = ("skip", "skipif", "xfail")
        found = {item.nodeid: [name for name in marks if item.get_closest_marker(name)] for item in session.items}
        with open(sys.argv[1], "w") as out:
            json.dump(found, out)

sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *sys.argv[2:]], plugins=[Marks()]))
"""


def rows() -> list[list[str]]:
    lines = [line for line in MATRIX.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "#" and not row[0].startswith("---")]


def named_tests() -> list[str]:
    return [test_id for row in rows() for test_id in TEST_ID.findall(row[2])]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The tests of the named files, with the marks that skip them or allow them to fail."""
    out = tmp_path_factory.mktemp("collected") / "tests.json"
    files = sorted({test_id.partition("::")[0] for test_id in named_tests()})
    finished = subprocess.run(
        [sys.executable, "-c", COLLECT, str(out), *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=COLLECT_SECONDS,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found: dict[str, list[str]] = json.loads(out.read_text())
    return found


def test_every_row_has_a_number_a_fault_its_tests_and_the_observation() -> None:
    assert rows()
    for row in rows():
        number, fault, tests, seen = row
        assert re.fullmatch(r"\d*", number), row
        assert fault
        assert seen
        assert TEST_ID.findall(tests), f"{fault}: names no test"
        assert TEST_ID.sub("", tests).strip() == "", f"{fault}: holds more than test ids"


def test_every_test_of_the_matrix_is_collected_and_not_skipped(collected: dict[str, list[str]]) -> None:
    for named in named_tests():
        # Without brackets all cases of a parametrised test are meant.
        cases = [test_id for test_id in collected if test_id == named or test_id.startswith(f"{named}[")]
        assert cases, f"{named} does not exist"
        assert [(case, collected[case]) for case in cases if collected[case]] == []
