-- Loads into the schema `recount` what the two topics and Weir have, for comparison with the tables
-- that the sink has written. psql runs it in the folder of the files.
\set ON_ERROR_STOP on
set client_min_messages = warning;
drop schema if exists recount cascade;
create schema recount;

-- The input, as the console consumer read it.
create table recount.input (record jsonb);
\copy recount.input from 'input.ndjson' with (format csv, quote e'\x01', delimiter e'\x02')

-- The keys that each table must have, from the input alone.
create view recount.keys as
  select 'latest' as name, record ->> 'rsvp_id' as key from recount.input
  union all select 'members', record -> 'member' ->> 'member_id' from recount.input
  union all select 'events', record -> 'event' ->> 'event_id' from recount.input
  union all select 'venues', record -> 'venue' ->> 'venue_id' from recount.input
  union all select 'groups', record -> 'group' ->> 'group_id' from recount.input
  union all select 'topics', topic ->> 'urlkey'
    from recount.input, jsonb_array_elements(record -> 'group' -> 'group_topics') topic
  union all select 'groups_topics', (record -> 'group' ->> 'group_id') || '/' || (topic ->> 'urlkey')
    from recount.input, jsonb_array_elements(record -> 'group' -> 'group_topics') topic;

-- Weir's tables, exported by `weir sql`.
create table recount.latest (like public.latest);
create table recount.members (like public.members);
create table recount.events (like public.events);
create table recount.venues (like public.venues);
create table recount.groups (like public.groups);
create table recount.topics (like public.topics);
create table recount.groups_topics (like public.groups_topics);
\copy recount.latest from 'latest.csv' with (format csv, header match)
\copy recount.members from 'members.csv' with (format csv, header match)
\copy recount.events from 'events.csv' with (format csv, header match)
\copy recount.venues from 'venues.csv' with (format csv, header match)
\copy recount.groups from 'groups.csv' with (format csv, header match)
\copy recount.topics from 'topics.csv' with (format csv, header match)
\copy recount.groups_topics from 'groups_topics.csv' with (format csv, header match)

create table recount.versions (
  lsn bigint, window_start timestamptz, window_end timestamptz, version bigint, status text,
  event_id text, event_name text, yes bigint
);
create table recount.top_events (like recount.versions);
\copy recount.versions from 'top_events_versions.csv' with (format csv, header match)
\copy recount.top_events from 'top_events.csv' with (format csv, header match)

-- The second topic: partition, offset, key and value of each message.
create table recount.lines (line text);
\copy recount.lines from 'top5.tsv' with (format csv, quote e'\x01', delimiter e'\x02')
create table recount.messages as
  select split_part(line, e'\t', 1) as partition, replace(split_part(line, e'\t', 2), 'Offset:', '')::bigint as "offset",
    split_part(line, e'\t', 3)::jsonb as key, split_part(line, e'\t', 4)::jsonb as value
  from recount.lines;
update recount.messages set value = null where value = 'null';

-- The rows that the messages carry, and the keys of those without a value, which delete their key.
create view recount.sent as
  select r.* from recount.messages, jsonb_populate_record(null::recount.versions, value) r where value is not null;
create view recount.deleted as
  select r.window_start, r.event_id, r.event_name
  from recount.messages, jsonb_populate_record(null::recount.versions, key) r where value is null;

-- The last message of each key, without deleted keys.
create view recount.newest as
  select r.* from (
    select distinct on (partition, key) value from recount.messages order by partition, key, "offset" desc
  ) m, jsonb_populate_record(null::recount.versions, m.value) r where m.value is not null;

-- The newest answer of each person to each event, from the input alone.
create view recount.answers as
  select distinct on (record -> 'rsvp_id') (record ->> 'rsvp_id')::bigint as rsvp_id,
    record -> 'event' ->> 'event_id' as event_id,
    (record -> 'group' ->> 'group_id')::bigint as group_id, (record -> 'member' ->> 'member_id')::bigint as member_id,
    (record -> 'venue' ->> 'venue_id')::bigint as venue_id, (record ->> 'guests')::int as guests,
    (record ->> 'mtime')::bigint as mtime, record ->> 'response' as response
  from recount.input order by record -> 'rsvp_id', (record ->> 'mtime')::bigint desc;
