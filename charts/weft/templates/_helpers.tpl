{{- define "weft.labels" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: weft
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "weft.selector" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "weft.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "weft.sidecar" -}}
{{- $set := dict }}
{{- range $name, $key := dict "cpu-request" "cpuRequest" "cpu-limit" "cpuLimit" "memory-request" "memoryRequest" "memory-limit" "memoryLimit" "log-level" "logLevel" }}
{{- with index $.Values.sidecar $key }}{{ $_ := set $set $name . }}{{ end }}
{{- end }}
{{- toJson $set | quote -}}
{{- end -}}
