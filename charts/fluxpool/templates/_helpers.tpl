{{/* Names, labels and the security that every pod of the chart has. */}}

{{- define "fluxpool.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* What the names of all objects begin with; short enough for every suffix and for the hash of a pod's name. */}}
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

{{/* Called with (list $ "component"). Never changes for a release: a Deployment's selector cannot. */}}
{{- define "fluxpool.selectorLabels" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ include "fluxpool.name" $ | quote }}
app.kubernetes.io/instance: {{ $.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 | quote }}
{{- end -}}

{{/* Called with (list $ "component"), and for pods with further labels as a third. The chart's own win. */}}
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

{{/* The namespaces that are looked after, as a JSON list; all of the cluster when empty. */}}
{{- define "fluxpool.watchedNamespaces" -}}
{{- if .Values.watch.clusterWide -}}
[]
{{- else -}}
{{- .Values.watch.namespaces | default (list .Release.Namespace) | uniq | toJson -}}
{{- end -}}
{{- end -}}

{{/* What the restricted Pod Security Standard asks of a pod. */}}
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

{{/* What it asks of a container, and a root that nobody writes to. */}}
{{- define "fluxpool.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A value of `env` so that the kubelet, which replaces $(NAME) and reads $$ as $, hands out the value itself. */}}
{{- define "fluxpool.literal" -}}
{{- . | toString | replace "$" "$$" | quote -}}
{{- end -}}
