"""The form of a request for images: its fields as a request, a task as its fields, a request as code to copy. Pure."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fluxpool_contract import header_names
from fluxpool_contract.messages import (
    DEFAULT_TENANT,
    MAX_IMAGES,
    MAX_SIDE_PIXELS,
    MAX_STEPS,
    MIN_SIDE_PIXELS,
    SIZE_MULTIPLE_PIXELS,
)
from fluxpool_gateway.http.request_context import PATH

SIZES: Final = (
    ("Square", 1024, 1024),
    ("Landscape", 1216, 832),
    ("Portrait", 832, 1216),
    ("Wide", 1344, 768),
    ("Tall", 768, 1344),
    ("Draft", 512, 512),
)
"""About a megapixel, which FLUX.1 was trained with, but for the last."""
LIMITS: Final = {
    "side_least": MIN_SIDE_PIXELS,
    "side_most": MAX_SIDE_PIXELS,
    "side_step": SIZE_MULTIPLE_PIXELS,
    "steps_most": MAX_STEPS,
    "images_most": MAX_IMAGES,
}
_TEXTS: Final = ("prompt", "negative_prompt", "output_format", "priority", "preset", "quality")
_INTEGERS: Final = ("width", "height", "steps", "seed", "n")
_NUMBERS: Final = ("guidance", "true_cfg_scale")
FIELDS: Final = (*_TEXTS, *_INTEGERS, *_NUMBERS)
_USUAL: Final = {
    "width": "1024",
    "height": "1024",
    "n": "1",
    "output_format": "png",
    "priority": "standard",
    "preview": "1",
}
"""What the form shows at first. Empty fields are left out of the request: the pool's model has its own defaults."""
_OF_THE_GATEWAY: Final = frozenset({"priority", "preset"})
"""Fields of a request that a task does not have: the topic and a header say the priority, its parameters the preset."""
_SENT_OTHERWISE: Final = {"n": "1", "output_format": "png", "priority": "standard", "true_cfg_scale": "1"}
"""Values that say nothing: a request without them is the same."""


@dataclass(frozen=True, slots=True)
class CreateForm:
    """The fields as text, as a browser sends and shows them."""

    values: Mapping[str, str] = field(default_factory=lambda: dict(_USUAL))

    def __getitem__(self, name: str) -> str:
        return self.values.get(name, "")

    def body(self) -> dict[str, Any]:
        """The request as JSON has it. What is no number stays a text, and is refused by name."""
        given = {name: self[name] for name in FIELDS if self[name].strip() and self[name] != _SENT_OTHERWISE.get(name)}
        body: dict[str, Any] = {name: _as_number(name, value) for name, value in given.items()}
        return body | {"preview": True} if self["preview"] else body


def form_of_task(body: str, *, keep_seed: bool) -> CreateForm:
    """The form that makes the task again; without its seed unless that is to be kept.

    What its preset has set is empty: the preset sets it again, and refuses it from a request.
    """
    task = json.loads(body)
    choice = task.get("preset_choice")
    of_preset = choice.get("sets") if isinstance(choice, dict) and task.get("preset") else None
    values = dict(_USUAL)
    for name in FIELDS:
        value = task.get(name)
        if isinstance(of_preset, list) and name in of_preset:
            values[name] = ""
        elif isinstance(value, (str, int, float)) and (name != "seed" or keep_seed):
            values[name] = str(value)
    return CreateForm(values)


def _as_number(name: str, text: str) -> str | int | float:
    try:
        if name in _INTEGERS:
            return int(text)
        if name in _NUMBERS:
            return float(text)
    except ValueError:
        pass
    return text


@dataclass(frozen=True, slots=True)
class Snippet:
    """One way to send the request."""

    name: str
    title: str
    code: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTarget:
    """Where the request would be written to as a record of Kafka."""

    topic: str
    request_id: str
    tenant: str


def snippets(body: Mapping[str, Any], *, base: str, needs_key: bool, target: RecordTarget) -> list[Snippet]:
    """The request as code; `base` is the address of the gateway, ending in a slash."""
    body = {"prompt": "a lighthouse at dusk"} | dict(body)
    return [
        Snippet("curl", "curl", _curl(body, base=base, needs_key=needs_key)),
        Snippet("python", "Python", _python(body, base=base, needs_key=needs_key)),
        Snippet("openai", "OpenAI client", _openai(body, base=base, needs_key=needs_key)),
        Snippet(
            "kafka", "Kafka record", _kafka(body, target), note="" if target.tenant == DEFAULT_TENANT else _UNPROVEN
        ),
    ]


def _curl(body: Mapping[str, Any], *, base: str, needs_key: bool) -> str:
    lines = [f"curl {shlex.quote(base + PATH[1:])}"]
    if needs_key:
        lines.append('-H "Authorization: Bearer $FLUXPOOL_API_KEY"')
    lines += ["-H 'Content-Type: application/json'", f"--data-raw {shlex.quote(json.dumps(body, ensure_ascii=False))}"]
    return " \\\n  ".join(lines)


def _python(body: Mapping[str, Any], *, base: str, needs_key: bool) -> str:
    prompt, *others = [f"{name}={value!r}" if name != "prompt" else repr(value) for name, value in body.items()]
    key = ', api_key=os.environ["FLUXPOOL_API_KEY"]' if needs_key else ""
    return "\n".join(
        [
            *(["import os"] if needs_key else []),
            "from pathlib import Path",
            "",
            "from fluxpool_client import Client",
            "",
            f"with Client({base.rstrip('/')!r}{key}) as client:",
            f"    accepted = client.submit({', '.join([prompt, *others])})",
            "    task = client.wait(accepted.request_id)",
            "    for image, file in zip(task.images, client.download(task), strict=True):",
            '        Path(f"{task.request_id}-{image.index}.{image.format}").write_bytes(file)',
        ]
    )


def _openai(body: Mapping[str, Any], *, base: str, needs_key: bool) -> str:
    more = dict(body)
    size = f"{more.pop('width', 1024)}x{more.pop('height', 1024)}"
    arguments = ['model="flux"', f"prompt={more.pop('prompt')!r}", f"size={size!r}"]
    arguments += [f"{name}={more.pop(name)!r}" for name in ("n", "output_format") if name in more]
    if more:
        arguments.append(f"extra_body={more!r}")
    key = 'os.environ["FLUXPOOL_API_KEY"]' if needs_key else '"none"'
    return "\n".join(
        [
            "import base64",
            *(["import os"] if needs_key else []),
            "from pathlib import Path",
            "",
            "from openai import OpenAI",
            "",
            f"client = OpenAI(base_url={base + 'v1'!r}, api_key={key}, timeout=600)",
            f"images = client.images.generate({', '.join(arguments)})",
            "for number, image in enumerate(images.data):",
            f'    file = Path(f"image-{{number}}.{body.get("output_format", "png")}")',
            "    file.write_bytes(base64.b64decode(image.b64_json))",
        ]
    )


_UNPROVEN: Final = (
    "A gateway proves the tenant of its tasks. A record without a proof counts for the tenant default, unless its "
    "topic is one of FLUXPOOL_FOREIGN_TENANT_TOPICS."
)


def _kafka(body: Mapping[str, Any], target: RecordTarget) -> str:
    value = {"request_id": target.request_id}
    value |= {name: given for name, given in body.items() if name not in _OF_THE_GATEWAY}
    headers = {header_names.TENANT: target.tenant, header_names.PRIORITY: body.get("priority", "standard")}
    arguments = ['kcat -P -b "$FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS"', f"-t {shlex.quote(target.topic)}"]
    arguments.append(f"-k {shlex.quote(target.request_id)}")
    arguments += [f"-H {shlex.quote(f'{name}={text}')}" for name, text in headers.items()]
    return f"printf '%s\\n' {shlex.quote(json.dumps(value, ensure_ascii=False))} |\n  " + " \\\n  ".join(arguments)
