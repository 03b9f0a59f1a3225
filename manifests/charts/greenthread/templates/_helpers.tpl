{{- define "greenthread.labels" -}}
app.kubernetes.io/part-of: greenthread
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Labels that select a part's pods: (dict "root" $ "part" "controller") */}}
{{- define "greenthread.selector" -}}
app.kubernetes.io/name: greenthread
app.kubernetes.io/component: {{ ternary "gateway" .part (eq .part "apiserver") }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* Labels of a part's own objects and pods, no key twice: (dict "root" $ "part" "controller") */}}
{{- define "greenthread.partLabels" -}}
{{ merge (include "greenthread.selector" . | fromYaml) (include "greenthread.labels" .root | fromYaml) | toYaml }}
{{- end }}

{{/* Image of a part: (dict "root" $ "image" .Values.controller.image) */}}
{{- define "greenthread.image" -}}
{{- $name := printf "%s/%s" (trimSuffix "/" .root.Values.image.registry) .image.repository -}}
{{- if .image.digest -}}
{{ $name }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "greenthread.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Namespaces with Models: the installation's, and those listed. */}}
{{- define "greenthread.modelNamespaces" -}}
{{- prepend .Values.modelNamespaces .Release.Namespace | uniq | toJson -}}
{{- end }}

{{/* Secret with a Hugging Face token, or nothing. */}}
{{- define "greenthread.tokenSecret" -}}
{{- if .Values.huggingfaceToken -}}
greenthread-huggingface
{{- else -}}
{{ .Values.huggingfaceTokenSecret }}
{{- end -}}
{{- end }}

{{/* What Pod Security "restricted" asks of a pod and of a container. */}}
{{- define "greenthread.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "greenthread.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Replicas on different nodes: (dict "root" $ "part" "controller") */}}
{{- define "greenthread.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "greenthread.selector" . | nindent 8 }}
{{- end }}

{{/* What clients are told: the Service of the gateway; without one "", and each Model names its own Service. */}}
{{- define "greenthread.gatewayURL" -}}
{{- if .Values.apiserver.enabled -}}
http://greenthread-apiserver.{{ .Release.Namespace }}.svc{{ if ne (int .Values.apiserver.service.port) 80 }}:{{ .Values.apiserver.service.port }}{{ end }}
{{- end }}
{{- end }}

{{/* OpenTelemetry's own variables: of the gateway, and of the controller, which hands them to the sidecars. */}}
{{- define "greenthread.tracing" -}}
{{- if .Values.tracing.endpoint -}}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .Values.tracing.endpoint | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .Values.tracing.samplingRatio | toString | quote }}}
{{- end }}
{{- end }}

{{/* A part's rights in every namespace of models: (dict "root" $ "part" "sidecar" "role" "greenthread-sidecar") */}}
{{- define "greenthread.modelBindings" -}}
{{- $own := .root.Release.Namespace }}
{{- range include "greenthread.modelNamespaces" .root | fromJsonArray }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $.role }}
  namespace: {{ . }}
  labels:
    {{- include "greenthread.labels" $.root | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $.role }}}
subjects:
  - {kind: ServiceAccount, name: greenthread-{{ $.part }}, namespace: {{ ternary . $own (eq $.part "sidecar") }}}
{{- end }}
{{- end }}

{{/* The labels that our queries group by, from the pod. */}}
{{- define "greenthread.podLabels" -}}
- {sourceLabels: [__meta_kubernetes_pod_label_greenthread_ai_model], targetLabel: model}
- {sourceLabels: [__meta_kubernetes_pod_node_name], targetLabel: node}
{{- end }}
