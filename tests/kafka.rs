//! Kafka, against a mock cluster in this process: each record once whatever the group's offsets
//! say, and a position that the broker does not have halts its partition alone.

use std::process::{Command, Stdio};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::server::Server;
use crate::support::{TestFolder, wait_until};

pub const TIMEOUT: Duration = Duration::from_secs(20);
const GROUP: &str = "weir-test";

const STREAM: &str = "[streams.events]\nschema = \"id bigint not null, at bigint not null\"\nselect = \"select to_timestamp_millis(at) as event_time, id from events\"\n";

/// A cluster with a producer.
pub struct Cluster {
    pub producer: BaseProducer,
    pub mock: MockCluster<'static, DefaultProducerContext>,
}

impl Cluster {
    pub fn new(topics: &[(&str, i32)]) -> Self {
        let mock = MockCluster::new(1).expect("a cluster");
        for (topic, partitions) in topics {
            mock.create_topic(topic, *partitions, 1).expect("a topic");
        }
        let producer = ClientConfig::new()
            .set("bootstrap.servers", mock.bootstrap_servers())
            .create()
            .expect("a producer");
        Self { producer, mock }
    }

    /// Sends events with these ids to a partition.
    fn send(&self, topic: &str, partition: i32, ids: std::ops::Range<u64>) {
        for id in ids {
            let event = format!("{{\"id\":{id},\"at\":{}}}", 1_465_520_400_000 + id);
            self.send_payload(topic, partition, Some(&event));
        }
        self.producer.flush(TIMEOUT).expect("sent");
    }

    fn send_payload(&self, topic: &str, partition: i32, payload: Option<&str>) {
        self.send_bytes(topic, partition, payload.map(str::as_bytes));
    }

    /// Sends a message with the key `k`. All have one time: in another cluster, the same payload is
    /// the same record.
    pub fn send_bytes(&self, topic: &str, partition: i32, payload: Option<&[u8]>) {
        let mut record = BaseRecord::<str, [u8]>::to(topic)
            .partition(partition)
            .timestamp(1_465_520_400_000)
            .key("k");
        if let Some(payload) = payload {
            record = record.payload(payload);
        }
        self.producer
            .send(record)
            .map_err(|(e, _)| e)
            .expect("room in the queue");
        self.producer.poll(Duration::ZERO);
    }

    /// A member-to-be of the group, which never joins.
    fn observer(&self) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", self.mock.bootstrap_servers())
            .set("group.id", GROUP)
            .create()
            .expect("a consumer")
    }

    /// The offset that the group has committed.
    fn committed(&self, topic: &str, partition: i32) -> Option<i64> {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        let list = self
            .observer()
            .committed_offsets(list, TIMEOUT)
            .expect("an answer");
        match list
            .find_partition(topic, partition)
            .expect("asked for")
            .offset()
        {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }

    fn commit(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .expect("an offset");
        self.observer()
            .commit(&list, CommitMode::Sync)
            .expect("committed");
    }

    /// Configures a source of this cluster, with more keys.
    fn configure(&self, folder: &TestFolder, keys: &str) {
        self.configure_stream(folder, keys, STREAM);
    }

    pub fn configure_stream(&self, folder: &TestFolder, keys: &str, stream: &str) {
        folder.configure(&format!(
            "[[sources]]\nname = \"broker\"\ntype = \"kafka\"\nbrokers = [\"{}\"]\ngroup = \"{GROUP}\"\n{keys}\n{stream}",
            self.mock.bootstrap_servers()
        ));
    }
}

const NAMED: &str = "topics = { orders = \"events\" }";

fn folder(cluster: &Cluster, keys: &str) -> TestFolder {
    let folder = TestFolder::new("");
    cluster.configure(&folder, keys);
    folder
}

/// Ids in the lake, each of which must be there once.
fn ids(folder: &TestFolder) -> Vec<u64> {
    let rows = folder.rows("select id from events order by id");
    rows.iter()
        .map(|row| row["id"].as_u64().expect("an id"))
        .collect()
}

pub fn server(folder: &TestFolder) -> Server {
    let mut command: Command = folder.command(&["run"]);
    command.env("WEIR_SERVER_HTTP", "127.0.0.1:0");
    Server::start(&mut command, &folder.path("data"))
}

/// The number of events that a server shows.
fn count(server: &Server) -> u64 {
    let query = b"{\"sql\":\"select count(*) as n from events\"}";
    let (_, answer) = server.request("POST", "/api/v1/sql", &[], query);
    answer["rows"][0]["n"].as_u64().unwrap_or(0)
}

#[test]
fn each_record_of_all_partitions_is_there_once_and_a_second_run_adds_nothing() {
    let cluster = Cluster::new(&[("orders", 3)]);
    for partition in 0..3 {
        let first = partition as u64 * 1_000;
        cluster.send("orders", partition, first..first + 700);
    }
    let folder = folder(&cluster, NAMED);
    folder.run_once();
    let expected: Vec<u64> = (0..3).flat_map(|p| p * 1_000..p * 1_000 + 700).collect();
    assert_eq!(ids(&folder), expected);
    // Offsets are those of Kafka, and the group knows them.
    let rows = folder.rows("select partition, source_offset from weir.sources order by partition");
    for (partition, row) in rows.iter().enumerate() {
        assert_eq!(row["partition"], format!("orders/{partition}"));
        assert_eq!(row["source_offset"], 700);
        assert_eq!(cluster.committed("orders", partition as i32), Some(700));
    }
    assert_eq!(rows.len(), 3);
    let raw = "select count(*) from raw";
    let before = folder.number(raw);
    folder.run_once();
    assert_eq!(ids(&folder), expected);
    assert_eq!(folder.number(raw), before);
    // Only what is new is read, although others have moved the group's offsets.
    cluster.commit("orders", 0, 0);
    cluster.commit("orders", 1, 705);
    cluster.send("orders", 0, 10_000..10_010);
    cluster.send("orders", 1, 11_000..11_010);
    folder.run_once();
    let new = (10_000..10_010).chain(11_000..11_010);
    assert_eq!(
        ids(&folder),
        expected.into_iter().chain(new).collect::<Vec<_>>()
    );
}

#[test]
fn a_killed_server_resumes_at_its_own_positions() {
    let cluster = Cluster::new(&[("orders", 2)]);
    let folder = folder(&cluster, NAMED);
    cluster.send("orders", 0, 0..500);
    let first = server(&folder);
    wait_until("records are visible", || count(&first) == 500);
    cluster.send("orders", 1, 500..900);
    wait_until("new records are visible", || count(&first) == 900);
    wait_until("offsets are committed", || {
        cluster.committed("orders", 0) == Some(500) && cluster.committed("orders", 1) == Some(400)
    });
    wait_until("nothing is left", || {
        let status = first.get("/api/v1/status").1;
        status["sources"][0]["state"] == "running" && status["sources"][0]["lag"] == 0
    });
    // Dropping it kills it.
    drop(first);
    cluster.send("orders", 0, 900..1_000);
    let second = server(&folder);
    wait_until("records of the outage are visible", || {
        count(&second) == 1_000
    });
    let distinct = "select count(distinct id) as n, max(id) as last from events";
    let row = &sql(&second, distinct)[0];
    assert_eq!((&row["n"], &row["last"]), (&1_000.into(), &999.into()));
}

#[test]
fn a_topic_that_is_created_later_is_read_if_it_matches() {
    let cluster = Cluster::new(&[("shop.a", 1), ("other", 1)]);
    cluster.send("shop.a", 0, 0..10);
    cluster.send("other", 0, 1_000..1_010);
    let folder = folder(&cluster, "pattern = \"^shop\\\\..*\"\nstream = \"events\"");
    let server = server(&folder);
    wait_until("records are visible", || count(&server) == 10);
    cluster.mock.create_topic("shop.b", 2, 1).expect("a topic");
    cluster.send("shop.b", 1, 10..20);
    wait_until("records of the new topic are visible", || {
        count(&server) == 20
    });
    let distinct = "select count(distinct id) as n, max(id) as last from events";
    let row = &sql(&server, distinct)[0];
    assert_eq!((&row["n"], &row["last"]), (&20.into(), &19.into()));
}

#[test]
fn a_topic_that_was_created_again_halts_its_partition_until_that_is_accepted() {
    let old = Cluster::new(&[("orders", 2)]);
    old.send("orders", 0, 0..10);
    old.send("orders", 1, 10..20);
    let folder = folder(&old, NAMED);
    folder.run_once();
    let new = Cluster::new(&[("orders", 2)]);
    new.send("orders", 0, 20..23);
    // Another cluster with the same records, and offsets 10 and 11, which follow what was read.
    new.send("orders", 1, 10..20);
    new.send("orders", 1, 23..25);
    new.configure(&folder, NAMED);
    let halted = folder.output(&["run", "--once"]);
    let message = String::from_utf8_lossy(&halted.stderr).into_owned();
    assert_eq!(halted.status.code(), Some(1), "{message}");
    assert!(
        message.contains("weir run --accept-reset orders/0"),
        "{message}"
    );
    assert!(!message.contains("accept-reset orders/1"), "{message}");
    // The other partition was read.
    let mut expected: Vec<u64> = (0..20).chain(23..25).collect();
    assert_eq!(ids(&folder), expected);
    let accepted = folder.output(&["run", "--once", "--accept-reset", "orders/0"]);
    let message = String::from_utf8_lossy(&accepted.stderr).into_owned();
    assert!(accepted.status.success(), "{message}");
    expected = (0..25).collect();
    assert_eq!(ids(&folder), expected);
    let gaps = folder.rows("select source, reason from weir.gaps");
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0]["source"], "broker");
    let reason = gaps[0]["reason"].as_str().expect("a reason");
    assert!(
        reason.starts_with("orders/0: the broker's last offset is before 3"),
        "{reason}"
    );
    // It was accepted once, and is over.
    folder.run_once();
    assert_eq!(ids(&folder), expected);
}

#[test]
fn a_topic_that_was_created_again_and_has_outgrown_what_was_read_halts_too() {
    let old = Cluster::new(&[("orders", 3)]);
    for partition in 0..3 {
        let first = partition as u64 * 100;
        old.send("orders", partition, first..first + 10);
    }
    let folder = folder(&old, NAMED);
    folder.run_once();
    let mut expected: Vec<u64> = (0..3).flat_map(|p| p * 100..p * 100 + 10).collect();
    let new = Cluster::new(&[("orders", 3)]);
    // More than was read, as much as was read, and the same records with more.
    new.send("orders", 0, 1_000..1_015);
    new.send("orders", 1, 1_100..1_110);
    new.send("orders", 2, 200..215);
    new.configure(&folder, NAMED);
    let halted = |partitions: &[&str]| {
        let message = folder.fail(&["run", "--once"], 1);
        let reason = "the broker's record at offset 9 is not the one that was read there";
        assert!(message.contains(reason), "{message}");
        for partition in ["orders/0", "orders/1", "orders/2"] {
            assert_eq!(
                message.contains(&format!("--accept-reset {partition}")),
                partitions.contains(&partition),
                "{message}"
            );
        }
    };
    // It is never reset by itself, however often it is started.
    halted(&["orders/0", "orders/1"]);
    halted(&["orders/0", "orders/1"]);
    expected.extend(210..215);
    assert_eq!(ids(&folder), expected);
    let accepted = folder.output(&["run", "--once", "--accept-reset", "orders/1"]);
    assert_eq!(accepted.status.code(), Some(1));
    halted(&["orders/0"]);
    folder.succeed(&["run", "--once", "--accept-reset", "orders/0"]);
    expected.extend((1_000..1_015).chain(1_100..1_110));
    assert_eq!(ids(&folder), expected);
    let gaps = folder.rows("select reason from weir.gaps order by reason");
    for (gap, partition) in gaps.iter().zip(["orders/0", "orders/1"]) {
        let reason = gap["reason"].as_str().expect("a reason");
        let start = format!("{partition}: the broker's record at offset 9 is not ");
        assert!(reason.starts_with(&start), "{reason}");
    }
    assert_eq!(gaps.len(), 2);
    // The records since then are compared, too.
    new.send("orders", 0, 1_015..1_020);
    expected = ids(&folder);
    expected.extend(1_015..1_020);
    expected.sort_unstable();
    folder.run_once();
    assert_eq!(ids(&folder), expected);
}

#[test]
fn a_reset_of_a_partition_that_has_not_halted_is_not_taken_silently() {
    let cluster = Cluster::new(&[("orders", 1)]);
    cluster.send("orders", 0, 0..3);
    let folder = folder(&cluster, NAMED);
    let message = folder.fail(&["run", "--once", "--accept-reset", "zz/0"], 2);
    let reason = "--accept-reset zz/0: no source reads this topic";
    assert!(message.contains(reason), "{message}");
    for partition in ["orders/0", "orders/7"] {
        let output = folder.output(&["run", "--once", "--accept-reset", partition]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{message}");
        let reason = "--accept-reset had no effect";
        assert!(message.contains(reason), "{message}");
    }
    assert_eq!(ids(&folder), [0, 1, 2]);
    assert_eq!(folder.number("select count(*) from weir.gaps"), 0);
}

#[test]
fn offsets_that_the_broker_removed_halt_a_partition_of_a_running_server() {
    let cluster = Cluster::new(&[("orders", 2)]);
    cluster.send("orders", 0, 0..5);
    let folder = folder(&cluster, NAMED);
    folder.run_once();
    // The mock keeps 5 MiB of a partition.
    let filler = "x".repeat(100_000);
    for _ in 0..80 {
        cluster.send_payload("orders", 0, Some(&filler));
    }
    cluster.send("orders", 1, 100..110);
    let running = server(&folder);
    wait_until("the other partition is read", || count(&running) == 15);
    let (status, ready) = running.get("/readyz");
    assert_eq!(status, 200, "{ready}");
    assert!(
        ready.to_string().contains("1 partitions have halted"),
        "{ready}"
    );
    let rows = sql(
        &running,
        "select state, reason from weir.sources where partition = 'orders/0'",
    );
    assert_eq!(rows[0]["state"], "waiting");
    wait_until("metrics count it", || {
        let metrics = running.get("/metrics").1;
        let metrics = metrics.as_str().unwrap_or_default();
        metrics.contains("weir_source_halted{source=\"broker\"} 1")
    });
    let reason = rows[0]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.starts_with("orders/0: offsets 5 to "), "{reason}");
    drop(running);
    // What is left are fillers, each a dead letter with Kafka's offset.
    let accepted = folder.output(&["run", "--once", "--accept-reset", "orders/0"]);
    assert!(accepted.status.success());
    let first = folder.number("select min(source_offset) from dead_letters");
    assert!(first > 5 && folder.number("select max(source_offset) from dead_letters") == 84);
    let gaps = folder.rows("select reason from weir.gaps");
    assert_eq!(
        gaps[0]["reason"],
        format!(
            "orders/0: offsets 5 to {} were removed by the broker before they were read",
            first - 1
        )
    );
}

pub fn sql(server: &Server, query: &str) -> Vec<Value> {
    let body = serde_json::json!({ "sql": query }).to_string();
    let (_, answer) = server.request("POST", "/api/v1/sql", &[], body.as_bytes());
    answer["rows"].as_array().cloned().unwrap_or_default()
}

/// Messages with and without values, and what is stored of the second, which has none.
fn run_with_tombstones(tombstone: &str) -> (TestFolder, Vec<Value>) {
    let cluster = Cluster::new(&[("orders", 1)]);
    let two = "[{\"id\":1,\"at\":1},{\"id\":2,\"at\":2}]";
    cluster.send_payload("orders", 0, Some(two));
    cluster.send_payload("orders", 0, None);
    cluster.send_payload("orders", 0, Some("[]"));
    cluster.send("orders", 0, 3..5);
    let folder = folder(&cluster, &format!("{NAMED}\ntombstone = \"{tombstone}\""));
    folder.run_once();
    let dead = folder.rows("select partition, source_offset, reason from dead_letters");
    (folder, dead)
}

#[test]
fn messages_without_a_value_are_dead_letters_or_left_out_and_an_array_has_several() {
    let (folder, dead) = run_with_tombstones("dead_letter");
    assert_eq!(ids(&folder), [1, 2, 3, 4]);
    let expected = json!({
        "partition": "orders/0",
        "source_offset": 1,
        "reason": "the message has no value (a tombstone)",
    });
    assert_eq!(dead, [expected]);
    let (folder, dead) = run_with_tombstones("skip");
    assert_eq!(ids(&folder), [1, 2, 3, 4]);
    assert!(dead.is_empty(), "{dead:?}");
    let raw = folder.rows("select attributes from raw where source_offset = 1");
    let attributes = raw[0]["attributes"].as_str().expect("attributes");
    assert!(
        attributes.contains("\"tombstone\":\"skip\""),
        "{attributes}"
    );
    // A row needs `id`, which a message without a value lacks.
    let (_, dead) = run_with_tombstones("row");
    assert_eq!(dead[0]["reason"], "id: missing");
}

/// A stream of the columns that Kafka's messages have.
const MESSAGE_COLUMNS: &str = r#"[streams.events]
schema = "v int"
select = """select kafka_timestamp as event_time, v, kafka_key as id,
  kafka_headers['trace'] as trace, kafka_topic as topic, kafka_partition as part, kafka_offset as off
  from events"""
require = ["id <> 'wrong'"]
"#;

#[test]
fn keys_headers_and_places_of_messages_are_columns_also_after_a_rebuild_and_a_retry() {
    let cluster = Cluster::new(&[("orders", 2)]);
    for (n, key) in ["a", "b", "wrong"].iter().enumerate() {
        let trace = OwnedHeaders::new().insert(Header {
            key: "trace",
            value: Some(format!("t{n}").as_str()),
        });
        let mut record = BaseRecord::<str, str>::to("orders")
            .partition(1)
            .key(key)
            .timestamp(1_465_520_400_000 + n as i64)
            .headers(trace);
        // The second has no value: it is a row with what its message carries.
        if n != 1 {
            record = record.payload("{\"v\":7}");
        }
        cluster
            .producer
            .send(record)
            .map_err(|(e, _)| e)
            .expect("room");
    }
    cluster.producer.flush(TIMEOUT).expect("sent");
    let folder = TestFolder::new("");
    let keys = format!("{NAMED}\ntombstone = \"row\"");
    cluster.configure_stream(&folder, &keys, MESSAGE_COLUMNS);
    folder.run_once();
    let query = "select v, id, trace, topic, part, off, event_time from events order by off";
    let row = |v: Option<i32>, id: &str, off: u64| {
        json!({
            "v": v, "id": id, "trace": format!("t{off}"), "topic": "orders", "part": 1, "off": off,
            "event_time": format!("2016-06-10T01:00:00.00{off}Z"),
        })
    };
    let mut expected = vec![row(Some(7), "a", 0), row(None, "b", 1)];
    assert_eq!(folder.rows(query), expected);
    // The third is resubmitted with what its message carried.
    let without_rule = MESSAGE_COLUMNS.replace("wrong", "nothing");
    cluster.configure_stream(&folder, &keys, &without_rule);
    folder.run_once();
    folder.succeed(&["dead-letters", "retry"]);
    expected.push(row(Some(7), "wrong", 2));
    assert_eq!(folder.rows(query), expected);
    folder.succeed(&["rebuild", "events"]);
    assert_eq!(folder.rows(query), expected);
}

#[test]
fn latest_is_a_position_from_its_first_start_on() {
    let cluster = Cluster::new(&[("orders", 1)]);
    cluster.send("orders", 0, 0..5);
    let folder = folder(&cluster, &format!("{NAMED}\nfrom = \"latest\""));
    folder.run_once();
    assert_eq!(ids(&folder), [0; 0]);
    cluster.send("orders", 0, 5..8);
    folder.run_once();
    assert_eq!(ids(&folder), [5, 6, 7]);
}

#[test]
fn what_appears_after_the_first_start_with_latest_is_read_from_its_first_record() {
    let pattern = "pattern = \"^shop\\\\..*\"\nstream = \"events\"\nfrom = \"latest\"";
    let cluster = Cluster::new(&[("shop.a", 2)]);
    cluster.send("shop.a", 0, 0..5);
    let folder = folder(&cluster, pattern);
    folder.run_once();
    assert_eq!(ids(&folder), [0; 0]);
    // A topic that is created between two runs, and records of the old one.
    cluster.mock.create_topic("shop.b", 1, 1).expect("a topic");
    cluster.send("shop.b", 0, 10..15);
    cluster.send("shop.a", 1, 5..8);
    folder.run_once();
    assert_eq!(ids(&folder), (5..8).chain(10..15).collect::<Vec<_>>());
    // One that is created while a server reads, with records before it is found.
    let running = server(&folder);
    wait_until("it reads", || count(&running) == 8);
    cluster.mock.create_topic("shop.c", 1, 1).expect("a topic");
    cluster.send("shop.c", 0, 20..25);
    wait_until("records of the new topic are visible", || {
        count(&running) == 13
    });
}

#[test]
fn a_server_that_begins_with_latest_has_a_position_of_each_partition_at_once() {
    let cluster = Cluster::new(&[("orders", 2)]);
    cluster.send("orders", 0, 0..5);
    let folder = folder(&cluster, &format!("{NAMED}\nfrom = \"latest\""));
    let first = server(&folder);
    let positions = "select count(*) as n from weir.sources where partition like 'orders/%'";
    wait_until("positions are stored", || {
        sql(&first, positions)[0]["n"] == 2
    });
    drop(first);
    cluster.send("orders", 0, 5..8);
    cluster.send("orders", 1, 8..9);
    folder.run_once();
    assert_eq!(ids(&folder), [5, 6, 7, 8]);
}

#[test]
fn a_topic_that_does_not_exist_and_a_broker_that_is_gone_are_named() {
    let cluster = Cluster::new(&[("orders", 1)]);
    let folder = folder(&cluster, "topics = { orders = \"events\" }");
    cluster.mock.broker_down(-1).expect("down");
    // A server waits, and stops at once when it is asked to.
    let running = server(&folder);
    wait_until("it says why it waits", || {
        let status = running.get("/api/v1/status").1;
        let source = &status["sources"][0];
        let reason = source["reason"].as_str().unwrap_or_default().to_owned();
        source["state"] == "waiting" && reason.contains("not connected: ")
    });
    cluster.mock.broker_up(-1).expect("up");
    cluster.send("orders", 0, 0..3);
    wait_until("it reads", || count(&running) == 3);
    drop(running);
    let wrong = folder.path("wrong.toml");
    let text = std::fs::read_to_string(folder.path("weir.toml")).expect("a file");
    std::fs::write(
        &wrong,
        text.replace("group = ", "security = { protocol = \"tls\" }\ngroup = "),
    )
    .expect("a file");
    let mut check = crate::support::weir();
    check
        .args(["check", "-c"])
        .arg(&wrong)
        .stdout(Stdio::null());
    let output = check.output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.contains("source `broker`: security: protocol"),
        "{message}"
    );
}
