"""Settings as environment variables, read and written by the same model.

The operator renders a pod's environment with the very class that the worker parses it with, so a setting cannot be
spelled two ways. pydantic-settings only reads, and accepts a mistyped name silently; hence this module.

The variable of a field is the prefix, the path of field names and underscores: `kafka.bootstrap_servers` is
`FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS`. A list of strings is written with commas, or as JSON when it begins with a bracket;
any other structure as JSON. An empty variable counts as absent, and so does what Kubernetes sets for a Service
(`FLUXPOOL_HEALTH_PORT=tcp://10.0.0.7:8080` for one called `fluxpool-health`).
"""

import difflib
import json
import re
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from fluxpool_contract.problems import FieldProblem, explain
from fluxpool_contract.text_rules import check_name

ENVIRONMENT_PREFIX = "FLUXPOOL"
NOT_SETTINGS = frozenset(
    {"FLUXPOOL_API_KEY", "FLUXPOOL_FAULT", "FLUXPOOL_KAFKA_LIBS", "FLUXPOOL_PROFILE", "FLUXPOOL_URL"}
)
"""Variables of the command line and of tests, which any environment may hold."""

_SERVICE_LINK = re.compile(r"\w+(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")
"""What Kubernetes injects for every Service of a namespace; a Service called `fluxpool` must not stop a pod."""


class SettingsError(ValueError):
    """The environment is invalid; the message lists every variable at fault."""


class EnvironmentSettings(BaseModel):
    """Base of settings that live in environment variables."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The settings in an environment.

        Raises `SettingsError`, which names each variable that is missing, malformed or unknown (with the nearest known
        name).
        """
        names = {name: (path, kind) for name, path, kind in _variables(cls, ())}
        environment = {
            name: text for name, text in environment.items() if not _is_service_link(name, text, known=names)
        }
        problems = _unknown(environment, known=set(names))
        refused: set[str] = set()
        tree: dict[str, Any] = {}
        for name, (path, kind) in names.items():
            branch = tree
            for part in path[:-1]:
                branch = branch.setdefault(part, {})
            text = environment.get(name, "")
            if not text:
                continue
            try:
                branch[path[-1]] = _parse(text, kind)
            except ValueError as error:
                problems.append(f"{name}: {error}")
                refused.add(name)
                # Given all the same, so that other settings are not said to lack it.
                branch[path[-1]] = text
        try:
            settings = cls.model_validate(tree)
        except ValidationError as error:
            named = [_named(problem, names) for problem in explain(error)]
            problems += [text for name, text in named if name not in refused]
        else:
            if not problems:
                return settings
        raise SettingsError("; ".join(problems))

    def to_environment(self) -> dict[str, str]:
        """The variables that make an equal copy of these settings; fields at their defaults are left out.

        Secrets are written in clear text: callers that render manifests replace them by references.
        """
        rendered: dict[str, str] = {}
        for name, path, _ in _variables(type(self), ()):
            owner: BaseModel = self
            for part in path[:-1]:
                owner = getattr(owner, part)
            value = getattr(owner, path[-1])
            if value != type(owner).model_fields[path[-1]].get_default(call_default_factory=True):
                rendered[name] = _render(value)
        return rendered


def _variables(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        here = (*path, name)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _variables(kind, here)
        else:
            yield "_".join((ENVIRONMENT_PREFIX, *here)).upper(), here, kind


def _unknown(environment: Mapping[str, str], *, known: set[str]) -> list[str]:
    problems = []
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX + "_") or name in known or name in NOT_SETTINGS:
            continue
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "remove it"
        problems.append(f"{name}: is not a known setting; {hint}")
    return problems


def _is_service_link(name: str, text: str, *, known: Collection[str]) -> bool:
    """Whether Kubernetes set this variable for a Service; names of settings are told from it by the value."""
    if name.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(text):
        return True
    return name not in known and _SERVICE_LINK.fullmatch(name) is not None


def _named(problem: FieldProblem, names: Mapping[str, tuple[tuple[str, ...], Any]]) -> tuple[str, str]:
    """The variable that a problem is about, and its text; a path inside a structure stays beside the name."""
    parts = problem.path or (problem.field,)
    for length in range(len(parts), 0, -1):
        name = "_".join((ENVIRONMENT_PREFIX, *parts[:length])).upper()
        if name in names:
            return name, ": ".join((name, *filter(None, [".".join(parts[length:])]), problem.message))
    name = "_".join((ENVIRONMENT_PREFIX, *filter(None, parts))).upper()
    return name, f"{name}: {problem.message}"


def _is_text_tuple(kind: Any) -> bool:
    item = get_args(kind)[0] if get_origin(kind) is tuple else None
    item = getattr(item, "__origin__", item)  # of an annotated type
    return isinstance(item, type) and issubclass(item, str)


def _parse(text: str, kind: Any) -> Any:
    kinds = get_args(kind) if get_origin(kind) in {Union, types.UnionType} else (kind,)
    if any(map(_is_text_tuple, kinds)) and not text.startswith("["):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if any(get_origin(one) in {tuple, list, dict} for one in kinds):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"must be JSON ({error})") from None
    return check_name(text)


def _is_plain(part: Any) -> bool:
    """Whether commas alone keep a part of a list apart from its neighbours."""
    return isinstance(part, str) and part != "" and part == part.strip() and "," not in part and part[0] != "["


def _plain(part: Any) -> Any:
    return part.model_dump(mode="json") if isinstance(part, BaseModel) else part


def _render(value: Any) -> str:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case None:
            return ""
        case bool():
            return str(value).lower()
        case tuple() if value and all(_is_plain(part) for part in value):
            return ",".join(value)
        case tuple():
            return json.dumps([_plain(part) for part in value])
        case dict():
            return json.dumps({name: _plain(part) for name, part in value.items()})
        case _:
            return str(value)
