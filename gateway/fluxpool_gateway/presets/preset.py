"""What a preset is, as the settings have it."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.messages import AUTO_PRESET, MAX_LORAS, MAX_STEPS, PRESET_PATTERN, Quality, TaskLora

MAX_PRESETS: Final = 32
_OF_A_POOL: Final = ("model", "pool", "topic")
"""What decides which worker runs a task, and with which model."""


class Preset(BaseModel):
    """Parameters that a task with this preset has. Fields are those of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance: Annotated[float, Field(ge=0, le=20)] | None = None
    true_cfg_scale: Annotated[float, Field(ge=1, le=20)] | None = None
    quality: Quality | None = None
    loras: Annotated[tuple[TaskLora, ...], Field(max_length=MAX_LORAS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _chooses_no_pool(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and (named := next((name for name in _OF_A_POOL if name in given), None)):
            raise ValueError(
                f"{named}: a preset cannot choose it; a task names no model and no pool, the pools that read its topic "
                "have one. Leave it out, and give another model a pool with topics of its own and a gateway for these"
            )
        return given

    @model_validator(mode="after")
    def _sets_something(self) -> Self:
        if not self.fields():
            raise ValueError(f"must set at least one of {', '.join(type(self).model_fields)}")
        return self

    def fields(self) -> dict[str, Any]:
        """The fields of a task that it sets."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in given.items() if value is not None}


def check_presets(presets: dict[str, Preset], *, exploration: float) -> None:
    """Raises `ValueError` when the shares of all together leave too little to the preferred one."""
    if AUTO_PRESET in presets:
        raise ValueError(f"presets: {AUTO_PRESET} is the name of the choice between them; use another")
    if exploration * len(presets) > 0.5:
        most = int(1000 * 0.5 / len(presets)) / 1000
        raise ValueError(
            f"preset_exploration: {exploration:g} for each of {len(presets)} presets is more than half of all; "
            f"use {most:g} or less"
        )


PresetName = Annotated[str, Field(pattern=PRESET_PATTERN)]
