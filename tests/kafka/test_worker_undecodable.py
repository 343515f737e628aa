"""Records that no client library decodes: each gets a dead letter, and later tasks run."""

import asyncio
from pathlib import Path

import pytest
from confluent_kafka import Producer

from fluxpool_contract.messages.dead_letter import DeadLetter
from fluxpool_transport.kafka.batch_decompression import MAX_BATCH_BYTES
from kit.brokers.kafka import produce
from kit.brokers.kafka_cluster import KafkaCluster
from kit.brokers.odd_batches import RawName, damage_on_disk
from kit.workers.worker import task_body, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

ODD_HEADERS = [(RawName(b"caf\xe9"), b"\xe9")]


async def send_compressed(bootstrap_servers: str, topic: str, value: bytes, *, codec: str) -> None:
    limits = {"message.max.bytes": 2 * MAX_BATCH_BYTES, "queue.buffering.max.kbytes": 2 * MAX_BATCH_BYTES // 1024}
    producer = Producer({"bootstrap.servers": bootstrap_servers, "compression.type": codec, **limits})
    producer.produce(topic, value, partition=0)
    assert await asyncio.to_thread(producer.flush, 60) == 0


async def test_undecodable_records_end_as_dead_letters_and_block_no_task(kafka: KafkaCluster, tmp_path: Path) -> None:
    boot = kafka.bootstrap_servers
    async with worker_bench(boot, tmp_path, model="none", stand_in=True, partitions=2) as bench:
        tasks = bench.topics.tasks
        odd, damaged = task_body("odd"), task_body("damaged")
        await produce(boot, tasks, [(b"\xe9", odd)], partition=0, headers=ODD_HEADERS)
        await produce(boot, tasks, [(None, damaged)], partition=0)
        log = kafka.data_dir / "broker-1" / "log" / f"{tasks}-0" / f"{0:020}.log"
        damage_on_disk(log, b"damaged", by=b"DAMAGED")
        await send_compressed(boot, tasks, b"0" * (MAX_BATCH_BYTES + 1), codec="gzip")
        for codec in ("gzip", "snappy", "lz4", "zstd"):
            await send_compressed(boot, tasks, task_body(codec, "a red kite " * 50), codec=codec)
        await produce(boot, tasks, [(None, task_body("beside"))], partition=1)
        await produce(boot, bench.topics.control, [(b"\xe9", b"{}")], headers=ODD_HEADERS)
        worker = await bench.start_ready()

        await bench.wait_committed({0: 7, 1: 1})
        statuses = {result["request_id"]: result["status"] for result in await bench.results()}
        records = await bench.records(bench.topics.dead_letters)
        dead_letters = {
            dead_letter.origin_offset: dead_letter
            for dead_letter in (DeadLetter.from_headers(one.headers) for one in records)
        }
        values = {DeadLetter.from_headers(one.headers).origin_offset: one.value or b"" for one in records}

        assert statuses.pop(None) == statuses.pop("odd") == "failed"
        assert statuses == dict.fromkeys(("gzip", "snappy", "lz4", "zstd", "beside"), "success")
        assert {dead_letter.error_code for dead_letter in dead_letters.values()} == {"undecodable"}
        assert {dead_letter.origin_topic for dead_letter in dead_letters.values()} == {tasks}
        assert {offset: dead_letter.message.partition(";")[0] for offset, dead_letter in dead_letters.items()} == {
            0: "the record cannot be decoded: the name of a header is not UTF-8",
            1: f"the batch at offset 1 of {tasks}-0 cannot be decoded: its CRC is wrong",
            2: f"the batch at offset 2 of {tasks}-0 cannot be decoded: gzip: the batch would become larger than "
            f"{MAX_BATCH_BYTES} bytes",
        }
        assert values[0] == odd
        assert b"DAMAGED" in values[1]
        assert worker.events("lane_consumer_failed") == worker.events("lane_failed") == []
