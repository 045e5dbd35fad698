//! Commits of the sink `postgres` that take long, as where the server checks the foreign keys of
//! many rows: they are waited for, and a lost connection whose transaction is still being committed
//! is distinguished from another process.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::server::Server;
use crate::sink_postgres::{Database, assert_same, post, serve};
use crate::support::{HTTP_ONLY, TestFolder, records, wait_until};

/// A trigger that runs at the commit, and holds it while the table `gate` has a row.
const GATE: &str = "
create table gate (closed boolean);
create function wait() returns trigger language plpgsql as
  'begin while exists (select from gate) loop perform pg_sleep(0.05); end loop; return null; end';
create constraint trigger wait after insert or update on members
  deferrable initially deferred for each row execute function wait()";

const COMMITTING: &str =
    "select count(*) from pg_stat_activity where state = 'active' and query = 'commit'";

/// Passes connections on to a server, until they are cut.
struct Proxy {
    port: u16,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let sockets: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let open = sockets.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else {
                    continue;
                };
                for (from, into) in [(&client, &server), (&server, &client)] {
                    let mut from = from.try_clone().expect("a copy");
                    let mut into = into.try_clone().expect("a copy");
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut into);
                        let _ = into.shutdown(Shutdown::Both);
                    });
                }
                open.lock().expect("unpoisoned").extend([client, server]);
            }
        });
        Self { port, sockets }
    }

    fn cut(&self) {
        for socket in self.sockets.lock().expect("unpoisoned").drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// A folder whose sink of `rsvps.members` connects to this port.
fn folder(database: &Database, port: u16) -> TestFolder {
    let folder = TestFolder::new("");
    let sink = database.sink(&folder, &["rsvps.members"], "");
    let (own, other) = (format!(":{}/", database.port), format!(":{port}/"));
    let sink = sink.replace(&own, &other);
    folder.configure(&format!("{HTTP_ONLY}{sink}"));
    folder
}

/// The sink as the running server describes it.
fn sink(server: &Server) -> Value {
    server.get("/api/v1/status").1["sinks"][0].clone()
}

/// Posts records whose commit waits.
fn post_behind_the_gate(database: &Database, server: &Server, records: &[Value]) {
    database.execute("insert into gate values (true)");
    post(server, records);
    wait_until("the server commits", || database.number(COMMITTING) == 1);
}

fn wait_for_all(server: &Server) {
    wait_until("all is delivered", || sink(server)["lag"] == 0);
    let sink = sink(server);
    assert_eq!(sink["state"], "running");
    assert_eq!(sink["last_error"], Value::Null);
}

#[test]
fn a_commit_is_waited_for_longer_than_a_statement() {
    let Some(database) = Database::start() else {
        return;
    };
    let folder = folder(&database, database.port);
    let all = records(400, 4);
    let server = serve(&folder);
    post(&server, &all[..200]);
    wait_until("rows are delivered", || database.cursor("db") > 0);
    database.execute(GATE);
    post_behind_the_gate(&database, &server, &all[200..]);
    std::thread::sleep(Duration::from_secs(31));
    assert_eq!(database.number(COMMITTING), 1);
    database.execute("delete from gate");
    wait_for_all(&server);
    assert_eq!(sink(&server)["retries"], 0);
    server.stop();
    assert_same(&database, &folder, "members", "rsvps.members");
}

#[test]
fn a_lost_connection_that_still_commits_is_not_taken_for_another_process() {
    let Some(database) = Database::start() else {
        return;
    };
    let proxy = Proxy::start(database.port);
    let folder = folder(&database, proxy.port);
    let all = records(600, 4);
    let server = serve(&folder);
    post(&server, &all[..200]);
    wait_until("rows are delivered", || database.cursor("db") > 0);
    database.execute(GATE);
    post_behind_the_gate(&database, &server, &all[200..400]);
    proxy.cut();
    let says = |server: &Server, text: &str| {
        let error = sink(server)["last_error"].to_string();
        assert!(!error.contains("another process delivers"), "{error}");
        error.contains(text)
    };
    wait_until("it waits for its own commit", || {
        says(&server, "the last transaction is still being committed")
    });
    database.execute("delete from gate");
    wait_for_all(&server);
    // A stop does not wait for a commit, and the next process says what it waits for.
    post_behind_the_gate(&database, &server, &all[400..]);
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < Duration::from_secs(20));
    let server = serve(&folder);
    wait_until("it waits for the commit", || {
        let text = "another process has begun is still being committed";
        says(&server, text)
    });
    database.execute("delete from gate");
    wait_for_all(&server);
    server.stop();
    assert_same(&database, &folder, "members", "rsvps.members");
}
