"""Interning of equal parts of specs: a thousand pools of one template differ in little more than their names.

Owns the table of known parts. Parts are frozen, so sharing cannot be observed.
"""

from typing import TypeVar
from weakref import WeakValueDictionary

from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)

_known: "WeakValueDictionary[tuple[type[BaseModel], int], BaseModel]" = WeakValueDictionary()


def share_parts(model: Model) -> Model:
    """An equal model made of interned parts. For frozen models; a pool's spec takes about 25 KB otherwise."""
    shared = {name: _intern(value) for name, value in model.__dict__.items()}
    if any(shared[name] is not value for name, value in model.__dict__.items()):
        model = model.model_copy(update=shared)
    # The text itself would be as large as what it saves.
    known = _known.setdefault((type(model), hash(model.model_dump_json())), model)
    return known if isinstance(known, type(model)) and known == model else model


def _intern(value: object) -> object:
    if isinstance(value, BaseModel):
        return share_parts(value)
    if isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        items = tuple(_intern(item) for item in value)
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return value
