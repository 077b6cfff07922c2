#!/usr/bin/env bash
# What a timer, cron or a CronJob calls: submits jobs/retrain.py to the cluster,
# waits for its end and exits with its exit code (0; 2: wrong settings; 69:
# MLflow does not answer; 75: another re-training is at work), which
# `ray job submit` turns into 1. A job that somebody stopped is 143. Where the
# cluster goes away before the end, which `ray job submit` calls a success, it
# is 69: the next call goes on where the job was, or finds its lock.
#
#   RAY_ADDRESS         dashboard of the cluster, http://HEAD:8265; with tokens
#                       also RAY_AUTH_MODE=token and RAY_AUTH_TOKEN
#   LSEG_RETRAIN_ARGS   arguments of jobs/retrain.py; default: a shipped recipe
#   LSEG_RAY            the ray command; default: that of .venv, else of PATH
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."

if [[ -z "${RAY_ADDRESS:-}" ]]; then
  echo "error: RAY_ADDRESS: must be the dashboard of the cluster: set it to http://HEAD:8265" >&2
  exit 2
fi
ray="${LSEG_RAY:-.venv/bin/ray}"
if [[ -z "${LSEG_RAY:-}" && ! -x "$ray" ]]; then
  ray=ray
fi
if ! command -v "$ray" >/dev/null; then
  echo "error: LSEG_RAY=$ray: must be the ray command: install Ray here, or name its place" >&2
  exit 2
fi
default="--config jobs/recipes/mix7_vitl16.yaml --data.shards s3://shards/mix7"
default+=" --run.storage s3://runs --run.name retrain --registry.name lseg"
# Of any number of lines, as YAML files write them.
read -r -d '' -a arguments <<<"${LSEG_RETRAIN_ARGS:-$default}" || true
# What is uploaded has no .git: the job is told which commit it runs, if this is a checkout.
commit="$(git describe --always --abbrev=40 --dirty '--exclude=*' 2>/dev/null || true)"
runtime_env='{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120",
  "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
  "LSEG_CLUSTER_WAIT_S": "1800"'"${commit:+, \"LSEG_GIT_COMMIT\": \"$commit\"}"'}}'

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
code=0
"$ray" job submit --working-dir . --runtime-env-json "$runtime_env" \
  -- python jobs/retrain.py "${arguments[@]}" 2>&1 | tee "$log" || code=$?
# Only its word says how the job ended: the end of a job that was stopped, and that
# of the connection to a cluster that goes away, may count as a success there.
job="$(sed -n "s/.*Job '\([^']*\)' submitted.*/\1/p" "$log" | head -n 1)"
if [[ -z "$job" ]]; then
  exit "$((code == 0 ? 1 : code))"
elif grep -qF "Job '$job' succeeded" "$log"; then
  exit "$code"
elif grep -qF "Job '$job' was stopped" "$log"; then
  exit 143
elif grep -qF "Job '$job' failed" "$log"; then
  found="$(sed -n 's/.*entrypoint command failed with exit code \([0-9][0-9]*\).*/\1/p' "$log" | tail -n 1)"
  exit "${found:-$code}"
fi
echo "error: the connection to $RAY_ADDRESS ended before the job did" >&2
exit 69
