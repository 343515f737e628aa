{{/* The operator's settings as `env`; shared with the pod of `helm test`, which checks the same namespaces. */}}
{{- define "fluxpool.operatorEnvironment" -}}
{{- with include "fluxpool.watchedNamespaces" . | fromJsonArray }}
- name: FLUXPOOL_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
- name: FLUXPOOL_NAMESPACE
  valueFrom:
    fieldRef:
      apiVersion: v1
      fieldPath: metadata.namespace
{{- with .Values.allowedBrokers }}
- name: FLUXPOOL_ALLOWED_BROKERS
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.allowedTokenEndpoints }}
- name: FLUXPOOL_ALLOWED_TOKEN_ENDPOINTS
  value: {{ join "," . | quote }}
{{- end }}
- name: FLUXPOOL_HOST_PATH_ALLOWED
  value: {{ .Values.hostPathAllowed | quote }}
- name: FLUXPOOL_POD_MONITORS
  value: {{ .Values.podMonitors.enabled | quote }}
- name: FLUXPOOL_HEALTH_HOST
  valueFrom:
    fieldRef:
      apiVersion: v1
      fieldPath: status.podIP
- name: FLUXPOOL_HEALTH_PORT
  value: {{ .Values.healthPort | quote }}
- name: FLUXPOOL_SECRET_INTERVAL_SECONDS
  value: {{ .Values.secretIntervalSeconds | quote }}
- name: FLUXPOOL_RESYNC_INTERVAL_SECONDS
  value: {{ .Values.resyncIntervalSeconds | quote }}
- name: FLUXPOOL_API_DEADLINE_SECONDS
  value: {{ .Values.apiDeadlineSeconds | quote }}
- name: FLUXPOOL_KAFKA_DEADLINE_SECONDS
  value: {{ .Values.kafkaDeadlineSeconds | quote }}
{{- end -}}
