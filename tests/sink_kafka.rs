//! Sinks to Kafka, against a mock cluster in this process: what is in the topic is the table, once.
//! The mock has no transactions that abort; those are for a real broker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::Value;

use crate::support::{FILE_ONLY, TestFolder, canonical, file_source, ndjson, records};

const TIMEOUT: Duration = Duration::from_secs(20);
const PARTITIONS: i32 = 3;

/// A cluster with one topic.
struct Cluster(MockCluster<'static, DefaultProducerContext>);

/// A message of the topic: key and value.
type Sent = (Option<String>, Option<Value>);

impl Cluster {
    fn new() -> Self {
        let mock = MockCluster::new(1).expect("a cluster");
        mock.create_topic("out", PARTITIONS, 1).expect("a topic");
        Self(mock)
    }

    /// A sink of a table, as it is configured.
    fn sink(&self, from: &str, keys: &str) -> String {
        let brokers = self.0.bootstrap_servers();
        format!(
            "[[sinks]]\nname = \"out\"\ntype = \"kafka\"\nfrom = \"{from}\"\nbrokers = [\"{brokers}\"]\ntopic = \"out\"\n{keys}\n"
        )
    }

    /// All messages, partition by partition, in the order of their offsets.
    fn messages(&self) -> Vec<Sent> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.0.bootstrap_servers())
            .set("group.id", "reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()
            .expect("a consumer");
        let mut messages = Vec::new();
        for partition in 0..PARTITIONS {
            let watermarks = consumer.fetch_watermarks("out", partition, TIMEOUT);
            let (begin, end) = watermarks.expect("an answer");
            let mut list = TopicPartitionList::new();
            list.add_partition_offset("out", partition, Offset::Offset(begin))
                .expect("an offset");
            consumer.assign(&list).expect("assigned");
            // The last offset of a partition may be the mark of a transaction.
            let mut found = 0;
            while found < end - begin
                && let Some(message) = consumer.poll(Duration::from_secs(5))
            {
                let message = message.expect("a message");
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
                let value = |bytes: &[u8]| serde_json::from_slice(bytes).expect("JSON");
                messages.push((message.key().map(text), message.payload().map(value)));
                found = message.offset() + 1 - begin;
            }
        }
        messages
    }
}

/// A folder with the preset, the sink and some records.
fn folder(sink: &str, records: &[Value]) -> TestFolder {
    let folder = TestFolder::new(sink);
    folder.write("in.ndjson", &ndjson(records));
    folder
}

/// Rows without the times at which they arrived, by a column.
fn by_column(rows: Vec<Value>, column: &str) -> BTreeMap<String, Value> {
    let rows = rows.into_iter();
    let keyed = rows.map(|row| (row[column].to_string(), row));
    keyed.collect()
}

#[test]
fn each_row_of_a_stream_is_a_message_once() {
    let cluster = Cluster::new();
    let records = records(300, 1);
    let folder = folder(&cluster.sink("rsvps", "key = \"event_id\""), &records);
    folder.run_once();
    let sent = cluster.messages();
    let rows = folder.rows("select * exclude (year, month, day, hour) from rsvps order by lsn");
    assert_eq!(sent.len(), rows.len());
    for (key, value) in &sent {
        let event = value.as_ref().expect("a row")["event_id"].as_str();
        assert_eq!(key.as_deref(), event);
    }
    let values = sent.into_iter().filter_map(|(_, value)| value).collect();
    assert_eq!(by_column(values, "lsn"), by_column(rows, "lsn"));
    // Nothing is sent again.
    folder.run_once();
    assert_eq!(cluster.messages().len(), records.len());
    let sinks = folder.rows("select state, lag, dead_letters from weir.sinks");
    assert_eq!(
        sinks[0],
        serde_json::json!({"state": "running", "lag": 0, "dead_letters": 0})
    );
    // A reset does.
    folder.succeed(&["sinks", "reset", "out", "--from", "earliest"]);
    folder.run_once();
    assert_eq!(cluster.messages().len(), 2 * records.len());
}

#[test]
fn a_backlog_of_several_ranges_is_sent_once() {
    let cluster = Cluster::new();
    let records = records(12_000, 5);
    let folder = folder("", &records);
    folder.run_once();
    folder.configure(&format!("{}{FILE_ONLY}", cluster.sink("rsvps", "")));
    folder.run_once();
    let sent = cluster.messages();
    let rows = folder.rows("select * exclude (year, month, day, hour) from rsvps order by lsn");
    assert_eq!((sent.len(), rows.len()), (records.len(), records.len()));
    let values = sent.into_iter().filter_map(|(_, value)| value).collect();
    assert_eq!(by_column(values, "lsn"), by_column(rows, "lsn"));
    // The cursor is after all of them.
    folder.run_once();
    assert_eq!(cluster.messages().len(), records.len());
}

#[test]
fn the_last_message_of_each_key_is_the_table_of_a_window_and_of_entities() {
    for (table, columns) in [
        (
            "by_country",
            "window_start, window_end, country, n, status, version",
        ),
        ("rsvps.members", "*"),
    ] {
        let cluster = Cluster::new();
        let folder = folder(&cluster.sink(table, ""), &records(400, 2));
        folder.succeed(&["run", "--once"]);
        let more = [records(400, 2), records(600, 3)].concat();
        folder.write("in.ndjson", &ndjson(&more));
        folder.succeed(&["run", "--once", "--final"]);
        let mut last = BTreeMap::new();
        for (key, value) in cluster.messages() {
            last.insert(key.expect("a key"), value);
        }
        let rows = folder.rows(&format!(
            "select {columns} from \"{}\"",
            table.replace('.', "\".\"")
        ));
        let mut expected: Vec<String> = rows.iter().map(canonical).collect();
        let wanted = |row: &Value| {
            let mut row = row.clone();
            let names: Vec<&String> = rows[0].as_object().expect("a row").keys().collect();
            let object = row.as_object_mut().expect("a row");
            object.retain(|name, _| names.contains(&name));
            canonical(&row)
        };
        let mut found: Vec<String> = last.values().flatten().map(wanted).collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{table}");
    }
}

#[test]
fn a_row_over_the_limit_of_messages_is_refused_and_the_others_are_sent() {
    let cluster = Cluster::new();
    let stream = "[streams.events]\nschema = \"id bigint not null, at bigint not null, note varchar\"\nselect = \"select to_timestamp_millis(at) as event_time, id, note from events\"\n";
    let limits = "[limits]\nrecord = \"8MiB\"\n";
    let folder = TestFolder::new("");
    folder.configure(&format!(
        "{limits}{}{}{stream}",
        cluster.sink("events", ""),
        file_source("events")
    ));
    let event = |id: u64, bytes: usize| serde_json::json!({"id": id, "at": 1_465_520_400_000_u64 + id, "note": "x".repeat(bytes)});
    folder.write(
        "events.ndjson",
        &ndjson(&[event(1, 10), event(2, 5 << 20), event(3, 10)]),
    );
    folder.run_once();
    let sent = cluster.messages();
    let mut ids: Vec<u64> = sent
        .iter()
        .filter_map(|(_, value)| value.as_ref()?["id"].as_u64())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 3]);
    let refused = folder.rows("select sink, \"table\", reason from weir.sink_dead_letters");
    assert_eq!(refused.len(), 1);
    let reason = refused[0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("over the limit of the topic"), "{reason}");
    // It is refused once.
    folder.succeed(&["sinks", "reset", "out", "--from", "earliest"]);
    folder.run_once();
    assert_eq!(
        folder.number("select count(*) from weir.sink_dead_letters"),
        1
    );
    folder.succeed(&["sinks", "resume", "out", "--discard-dead-letters"]);
    assert_eq!(
        folder.number("select count(*) from weir.sink_dead_letters"),
        0
    );
}

/// LSNs of the messages, those of aborted transactions included, which the mock shows too.
fn sent_lsns(cluster: &Cluster) -> BTreeSet<u64> {
    let messages = cluster.messages().into_iter();
    let rows = messages.filter_map(|(_, value)| value);
    rows.filter_map(|row| row["lsn"].as_u64()).collect()
}

/// The next request with messages is refused because of its size. The mock does not look at it.
fn refuse_a_batch(cluster: &Cluster) {
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    let errors = [too_large];
    cluster.0.request_errors(RDKafkaApiKey::Produce, &errors);
}

#[test]
fn a_batch_that_the_topic_does_not_take_is_sent_in_smaller_ones() {
    let cluster = Cluster::new();
    let records = records(12_000, 6);
    let folder = folder("", &records);
    folder.run_once();
    folder.configure(&format!("{}{FILE_ONLY}", cluster.sink("rsvps", "")));
    refuse_a_batch(&cluster);
    folder.run_once();
    let sinks = folder.rows("select state, lag, dead_letters from weir.sinks");
    let expected = serde_json::json!({"state": "running", "lag": 0, "dead_letters": 0});
    assert_eq!(sinks[0], expected);
    assert_eq!(sent_lsns(&cluster).len(), records.len());
}

#[test]
fn a_row_that_the_broker_refuses_amid_a_backlog_does_not_hold_the_others() {
    let cluster = Cluster::new();
    let stream = "[streams.events]\nschema = \"id bigint not null, at bigint not null, note varchar\"\nselect = \"select to_timestamp_millis(at) as event_time, id, note from events\"\n";
    let folder = TestFolder::new("");
    folder.configure(&format!("{}{stream}", file_source("events")));
    // Each is longer than a batch, and sent alone.
    let event = |id: u64| serde_json::json!({"id": id, "at": 1_465_520_400_000_u64 + id, "note": "x".repeat(600 << 10)});
    let events: Vec<Value> = (1..=40).map(event).collect();
    folder.write("events.ndjson", &ndjson(&events));
    folder.run_once();
    let sink = cluster.sink("events", "");
    folder.configure(&format!("{sink}{}{stream}", file_source("events")));
    refuse_a_batch(&cluster);
    folder.run_once();
    let sinks = folder.rows("select state, lag from weir.sinks");
    assert_eq!(sinks[0], serde_json::json!({"state": "running", "lag": 0}));
    let refused = folder.rows("select lsn from weir.sink_dead_letters");
    assert_eq!(refused.len(), 1);
    let mut lsns = sent_lsns(&cluster);
    lsns.extend(refused[0]["lsn"].as_u64());
    assert_eq!(lsns.len(), events.len());
}

#[test]
fn a_run_whose_sink_is_late_fails_with_everything_committed() {
    let dead = "[[sinks]]\nname = \"out\"\ntype = \"kafka\"\nfrom = \"rsvps\"\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"out\"\n";
    let folder = folder(dead, &records(50, 4));
    let message = folder.fail(&["run", "--once", "--sinks-timeout", "1s"], 1);
    assert!(
        message.contains("not everything was delivered: sink `out` is"),
        "{message}"
    );
    assert_eq!(folder.number("select count(*) from rsvps"), 50);
    // A paused sink is not waited for.
    folder.succeed(&["sinks", "pause", "out"]);
    let message = folder.run_once();
    assert!(
        message.contains("sink `out` (paused): 0 rows delivered"),
        "{message}"
    );
}

#[test]
fn a_sink_that_lacks_what_retention_removed_halts_until_it_is_reset() {
    let cluster = Cluster::new();
    let stream = "[streams.events]\nschema = \"id bigint not null, at bigint not null\"\nselect = \"select to_timestamp_millis(at) as event_time, id from events\"\nretention = \"2h\"\n";
    let folder = TestFolder::new("");
    let sink = cluster.sink("events", "");
    folder.configure(&format!("{sink}{}{stream}", file_source("events")));
    let minutes = |count: u64| -> Vec<Value> {
        let event = |id| serde_json::json!({"id": id, "at": 1_465_520_400_000_u64 + id * 60_000});
        (0..count).map(event).collect()
    };
    folder.write("events.ndjson", &ndjson(&minutes(60)));
    folder.run_once();
    folder.succeed(&["sinks", "pause", "out"]);
    // The second run removes the hours that the first one has made too old.
    folder.write("events.ndjson", &ndjson(&minutes(900)));
    folder.run_once();
    folder.run_once();
    let rows = folder.number("select count(*) from events");
    assert!(rows < 300, "{rows} rows");
    folder.succeed(&["sinks", "resume", "out"]);
    let message = folder.fail(&["run", "--once", "--sinks-timeout", "20s"], 1);
    assert!(
        message.contains("rows have left the table by its retention"),
        "{message}"
    );
    assert_eq!(cluster.messages().len(), 60);
    folder.succeed(&["sinks", "reset", "out", "--from", "earliest"]);
    folder.run_once();
    folder.run_once();
    assert_eq!(cluster.messages().len() as u64, 60 + rows);
}
