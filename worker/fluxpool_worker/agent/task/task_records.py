"""From a consumer's record to a task, or to the reason why not. Pure."""

import structlog
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.messages import DecodedTask, decode_task, peek_request_id
from fluxpool_contract.problems import ErrorCode, FieldProblem, InvalidTaskError
from fluxpool_transport.kafka import UndecodableRecord

log = structlog.get_logger(__name__)


def decode_record(record: ConsumerRecord) -> DecodedTask:
    """The task in a record.

    Raises `InvalidTaskError` and nothing else, also for a record that the client library cannot decode: any other error
    would end each worker that meets the record.
    """
    if not isinstance(record, UndecodableRecord):
        try:
            return decode_task(record.value, record.headers)
        except InvalidTaskError:
            raise
        except Exception as error:
            log.exception("decoding_failed", topic=record.topic, partition=record.partition, offset=record.offset)
            problem = FieldProblem("", f"the record cannot be read: {type(error).__name__}")
            raise InvalidTaskError(ErrorCode.UNDECODABLE, [problem], request_id=None) from error
    request_id = peek_request_id(record.value or b"") if record.has_contents else None
    raise InvalidTaskError(ErrorCode.UNDECODABLE, [FieldProblem("", _explain(record))], request_id=request_id)


def _explain(record: UndecodableRecord) -> str:
    if record.has_contents:
        return f"the record cannot be decoded: {record.problem}; send names and text as UTF-8"
    offsets = f"offset {record.offset}"
    if record.first_offset < record.offset:
        offsets = f"offsets {record.first_offset} to {record.offset}"
    kept = "the value holds the batch as Kafka keeps it" if record.value else "its bytes could not be read"
    return f"the batch at {offsets} of {record.topic}-{record.partition} cannot be decoded: {record.problem}; {kept}"
