"""Settings as environment variables: they are read as written, and every error names its variable."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from fluxpool_contract.kafka.connection import KafkaConnection, SaslMechanism, SecurityProtocol
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.task import Quality
from fluxpool_contract.settings.environment import SettingsError
from fluxpool_contract.settings.worker import (
    VIP_LANE,
    DType,
    Lane,
    ModelDevice,
    ModelOffload,
    ModelSettings,
    QualitySettings,
    StorageSettings,
    WorkerSettings,
)

REQUIRED = {"FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "FLUXPOOL_STORAGE_URL": "s3://images"}


def _errors(**variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        WorkerSettings.from_environment({**REQUIRED, **variables})
    return str(caught.value)


_name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
# A setting is one line of UTF-8 text that is not blank.
_text = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\ufffd"), min_size=1, max_size=20
).filter(str.strip)
_seconds = st.floats(1, 1e6)
_plain = st.builds(
    KafkaConnection,
    bootstrap_servers=st.lists(_name.map(lambda host: f"{host}:9092"), min_size=1, max_size=3).map(tuple),
)
_scram = st.builds(
    KafkaConnection,
    bootstrap_servers=st.just(("kafka:9093",)),
    security_protocol=st.just(SecurityProtocol.SASL_SSL),
    sasl_mechanism=st.sampled_from([SaslMechanism.PLAIN, SaslMechanism.SCRAM_SHA_512]),
    sasl_username=_text,
    sasl_password=_text.map(SecretStr),
    tls_ca_file=st.none() | st.just(Path("/etc/ca.pem")),
)
_settings = st.builds(
    WorkerSettings,
    kafka=_plain | _scram,
    storage=st.builds(
        StorageSettings,
        url=st.just("s3://images/a/b/") | st.just("file:///srv/images/"),
        public_base_url=st.none() | st.just("https://images.example.com/"),
        region=st.none() | _name,
    ),
    model=st.builds(
        ModelSettings,
        id=_text,
        transformer_dtype=st.sampled_from(DType),
        device=st.sampled_from(ModelDevice),
        offload=st.sampled_from(ModelOffload),
        quality=st.just(QualitySettings()) | st.just(QualitySettings(default=Quality.FAST, allowed=tuple(Quality))),
    ),
    topics=st.builds(
        TopicNames,
        tasks=_name.map("tasks-{}".format),
        retry=st.lists(_name.map("retry-{}".format), min_size=1, max_size=4, unique=True).map(tuple),
    ),
    consumer_group=_name,
    lanes=st.just((Lane(name="standard", topic="t"),))
    | st.just((Lane(name="a", topic="t"), VIP_LANE, Lane(name="c", topic="u", consumer_group="own"))),
    pool=_text,
    worker_name=st.none() | _text,
    gateway_url=st.none() | st.just("http://gateway:8080/"),
    health_port=st.integers(0, 65_535),
    max_attempts=st.integers(1, 10),
    max_crashes=st.integers(1, 10),
    infra_hold_limit_seconds=_seconds,
    step_hard_limit_seconds=_seconds,
    task_hard_limit_seconds=_seconds,
    drain_grace_seconds=_seconds,
    engine_command=st.just(()) | st.just(("python", "-m", "engine")),
)


@given(_settings)
def test_settings_are_read_as_they_were_written(settings: WorkerSettings) -> None:
    assert WorkerSettings.from_environment(settings.to_environment()) == settings


def test_only_what_differs_from_the_defaults_is_written() -> None:
    settings = WorkerSettings.from_environment(REQUIRED)
    assert settings.to_environment() == {**REQUIRED, "FLUXPOOL_STORAGE_URL": "s3://images/"}


def test_secrets_are_written_but_never_shown() -> None:
    settings = WorkerSettings.from_environment(
        {
            **REQUIRED,
            "FLUXPOOL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "FLUXPOOL_KAFKA_SASL_MECHANISM": "PLAIN",
            "FLUXPOOL_KAFKA_SASL_USERNAME": "u",
            "FLUXPOOL_KAFKA_SASL_PASSWORD": "hush-hush",
        }
    )
    assert settings.to_environment()["FLUXPOOL_KAFKA_SASL_PASSWORD"] == "hush-hush"
    assert "hush-hush" not in repr(settings)


def test_a_mistyped_variable_names_the_nearest_known_one() -> None:
    assert (
        _errors(FLUXPOOL_KAFKA_BOOTSTRAP_SERVER="x:1")
        == "FLUXPOOL_KAFKA_BOOTSTRAP_SERVER: is not a known setting; did you mean FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS?"
    )


def test_foreign_variables_can_be_excluded() -> None:
    environment = {**REQUIRED, "FLUXPOOL_FAULT": "x:kill", "PATH": "/bin", "FLUXPOOLED": "1"}
    settings = WorkerSettings.from_environment(environment)
    assert settings == WorkerSettings.from_environment(REQUIRED)


def test_a_kubernetes_service_called_fluxpool_does_not_stop_a_pod() -> None:
    links = {
        "FLUXPOOL_SERVICE_HOST": "10.0.0.1",
        "FLUXPOOL_SERVICE_PORT": "80",
        "FLUXPOOL_SERVICE_PORT_HTTP": "80",
        "FLUXPOOL_PORT": "tcp://10.0.0.1:80",
        "FLUXPOOL_PORT_80_TCP": "tcp://10.0.0.1:80",
        "FLUXPOOL_PORT_80_TCP_PROTO": "tcp",
        "FLUXPOOL_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "FLUXPOOL_GATEWAY_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert WorkerSettings.from_environment({**REQUIRED, **links}) == WorkerSettings.from_environment(REQUIRED)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", "kafka", "must have the form host:port"),
        ("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", "kafka:0", "must have the form host:port"),
        ("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", "", "is required"),
        ("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", "SASL_SSL://kafka:9092", "without a protocol: write kafka:9092"),
        ("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", "sasl_ssl://kafka:9092/", "as security_protocol (SASL_SSL)"),
        ("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", "kafka:65536", "must have the form host:port"),
        ("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", "kafka :9092", "must have the form host:port"),
        ("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", "[::1", "must be JSON"),
        ("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", " , ", "at least 1 entries"),
        ("FLUXPOOL_KAFKA_OAUTH_TOKEN_ENDPOINT", "id.example.com/token", "must begin with http"),
        ("FLUXPOOL_STORAGE_URL", "s3://images/\n", "ends in a line end"),
        ("FLUXPOOL_STORAGE_URL", "file:///srv/images\n", "ends in a line end"),
        ("FLUXPOOL_STORAGE_URL", "s3://images/a b", "must be s3://bucket/prefix/"),
        ("FLUXPOOL_STORAGE_REGION", "eu-west-1\r\n", "ends in a line end"),
        ("FLUXPOOL_STORAGE_REGION", "eu west", "pattern"),
        ("FLUXPOOL_STORAGE_ENDPOINT_URL", "http://", "name a host"),
        ("FLUXPOOL_POOL", "  ", "is blank"),
        ("FLUXPOOL_TASK_HARD_LIMIT_SECONDS", "inf", "finite number"),
        ("FLUXPOOL_TASK_HARD_LIMIT_SECONDS", "nan", "finite number"),
        ("FLUXPOOL_TASK_HARD_LIMIT_SECONDS", "1e300", "at most 31536000"),
        ("FLUXPOOL_OFFSET_RETENTION_DAYS", "4000", "at most 3650"),
        ("FLUXPOOL_POOL", "caf\udce9", "is not UTF-8"),
        ("FLUXPOOL_MODEL_ID", "a\x1b[2J", "control character"),
        ("FLUXPOOL_HEALTH_PORT", " ", "is blank"),
        ("FLUXPOOL_LANES", "[" * 100_000, "must be JSON"),
        ("FLUXPOOL_TOPICS_TASKS", "..", "must not be . or .."),
        ("FLUXPOOL_TOPICS_RESULTS", "flux-generation-tasks", "is the topic of tasks as well"),
        ("FLUXPOOL_TOPICS_DEAD_LETTERS", "flux-generation-retry-2m", "is the topic of retry as well"),
        ("FLUXPOOL_TOPICS_RETRY", "a,a", "a is the topic of retry as well"),
        ("FLUXPOOL_LANES", '[{"name":"a","topic":"t"},{"name":"b","topic":"t"}]', "a topic of its own"),
        ("FLUXPOOL_LANES", '[{"name":"a","topic":"flux-dlq"}]', "topics.dead_letters as well"),
        ("FLUXPOOL_LANES", '[{"name":"a","topic":"flux-generation-retry-2m"}]', "topics.retry as well"),
        ("FLUXPOOL_KAFKA_SECURITY_PROTOCOL", "TLS", "'PLAINTEXT', 'SSL'"),
        ("FLUXPOOL_STORAGE_URL", "/tmp/images", "must be s3://bucket/prefix/ or file:///"),  # noqa: S108 - refused
        ("FLUXPOOL_STORAGE_PUBLIC_BASE_URL", "images.example.com", "must begin with http"),
        ("FLUXPOOL_HEALTH_PORT", "http", "whole number"),
        ("FLUXPOOL_HEALTH_PORT", "70000", "at most 65535"),
        ("FLUXPOOL_MAX_ATTEMPTS", "0", "at least 1"),
        ("FLUXPOOL_TASK_HARD_LIMIT_SECONDS", "soon", "must be a number"),
        ("FLUXPOOL_LANES", "standard", "must be JSON"),
        ("FLUXPOOL_LANES", '[{"name": "A", "topic": "t"}]', "0.name"),
        ("FLUXPOOL_LANES", '[{"name": "a", "topic": "t", "grp": "x"}]', "is not a known field"),
        ("FLUXPOOL_LANES", "[]", "at least 1 entries"),
        ("FLUXPOOL_MODEL_TRANSFORMER_DTYPE", "int8", "'float16', 'bfloat16' or 'float32'"),
        ("FLUXPOOL_MODEL_QUALITY_ALLOWED", "exact,best", "must be 'exact' or 'fast'"),
        ("FLUXPOOL_MODEL_QUALITY_DEFAULT", "fast", "fast is not in allowed"),
        ("FLUXPOOL_CONSUMER_GROUP", "a b", "pattern"),
        ("FLUXPOOL_TOPICS_TASKS", "a b", "pattern"),
    ],
)
def test_every_refusal_names_its_variable(name: str, value: str, words: str) -> None:
    message = _errors(**{name: value})
    assert message.startswith(f"{name}: ")
    assert words in message


def test_all_refusals_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        WorkerSettings.from_environment({"FLUXPOOL_HEALTH_PORT": "x", "FLUXPOOL_HEALHT_HOST": "y"})
    for name in (
        "FLUXPOOL_HEALTH_PORT",
        "FLUXPOOL_HEALHT_HOST",
        "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS",
        "FLUXPOOL_STORAGE_URL",
    ):
        assert f"{name}: " in str(caught.value)


def test_lanes_that_share_a_name_or_group_are_refused() -> None:
    assert "a name of its own" in _errors(FLUXPOOL_LANES='[{"name":"a","topic":"t"},{"name":"a","topic":"u"}]')
    assert "a consumer_group of its own" in _errors(
        FLUXPOOL_LANES='[{"name":"a","topic":"t"},{"name":"b","topic":"u","consumer_group":"flux-worker-group"}]'
    )


def test_the_first_lane_has_the_pools_group_and_every_further_one_adds_its_name() -> None:
    lanes = (Lane(name="standard", topic="t"), VIP_LANE, Lane(name="c", topic="u", consumer_group="own"))
    settings = WorkerSettings(
        kafka=KafkaConnection(bootstrap_servers=("kafka:9092",)),
        storage=StorageSettings(url="s3://images/"),
        lanes=lanes,
    )
    assert [settings.group_of(lane) for lane in lanes] == ["flux-worker-group", "flux-worker-group-vip", "own"]


def test_retry_delays_go_with_the_retry_topics() -> None:
    topics = {"FLUXPOOL_TOPICS_RETRY": "again-1,again-2"}
    settings = WorkerSettings.from_environment({**REQUIRED, **topics, "FLUXPOOL_RETRY_DELAYS": "300ms,2m"})
    assert list(settings.retry_delays_seconds) == [0.3, 120]
    assert WorkerSettings.from_environment(settings.to_environment()) == settings
    message = _errors(**topics, FLUXPOOL_RETRY_DELAYS="15s")
    assert "FLUXPOOL_RETRY_DELAYS: needs one delay for each of the 2 retry topics, got 1" in message
    assert "FLUXPOOL_RETRY_DELAYS" in _errors(**topics, FLUXPOOL_RETRY_DELAYS="15s,soon")


_PASSWORD = {"sasl_username": "u", "sasl_password": "p"}
_ENDPOINT = {"oauth_token_endpoint": "https://id/token", "oauth_client_id": "c", "oauth_client_secret": "s"}
_CERTIFICATE = {"tls_certificate_file": "/c.pem", "tls_key_file": "/k.pem"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"security_protocol": "SSL"},
        {"security_protocol": "SSL", "tls_ca_file": "/ca.pem", **_CERTIFICATE},
        {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", **_PASSWORD},
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-256", **_PASSWORD},
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", **_PASSWORD, **_CERTIFICATE},
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", **_ENDPOINT},
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "oauth_token_file": "/t"},
    ],
)
def test_complete_logins_are_accepted(settings: dict[str, str]) -> None:
    KafkaConnection.model_validate({"bootstrap_servers": ["kafka:9092"], **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"security_protocol": "SASL_SSL"}, "sasl_mechanism: is required with SASL_SSL"),
        ({"sasl_mechanism": "PLAIN", **_PASSWORD}, "needs security_protocol SASL_PLAINTEXT or SASL_SSL"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, "PLAIN needs sasl_username and sasl_password"),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "u"},
            "SCRAM-SHA-512 needs sasl_username and sasl_password",
        ),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}, "either oauth_token_file, or all of"),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "OAUTHBEARER",
                **_ENDPOINT,
                "oauth_token_file": "/t",
            },
            "either oauth_token_file, or all of",
        ),
        ({"tls_ca_file": "/ca.pem"}, "tls_ca_file: TLS files need security_protocol SSL or SASL_SSL"),
        ({"security_protocol": "SSL", "tls_key_file": "/k.pem"}, "needs both"),
        ({"bootstrap_servers": []}, "at least 1 item"),
        ({"bootstrap_servers": ["kafka:99999"]}, "host:port"),
    ],
)
def test_incomplete_logins_name_the_setting_and_the_remedy(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        KafkaConnection.model_validate({"bootstrap_servers": ["kafka:9092"], **settings})


def test_storage_keys_go_together() -> None:
    message = _errors(FLUXPOOL_STORAGE_ACCESS_KEY_ID="k")
    assert message.startswith("FLUXPOOL_STORAGE")
    assert "access_key_id and secret_access_key go together" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"topics": TopicNames(retry=())},
        {"engine_command": ("python", "a,b", " c ", "[d", "")},
    ],
)
def test_a_list_with_commas_in_its_entries_is_written_as_json(changes: dict[str, object]) -> None:
    settings = WorkerSettings.from_environment(REQUIRED).model_copy(update=changes)
    assert WorkerSettings.from_environment(settings.to_environment()) == settings


def test_an_error_of_several_fields_together_names_a_variable() -> None:
    assert "FLUXPOOL_KAFKA_SASL_MECHANISM: is required" in _errors(FLUXPOOL_KAFKA_SECURITY_PROTOCOL="SASL_SSL")
    assert "FLUXPOOL_STORAGE_SECRET_ACCESS_KEY: " in _errors(FLUXPOOL_STORAGE_ACCESS_KEY_ID="AK")


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://B", "file:///srv/../etc", "file://relative", "/srv"])
def test_a_storage_address_of_another_kind_is_refused(url: str) -> None:
    assert "FLUXPOOL_STORAGE_URL: " in _errors(FLUXPOOL_STORAGE_URL=url)


def test_a_mistyped_name_that_ends_like_a_service_link_is_still_noticed() -> None:
    assert "did you mean FLUXPOOL_HEALTH_PORT?" in _errors(FLUXPOOL_HEALT_PORT="1")
    links = {
        "FLUXPOOL_GATEWAY_SERVICE_HOST": "10.0.0.7",
        "FLUXPOOL_GATEWAY_SERVICE_PORT_HTTP": "80",
        "FLUXPOOL_GATEWAY_PORT": "tcp://10.0.0.7:80",
        "FLUXPOOL_GATEWAY_PORT_80_TCP_ADDR": "10.0.0.7",
    }
    assert WorkerSettings.from_environment(REQUIRED | links) == WorkerSettings.from_environment(REQUIRED)


_SASL = {
    "FLUXPOOL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "FLUXPOOL_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    "FLUXPOOL_KAFKA_SASL_USERNAME": "flux",
    "FLUXPOOL_KAFKA_SASL_PASSWORD": "hush-hush",
}
_OAUTH = {
    "FLUXPOOL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "FLUXPOOL_KAFKA_SASL_MECHANISM": "OAUTHBEARER",
    "FLUXPOOL_KAFKA_OAUTH_TOKEN_ENDPOINT": "https://id.example.com/token",
    "FLUXPOOL_KAFKA_OAUTH_CLIENT_ID": "flux",
    "FLUXPOOL_KAFKA_OAUTH_CLIENT_SECRET": "hush-hush",
    "FLUXPOOL_KAFKA_OAUTH_SCOPE": "kafka",
}
_S3 = {"FLUXPOOL_STORAGE_ACCESS_KEY_ID": "AK", "FLUXPOOL_STORAGE_SECRET_ACCESS_KEY": "hush-hush"}
_KEY = {"FLUXPOOL_KAFKA_SECURITY_PROTOCOL": "SSL", "FLUXPOOL_KAFKA_TLS_KEY_PASSWORD": "hush-hush"}


@pytest.mark.parametrize(
    ("login", "name"),
    [
        (_SASL, "FLUXPOOL_KAFKA_SASL_USERNAME"),
        (_SASL, "FLUXPOOL_KAFKA_SASL_PASSWORD"),
        (_OAUTH, "FLUXPOOL_KAFKA_OAUTH_CLIENT_ID"),
        (_OAUTH, "FLUXPOOL_KAFKA_OAUTH_CLIENT_SECRET"),
        (_OAUTH, "FLUXPOOL_KAFKA_OAUTH_SCOPE"),
        (_S3, "FLUXPOOL_STORAGE_ACCESS_KEY_ID"),
        (_S3, "FLUXPOOL_STORAGE_SECRET_ACCESS_KEY"),
        (_KEY, "FLUXPOOL_KAFKA_TLS_KEY_PASSWORD"),
    ],
)
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hush-hush\n", "ends in a line end, as a Secret or file made with `echo` does"),
        ("hush-hush\r\n", "ends in a line end"),
        ("hush\nhush", "control character"),
        ("hush\x00hush", "control character"),
        (" ", "is blank"),
        ("\n", "is blank"),
        ("hush\udce9hush", "is not UTF-8"),
    ],
)
def test_an_impossible_credential_is_named_and_not_shown(
    login: dict[str, str], name: str, value: str, words: str
) -> None:
    WorkerSettings.from_environment({**REQUIRED, **login})
    message = _errors(**{**login, name: value})
    assert message.startswith(f"{name}: {words}") or f"{name}: has a line end" in message
    assert message.count("FLUXPOOL_") == 1
    assert "hush" not in message


@pytest.mark.parametrize(("field", "value"), [("sasl_password", "hush-hush\n"), ("sasl_username", "")])
def test_a_pools_secret_is_checked_by_the_same_rules_and_never_shown(field: str, value: str) -> None:
    login = {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", **_PASSWORD, field: value}
    with pytest.raises(ValidationError, match=field) as caught:
        KafkaConnection.model_validate({"bootstrap_servers": ["kafka:9092"], **login})
    assert "hush" not in str(caught.value)


def test_service_variables_of_kubernetes_are_no_settings() -> None:
    links = {
        "FLUXPOOL_HEALTH_PORT": "tcp://10.0.0.7:8080",
        "FLUXPOOL_HEALTH_SERVICE_HOST": "10.0.0.7",
        "FLUXPOOL_HEALTH_PORT_8080_UDP_ADDR": "10.0.0.7",
    }
    assert WorkerSettings.from_environment(REQUIRED | links) == WorkerSettings.from_environment(REQUIRED)


def test_a_setting_that_is_no_service_link_is_still_read() -> None:
    assert WorkerSettings.from_environment(REQUIRED | {"FLUXPOOL_HEALTH_PORT": "9"}).health_port == 9


_NAMES = [
    *REQUIRED,
    *_SASL,
    "FLUXPOOL_LANES",
    "FLUXPOOL_TOPICS_RETRY",
    "FLUXPOOL_RETRY_DELAYS",
    "FLUXPOOL_HEALTH_PORT",
    "FLUXPOOL_ENGINE_COMMAND",
    "FLUXPOOL_TLS_CA_FILE",
    "FLUXPOOL_GATEWAY_URL",
    "FLUXPOOL_LANE_WAIT_LIMIT_SECONDS",
]


@given(
    st.dictionaries(
        st.sampled_from(_NAMES) | st.text(max_size=20).map("FLUXPOOL_{}".format),
        st.text() | st.sampled_from(["nan", "inf", "1e999", "9" * 5000, "[", "{}", "[[]]", "null", ",", "[null]"]),
        max_size=4,
    )
)
def test_any_environment_is_settings_or_refused_with_its_names(environment: dict[str, str]) -> None:
    settings = None
    with suppress(SettingsError):
        settings = WorkerSettings.from_environment({**REQUIRED, **environment})
    if settings is not None:
        assert WorkerSettings.from_environment(settings.to_environment()) == settings
