"""The rendered gateway: its settings, its database and what its pods mount."""

from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from fluxpool_contract.messages import TaskLora
from fluxpool_gateway.identity import KeyScope
from fluxpool_gateway.settings import GatewaySettings, OidcSettings, TenantLimits, WebhookSettings
from kit.cluster.helm_chart import Helm, containers_of, environment, of_kind, pod_specs
from kit.cluster.kubernetes_api import Body
from kit.scaling.pools import OAUTH_PRIVATE_ENDPOINT

OAUTH_CLIENT = {"FLUXPOOL_KAFKA_OAUTH_CLIENT_ID": "flux", "FLUXPOOL_KAFKA_OAUTH_CLIENT_SECRET": "hush"}
RenderedFrom = Callable[[str], list[Body]]


def test_the_gateway_reads_the_settings_of_the_chart(rendered_from: RenderedFrom) -> None:
    container, projector, dispatcher = containers_of(rendered_from("gateway"), "gateway")
    given = environment(container)
    secrets = {
        variable["name"]: (reference["name"], reference["key"])
        for variable in container["env"]
        if (reference := variable.get("valueFrom", {}).get("secretKeyRef"))
    }
    assert secrets == {
        "FLUXPOOL_OIDC_CLIENT_SECRET": ("id-client", "client-secret"),
        "FLUXPOOL_KAFKA_SASL_USERNAME": ("kafka-user", "user"),
        "FLUXPOOL_KAFKA_SASL_PASSWORD": ("kafka-user", "password"),
        "FLUXPOOL_KAFKA_TLS_KEY_PASSWORD": ("kafka-client", "pass"),
        "FLUXPOOL_STORAGE_ACCESS_KEY_ID": ("bucket", "access-key-id"),
        "FLUXPOOL_STORAGE_SECRET_ACCESS_KEY": ("bucket", "secret-access-key"),
    }
    assert (projector["image"], projector["env"]) == (container["image"], container["env"])
    assert (dispatcher["image"], dispatcher["env"]) == (container["image"], container["env"])
    assert dispatcher["command"] == ["python", "-m", "fluxpool_gateway.dispatcher"]
    assert projector["command"] == ["python", "-m", "fluxpool_gateway.projector"]
    # As the kubelet expands it: $$ is one dollar.
    settings = GatewaySettings.from_environment({name: value.replace("$$", "$") for name, value in given.items()})
    assert settings.webhooks == WebhookSettings(
        allow_http=True,
        allowed_networks=("10.20.0.0/16", "fd00:20::/64"),
        key_file=Path("/etc/fluxpool/webhooks/keys"),
    )
    assert settings.oidc == OidcSettings(
        issuer="https://id.example.com/realms/flux",
        audience="fluxpool",
        jwks_url="https://id.example.com/realms/flux/certs",
        ca_file=Path("/etc/fluxpool/oidc/ca.crt"),
        tenant_claim="org.slug",
        scopes_claim="realm_access.roles",
        scope_prefix="flux-",
        default_scopes=(KeyScope.READ, KeyScope.SUBMIT),
        client_id="fluxpool-page",
        client_secret=SecretStr("secretKeyRef"),
        login_scope="openid fluxpool:read",
        session_seconds=7200,
    )
    assert settings.foreign_tenant_topics == ("eu-tasks-vip",)
    assert settings.tenant_secret_file == Path("/etc/fluxpool/tenants/keys")
    assert settings.tenant_limits["*"] == TenantLimits(submit="50/second", outstanding=1000)
    assert {name: preset.fields() for name, preset in settings.presets.items()} == {
        "draft": {"steps": 8, "quality": "fast"},
        "ink": {"true_cfg_scale": 1.5, "loras": (TaskLora(name="ink", scale=0.8),)},
    }
    assert settings.preset_exploration == 0.1
    assert settings.kafka.bootstrap_servers == ("kafka-0.kafka:9093", "kafka-1.kafka:9093")
    assert settings.storage.public_base_url == "https://images.example.com/$(bucket)/"
    assert settings.topics.model_dump() == {
        "tasks": "eu-tasks",
        "tasks_vip": "eu-tasks-vip",
        "results": "eu-results",
        "progress": "eu-progress",
        "retry": ("eu-again-1m", "eu-again-10m"),
        "control": "eu-control",
        "dead_letters": "eu-dlq",
        "feedback": "eu-feedback",
        "pools": "eu-pools",
    }
    assert settings.groups() == {"eu-workers": "eu-tasks", "eu-urgent": "eu-tasks-vip"}
    assert [lane.preference for lane in settings.lanes] == [0, 10]
    assert (settings.processes, settings.listen_port, settings.listen_host) == (2, 9000, "::")
    assert (settings.needs_keys(), settings.bootstrap_key_file) == (True, Path("/etc/fluxpool/keys/bootstrap"))
    assert settings.image_endpoint_url == "https://s3.example.com/"
    assert (str(settings.public_url), settings.produce_deadline_seconds) == ("https://flux.example.com/", 2.5)


def test_gateway_pods_share_a_database_and_are_replaced_one_by_one(helm: Helm) -> None:
    values = {
        "gateway.enabled": True,
        "gateway.replicas": 3,
        "gateway.kafka.bootstrapServers": ["kafka:9092"],
        "gateway.storage.url": "s3://images/",
        "gateway.database.urlSecretRef": {"name": "store"},
        "gateway.database.caSecretRef": {"name": "store-ca", "key": "root.pem"},
        "networkPolicy.enabled": True,
    }
    rendered = helm.render(values=values)
    (deployment,) = (
        found for found in of_kind(rendered, "Deployment") if found["metadata"]["name"].endswith("-gateway")
    )
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}
    assert of_kind(rendered, "PersistentVolumeClaim") == []
    spec = deployment["spec"]["template"]["spec"]
    container, projector, dispatcher = spec["containers"]
    assert projector["env"] == dispatcher["env"] == container["env"]
    (url,) = (variable for variable in container["env"] if variable["name"] == "FLUXPOOL_DATABASE_URL")
    assert url["valueFrom"] == {"secretKeyRef": {"name": "store", "key": "url"}}
    given = environment(container)
    settings = GatewaySettings.from_environment(
        {name: value for name, value in given.items() if name.startswith("FLUXPOOL_")}
        | {"FLUXPOOL_DATABASE_URL": "postgresql://flux:hush@db/flux?sslmode=verify-full"}
    )
    assert settings.database_file is None
    assert given["PGSSLROOTCERT"] == "/etc/fluxpool/database/ca.crt"
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "database-files")
    assert volume["projected"]["sources"] == [
        {"secret": {"name": "store-ca", "items": [{"key": "root.pem", "path": "ca.crt"}]}}
    ]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    (policy,) = (
        found for found in of_kind(rendered, "NetworkPolicy") if found["metadata"]["name"].endswith("-gateway")
    )
    assert 5432 in {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", ())}


def test_a_folder_of_images_is_mounted_at_the_path_of_the_workers(rendered_from: RenderedFrom) -> None:
    spec = pod_specs(rendered_from("minimal-rights"))["Deployment/flux-gateway"]
    container, *_ = spec["containers"]
    assert environment(container)["FLUXPOOL_STORAGE_URL"] == "file:///images/"
    assert {"name": "images", "mountPath": "/images"} in container["volumeMounts"]
    claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in spec["volumes"]}
    assert claims["images"] == {"claimName": "images"}
    assert claims["database"] == {"claimName": "gateway-database"}


# Network access to the gateway


def test_the_gateway_trusts_a_private_ca_of_the_token_endpoint_like_a_worker(helm: Helm) -> None:
    values = {
        "gateway.enabled": True,
        "gateway.kafka.bootstrapServers": ["kafka:9092"],
        "gateway.kafka.security": OAUTH_PRIVATE_ENDPOINT,
        "gateway.storage.url": "s3://images/",
    }
    (spec,) = (spec for name, spec in pod_specs(helm.render(values=values)).items() if name.endswith("-gateway"))
    container, *_ = spec["containers"]
    kafka = GatewaySettings.from_environment(environment(container) | OAUTH_CLIENT).kafka
    assert kafka.oauth_encode_credentials is False
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "kafka-files")
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "kafka-files")
    (source,) = volume["projected"]["sources"]
    assert source == {"secret": {"name": "oauth-ca", "items": [{"key": "ca.crt", "path": "oauth-ca.crt"}]}}
    assert str(kafka.oauth_ca_file) == f"{mount['mountPath']}/oauth-ca.crt"
