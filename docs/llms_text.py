"""Renders `llms.txt` (https://llmstxt.org): the index of the docs for programs that read them."""

import re
from pathlib import Path


def llms_text(index: Path) -> str:
    """The index page as `llms.txt` has it: title, summary, and sections of links with what each page says.

    Raises `ValueError` for an entry of a section that is not a link with a description.
    """
    text = re.sub(r"^```.*?^```$", "", index.read_text(), flags=re.MULTILINE | re.DOTALL)
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    title, summary = head.strip().split("\n\n")[:2]
    lines = [title, "", f"> {' '.join(summary.split())}"]
    for section in sections:
        heading, _, body = section.partition("\n")
        lines += ["", f"## {heading}", ""]
        for entry in re.findall(r"^- (.*?)(?=^- |\Z)", body.strip(), re.MULTILINE | re.DOTALL):
            one_line = " ".join(entry.split())
            if re.fullmatch(r"\[[^]]+\]\([^)]+\): .+", one_line) is None:
                raise ValueError(f"{index.name}: {one_line!r} is not [title](page): description")
            lines.append(f"- {one_line}")
    return "\n".join(lines) + "\n"
