{{/* The gateway's settings as `env`, its containers, volumes and mounts. */}}

{{/* Called with (dict "name" "FLUXPOOL_..." "value" any); nothing for an empty value. */}}
{{- define "fluxpool.variable" -}}
{{- if .value }}
- name: {{ .name | quote }}
  value: {{ include "fluxpool.literal" .value }}
{{- end }}
{{- end -}}

{{/* Called with (dict "name" "FLUXPOOL_..." "secret" name "key" key). */}}
{{- define "fluxpool.secretVariable" }}
- name: {{ .name | quote }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret | quote }}
      key: {{ .key | quote }}
{{- end -}}

{{- define "fluxpool.gatewayEnvironment" -}}
{{- $gateway := .Values.gateway -}}
{{- if $gateway.database.urlSecretRef.name }}
{{- include "fluxpool.secretVariable" (dict "name" "FLUXPOOL_DATABASE_URL" "secret" $gateway.database.urlSecretRef.name "key" ($gateway.database.urlSecretRef.key | default "url")) | trim }}
{{- if $gateway.database.caSecretRef.name }}
# libpq's own variable.
- name: PGSSLROOTCERT
  value: /etc/fluxpool/database/ca.crt
{{- end }}
{{- else }}
- name: FLUXPOOL_DATABASE_FILE
  value: {{ printf "%s/gateway.db" (include "fluxpool.databaseFolder" .) | quote }}
{{- end }}
- name: FLUXPOOL_LISTEN_HOST
{{- if $gateway.listenHost }}
  value: {{ include "fluxpool.literal" $gateway.listenHost }}
{{- else }}
  valueFrom:
    fieldRef:
      apiVersion: v1
      fieldPath: status.podIP
{{- end }}
- name: FLUXPOOL_LISTEN_PORT
  value: {{ $gateway.port | quote }}
- name: FLUXPOOL_PROCESSES
  value: {{ $gateway.processes | quote }}
- name: FLUXPOOL_PRODUCE_DEADLINE_SECONDS
  value: {{ $gateway.produceDeadlineSeconds | quote }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_AUTHENTICATION" "value" $gateway.authentication) }}
{{- if $gateway.foreignTenantTopics }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_FOREIGN_TENANT_TOPICS" "value" (join "," $gateway.foreignTenantTopics)) }}
{{- end }}
{{- if $gateway.webhooks.allowHttp }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_WEBHOOKS_ALLOW_HTTP" "value" "true") }}
{{- end }}
{{- if $gateway.webhooks.allowedNetworks }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_WEBHOOKS_ALLOWED_NETWORKS" "value" (join "," $gateway.webhooks.allowedNetworks)) }}
{{- end }}
{{- if $gateway.webhooks.keysSecretRef.name }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_WEBHOOKS_KEY_FILE" "value" "/etc/fluxpool/webhooks/keys") }}
{{- end }}
{{- if $gateway.tenantLimits }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_TENANT_LIMITS" "value" (toJson $gateway.tenantLimits)) }}
{{- end }}
{{- if $gateway.presets }}
{{- $presets := dict }}
{{- range $name, $preset := $gateway.presets }}
{{- $fields := omit $preset "trueCfgScale" }}
{{- if hasKey $preset "trueCfgScale" }}
{{- $_ := set $fields "true_cfg_scale" $preset.trueCfgScale }}
{{- end }}
{{- $_ := set $presets $name $fields }}
{{- end }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_PRESETS" "value" (toJson $presets)) }}
- name: FLUXPOOL_PRESET_EXPLORATION
  value: {{ $gateway.presetExploration | quote }}
{{- end }}
{{- if $gateway.bootstrapKeySecretRef.name }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_BOOTSTRAP_KEY_FILE" "value" "/etc/fluxpool/keys/bootstrap") }}
{{- end }}
{{- if $gateway.tenantSecretRef.name }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_TENANT_SECRET_FILE" "value" "/etc/fluxpool/tenants/keys") }}
{{- end }}
{{- with $gateway.oidc }}
{{- if .issuer }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_OIDC_ISSUER" "value" .issuer) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_OIDC_AUDIENCE" "value" .audience) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_OIDC_JWKS_URL" "value" .jwksUrl) }}
{{- if .caSecretRef.name }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_OIDC_CA_FILE" "value" "/etc/fluxpool/oidc/ca.crt") }}
{{- end }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_OIDC_TENANT_CLAIM" "value" .tenantClaim) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_OIDC_SCOPES_CLAIM" "value" .scopesClaim) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_OIDC_SCOPE_PREFIX" "value" .scopePrefix) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_OIDC_DEFAULT_SCOPES" "value" (join "," .defaultScopes)) }}
{{- if .clientId }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_OIDC_CLIENT_ID" "value" .clientId) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_OIDC_LOGIN_SCOPE" "value" .loginScope) }}
- name: FLUXPOOL_OIDC_SESSION_SECONDS
  value: {{ int .sessionSeconds | quote }}
{{- if .clientSecretRef.name }}
{{- include "fluxpool.secretVariable" (dict "name" "FLUXPOOL_OIDC_CLIENT_SECRET" "secret" .clientSecretRef.name "key" (.clientSecretRef.key | default "client-secret")) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_PUBLIC_URL" "value" $gateway.publicUrl) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_IMAGE_ENDPOINT_URL" "value" $gateway.imageEndpointUrl) }}
{{- include "fluxpool.kafkaEnvironment" $gateway.kafka }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_CONSUMER_GROUP" "value" $gateway.kafka.consumerGroup) }}
{{- with $gateway.kafka.lanes }}
{{- $lanes := list }}
{{- range . }}
{{- $lane := dict }}
{{- range $field, $value := . }}
{{- $_ := set $lane ($field | snakecase) $value }}
{{- end }}
{{- $lanes = append $lanes $lane }}
{{- end }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_LANES" "value" ($lanes | toJson)) }}
{{- end }}
{{- include "fluxpool.storageEnvironment" $gateway.storage }}
{{- range $field := list "tasks" "tasksVip" "results" "progress" "retry" "control" "deadLetters" "feedback" "pools" }}
{{- $topic := get $gateway.topics $field }}
{{- if kindIs "slice" $topic }}
{{- $topic = join "," $topic }}
{{- end }}
{{- include "fluxpool.variable" (dict "name" (printf "FLUXPOOL_TOPICS_%s" ($field | snakecase | upper)) "value" $topic) }}
{{- end }}
{{- end -}}

{{/* Called with values of the shape {bootstrapServers, security}. */}}
{{- define "fluxpool.kafkaEnvironment" -}}
{{- $security := .security -}}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS" "value" (join "," .bootstrapServers)) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_SECURITY_PROTOCOL" "value" $security.protocol) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_SASL_MECHANISM" "value" $security.saslMechanism) }}
{{- with $security.credentialsSecretRef }}
{{- include "fluxpool.secretVariable" (dict "name" "FLUXPOOL_KAFKA_SASL_USERNAME" "secret" .name "key" (.usernameKey | default "username")) }}
{{- include "fluxpool.secretVariable" (dict "name" "FLUXPOOL_KAFKA_SASL_PASSWORD" "secret" .name "key" (.passwordKey | default "password")) }}
{{- end }}
{{- with $security.oauth }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_OAUTH_TOKEN_ENDPOINT" "value" .tokenEndpoint) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_OAUTH_SCOPE" "value" .scope) }}
{{- with .clientSecretRef }}
{{- include "fluxpool.secretVariable" (dict "name" "FLUXPOOL_KAFKA_OAUTH_CLIENT_ID" "secret" .name "key" (.clientIdKey | default "client-id")) }}
{{- include "fluxpool.secretVariable" (dict "name" "FLUXPOOL_KAFKA_OAUTH_CLIENT_SECRET" "secret" .name "key" (.clientSecretKey | default "client-secret")) }}
{{- end }}
{{- if .caSecretRef }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_OAUTH_CA_FILE" "value" "/etc/fluxpool/kafka/oauth-ca.crt") }}
{{- end }}
{{- if eq (toString .encodeCredentials) "false" }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_OAUTH_ENCODE_CREDENTIALS" "value" "false") }}
{{- end }}
{{- if .serviceAccountToken }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_OAUTH_TOKEN_FILE" "value" "/etc/fluxpool/kafka/token") }}
{{- end }}
{{- end }}
{{- if $security.caSecretRef }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_TLS_CA_FILE" "value" "/etc/fluxpool/kafka/ca.crt") }}
{{- end }}
{{- with $security.clientCertificateSecretRef }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_TLS_CERTIFICATE_FILE" "value" "/etc/fluxpool/kafka/tls.crt") }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_KAFKA_TLS_KEY_FILE" "value" "/etc/fluxpool/kafka/tls.key") }}
{{- if .passwordKey }}
{{- include "fluxpool.secretVariable" (dict "name" "FLUXPOOL_KAFKA_TLS_KEY_PASSWORD" "secret" .name "key" .passwordKey) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Called with values of the shape of a pool's spec.storage. */}}
{{- define "fluxpool.storageEnvironment" -}}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_STORAGE_URL" "value" .url) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_STORAGE_PUBLIC_BASE_URL" "value" .publicBaseUrl) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_STORAGE_ENDPOINT_URL" "value" .endpointUrl) }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_STORAGE_REGION" "value" .region) }}
{{- with .credentialsSecretRef }}
{{- include "fluxpool.secretVariable" (dict "name" "FLUXPOOL_STORAGE_ACCESS_KEY_ID" "secret" .name "key" (.accessKeyIdKey | default "access-key-id")) }}
{{- include "fluxpool.secretVariable" (dict "name" "FLUXPOOL_STORAGE_SECRET_ACCESS_KEY" "secret" .name "key" (.secretAccessKeyKey | default "secret-access-key")) }}
{{- end }}
{{- if .caSecretRef }}
{{- include "fluxpool.variable" (dict "name" "FLUXPOOL_STORAGE_CA_FILE" "value" "/etc/fluxpool/storage/ca.crt") }}
{{- end }}
{{- end -}}

{{/* What the server's and the projector's containers share: image, settings and files. */}}
{{- define "fluxpool.gatewayContainer" -}}
{{- $gateway := .Values.gateway -}}
image: {{ include "fluxpool.image" (list . $gateway.image) | quote }}
imagePullPolicy: {{ $gateway.image.pullPolicy | quote }}
env:
  {{- include "fluxpool.gatewayEnvironment" . | nindent 2 }}
  {{- with $gateway.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext: {{- include "fluxpool.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  {{- if not $gateway.database.urlSecretRef.name }}
  - name: database
    mountPath: {{ include "fluxpool.databaseFolder" . | quote }}
  {{- else if $gateway.database.caSecretRef.name }}
  - name: database-files
    mountPath: /etc/fluxpool/database
    readOnly: true
  {{- end }}
  {{- if $gateway.bootstrapKeySecretRef.name }}
  - name: bootstrap-key
    mountPath: /etc/fluxpool/keys
    readOnly: true
  {{- end }}
  {{- if $gateway.tenantSecretRef.name }}
  - name: tenant-keys
    mountPath: /etc/fluxpool/tenants
    readOnly: true
  {{- end }}
  {{- if $gateway.webhooks.keysSecretRef.name }}
  - name: webhook-keys
    mountPath: /etc/fluxpool/webhooks
    readOnly: true
  {{- end }}
  {{- if and $gateway.oidc.issuer $gateway.oidc.caSecretRef.name }}
  - name: oidc-files
    mountPath: /etc/fluxpool/oidc
    readOnly: true
  {{- end }}
  {{- if include "fluxpool.kafkaFiles" $gateway.kafka.security | trim }}
  - name: kafka-files
    mountPath: /etc/fluxpool/kafka
    readOnly: true
  {{- end }}
  {{- if $gateway.storage.caSecretRef }}
  - name: storage-files
    mountPath: /etc/fluxpool/storage
    readOnly: true
  {{- end }}
  {{- if $gateway.storage.persistentVolumeClaim }}
  - name: images
    mountPath: {{ printf "/%s" ($gateway.storage.url | trimPrefix "file:///" | trimSuffix "/") | quote }}
  {{- end }}
{{- end -}}

{{- define "fluxpool.databaseFolder" -}}
/var/lib/fluxpool
{{- end -}}

{{/* A source of a projected volume; called with (dict "secret" a reference to certificates "path" the file's name). */}}
{{- define "fluxpool.authorities" -}}
- secret:
    name: {{ .secret.name | quote }}
    items:
      - key: {{ .secret.key | default "ca.crt" | quote }}
        path: {{ .path }}
{{- end -}}

{{/* Sources of the projected volume with the files of the Kafka connection; empty when it needs none. */}}
{{- define "fluxpool.kafkaFiles" -}}
{{- with .caSecretRef }}
{{ include "fluxpool.authorities" (dict "secret" . "path" "ca.crt") }}
{{- end }}
{{- with .clientCertificateSecretRef }}
- secret:
    name: {{ .name | quote }}
    items:
      - key: {{ .certificateKey | default "tls.crt" | quote }}
        path: tls.crt
      - key: {{ .privateKeyKey | default "tls.key" | quote }}
        path: tls.key
{{- end }}
{{- with .oauth }}
{{- with .caSecretRef }}
{{ include "fluxpool.authorities" (dict "secret" . "path" "oauth-ca.crt") }}
{{- end }}
{{- with .serviceAccountToken }}
- serviceAccountToken:
    audience: {{ .audience | quote }}
    expirationSeconds: {{ .expirationSeconds | default 3600 | int64 }}
    path: token
{{- end }}
{{- end }}
{{- end -}}
