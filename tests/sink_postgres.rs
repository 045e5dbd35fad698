//! The sink `postgres` against a real server that each test starts: every row once whatever is
//! killed, upserts and retractions, refused rows and tables that are not right.
//!
//! Without the programs of PostgreSQL the tests say so and pass, unless `WEIR_REQUIRE_POSTGRES` is
//! set. The server does not run as root: then it runs as the user `postgres`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tokio_postgres::SimpleQueryMessage;

use crate::server::Server;
use crate::support::{
    FILE_ONLY, FREQUENT_COMMITS, HTTP_ONLY, TestFolder, canonical, ndjson, records, skip,
    wait_until,
};

const PASSWORD: &str = "s3cret pass";
const TABLES: [&str; 7] = [
    "latest",
    "members",
    "events",
    "venues",
    "groups",
    "topics",
    "groups_topics",
];

/// A server of a test, which is stopped with it.
pub struct Database {
    root: tempfile::TempDir,
    programs: PathBuf,
    pub port: u16,
    server: Option<Child>,
}

/// The folder of the programs, in the newest version.
fn programs() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib/postgresql").into_iter();
    let folders = folders.flatten().flatten().map(|e| e.path().join("bin"));
    let mut found: Vec<PathBuf> = folders.filter(|f| f.join("initdb").exists()).collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(|f| f.join("initdb").exists());
    let programs = found.pop().or(on_path);
    if programs.is_none() {
        let reason = "PostgreSQL is not installed: no initdb in /usr/lib/postgresql or on the path";
        assert!(
            std::env::var_os("WEIR_REQUIRE_POSTGRES").is_none(),
            "{reason}"
        );
        skip(reason);
    }
    programs
}

fn run(command: &mut Command) {
    let output = command.output().expect("the program runs");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {messages}");
}

impl Database {
    /// With a database `events` of the user `weir`, whose password is asked for on TCP.
    pub fn start() -> Option<Self> {
        let programs = programs()?;
        let root = tempfile::tempdir().expect("a folder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let password = root.path().join("password");
        std::fs::write(&password, PASSWORD).expect("a file");
        let mut database = Self {
            root,
            programs,
            port,
            server: None,
        };
        if is_root() {
            run(Command::new("chown")
                .args(["-R", "postgres"])
                .arg(database.root.path()));
        }
        run(database
            .program("initdb")
            .args(["-U", "weir", "-E", "UTF8", "--locale=C", "--no-sync"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(database.data()));
        database.run_server();
        database.execute_in("postgres", "create database events");
        Some(database)
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// One of its programs, as a user that may run it.
    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.root.path()).env("LC_ALL", "C");
        command
    }

    fn run_server(&mut self) {
        let sockets = format!("unix_socket_directories={}", self.root.path().display());
        let server = self
            .program("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-c", &sockets])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"])
            .args(["-c", "shared_buffers=32MB", "-c", "max_connections=20"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.server = Some(server.expect("the server runs"));
        wait_until("the server answers", || {
            self.query_in("postgres", "select 1").is_ok()
        });
    }

    /// Ends its sessions and the server.
    fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            let pid = server.id().to_string();
            // A fast shutdown.
            let _ = Command::new("kill").args(["-INT", &pid]).status();
            let _ = server.wait();
        }
    }

    fn query_in(&self, database: &str, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut config = tokio_postgres::Config::new();
            config.host_path(self.root.path()).port(self.port);
            config.user("weir").dbname(database);
            let connected = config.connect(tokio_postgres::NoTls).await;
            let (client, connection) = connected.map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            let answer = client.simple_query(sql).await;
            let rows = answer.map_err(|e| format!("{sql}: {e:?}"))?;
            let texts = rows.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(
                    (0..row.len())
                        .map(|column| row.get(column).map(str::to_owned))
                        .collect(),
                ),
                _ => None,
            });
            Ok(texts.collect())
        })
    }

    fn execute_in(&self, database: &str, sql: &str) {
        self.query_in(database, sql).expect("it succeeds");
    }

    pub fn execute(&self, sql: &str) {
        self.execute_in("events", sql);
    }

    /// The rows of a query as JSON.
    pub fn rows(&self, sql: &str) -> Vec<Value> {
        let sql = format!("set timezone = 'UTC'; select to_jsonb(t)::text from ({sql}) t");
        let rows = self.query_in("events", &sql).expect("rows");
        rows.into_iter()
            .map(|row| serde_json::from_str(row[0].as_deref().expect("a row")).expect("JSON"))
            .collect()
    }

    pub fn number(&self, sql: &str) -> i64 {
        let rows = self.query_in("events", sql).expect("a row");
        let text = rows[0][0].as_deref().expect("a value");
        text.parse().expect("a number")
    }

    /// The names of a table's columns.
    fn columns(&self, table: &str) -> Vec<String> {
        let sql = format!(
            "select column_name from information_schema.columns where table_schema = 'public' and table_name = '{table}' order by ordinal_position"
        );
        let rows = self.query_in("events", &sql).expect("rows");
        rows.into_iter()
            .map(|row| row[0].clone().expect("a name"))
            .collect()
    }

    /// The LSN of the sink's cursor; 0 before it has one.
    pub fn cursor(&self, sink: &str) -> u64 {
        let sql = format!("select cursor from weir_sinks where name = '{sink}'");
        let rows = self.query_in("events", &sql).unwrap_or_default();
        let cursor = rows.first().and_then(|row| row[0].as_deref());
        let cursor: Value = serde_json::from_str(cursor.unwrap_or("{}")).expect("JSON");
        cursor["lsn"].as_u64().unwrap_or(0)
    }

    /// A sink of these tables, below a stream's table, with more keys.
    pub fn sink(&self, folder: &TestFolder, from: &[&str], keys: &str) -> String {
        let file = folder.path("password");
        folder.write("password", PASSWORD.as_bytes());
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(file, mode).expect("a file");
        format!(
            "\n[[sinks]]\nname = \"db\"\ntype = \"postgres\"\nfrom = {from:?}\nurl = \"postgres://weir@127.0.0.1:{}/events\"\npassword_file = \"password\"\n{keys}\n",
            self.port
        )
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.stop_server();
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("it runs");
    id.stdout.trim_ascii() == b"0"
}

fn entities() -> Vec<String> {
    TABLES.iter().map(|name| format!("rsvps.{name}")).collect()
}

/// A stream from `in.ndjson` and a sink of these tables.
pub fn folder(database: &Database, from: &[&str], keys: &str) -> TestFolder {
    let folder = TestFolder::new("");
    configure(&folder, database, from, keys);
    folder
}

pub fn configure(folder: &TestFolder, database: &Database, from: &[&str], keys: &str) {
    let sink = database.sink(folder, from, keys);
    folder.configure(&format!("{FILE_ONLY}{sink}"));
}

/// Values that are equal in both: times as milliseconds, numbers as doubles.
fn normal(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::String(text) => match chrono::DateTime::parse_from_rfc3339(text) {
            Ok(time) => json!(time.timestamp_millis() as f64),
            Err(_) => value.clone(),
        },
        Value::Array(items) => items.iter().map(normal).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.clone(), normal(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        _ => value.clone(),
    }
}

fn sorted(rows: &[Value]) -> Vec<String> {
    let mut rows: Vec<String> = rows.iter().map(|row| canonical(&normal(row))).collect();
    rows.sort();
    rows
}

/// Checks that a table of the database has the rows of one of weir.
pub fn assert_same(database: &Database, folder: &TestFolder, table: &str, of_weir: &str) {
    let columns = database.columns(table);
    assert!(!columns.is_empty(), "{table} exists");
    let columns: Vec<String> = columns.iter().map(|c| format!("\"{c}\"")).collect();
    let columns = columns.join(", ");
    let found = database.rows(&format!("select {columns} from \"{table}\""));
    let expected = folder.rows(&format!("select {columns} from {of_weir}"));
    let (found, expected) = (sorted(&found), sorted(&expected));
    assert_eq!(found.len(), expected.len(), "rows of {table}");
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected, "a row of {table}");
    }
}

fn assert_seven_tables(database: &Database, folder: &TestFolder) {
    for table in TABLES {
        assert_same(database, folder, table, &format!("rsvps.{table}"));
    }
}

/// Each key's newest record, by its version, then by its place.
fn newest<K: Ord>(records: &[Value], key: impl Fn(&Value) -> Option<K>) -> BTreeMap<K, &Value> {
    let mut newest: BTreeMap<K, &Value> = BTreeMap::new();
    for record in records {
        let Some(key) = key(record) else { continue };
        let before = newest.get(&key).map(|r| r["mtime"].as_i64());
        if before.is_none_or(|before| record["mtime"].as_i64() >= before) {
            newest.insert(key, record);
        }
    }
    newest
}

/// Recounts what the tables must have from the records themselves.
fn assert_recount(database: &Database, records: &[Value]) {
    let latest = newest(records, |r| r["rsvp_id"].as_i64());
    let expected: Vec<Value> = latest
        .values()
        .map(|r| {
            json!({"rsvp_id": r["rsvp_id"], "response": r["response"], "guests": r["guests"],
                "mtime": r["mtime"], "venue_id": r["venue"]["venue_id"], "member_id": r["member"]["member_id"]})
        })
        .collect();
    let found = "select rsvp_id, response, guests, mtime, venue_id, member_id from latest";
    assert_eq!(sorted(&database.rows(found)), sorted(&expected), "latest");
    let members = newest(records, |r| r["member"]["member_id"].as_i64());
    let expected: Vec<Value> = members
        .values()
        .map(|r| json!({"member_id": r["member"]["member_id"], "member_name": r["member"]["member_name"]}))
        .collect();
    let found = "select member_id, member_name from members";
    assert_eq!(sorted(&database.rows(found)), sorted(&expected), "members");
    let mut pairs = BTreeSet::new();
    for record in records {
        for topic in record["group"]["group_topics"]
            .as_array()
            .into_iter()
            .flatten()
        {
            pairs.insert(
                json!({"group_id": record["group"]["group_id"], "urlkey": topic["urlkey"]})
                    .to_string(),
            );
        }
    }
    let pairs: Vec<Value> = pairs
        .iter()
        .map(|pair| serde_json::from_str(pair).expect("JSON"))
        .collect();
    let found = "select group_id, urlkey from groups_topics";
    assert_eq!(
        sorted(&database.rows(found)),
        sorted(&pairs),
        "groups_topics"
    );
    for (table, key) in [
        ("venues", "venue_id"),
        ("events", "event_id"),
        ("groups", "group_id"),
    ] {
        let name = table.trim_end_matches('s');
        let keys: BTreeSet<String> = records
            .iter()
            .map(|r| r[name][key].to_string())
            .filter(|key| key != "null")
            .collect();
        let found = database.number(&format!("select count(*) from {table}"));
        assert_eq!(found, keys.len() as i64, "{table}");
    }
}

/// The foreign keys: (table, column, the table that it refers to).
fn foreign_keys(database: &Database) -> BTreeSet<(String, String, String)> {
    let sql = "select c.conrelid::regclass::text as child, a.attname::text as column, c.confrelid::regclass::text as parent
        from pg_constraint c join pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
        where c.contype = 'f' and c.condeferred";
    let text = |row: &Value, name: &str| row[name].as_str().expect("a name").to_owned();
    let rows = database.rows(sql);
    rows.iter()
        .map(|row| (text(row, "child"), text(row, "column"), text(row, "parent")))
        .collect()
}

#[test]
fn seven_tables_in_third_normal_form_equal_those_of_sql_and_refer_to_one_another() {
    let Some(database) = Database::start() else {
        return;
    };
    let from = entities();
    let from: Vec<&str> = from.iter().map(String::as_str).collect();
    let folder = folder(&database, &from, "");
    let file = folder.path("in.ndjson");
    let mut generate = crate::support::weir();
    generate
        .args(["generate", "--count", "600", "--seed", "5", "--rate", "50"])
        .arg("--file")
        .arg(&file);
    run(&mut generate);
    folder.run_once();
    assert_seven_tables(&database, &folder);
    let text = std::fs::read_to_string(&file).expect("text");
    let records: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(records.len(), 600);
    assert_recount(&database, &records);
    let expected = [
        ("latest", "event_id", "events"),
        ("latest", "group_id", "groups"),
        ("latest", "member_id", "members"),
        ("latest", "venue_id", "venues"),
        ("groups_topics", "group_id", "groups"),
        ("groups_topics", "urlkey", "topics"),
    ];
    let expected = expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()));
    assert_eq!(foreign_keys(&database), BTreeSet::from(expected));
    for (child, column, parent) in foreign_keys(&database) {
        let missing = database.number(&format!(
            "select count(*) from {child} c where {column} is not null and not exists (select from {parent} p where p.{column} = c.{column})"
        ));
        assert_eq!(missing, 0, "{child}.{column}");
    }
    // A reset sends all rows again, which changes nothing.
    folder.succeed(&["sinks", "reset", "db", "--from", "earliest"]);
    folder.run_once();
    assert_seven_tables(&database, &folder);
}

pub fn http_folder(database: &Database, from: &[&str], keys: &str) -> TestFolder {
    let folder = TestFolder::new("");
    let sink = database.sink(&folder, from, "");
    folder.configure(&format!("{FREQUENT_COMMITS}\n{HTTP_ONLY}\n{keys}\n{sink}"));
    folder
}

pub fn post(server: &Server, records: &[Value]) {
    let body = ndjson(records);
    let (code, answer) = server.request("POST", "/api/v1/streams/rsvps/events", &[], &body);
    assert_eq!(code, 200, "{answer}");
}

/// Starts a server; dropping it kills it.
pub fn serve(folder: &TestFolder) -> Server {
    Server::start(&mut folder.command(&["run", "-q"]), &folder.path("data"))
}

/// A window whose groups leave it again when late events come.
const LEADERS: &str = r#"
[windows.leaders]
sql = """
select window_start, window_end, case when response = 'no' then null else country end as country, count(*) as n
from tumble(rsvps, event_time, interval '20 seconds')
group by window_start, window_end, 3
order by n desc, country
limit 2
"""
allowed_lateness = "300d"
late = "update"
"#;

/// The stored rows of the window in their latest version, without those of groups that have left.
const LATEST_LEADERS: &str = "(select * from (
    select *, row_number() over (partition by window_start, country order by version desc) as place
    from leaders_versions where status <> 'open') where place = 1 and status <> 'retracted')";

/// Late events of two other countries, more than any that their windows have. What they change is
/// emitted once the watermark advances again.
fn displacing(record: &Value) -> Vec<Value> {
    let event = |n: u64| {
        let mut record = record.clone();
        record["rsvp_id"] = json!(1_600_000_000 + n);
        record["mtime"] = json!(1_465_520_420_000 + n / 100 * 20_000 + n);
        record["response"] = json!("yes");
        record["group"]["group_country"] = json!(if n.is_multiple_of(2) { "yy" } else { "zz" });
        record
    };
    (0..400).map(event).collect()
}

#[test]
fn a_process_that_is_killed_again_and_again_writes_each_row_once() {
    let Some(database) = Database::start() else {
        return;
    };
    let mut from = entities();
    from.extend([
        "rsvps".to_owned(),
        "leaders".to_owned(),
        "rsvps.late".to_owned(),
    ]);
    let from: Vec<&str> = from.iter().map(String::as_str).collect();
    let folder = http_folder(&database, &from, LEADERS);
    let mut all = records(1_600, 11);
    let displacing = displacing(&all[0]);
    all.splice(1_200..1_200, displacing);
    let mut last = 0;
    for part in all.chunks(500) {
        let server = serve(&folder);
        post(&server, part);
        // Killed while it delivers: the first rows of the part are there.
        wait_until("rows are delivered", || database.cursor("db") > last);
        drop(server);
        last = database.cursor("db");
    }
    folder.run_once();
    assert_seven_tables(&database, &folder);
    assert_recount(&database, &all);
    assert_same(&database, &folder, "rsvps", "rsvps");
    assert_same(&database, &folder, "leaders", LATEST_LEADERS);
    assert_eq!(
        database.number("select count(*) from rsvps"),
        all.len() as i64
    );
    let retracted = "select count(*) from leaders_versions where status = 'retracted'";
    assert!(folder.number(retracted) > 0, "groups leave windows");
    let lsn = folder.number("select max(lsn) from rsvps");
    assert!(database.cursor("db") >= lsn, "the cursor");
    assert_eq!(database.number("select count(*) from weir_sinks"), 1);
}

#[test]
fn rows_wait_while_the_server_is_down_and_a_second_process_is_fenced() {
    let Some(mut database) = Database::start() else {
        return;
    };
    let folder = http_folder(&database, &["leaders", "rsvps.members"], LEADERS);
    let all = records(900, 4);
    let server = serve(&folder);
    post(&server, &all[..300]);
    wait_until("rows are delivered", || database.cursor("db") > 0);
    database.stop_server();
    post(&server, &all[300..600]);
    wait_until("the sink tries again", || {
        server.get("/api/v1/status").1["sinks"][0]["state"] == "retrying"
    });
    database.run_server();
    post(&server, &all[600..]);
    wait_until("the sink delivers again", || {
        let sink = &server.get("/api/v1/status").1["sinks"][0];
        sink["state"] == "running" && sink["lag"] == 0
    });
    let locks = "select count(*) from pg_locks where locktype = 'advisory'";
    assert_eq!(database.number(locks), 1, "it holds its lock");
    // As if another process had delivered.
    database
        .execute("update weir_sinks set cursor = replace(cursor, '\"epoch\":0', '\"epoch\": 0')");
    post(&server, &all[..1]);
    post(&server, &records(3, 77));
    wait_until("the sink halts", || {
        server.get("/api/v1/status").1["sinks"][0]["state"] == "halted"
    });
    let error = server.get("/api/v1/status").1["sinks"][0]["last_error"].to_string();
    assert!(error.contains("another process"), "{error}");
    drop(server);
    folder.run_once();
    assert_same(&database, &folder, "leaders", LATEST_LEADERS);
    assert_same(&database, &folder, "members", "rsvps.members");
}

#[test]
fn a_stop_ends_while_the_server_works_on_a_statement() {
    let Some(database) = Database::start() else {
        return;
    };
    let folder = http_folder(&database, &["rsvps.members"], "");
    let all = records(600, 4);
    let server = serve(&folder);
    post(&server, &all[..300]);
    wait_until("rows are delivered", || database.cursor("db") > 0);
    database.execute(
        "create function wait() returns trigger language plpgsql as
            'begin perform pg_sleep(3600); return new; end';
         create trigger wait before insert on members for each row execute function wait()",
    );
    post(&server, &all[300..]);
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    wait_until("the statement waits", || database.number(waiting) == 1);
    server.stop();
    wait_until("the statement is cancelled", || {
        database.number(waiting) == 0
    });
    database.execute("drop trigger wait on members");
    folder.run_once();
    assert_same(&database, &folder, "members", "rsvps.members");
}

#[test]
fn rows_that_cannot_be_stored_become_dead_letters_and_the_others_arrive() {
    let Some(database) = Database::start() else {
        return;
    };
    // A table of the user: a shorter text, a check, and a column with a default.
    database.execute(
        "create table events (lsn bigint, updated timestamptz, version bigint, event_id text primary key,
            event_name varchar(20) check (event_name <> 'Reopening'), event_url text, event_start timestamptz,
            added timestamptz not null default now())",
    );
    let from = ["rsvps.latest", "rsvps.members", "rsvps.events"];
    let folder = folder(&database, &from, "");
    let mut all = records(600, 9);
    for (at, record) in all.iter_mut().enumerate() {
        record["event"]["event_id"] = json!(format!("e{at}"));
        record["event"]["event_name"] = json!("Open mic");
        if at == 100 {
            record["member"] = json!({"member_id": 100_001, "member_name": "a\u{0}b"});
        }
    }
    all[200]["event"]["event_name"] = json!("Reopening");
    all[300]["event"]["event_name"] = json!("x".repeat(21));
    folder.write("in.ndjson", &ndjson(&all));
    folder.run_once();
    let refused = folder.rows(
        "select \"table\", lsn, reason, \"row\" from weir.sink_dead_letters order by lsn, \"table\"",
    );
    let reasons: Vec<String> = refused
        .iter()
        .map(|row| format!("{} {}", row["table"], row["reason"]))
        .collect();
    assert_eq!(refused.len(), 3, "{reasons:?}");
    assert!(
        reasons[0].contains("members") && reasons[0].contains("U+0000"),
        "{reasons:?}"
    );
    assert!(
        reasons[1].contains("23514") && reasons[2].contains("22001"),
        "{reasons:?}"
    );
    // What others refer to is there, without its other columns.
    let expected = [
        ("latest", "true"),
        ("members", "member_id <> 100001"),
        ("events", "event_id not in ('e200', 'e300')"),
    ];
    for (table, condition) in expected {
        let found = database.rows(&format!(
            "select lsn, version from {table} where {condition}"
        ));
        let of_weir = format!("select lsn, version from rsvps.{table} where {condition}");
        assert_eq!(sorted(&found), sorted(&folder.rows(&of_weir)), "{table}");
    }
    let stub = database.rows("select member_name from members where member_id = 100001");
    assert_eq!(stub, [json!({"member_name": null})]);
    let stubs =
        "select count(*) from events where event_id in ('e200', 'e300') and event_name is null";
    assert_eq!(database.number(stubs), 2);
}

#[test]
fn a_table_that_is_not_right_is_refused_with_all_differences() {
    let Some(database) = Database::start() else {
        return;
    };
    database.execute("create table members (lsn bigint, updated timestamptz, version bigint, member_id integer, photo text, rank int not null)");
    let folder = folder(&database, &["rsvps.members", "rsvps.venues"], "");
    folder.write("in.ndjson", &ndjson(&records(20, 1)));
    let message = folder.fail(&["run", "--once"], 1);
    for part in [
        "alter table \"public\".\"members\" alter column \"member_id\" type bigint",
        "alter table \"public\".\"members\" add column \"member_name\" text",
        "alter table \"public\".\"members\" add primary key (\"member_id\")",
        "alter table \"public\".\"members\" alter column \"rank\" drop not null",
    ] {
        assert!(message.contains(part), "{part} expected: {message}");
    }
    // Nothing was created beside it.
    assert!(database.columns("venues").is_empty());
    database.execute("drop table members");
    folder.run_once();
    assert_same(&database, &folder, "members", "rsvps.members");
    // A wrong password, and what to do about it.
    folder.write("password", b"wrong");
    folder.write("in.ndjson", &ndjson(&records(30, 1)));
    let message = folder.fail(&["run", "--once"], 1);
    assert!(message.contains("password_file"), "{message}");
}

#[test]
fn the_url_of_the_configuration_has_no_password() {
    let folder = TestFolder::new("");
    let configure = |url: &str| {
        folder.configure(&format!(
            "{}\n[[sinks]]\nname = \"db\"\ntype = \"postgres\"\nfrom = \"rsvps\"\nurl = \"{url}\"\n",
            include_str!("../testdata/rsvps_file.toml")
        ));
    };
    configure("postgres://weir:hidden@127.0.0.1/events");
    folder.check_config_error(&["sink `db`", "password_file"]);
    configure("postgres://weir@127.0.0.1/events");
    folder.succeed(&["check"]);
}

#[test]
fn the_example_of_the_documentation_is_a_configuration() {
    let page = include_str!("../docs/sinks.md");
    let section = page.split("## PostgreSQL").nth(1).expect("a section");
    let example = section.split("```toml").nth(1).expect("an example");
    let example = example.split("```").next().expect("its end");
    let folder = TestFolder::new("");
    folder.configure(&format!(
        "{}\n{}",
        include_str!("../testdata/rsvps_file.toml"),
        example
            .replace("# ca_file", "ca_file")
            .replace("# schema", "schema")
    ));
    for name in ["postgres_password", "ca.pem"] {
        folder.write(name, b"x");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(folder.path(name), mode).expect("a file");
    }
    folder.succeed(&["check"]);
}
