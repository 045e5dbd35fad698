//! `weir generate` and `weir replay` to a topic of Kafka, against a mock cluster.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::kafka::{Cluster, TIMEOUT};
use crate::support::{TestFolder, weir};

fn run(arguments: &[&str]) -> Output {
    let output = weir().args(arguments).output();
    output.expect("the binary runs")
}

fn messages(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Partition, key and value of each message.
fn read(cluster: &Cluster, topic: &str, partitions: i32, count: usize) -> Vec<Received> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.mock.bootstrap_servers())
        .set("group.id", "reader")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning)
            .expect("an offset");
    }
    consumer.assign(&list).expect("assigned");
    let deadline = Instant::now() + TIMEOUT;
    let mut received = Vec::new();
    while received.len() < count {
        assert!(Instant::now() < deadline, "{} messages", received.len());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let message = message.expect("a message");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        received.push(Received {
            partition: message.partition(),
            key: message.key().map(text),
            value: message.payload().map(text).expect("a value"),
        });
    }
    received
}

struct Received {
    partition: i32,
    key: Option<String>,
    value: String,
}

#[test]
fn generated_records_are_all_delivered_and_keys_choose_their_partition() {
    let cluster = Cluster::new(&[("events", 3)]);
    let target = format!("kafka://{}/events", cluster.mock.bootstrap_servers());
    let generate = [
        "generate",
        "--count",
        "3000",
        "--seed",
        "7",
        "--hostile",
        "5",
    ];
    let sent = run(&[
        &generate[..],
        &["--to", &target, "--key", "member.member_id"],
    ]
    .concat());
    assert!(sent.status.success(), "{}", messages(&sent));
    let report = messages(&sent);
    let expected = format!("weir: 3000 records delivered to {target} in ");
    assert!(report.starts_with(&expected), "{report}");
    let received = read(&cluster, "events", 3, 3_000);
    // The same as on standard output.
    let printed = run(&generate);
    let mut printed: Vec<&[u8]> = printed.stdout.split(|byte| *byte == b'\n').collect();
    assert_eq!(printed.pop(), Some(&b""[..]));
    let mut values: Vec<&[u8]> = received.iter().map(|m| m.value.as_bytes()).collect();
    printed.sort_unstable();
    values.sort_unstable();
    assert!(values == printed);
    // A key is the member's id as text, and is in one partition.
    let mut partitions = BTreeMap::new();
    for message in &received {
        let parsed: serde_json::Value = serde_json::from_str(&message.value).unwrap_or_default();
        let id = parsed.pointer("/member/member_id");
        if let Some(id) = id.and_then(serde_json::Value::as_u64) {
            assert_eq!(message.key.as_deref(), Some(id.to_string().as_str()));
        }
        if let Some(key) = &message.key {
            let partition = partitions.entry(key.clone()).or_insert(message.partition);
            assert_eq!(*partition, message.partition, "{key}");
        }
    }
    let used: std::collections::BTreeSet<_> = partitions.values().collect();
    assert_eq!(used.len(), 3);
}

#[test]
fn a_replayed_file_is_sent_line_by_line_and_what_the_broker_refuses_is_counted() {
    let cluster = Cluster::new(&[("events", 1)]);
    let target = format!("kafka://{}/events", cluster.mock.bootstrap_servers());
    let folder = TestFolder::new("");
    folder.write("lines", b"{\"id\":\"a\"}\nbroken\n{\"id\":2}\n");
    let lines = folder.path("lines").display().to_string();
    let sent = run(&["replay", &lines, "--to", &target, "--key", "id"]);
    assert!(sent.status.success(), "{}", messages(&sent));
    let received = read(&cluster, "events", 1, 3);
    let keys: Vec<_> = received.iter().map(|m| m.key.as_deref()).collect();
    assert_eq!(keys, [Some("a"), None, Some("2")]);
    let values: Vec<_> = received.iter().map(|m| m.value.as_str()).collect();
    assert_eq!(values, ["{\"id\":\"a\"}", "broken", "{\"id\":2}"]);
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster
        .mock
        .request_errors(RDKafkaApiKey::Produce, &[error; 5]);
    let refused = run(&["replay", &lines, "--to", &target]);
    let message = messages(&refused);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    let expected = format!("weir: 3 of 3 records were not delivered to {target}: 3 × ");
    assert!(message.contains(&expected), "{message}");
}

#[test]
fn a_broker_that_does_not_answer_and_a_wrong_address_are_named() {
    // A port that nothing listens on while the socket is bound.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    let any: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).expect("a free port");
    let address = socket.local_addr().expect("bound").as_socket();
    let address = address.expect("an address").to_string();
    let target = format!("kafka://{address}/events");
    let failed = run(&["generate", "--count", "1", "--to", &target]);
    let message = messages(&failed);
    assert_eq!(failed.status.code(), Some(1), "{message}");
    let expected = format!("weir: {address} did not answer within 10 seconds: ");
    assert!(message.contains(&expected), "{message}");
    assert!(
        message.contains("start the broker, or correct the address"),
        "{message}"
    );
    let wrong = run(&["generate", "--to", "127.0.0.1:9092/events"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(messages(&wrong).contains("write kafka://HOST:PORT/TOPIC"));
    let unused = run(&["generate", "--key", "id"]);
    assert_eq!(unused.status.code(), Some(2));
}
