"""Building blocks of the API models: the base class, CEL rules and patterns, and shared field types.

A rule is declared once and ends up in the custom resource definition (`crd`). Must not know a field by name.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from fluxpool_contract.text_rules import HTTP_URL_PATTERN

VALIDATIONS: Final = "x-kubernetes-validations"


@dataclass(frozen=True, slots=True)
class Rule:
    """A validation rule in the Common Expression Language, evaluated by the API server; as an annotation, of one field.

    The message is all that users see: it names the field and the remedy.
    """

    expression: str
    message: str
    field_path: str | None = None
    """Path of the invalid field below the object, such as `.minReplicas`."""

    def to_schema(self) -> dict[str, str]:
        """The rule as an entry of x-kubernetes-validations."""
        place = {"fieldPath": self.field_path} if self.field_path else {}
        return {"rule": self.expression, "message": self.message, **place}

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the rule to the schema of the annotated field."""
        schema = handler(core)
        schema[VALIDATIONS] = [*schema.get(VALIDATIONS, []), self.to_schema()]
        return schema


@dataclass(frozen=True, slots=True)
class Matching:
    """A text pattern, checked by the API server and by the model with the same message.

    The pattern must mean the same in Python and RE2, and contain no quotation mark.
    """

    pattern: str
    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the text after the constraints to the left of this annotation."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the same check to the schema, as a rule."""
        rule = Rule(f"self.matches(r'^({self.pattern})$')", self.message)
        return rule.__get_pydantic_json_schema__(core, handler)

    def _check(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text):
            raise ValueError(self.message)
        return text


class ApiModel(BaseModel):
    """Base of all API models.

    Unknown fields are ignored: the API server rejects or prunes those of users, and a definition that is newer than
    this operator must not stop it.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules about several fields of this object."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the rules of this class to its schema."""
        schema = handler(core)
        if cls.rules:
            handler.resolve_ref_schema(schema)[VALIDATIONS] = [rule.to_schema() for rule in cls.rules]
        return schema

    def to_manifest(self) -> dict[str, Any]:
        """The object as in a manifest, without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def map_by(*keys: str) -> dict[str, Any]:
    """Schema of a list whose items are merged by these keys in server-side apply."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


SET: Final[dict[str, Any]] = {"x-kubernetes-list-type": "set"}
ATOMIC: Final[dict[str, Any]] = {"x-kubernetes-list-type": "atomic"}
EMPTY_MAP: Final[dict[str, Any]] = {"default": {}}
"""For maps with a default factory, which pydantic omits from its schema."""

_QUANTITY_PATTERN: Final = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$"
_PERCENTAGE_PATTERN: Final = r"^(100|[1-9]?[0-9])%$"

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
SecretEntry = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._-]+$")]
QualifiedName = Annotated[
    str, Field(min_length=1, max_length=317, pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$")]


def _int_or_string(**limits: object) -> WithJsonSchema:
    kinds = [{"type": "integer"}, {"type": "string"}]
    return WithJsonSchema({"anyOf": kinds, "x-kubernetes-int-or-string": True, **limits})


Quantity = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[str, Field(max_length=32, pattern=_QUANTITY_PATTERN)],
    _int_or_string(maxLength=32, pattern=_QUANTITY_PATTERN),
]
CountOrPercentage = Annotated[
    Annotated[int, Field(ge=0, le=1000)] | Annotated[str, Field(max_length=4, pattern=_PERCENTAGE_PATTERN)],
    _int_or_string(minimum=0, maximum=1000, maxLength=4, pattern=_PERCENTAGE_PATTERN),
]
HttpUrl = Annotated[
    str,
    Field(max_length=2048),
    Matching(HTTP_URL_PATTERN, "the address must begin with http:// or https:// and name a host"),
]
