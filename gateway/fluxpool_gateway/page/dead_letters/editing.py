"""What is proposed for a patch: the fields that the failure names, with their present values. Pure."""

import json
import re
from typing import Any, Final

_NAMED: Final = re.compile(r"(?:^|; )([A-Za-z_][A-Za-z0-9_]*)(?:\.[^:; ]+)*: ")
"""A field at the head of a problem, as messages of refused tasks have them: `width: 100 is not a multiple of 16`."""


def proposed_patch(message: str, task: Any) -> str:
    """A patch that changes nothing yet; empty where the failure names no field of the task."""
    if not isinstance(task, dict):
        return ""
    named = {name: task[name] for name in dict.fromkeys(_NAMED.findall(message)) if name in task}
    return json.dumps(named, indent=2, ensure_ascii=False) if named else ""
