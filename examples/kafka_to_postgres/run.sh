#!/usr/bin/env bash
# Runs Weir between a Kafka broker and a PostgreSQL server, kills it while records arrive, and at the
# end recounts and compares everything. README.md says what is needed.
#
#   examples/kafka_to_postgres/run.sh [--records 20000] [--rate 400] [--kills 1] [--keep]
#
# --rate is in records per second, --keep keeps the folder with all data. WEIR_BIN names the binary
# (default: target/release/weir, else target/debug/weir). Exit code 1: something differs or failed.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
repository="$(cd "$here/../.." && pwd)"
broker="$repository/benches/kafka/broker"
records=20000 rate=400 kills=1 keep=false
tables=(latest members events venues groups topics groups_topics)

say() { printf '%s\n' "$*"; }
fail() {
  printf 'run.sh: %s\n' "$*" >&2
  exit 1
}

while [ $# -gt 0 ]; do
  case "$1" in
    --records) records="${2:?a number}" && shift 2 ;;
    --rate) rate="${2:?a number}" && shift 2 ;;
    --kills) kills="${2:?a number}" && shift 2 ;;
    --keep) keep=true && shift ;;
    *) sed -n '5,8p' "$0" >&2 && exit 2 ;;
  esac
done

[[ "$records" =~ ^[1-9][0-9]*$ && "$rate" =~ ^[1-9][0-9]*$ && "$kills" =~ ^[0-9]+$ ]] || fail "whole numbers are needed"

weir="${WEIR_BIN:-}"
for candidate in "$repository/target/release/weir" "$repository/target/debug/weir"; do
  [ -n "$weir" ] || [ ! -x "$candidate" ] || weir="$candidate"
done
[ -x "$weir" ] || fail "there is no binary of Weir: cargo build --release"
weir="$(realpath "$weir")"
initdb="$(compgen -G "/usr/lib/postgresql/*/bin/initdb" | sort -V | tail -n 1 || command -v initdb || true)"
[ -n "$initdb" ] || fail "PostgreSQL is missing: apt install postgresql"
programs="$(dirname "$initdb")"
command -v java > /dev/null || fail "java is missing: apt install default-jre-headless"

# Ends a child and returns its exit code: stop SIGNAL PID
stop() { kill "-$1" "$2" && wait "$2"; } 2> /dev/null

# What was started is ended by its pid, whatever happens.
folder="$(mktemp -d "${TMPDIR:-/tmp}/weir-example.XXXXXX")"
weir_pid="" generator_pid="" postgres_pid=""
clean_up() {
  local code=$?
  trap - EXIT
  [ -z "$weir_pid" ] || stop KILL "$weir_pid" || true
  [ -z "$generator_pid" ] || stop KILL "$generator_pid" || true
  [ -z "$postgres_pid" ] || stop INT "$postgres_pid" || true
  [ ! -d "$folder/kafka" ] || "$broker" stop "$folder/kafka" || true
  if $keep; then
    say "The data is in $folder."
  else
    rm -rf "$folder"
  fi
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# A port that is free, and the next one as well.
free_port() {
  local port
  for _ in $(seq 100); do
    port=$((20000 + RANDOM % 10000))
    if ! (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null && ! (: < "/dev/tcp/127.0.0.1/$((port + 1))") 2> /dev/null; then
      echo "$port"
      return
    fi
  done
  fail "no free port"
}

# Waits until a command succeeds: wait_until SECONDS WHAT COMMAND …
wait_until() {
  local seconds="$1" what="$2" until
  shift 2
  until=$((SECONDS + seconds))
  while ! "$@"; do
    [ "$SECONDS" -lt "$until" ] || fail "$what: not after $seconds seconds"
    [ -z "$weir_pid" ] || kill -0 "$weir_pid" 2> /dev/null || fail "weir run has ended: $(tail -n 1 weir.log)"
    sleep 0.2
  done
}

kafka_port="$(free_port)" postgres_port="$(free_port)" http_port="$(free_port)"
brokers="127.0.0.1:$kafka_port"
cd "$folder"

say "1. A Kafka broker starts at $brokers, with the topics rsvps and rsvps.top5."
"$broker" start "$folder/kafka" "$kafka_port" > /dev/null
for topic in rsvps rsvps.top5; do
  "$broker" topic "$folder/kafka" "$topic" 3 2> topic.log || fail "the topic $topic: $(tail -n 1 topic.log)"
done

say "2. PostgreSQL starts at 127.0.0.1:$postgres_port, with the database events of the user weir."
(umask 077 && head -c 18 /dev/urandom | base64 > warehouse.password)
mkdir postgres
cp warehouse.password postgres/password
as_server=()
if [ "$(id -u)" = 0 ]; then
  # The server does not run as root.
  chmod 711 "$folder"
  chown -R postgres postgres
  as_server=(setpriv --reuid=postgres --regid=postgres --clear-groups)
fi
(cd postgres && LC_ALL=C "${as_server[@]}" "$initdb" -D data -U weir -E UTF8 --locale=C --no-sync \
  --auth=scram-sha-256 --pwfile=password) > initdb.log 2>&1 || fail "initdb: $(tail -n 1 initdb.log)"
(cd postgres && exec env LC_ALL=C "${as_server[@]}" "$programs/postgres" -D data -p "$postgres_port" \
  -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off) > postgres.log 2>&1 &
postgres_pid=$!
psql() {
  PGPASSWORD="$(cat "$folder/warehouse.password")" PGTZ=UTC PGCONNECT_TIMEOUT=5 "$programs/psql" -XqAt -F , \
    -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$postgres_port" -U weir -d "${database:-events}" "$@"
}
answers() { database=postgres psql -c "select 1" > /dev/null 2>&1; }
wait_until 30 "PostgreSQL answers" answers
database=postgres psql -c "create database events"

sed -e "s/127.0.0.1:9092/$brokers/; s/127.0.0.1:5432/127.0.0.1:$postgres_port/; s/127.0.0.1:8080/127.0.0.1:$http_port/" \
  "$here/weir.toml" > weir.toml
"$weir" check > check.log 2>&1 || fail "weir check: $(cat check.log)"

say "3. weir generate sends $records records to the topic rsvps, $rate a second."
"$weir" generate --count "$records" --rate "$rate" --start now --to "kafka://$brokers/rsvps" --key rsvp_id > generate.log 2>&1 &
generator_pid=$!

start_weir() {
  "$weir" run > /dev/null 2>> weir.log &
  weir_pid=$!
}
has_rows() { [ "$(psql -c "select count(*) from latest" 2> /dev/null || echo 0)" -ge "$1" ]; }

sql() { "$weir" sql "$1" --output csv --quiet; }
cell() { sql "$1" | tail -n 1; }
has_read_all() { [ "$(cell "select count(*) from rsvps" 2> /dev/null)" = "$records" ]; }

say "4. weir run reads it and feeds both sinks; meanwhile: http://127.0.0.1:$http_port/"
start_weir
for n in $(seq "$kills"); do
  # Fewer rows than records: some records are duplicates or change an earlier answer.
  rows=$((records * n * 4 / (kills + 1) / 5))
  wait_until $((records / rate + 120)) "$rows rows in PostgreSQL" has_rows "$rows"
  sleep "$((RANDOM % 2)).$((RANDOM % 10))"
  stop KILL "$weir_pid" || true
  weir_pid=""
  say "   kill -9: PostgreSQL has $(psql -c "select count(*) from latest") answers. Weir starts again and continues."
  start_weir
done
wait "$generator_pid" || fail "weir generate: $(tail -n 1 generate.log)"
generator_pid=""

say "5. All records are in the topic. Weir reads the rest and stops; a bounded run closes all windows."
wait_until 300 "weir run has read all records" has_read_all
stop TERM "$weir_pid" || fail "weir run ended with $?: $(tail -n 1 weir.log)"
weir_pid=""
"$weir" run --once --final > once.log 2>&1 || fail "weir run --once: $(tail -n 1 once.log)"

say "6. Everything is read back: both topics by Kafka's console consumer, Weir's tables by weir sql."
libraries="$("$broker" libraries)"
# Committed messages of a topic: consume TOPIC OPTION …
consume() {
  local topic="$1"
  shift
  java -Xmx256m -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$libraries/*" \
    org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "$brokers" --topic "$topic" \
    --from-beginning --isolation-level read_committed --timeout-ms 10000 "$@" 2>> consumer.log
}
properties=()
for part in partition offset key; do
  properties+=(--formatter-property "print.$part=true")
done
consume rsvps > input.ndjson
consume rsvps.top5 "${properties[@]}" > top5.tsv
for table in "${tables[@]}"; do
  columns="$(psql -c "select string_agg(quote_ident(column_name), ', ' order by ordinal_position)
    from information_schema.columns where table_schema = 'public' and table_name = '$table'")"
  sql "select $columns from rsvps.$table" > "$table.csv"
done
columns="lsn, window_start, window_end, version, status, event_id, event_name, yes"
sql "select $columns from top_events_versions" > top_events_versions.csv
sql "select $columns from top_events" > top_events.csv
psql -f "$here/recount.sql"

differences=0
# Compares values, which a query that failed leaves empty: same WHAT EXPECTED FOUND …
same() {
  local what="$1" expected="$2" found
  for found in "${@:3}"; do
    if [ -z "$found" ] || [ "$found" != "$expected" ]; then
      say "   DIFFERENT  $what: ${*:2}"
      differences=$((differences + 1))
      return
    fi
  done
  say "   equal      $what: $expected"
}
# The number of rows that are in one of two queries and not in the other.
differing() { psql -c "select count(*) from ((($1) except all ($2)) union all (($2) except all ($1))) d"; }

say "7. The input: Weir has each message of the topic once."
same "messages sent, and in the topic" "$records" "$(psql -c "select count(*) from recount.input")"
same "rows and distinct offsets in raw" "$records,$records" \
  "$(cell "select count(*), count(distinct \"partition\" || '/' || source_offset) from raw where kind = 'record'")"
same "rows and distinct LSNs of the stream" "$records,$records" "$(cell "select count(*), count(distinct lsn) from rsvps")"

say "8. Third normal form: rows and distinct keys by the input, in Weir and in PostgreSQL; then the contents."
for table in "${tables[@]}"; do
  case "$table" in
    latest) key=rsvp_id ;;
    groups_topics) key="group_id || '/' || urlkey" ;;
    topics) key=urlkey ;;
    *) key="${table%s}_id" ;;
  esac
  counts="select count(*), count(distinct $key) from"
  expected="$(psql -c "select count(distinct key) from recount.keys where name = '$table'")"
  same "$table, rows and keys" "$expected,$expected" "$(cell "$counts rsvps.$table")" "$(psql -c "$counts $table")"
  same "$table, rows that differ" 0 "$(differing "table recount.$table" "table public.$table")"
done
columns="rsvp_id, event_id, group_id, member_id, venue_id, guests, mtime, response"
same "latest, rows that differ from the newest answers of the input" 0 \
  "$(differing "table recount.answers" "select $columns from latest")"
same "latest, LSNs that occur twice" 0 "$(psql -c "select count(*) - count(distinct lsn) from latest")"

say "9. The second topic, as a reader of committed messages sees it."
same "messages, and rows of top_events_versions" "$(cell "select count(*) from top_events_versions where status <> 'open'")" \
  "$(psql -c "select count(*) from recount.messages")"
same "messages that differ from their rows" 0 \
  "$(differing "select * from recount.versions where status not in ('open', 'retracted')" "table recount.sent")"
columns="window_start, event_id, event_name"
same "messages without a value that differ from the keys of retracted rows" 0 \
  "$(differing "select $columns from recount.versions where status = 'retracted'" "table recount.deleted")"
same "newest messages of a key that differ from top_events" 0 \
  "$(differing "select * from recount.top_events where status <> 'open'" "table recount.newest")"
same "messages with an LSN and a key that another one has" 0 \
  "$(psql -c "select count(*) - count(distinct (value -> 'lsn', key)) from recount.messages where value is not null")"

say "10. The sinks themselves."
same "records that a sink has yet to deliver, and rows that a target refused" 0,0 \
  "$(cell "select sum(lag), sum(dead_letters) from weir.sinks")"

[ "$differences" = 0 ] || fail "$differences comparisons differ"
say "Everything is equal: nothing is lost and nothing is there twice."
