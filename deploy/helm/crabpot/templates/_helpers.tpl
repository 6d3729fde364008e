{{- define "crabpot.name" -}}
{{- if contains "crabpot" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-crabpot" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "crabpot.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
app.kubernetes.io/name: crabpot
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end }}

{{- /* What selects a component's pods: dict "root" $ "component" "worker". */}}
{{- define "crabpot.selector" -}}
app.kubernetes.io/name: crabpot
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* A pod without root, without a shell's worth of rights, and with the API's token only where "token" says so. */}}
{{- define "crabpot.pod" -}}
serviceAccountName: {{ include "crabpot.name" .root }}-{{ .component }}
automountServiceAccountToken: {{ .token }}
enableServiceLinks: false
terminationGracePeriodSeconds: 30
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- range . }}
  - name: {{ . }}{{ end }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "crabpot.container" -}}
image: {{ printf "%s:%s" (required "image.repository: set it to where you pushed the image of crabpot's Dockerfile (or processes.enabled=false)" .root.Values.image.repository) (default .root.Chart.AppVersion .root.Values.image.tag) | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources: {{- toYaml .resources | nindent 2 }}
{{- end }}

{{- define "crabpot.environment" -}}
- name: CRABPOT_REDIS_URL
{{- if .Values.redis.secret.name }}
  valueFrom: {secretKeyRef: {name: {{ .Values.redis.secret.name }}, key: {{ .Values.redis.secret.key }}}}
{{- else }}
  value: {{ required "redis: set url, or secret.name where the URL holds a password (or processes.enabled=false)" .Values.redis.url | quote }}
{{- end }}
- {name: CRABPOT_CLUSTER, value: kubernetes}
- {name: CRABPOT_NAMESPACE, value: {{ (first .Values.builds.namespaces).name | quote }}}
{{- with .Values.serve.publicUrl }}
- {name: CRABPOT_PUBLIC_URL, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: CRABPOT_{{ $name }}, value: {{ (kindIs "float64" $value | ternary ($value | toString | float64 | int64) $value) | toString | quote }}}
{{- end }}
{{- end }}

{{- define "crabpot.alive" -}}
# The process touches the file while its work goes on, also while Redis or the cluster is away: then a restart would mend nothing.
startupProbe:
  exec: {command: [python, -m, worker.alive, /tmp/alive]}
  periodSeconds: 5
  timeoutSeconds: 10
  failureThreshold: 24
livenessProbe:
  exec: {command: [python, -m, worker.alive, /tmp/alive]}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 3
{{- end }}

{{- define "crabpot.account" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "crabpot.name" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "crabpot.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
automountServiceAccountToken: false
{{- end }}

{{- define "crabpot.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ include "crabpot.name" .root }}-{{ .component }}
  namespace: {{ .namespace }}
  labels: {{- include "crabpot.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ include "crabpot.name" .root }}-{{ .component }}}
subjects:
  - {kind: ServiceAccount, name: {{ include "crabpot.name" .root }}-{{ .component }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}

{{- define "crabpot.role" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ include "crabpot.name" .root }}-{{ .component }}
  namespace: {{ .namespace }}
  labels: {{- include "crabpot.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
{{- end }}
