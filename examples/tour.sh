#!/usr/bin/env bash
# A tour of the HTTP API with curl. It needs a running server with a stream of the preset `rsvps`:
#
#   weir demo                                  # in another terminal
#   examples/tour.sh                           # or: examples/tour.sh https://127.0.0.1:8443
#
# It adds one event, one record that is refused, and nothing else. WEIR_TOKEN is sent if it is set, and
# WEIR_CERT names the certificate of a server with one of its own. Exit code 1: an answer was not as
# expected. /docs on the server describes every route.
set -euo pipefail
base="${1:-http://127.0.0.1:8080}"
options=(--silent --show-error --fail-with-body --max-time 20)
[ -z "${WEIR_TOKEN:-}" ] || options+=(--header "Authorization: Bearer $WEIR_TOKEN")
[ -z "${WEIR_CERT:-}" ] || options+=(--cacert "$WEIR_CERT")

live="" follower=""
clean_up() {
  [ -z "$follower" ] || kill "$follower" 2> /dev/null || true
  [ -z "$live" ] || rm -f "$live"
}
trap clean_up EXIT

step() { printf '\n# %s\n' "$1"; }

# Prints a request and the beginning of its answer: call PATH OPTION …
answer=""
call() {
  local path="$1"
  shift
  printf 'curl %s%s' "$base" "$path"
  [ $# = 0 ] || printf ' %q' "$@"
  printf '\n'
  answer="$(curl "${options[@]}" "$@" "$base$path")"
  printf '%s\n' "${answer:0:500}"
}

# Ends the tour unless the last answer has this text.
expect() {
  case "$answer" in
    *"$1"*) ;;
    *) printf 'tour.sh: the answer lacks %s\n' "$1" >&2 && exit 1 ;;
  esac
}

# Asks until the answer has this text, since what was acknowledged is in answers a moment later:
# call_until TEXT PATH OPTION …
call_until() {
  local text="$1" path="$2" tries=0
  shift 2
  until curl "${options[@]}" "$@" "$base$path" | grep -qF "$text" || [ $((tries += 1)) = 200 ]; do
    sleep 0.1
  done
  call "$path" "$@"
  expect "$text"
}

id=$((8000000000000 + $(date +%s%N) / 1000000 % 1000000000000))
now="$(date +%s%3N)"
event="{\"rsvp_id\": $id, \"mtime\": $now, \"response\": \"yes\", \"guests\": 1,
  \"event\": {\"event_id\": \"tour$id\", \"event_name\": \"A tour with curl $id\", \"time\": $((now + 86400000))},
  \"venue\": {\"venue_id\": $id, \"venue_name\": \"Null Island Club\", \"lat\": -48.8767, \"lon\": -123.3933},
  \"group\": {\"group_id\": 1, \"group_name\": \"Walkers\", \"group_country\": \"tv\"}}"

step "Is it alive, and does it take records?"
call /healthz
expect pid
call /readyz

step "Rows as they arrive, by server-sent events: this one waits in the background for the event below."
live="$(mktemp)"
printf 'curl -N %s/api/v1/live?stream=rsvps\n' "$base"
curl "${options[@]}" --max-time 60 --no-buffer --include "$base/api/v1/live?stream=rsvps" > "$live" &
follower=$!
for _ in $(seq 200); do
  grep -q event-stream "$live" && break
  sleep 0.1
done

step "An event, acknowledged when it is on the disk; the key makes a repeated request harmless."
for _ in 1 2; do
  call /api/v1/streams/rsvps/events --header "Idempotency-Key: tour-$id" --data-binary "$event"
  expect '"accepted":1'
done

step "A record that breaks a rule is a dead letter with its reason; the request succeeds all the same."
call /api/v1/streams/rsvps/events --data-binary "{\"rsvp_id\": $id, \"response\": \"yes\"}"
expect '"rejected_total":1'
call_until mtime /api/v1/sql --json "{\"sql\": \"select reason, stream from dead_letters order by lsn desc limit 1\"}"

step "SQL: the event is there once. as_of says how fresh the answer is. Other formats are ndjson, csv and arrow."
call_until '"n":1' /api/v1/sql --json "{\"sql\": \"select count(*) as n, min(event_name) as name from rsvps where rsvp_id = $id\"}"
call /api/v1/sql --json "{\"sql\": \"select rsvp_id, response, country from rsvps where rsvp_id = $id\", \"format\": \"csv\"}"
expect "$id,yes,tv"

step "What followed the live stream has seen it, too."
for _ in $(seq 200); do
  grep -qF "tour$id" "$live" && break
  sleep 0.1
done
answer="$(grep -aF "tour$id" "$live" || true)"
printf '%s\n' "${answer:0:300}"
expect "tour$id"

step "Counts, without a scan."
call_until '"tv"' "/api/v1/count?by=country&from=now-10m"

step "Full-text search."
call_until '"total":1' "/api/v1/search?q=%22tour%20with%20curl%22%20$id&limit=1"

step "The nearest venue, with what happens there."
call_until 'Null Island Club' "/api/v1/nearby?lat=-48.9&lon=-123.4&limit=1"

step "A window: the running totals of ten seconds each, open ones included."
call_until window_start "/api/v1/windows/totals?limit=2"

step "How far everything is; then for Prometheus, and as OpenAPI."
call /api/v1/status
expect synced_lsn
call /metrics
expect weir_log_synced_lsn
call /openapi.json
expect '"openapi"'

step "The tour is over: every answer was as expected."
