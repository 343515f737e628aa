{{/* Names, labels and security contexts of all objects of the chart. */}}

{{- define "fluxpool.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of all object names; short enough for every suffix and the hash of a pod name. */}}
{{- define "fluxpool.fullname" -}}
{{- $name := include "fluxpool.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 37 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 37 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 37 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Called with (list $ "component"). Selector labels: constant for a release, because the selector of a Deployment is immutable. */}}
{{- define "fluxpool.selectorLabels" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ include "fluxpool.name" $ | quote }}
app.kubernetes.io/instance: {{ $.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 | quote }}
{{- end -}}

{{/* Called with (list $ "component"), and for pods with additional labels as third item. The labels of the chart take precedence. */}}
{{- define "fluxpool.labels" -}}
{{- $ := index . 0 -}}
{{- $own := include "fluxpool.selectorLabels" . | fromYaml -}}
{{- $chart := printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- $described := dict
      "app.kubernetes.io/version" $.Chart.AppVersion
      "app.kubernetes.io/managed-by" $.Release.Service
      "app.kubernetes.io/part-of" "fluxpool"
      "helm.sh/chart" $chart -}}
{{- $given := dict -}}
{{- if gt (len .) 2 -}}
{{- $given = index . 2 -}}
{{- end -}}
{{- toYaml (merge $own $described (deepCopy $given) (deepCopy $.Values.commonLabels)) -}}
{{- end -}}

{{/* Called with (list $ image). */}}
{{- define "fluxpool.image" -}}
{{- $ := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "fluxpool.serviceAccountName" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else -}}
{{- printf "%s-operator" (include "fluxpool.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* The watched namespaces as a JSON list; empty for all namespaces. */}}
{{- define "fluxpool.watchedNamespaces" -}}
{{- if .Values.watch.clusterWide -}}
[]
{{- else -}}
{{- .Values.watch.namespaces | default (list .Release.Namespace) | uniq | toJson -}}
{{- end -}}
{{- end -}}

{{/* Pod security context of the restricted Pod Security Standard. */}}
{{- define "fluxpool.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ . | int64 }}
runAsGroup: {{ . | int64 }}
fsGroup: {{ . | int64 }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Container security context of the restricted Pod Security Standard, with a read-only root file system. */}}
{{- define "fluxpool.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Escapes a value of `env`: the kubelet expands $(NAME) and reads $$ as $. */}}
{{- define "fluxpool.literal" -}}
{{- . | toString | replace "$" "$$" | quote -}}
{{- end -}}
