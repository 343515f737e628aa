"""Where the command line tells how image files are marked: in a trace, in the newest results, after a submission."""

from pathlib import Path

from aiokafka.structs import ConsumerRecord

from fluxpool_cli.trace.events import TaskEvents, TopicRole
from fluxpool_cli.watch.commands import result_line
from fluxpool_contract.messages.result import GenerationResult

CORPUS = Path(__file__).parents[1] / "corpus"
MARKED = (CORPUS / "result-marks.json").read_bytes()
EARLIER = (CORPUS / "result-full.json").read_bytes()


def detail_of(value: bytes) -> str:
    events = TaskEvents("req-1")
    events.add(ConsumerRecord("results", 0, 0, 0, 0, b"req-1", value, None, 5, len(value), ()), TopicRole.RESULTS)
    [event] = events.in_order()
    return event.detail


def test_a_trace_names_the_marks_of_a_result() -> None:
    assert "0.png marks xmp+c2pa+a-later-mark, signing_ms 4.5" in detail_of(MARKED)
    assert "marks" not in detail_of(EARLIER)


def test_the_newest_results_name_their_marks() -> None:
    assert result_line(GenerationResult.model_validate_json(MARKED)).endswith("0.png (xmp+c2pa+a-later-mark)")
    assert result_line(GenerationResult.model_validate_json(EARLIER)).endswith("0.png")
