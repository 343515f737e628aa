"""The options of a local stack; passed as JSON to the detached supervisor."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_contract.messages import EmbedParameters
from fluxpool_operator.planning import ScalingConfig

TINY_MODEL_WORKERS = 3
"""Each worker loads torch: about 600 MB, and seconds of a processor core."""
GIVEN_MODEL_WORKERS = 1
"""A full-size checkpoint fills a GPU; more workers need `--max-workers`."""

DRAIN_GRACE_SECONDS = 30.0
"""A tiny image takes a fraction of a second; the next worker takes a large one again."""
_LONGEST_SECONDS = 365 * 86_400


def default_max_workers(model: str | None) -> int:
    """The default of `--max-workers`; `model` is None for the tiny checkpoint."""
    return TINY_MODEL_WORKERS if model is None else GIVEN_MODEL_WORKERS


class StackOptions(BaseModel):
    """Checked options; a `ValidationError` names the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data_dir: Path
    bootstrap_servers: str | None = None
    """Commas between addresses; absent: the stack starts a broker."""
    model: str | None = None
    """Checkpoint folder or hub id; absent: the tiny checkpoint."""
    lora_folder: Path | None = None
    """Folder with the LoRAs that tasks may name."""
    embed_parameters: EmbedParameters = EmbedParameters.ALL
    """More than the default of pools: only the user reads this folder."""
    signing_folder: Path | None = None
    """Folder with `tls.crt` and `tls.key` that image files are signed with."""
    min_workers: Annotated[int, Field(ge=0, le=64)] = 0
    max_workers: Annotated[int, Field(ge=1, le=64)] = TINY_MODEL_WORKERS
    target_lag: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Tasks for each worker."""
    idle_grace_seconds: Annotated[float, Field(ge=0, le=_LONGEST_SECONDS, allow_inf_nan=False)] = 20.0
    """Loading the tiny model again takes some seconds, so a short grace pays here."""
    cool_down_seconds: Annotated[float, Field(ge=0, le=_LONGEST_SECONDS, allow_inf_nan=False)] = 10.0
    gateway_port: Annotated[int, Field(ge=1, le=65_535)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers: {self.min_workers} is above max_workers ({self.max_workers}); lower it")
        if self.bootstrap_servers is not None:
            KafkaConnection.model_validate({"bootstrap_servers": self.bootstrap_servers.split(",")})
        return self

    def scaling(self) -> ScalingConfig:
        """The limits of the plan."""
        return ScalingConfig(
            min_replicas=self.min_workers,
            max_replicas=self.max_workers,
            target_lag_per_replica=self.target_lag,
            idle_grace_seconds=self.idle_grace_seconds,
            cool_down_seconds=self.cool_down_seconds,
            stale_after_seconds=10.0,
        )
