//! Kafka messages in Avro, by a schema from a file and from a registry, against a mock cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use serde_json::{Value, json};

use crate::kafka::{Cluster, TIMEOUT, server, sql};
use crate::support::{TestFolder, wait_until};
use rdkafka::producer::Producer;

const SCHEMA: &str = r#"{"type":"record","name":"Order","namespace":"shop","fields":[
    {"name":"id","type":"long"},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
    {"name":"note","type":["null","string"]},
    {"name":"total","type":{"type":"bytes","logicalType":"decimal","precision":12,"scale":2}},
    {"name":"buyer","type":{"type":"record","name":"Buyer","fields":[
        {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["NEW","OLD"]}}]}}
]}"#;

/// Another version, with a field more.
const NEWER: &str = r#"{"type":"record","name":"Order","namespace":"shop","fields":[
    {"name":"id","type":"long"},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
    {"name":"note","type":"string"}
]}"#;

const STREAM: &str = r#"[streams.events]
schema = "id bigint not null, at timestamp(ms) not null, note varchar, total varchar, buyer struct<kind varchar>"
select = "select at as event_time, id, note, total, buyer['kind'] as kind from events"
"#;

const AT: i64 = 1_465_520_400_000;

fn record(fields: Vec<(&str, Avro)>) -> Avro {
    let fields = fields.into_iter();
    Avro::Record(
        fields
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

fn datum(schema: &str, value: Avro) -> Vec<u8> {
    let schema = Schema::parse_str(schema).expect("a schema");
    let writer = GenericDatumWriter::builder(&schema).build();
    let written = writer.expect("a writer").write_value_to_vec(value);
    written.expect("a value of the schema")
}

fn order(id: i64, note: Option<&str>) -> Vec<u8> {
    let note = match note {
        None => Avro::Union(0, Box::new(Avro::Null)),
        Some(note) => Avro::Union(1, Box::new(Avro::String(note.into()))),
    };
    let fields = vec![
        ("id", Avro::Long(id)),
        ("at", Avro::TimestampMillis(AT + id % 1_000)),
        ("note", note),
        ("total", Avro::Decimal(vec![0x04, 0xd2].into())),
        ("buyer", record(vec![("kind", Avro::Enum(1, "OLD".into()))])),
    ];
    datum(SCHEMA, record(fields))
}

fn newer(id: i64) -> Vec<u8> {
    let fields = vec![
        ("id", Avro::Long(id)),
        ("at", Avro::TimestampMillis(AT + id % 1_000)),
        ("note", Avro::String("new".into())),
    ];
    datum(NEWER, record(fields))
}

/// A datum behind the header of a registry.
fn registered(schema: u32, datum: Vec<u8>) -> Vec<u8> {
    [vec![0], schema.to_be_bytes().to_vec(), datum].concat()
}

#[test]
fn messages_of_a_schema_file_become_rows_and_others_dead_letters_as_they_arrived() {
    let cluster = Cluster::new(&[("orders", 1)]);
    let good = order(9_007_199_254_740_993, Some("a\"b"));
    let cut = order(2, None)[..9].to_vec();
    let longer = [order(3, None), vec![7]].concat();
    for value in [&good, &cut, &longer, &order(4, None)] {
        cluster.send_bytes("orders", 0, Some(value));
    }
    cluster.send_bytes("orders", 0, None);
    cluster.producer.flush(TIMEOUT).expect("sent");
    let folder = TestFolder::new("");
    folder.write("order.avsc", SCHEMA.as_bytes());
    let keys = "topics = { orders = \"events\" }\nformat = \"avro\"\nschema_file = \"order.avsc\"";
    cluster.configure_stream(&folder, keys, STREAM);
    folder.run_once();
    let query = "select id, event_time, note, total, kind from events order by id";
    let rows = [
        json!({"id": 4, "event_time": "2016-06-10T01:00:00.004Z", "note": null, "total": "12.34", "kind": "OLD"}),
        json!({"id": 9_007_199_254_740_993i64, "event_time": "2016-06-10T01:00:00.993Z", "note": "a\"b", "total": "12.34", "kind": "OLD"}),
    ];
    let found = folder.rows(query);
    assert_eq!(found, rows);
    let dead = "select source_offset, reason, encode(bytes, 'hex') as bytes from dead_letters order by source_offset";
    let dead = folder.rows(dead);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(dead.len(), 3, "{dead:?}");
    assert_eq!(dead[0]["bytes"], hex(&cut));
    assert_eq!(
        dead[0]["reason"],
        "orders/0, offset 1: Avro: total: the message ends inside the value"
    );
    assert_eq!(dead[1]["bytes"], hex(&longer));
    let raw = folder.rows("select cast(bytes as varchar) as json from raw where source_offset = 3");
    let stored: Value = serde_json::from_str(raw[0]["json"].as_str().expect("text")).expect("JSON");
    assert_eq!(stored["total"], "12.34");
    // Neither a rebuild nor a retry needs the schema, or reads the bytes as something else.
    std::fs::remove_file(folder.path("order.avsc")).expect("it was there");
    folder.fail(&["check"], 2);
    folder.write("order.avsc", b"\"int\"");
    folder.succeed(&["rebuild", "events"]);
    assert_eq!(folder.rows(query), found);
    folder.succeed(&["dead-letters", "retry"]);
    assert_eq!(folder.rows(query), found);
}

/// A schema registry, which may be out of order.
#[derive(Clone, Default)]
struct Registry(Arc<Mutex<Answers>>);

#[derive(Default)]
struct Answers {
    schemas: BTreeMap<u32, String>,
    status: Option<u16>,
    asked: BTreeMap<u32, usize>,
}

impl Registry {
    fn register(&self, id: u32, schema: &str) {
        let mut answers = self.0.lock().expect("no panic");
        answers.schemas.insert(id, schema.to_owned());
    }

    fn set_status(&self, status: Option<u16>) {
        self.0.lock().expect("no panic").status = status;
    }

    fn asked(&self, id: u32) -> usize {
        let answers = self.0.lock().expect("no panic");
        answers.asked.get(&id).copied().unwrap_or(0)
    }

    /// Answers on a socket that is bound already, until the process ends.
    fn serve(&self, socket: socket2::Socket) {
        socket.listen(64).expect("it listens");
        socket.set_nonblocking(true).expect("an option");
        let listener = std::net::TcpListener::from(socket);
        let router = Router::new()
            .route("/schemas/ids/{id}", get(answer))
            .with_state(self.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                axum::serve(listener, router).await.expect("it serves");
            });
        });
    }
}

async fn answer(
    State(registry): State<Registry>,
    Path(id): Path<u32>,
    headers: HeaderMap,
) -> (StatusCode, String) {
    let mut answers = registry.0.lock().expect("no panic");
    *answers.asked.entry(id).or_default() += 1;
    if let Some(status) = answers.status {
        return (
            StatusCode::from_u16(status).expect("a status"),
            String::new(),
        );
    }
    // user:secret
    if headers
        .get("authorization")
        .is_none_or(|value| value != "Basic dXNlcjpzZWNyZXQ=")
    {
        return (
            StatusCode::UNAUTHORIZED,
            json!({"error_code": 401}).to_string(),
        );
    }
    match answers.schemas.get(&id) {
        Some(schema) => (StatusCode::OK, json!({"schema": schema}).to_string()),
        None => (
            StatusCode::NOT_FOUND,
            json!({"error_code": 40403, "message": "Schema not found"}).to_string(),
        ),
    }
}

/// A socket that is bound and does not listen: connections are refused.
fn bound() -> (socket2::Socket, String) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    let any: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).expect("a free port");
    let address = socket.local_addr().expect("bound").as_socket();
    (socket, format!("http://{}", address.expect("an address")))
}

fn configure_registry(cluster: &Cluster, folder: &TestFolder, url: &str) {
    use std::os::unix::fs::PermissionsExt;
    folder.write("password", b"secret\n");
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(folder.path("password"), mode).expect("the file is ours");
    let keys = format!(
        "topics = {{ orders = \"events\" }}\nformat = \"avro\"\nregistry = \"{url}\"\nregistry_user = \"user\"\nregistry_password_file = \"password\""
    );
    cluster.configure_stream(folder, &keys, STREAM);
}

#[test]
fn a_registry_that_does_not_answer_stops_partitions_and_loses_nothing() {
    let cluster = Cluster::new(&[("orders", 2)]);
    for id in 0..100 {
        let value = registered(7, order(id, None));
        cluster.send_bytes("orders", (id % 2) as i32, Some(&value));
    }
    cluster.producer.flush(TIMEOUT).expect("sent");
    let folder = TestFolder::new("");
    let (socket, url) = bound();
    configure_registry(&cluster, &folder, &url);
    let running = server(&folder);
    let source = || running.get("/api/v1/status").1["sources"][0].clone();
    let waits_for = |text: &str| {
        let source = source();
        let reason = source["reason"].as_str().unwrap_or_default().to_owned();
        source["state"] == "waiting" && reason.contains(&url) && reason.contains(text)
    };
    wait_until("it says that the registry is down", || waits_for("refused"));
    let registry = Registry::default();
    registry.set_status(Some(503));
    registry.serve(socket);
    wait_until("it says what the registry answers", || {
        waits_for("it answers 503")
    });
    let partition = "select state, reason from weir.sources where partition = 'orders/1'";
    let row = sql(&running, partition)[0].clone();
    assert_eq!(row["state"], "waiting", "{row}");
    let reason = row["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("waits for schema 7: "), "{reason}");
    registry.register(7, SCHEMA);
    registry.set_status(None);
    let count = "select count(*) as n, count(distinct id) as ids from events";
    wait_until("all are rows", || sql(&running, count)[0]["n"] == 100);
    assert_eq!(sql(&running, count)[0]["ids"], 100);
    wait_until("it runs", || source()["state"] == "running");
    // Another schema in the midst, and one that does not exist: its messages alone are rejected.
    registry.register(8, NEWER);
    cluster.send_bytes("orders", 0, Some(&registered(8, newer(100))));
    cluster.send_bytes("orders", 0, Some(&registered(9, newer(101))));
    cluster.send_bytes("orders", 0, Some(b"{\"id\":1}"));
    cluster.send_bytes("orders", 0, Some(&registered(7, order(102, None))));
    cluster.producer.flush(TIMEOUT).expect("sent");
    wait_until("the others are rows", || {
        sql(&running, count)[0]["n"] == 102
    });
    let note = sql(&running, "select note from events where id = 100");
    assert_eq!(note[0]["note"], "new");
    let query = "select reason from dead_letters order by source_offset";
    wait_until("they are dead letters", || sql(&running, query).len() == 2);
    let dead = sql(&running, query);
    let reasons: Vec<&str> = dead
        .iter()
        .filter_map(|row| row["reason"].as_str())
        .collect();
    assert_eq!(
        reasons,
        [
            "orders/0, offset 51: Avro: the registry has no schema 9",
            "orders/0, offset 52: Avro: the message does not name its schema by a 0 and four bytes: it begins with the byte 0x7b; was it written without a registry?",
        ]
    );
    // Schemas are remembered.
    let asked = registry.asked(8);
    assert!((1..=2).contains(&asked), "{asked}");
    let position = "select source_offset from weir.sources where partition = 'orders/0'";
    wait_until("its position is after all of them", || {
        sql(&running, position)[0]["source_offset"] == 54
    });
}

#[test]
fn a_bounded_run_reads_what_a_registry_describes() {
    let cluster = Cluster::new(&[("orders", 3)]);
    for id in 0..90 {
        let (schema, value) = match id % 2 {
            0 => (7, order(id, Some("x"))),
            _ => (8, newer(id)),
        };
        cluster.send_bytes("orders", (id % 3) as i32, Some(&registered(schema, value)));
    }
    cluster.producer.flush(TIMEOUT).expect("sent");
    let registry = Registry::default();
    registry.register(7, SCHEMA);
    registry.register(8, NEWER);
    let (socket, url) = bound();
    registry.serve(socket);
    let folder = TestFolder::new("");
    configure_registry(&cluster, &folder, &url);
    folder.run_once();
    assert_eq!(folder.number("select count(distinct id) from events"), 90);
    assert_eq!(
        folder.number("select count(*) from raw where kind = 'record'"),
        90
    );
    assert_eq!(folder.number("select count(*) from dead_letters"), 0);
    folder.run_once();
    assert_eq!(folder.number("select count(*) from events"), 90);
}

#[test]
fn a_schema_that_cannot_be_used_is_an_error_of_the_configuration() {
    let cluster = Cluster::new(&[("orders", 1)]);
    let folder = TestFolder::new("");
    folder.write("order.avsc", b"{\"type\":\"record\"}");
    let topics = "topics = { orders = \"events\" }\nformat = \"avro\"\n";
    let keys = format!("{topics}schema_file = \"order.avsc\"");
    cluster.configure_stream(&folder, &keys, STREAM);
    folder.check_config_error(&[
        "source `broker`: schema_file: ",
        "order.avsc is not a schema",
    ]);
    cluster.configure_stream(&folder, topics, STREAM);
    folder.check_config_error(&["needs either `schema_file`", "or `registry`"]);
}
