"""The simple worker, for comparison: consume one task, generate, save, send the result and flush, commit, next.

Like a short script with kafka-python and Pillow. Run by `worker_overhead.py`; ends after `OVERHEAD_TASKS` tasks.
"""

import itertools
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from overhead_parts.device import TASKS_VARIABLE, device_of_environment

with warnings.catch_warnings():
    # kafka-python reads its message schemas by a function of importlib that Python 3.11 and 3.12 call deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaConsumer, KafkaProducer


def main() -> int:
    """Process the tasks; return the exit status."""
    servers = os.environ["OVERHEAD_BOOTSTRAP_SERVERS"]
    folder = Path(os.environ["OVERHEAD_IMAGES"])
    folder.mkdir(parents=True)
    device = device_of_environment()
    producer: Any = KafkaProducer(bootstrap_servers=servers, acks="all")
    consumer: Any = KafkaConsumer(
        os.environ["OVERHEAD_TASKS_TOPIC"],
        bootstrap_servers=servers,
        group_id=os.environ["OVERHEAD_GROUP"],
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    for message in itertools.islice(consumer, int(os.environ[TASKS_VARIABLE])):
        task = json.loads(message.value)
        pixels = device.draw(seed=task["seed"], steps=task["steps"], on_step=lambda _step: None)
        path = folder / f"{task['request_id']}.png"
        Image.fromarray(pixels).save(path)
        result = {"request_id": task["request_id"], "image_url": path.as_uri(), "status": "success"}
        producer.send(os.environ["OVERHEAD_RESULTS_TOPIC"], value=json.dumps(result).encode())
        producer.flush()
        consumer.commit()
    consumer.close()
    producer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
