{{/* Names. */}}
{{- define "tidelog.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "tidelog.cluster" -}}
{{- default (include "tidelog.fullname" .) .Values.cluster.name -}}
{{- end }}

{{- define "tidelog.operatorAccount" -}}
{{- default (ternary (printf "%s-operator" (include "tidelog.fullname" .)) "default" .Values.operator.serviceAccount.create) .Values.operator.serviceAccount.name -}}
{{- end }}

{{- define "tidelog.brokerAccount" -}}
{{- default (ternary (printf "%s-broker" (include "tidelog.fullname" .)) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end }}

{{- define "tidelog.tlsSecret" -}}
{{- default (printf "%s-tls" (include "tidelog.cluster" .)) .Values.tls.secretName -}}
{{- end }}

{{- define "tidelog.tokensSecret" -}}
{{- default (printf "%s-tokens" (include "tidelog.cluster" .)) .Values.tokens.secretName -}}
{{- end }}

{{- define "tidelog.trialS3" -}}
{{- printf "%s-trial-s3" (include "tidelog.fullname" .) -}}
{{- end }}

{{- define "tidelog.trialPostgres" -}}
{{- printf "%s-trial-postgres" (include "tidelog.fullname" .) -}}
{{- end }}

{{/* The namespaces that the operator looks after, as JSON; "*" alone is all of them. */}}
{{- define "tidelog.namespaces" -}}
{{- default (list .Release.Namespace) .Values.operator.namespaces | toJson -}}
{{- end }}

{{- define "tidelog.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end }}

{{/* Labels: of everything, and those by which pods are found. Call with (list . "component"). */}}
{{- define "tidelog.labels" -}}
{{- $ := index . 0 -}}
{{ include "tidelog.selector" . }}
app.kubernetes.io/part-of: tidelog
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tidelog.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: tidelog-{{ index . 1 }}
app.kubernetes.io/instance: {{ $.Release.Name }}
{{- end }}

{{/* The labels that the operator gives to brokers' pods, and to the Service by which they are scraped. */}}
{{- define "tidelog.brokerSelector" -}}
app.kubernetes.io/name: tidelog-broker
app.kubernetes.io/instance: {{ include "tidelog.cluster" . }}
{{- end }}

{{- define "tidelog.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "tidelog.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "tidelog.pullSecrets" -}}
{{- range .Values.image.pullSecrets }}
- name: {{ . }}
{{- end }}
{{- end }}

{{/* The TidelogCluster's spec: what the values around decide, and above it what cluster.spec says. */}}
{{- define "tidelog.spec" -}}
{{- $spec := dict "image" (include "tidelog.image" .) "serviceAccountName" (include "tidelog.brokerAccount" .) -}}
{{- with .Values.image.pullSecrets }}
{{- $names := list }}
{{- range . }}{{ $names = append $names (dict "name" .) }}{{ end }}
{{- $_ := set $spec "imagePullSecrets" $names }}
{{- end }}
{{- if .Values.trial.s3.enabled }}
{{- $endpoint := printf "http://%s.%s.svc:7070" (include "tidelog.trialS3" .) .Release.Namespace }}
{{- $_ := set $spec "storage" (dict "bucket" "tidelog" "region" "us-east-1" "endpoint" $endpoint "credentialsSecretRef" (dict "name" (include "tidelog.trialS3" .))) }}
{{- $_ := set $spec "config" (dict "s3_addressing_style" "path") }}
{{- end }}
{{- if .Values.trial.postgres.enabled }}
{{- $_ := set $spec "metadataStore" (dict "urlSecretRef" (dict "name" (include "tidelog.trialPostgres" .) "key" "url")) }}
{{- end }}
{{- if .Values.tls.enabled }}
{{- $_ := set $spec "tls" (dict "secretRef" (dict "name" (include "tidelog.tlsSecret" .)) "clientCertificates" .Values.tls.clientCertificates) }}
{{- end }}
{{- if .Values.tokens.enabled }}
{{- $_ := set $spec "tokens" (dict "secretRef" (dict "name" (include "tidelog.tokensSecret" .))) }}
{{- end }}
{{- $spec = mergeOverwrite $spec (deepCopy .Values.cluster.spec) }}
{{- if .Values.hpa.enabled }}
{{- $spec = omit $spec "replicas" }}
{{- end }}
{{- toYaml $spec }}
{{- end }}

{{/* Values that contradict each other: what was asked, what was found, what to do. */}}
{{- define "tidelog.check" -}}
{{- $spec := .Values.cluster.spec }}
{{- if .Values.cluster.create }}
{{- $storage := dig "storage" dict $spec }}
{{- if and .Values.trial.s3.enabled $storage.bucket }}
{{- fail (printf "\ncluster.spec.storage.bucket is %q, but trial.s3.enabled is true, which brings a bucket of its own.\nSet trial.s3.enabled=false, or leave cluster.spec.storage out." $storage.bucket) }}
{{- end }}
{{- if not (or .Values.trial.s3.enabled $storage.bucket) }}
{{- fail "\ntrial.s3.enabled is false, but cluster.spec.storage.bucket names no bucket in its place.\nSet cluster.spec.storage.bucket (and region, endpoint, credentialsSecretRef where needed), or trial.s3.enabled=true." }}
{{- end }}
{{- $secret := dig "metadataStore" "urlSecretRef" "name" "" $spec }}
{{- if and .Values.trial.postgres.enabled $secret }}
{{- fail (printf "\ncluster.spec.metadataStore.urlSecretRef.name is %q, but trial.postgres.enabled is true, which brings a database of its own.\nSet trial.postgres.enabled=false, or leave cluster.spec.metadataStore out." $secret) }}
{{- end }}
{{- if not (or .Values.trial.postgres.enabled $secret) }}
{{- fail "\ntrial.postgres.enabled is false, but cluster.spec.metadataStore.urlSecretRef.name names no Secret with a database's URL in its place.\nMake one (kubectl create secret generic NAME --from-literal=url=postgresql://…) and name it, or set trial.postgres.enabled=true." }}
{{- end }}
{{- if and .Values.tls.clientCertificates (not (and .Values.tls.enabled .Values.tls.secretName)) }}
{{- fail "\ntls.clientCertificates is true, but the certificate authority that the chart makes issues no certificates for clients.\nName in tls.secretName a Secret with tls.crt, tls.key and the clients' authorities in ca.crt (and set tls.enabled=true), or set tls.clientCertificates=false." }}
{{- end }}
{{- $scaling := dig "autoscaling" dict $spec }}
{{- if and .Values.hpa.enabled $scaling.enabled }}
{{- fail "\nhpa.enabled and cluster.spec.autoscaling.enabled are both true, but two may not decide how many brokers there are.\nSet one of them to false." }}
{{- end }}
{{- if gt (int .Values.hpa.minReplicas) (int .Values.hpa.maxReplicas) }}
{{- fail (printf "\nhpa.minReplicas is %d, which is more than hpa.maxReplicas, %d.\nLower the first or raise the second." (int .Values.hpa.minReplicas) (int .Values.hpa.maxReplicas)) }}
{{- end }}
{{- if gt (int (default 2 $scaling.minReplicas)) (int (default 10 $scaling.maxReplicas)) }}
{{- fail (printf "\ncluster.spec.autoscaling.minReplicas is %d, which is more than maxReplicas, %d.\nLower the first or raise the second." (int (default 2 $scaling.minReplicas)) (int (default 10 $scaling.maxReplicas))) }}
{{- end }}
{{- else if or .Values.hpa.enabled .Values.externalService.enabled .Values.trial.s3.enabled .Values.trial.postgres.enabled }}
{{- fail "\ncluster.create is false, so there is nothing that hpa, externalService, trial.s3 and trial.postgres could be for.\nSet hpa.enabled, externalService.enabled, trial.s3.enabled and trial.postgres.enabled to false, or cluster.create=true." }}
{{- end }}
{{- end }}
