"""Settings of the parts as environment variables."""

from fluxpool_contract.settings.environment import ENVIRONMENT_PREFIX, EnvironmentSettings, SettingsError
from fluxpool_contract.settings.worker import (
    DEFAULT_CONSUMER_GROUP,
    EXIT_MODEL_LOAD_FAILED,
    STANDARD_LANE,
    VIP_LANE,
    DType,
    GroupId,
    HttpBaseUrl,
    ImageSettings,
    Lane,
    ModelDevice,
    ModelSettings,
    QualitySettings,
    StorageSettings,
    WorkerSettings,
    check_lanes,
    serving_groups,
)

__all__ = [
    "DEFAULT_CONSUMER_GROUP",
    "ENVIRONMENT_PREFIX",
    "EXIT_MODEL_LOAD_FAILED",
    "STANDARD_LANE",
    "VIP_LANE",
    "DType",
    "EnvironmentSettings",
    "GroupId",
    "HttpBaseUrl",
    "ImageSettings",
    "Lane",
    "ModelDevice",
    "ModelSettings",
    "QualitySettings",
    "SettingsError",
    "StorageSettings",
    "WorkerSettings",
    "check_lanes",
    "serving_groups",
]
