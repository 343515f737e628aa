{{/*
What the operator asks of the API, in every namespace that it looks after. The list and its reasons come from
fluxpool_operator.access; a test compares both.
*/}}
{{- define "fluxpool.accessRules" -}}
- apiGroups: [fluxpool.dev]
  resources: [fluxworkerpools]
  verbs: [list, watch]
- apiGroups: [fluxpool.dev]
  resources: [fluxworkerpools/status]
  verbs: [patch]
# Not used by a request: clusters that enforce owner reference permissions, such as OpenShift, require it to set
# blockOwnerDeletion.
- apiGroups: [fluxpool.dev]
  resources: [fluxworkerpools/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- if .Values.podMonitors.enabled }}
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- end -}}
