//! Notebooks: what was answered is on the disk, one client does not overwrite another's change, and
//! backups have them.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::server::{Server, start, token};
use crate::support::{HTTP_ONLY, TestFolder, copy, ndjson, records};

fn folder() -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    folder
}

fn path(name: &str) -> String {
    format!("/api/v1/notebooks/{name}")
}

/// A notebook with a text, a query, and a query with a chart.
fn notebook(title: &str) -> Value {
    json!({"title": title, "cells": [
        {"kind": "text", "text": "# Answers\n<script>alert(1)</script> é \u{202e}"},
        {"kind": "sql", "sql": "select 1 as n"},
        {"kind": "sql", "sql": "select * from rsvps", "chart": {"kind": "map", "x": "lat", "y": ["lon", "n"]}},
    ]})
}

fn put(server: &Server, name: &str, body: &Value, headers: &[(&str, &str)]) -> (u16, Value) {
    server.request("PUT", &path(name), headers, body.to_string().as_bytes())
}

#[test]
fn notebooks_survive_a_kill_and_changes_in_between_are_noticed() {
    let folder = folder();
    let server = start(&folder);
    assert_eq!(
        server.get("/api/v1/notebooks").1,
        json!({"notebooks": [], "may_write": true})
    );
    assert_eq!(server.get(&path("first")).0, 404);
    let (status, stored) = put(&server, "first", &notebook("One"), &[("If-Match", "\"0\"")]);
    assert_eq!(status, 200, "{stored}");
    let first = stored["version"].as_u64().expect("a version");
    assert_eq!(
        (&stored["name"], &stored["title"]),
        (&json!("first"), &json!("One"))
    );
    assert_eq!(stored["cells"], notebook("")["cells"]);
    assert_eq!(server.get(&path("first")), (200, stored));
    // Two clients read this version; the second to save learns of the first.
    let change = |title: &str, version: &str| {
        put(&server, "first", &notebook(title), &[("If-Match", version)])
    };
    assert_eq!(change("Two", &format!("\"{first}\"")).0, 200);
    let (status, refused) = change("Three", &first.to_string());
    assert_eq!(
        (status, &refused["error"]["code"]),
        (412, &json!("changed")),
        "{refused}"
    );
    assert_eq!(change("Three", "*").0, 400);
    server.kill();
    drop(server);
    let server = start(&folder);
    let (status, found) = server.get(&path("first"));
    assert_eq!((status, &found["title"]), (200, &json!("Two")));
    assert!(found["version"].as_u64() > Some(first), "{found}");
    let list = server.get("/api/v1/notebooks").1;
    let expected = json!({"notebooks": [{"name": "first", "title": "Two", "changed": found["changed"]}], "may_write": true});
    assert_eq!(list, expected);
    let file = folder.path("data/notebooks/first.json");
    let mode = |path| {
        std::fs::metadata(path)
            .expect("a file")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode(file), mode(folder.path("data/notebooks"))),
        (0o600, 0o700)
    );
    assert_eq!(server.request("DELETE", &path("first"), &[], b"").0, 204);
    assert_eq!(server.request("DELETE", &path("first"), &[], b"").0, 404);
    assert_eq!(
        server.get("/api/v1/notebooks").1,
        json!({"notebooks": [], "may_write": true})
    );
    server.stop();
}

#[test]
fn hostile_names_and_bodies_are_refused() {
    let folder = folder();
    let server = start(&folder);
    let outside = folder.path("data/lock.json");
    std::fs::write(&outside, b"{}").expect("a file");
    let long = "x".repeat(65);
    for name in [
        "..%2Flock",
        "%2e%2e%2flock",
        "a%00",
        "A",
        "a.b",
        "%C3%A9",
        "a%20b",
        &long,
    ] {
        for (method, body) in [
            ("GET", ""),
            ("DELETE", ""),
            ("PUT", "{\"title\":\"\",\"cells\":[]}"),
        ] {
            let (status, answer) = server.request(method, &path(name), &[], body.as_bytes());
            assert_eq!(status, 400, "{method} {name}: {answer}");
        }
    }
    assert!(outside.exists());
    let cell = json!({"kind": "text", "text": ""});
    for body in [
        json!([]),
        json!({"title": "no cells"}),
        json!({"title": 1, "cells": []}),
        json!({"title": "", "cells": [{"kind": "shell", "text": "rm"}]}),
        json!({"title": "", "cells": [{"kind": "sql", "sql": "", "more": 1}]}),
        json!({"title": "", "cells": [{"kind": "sql", "sql": "", "chart": {"kind": "cake"}}]}),
        json!({"title": "", "cells": vec![cell.clone(); 201]}),
        json!({"title": "x".repeat(201), "cells": []}),
        json!({"title": "", "cells": [], "version": 7}),
    ] {
        let (status, answer) = put(&server, "a", &body, &[]);
        assert_eq!(status, 400, "{answer}");
    }
    let large = json!({"title": "", "cells": [{"kind": "text", "text": "x".repeat(1 << 20)}]});
    assert!([400, 413].contains(&put(&server, "a", &large, &[]).0));
    let origin = [("Origin", "http://evil.example")];
    assert_eq!(put(&server, "a", &notebook(""), &origin).0, 403);
    assert_eq!(
        put(
            &server,
            "a",
            &json!({"title": "", "cells": vec![cell; 200]}),
            &[]
        )
        .0,
        200
    );
    assert_eq!(
        server.get("/api/v1/notebooks").1["notebooks"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    // A file that was changed by hand is reported, not shown, and can be deleted.
    std::fs::write(folder.path("data/notebooks/a.json"), b"{\"title\":").expect("a file");
    let (status, answer) = server.get(&path("a"));
    assert_eq!(
        (status, &answer["error"]["code"]),
        (500, &json!("damaged")),
        "{answer}"
    );
    assert_eq!(server.request("DELETE", &path("a"), &[], b"").0, 204);
    server.stop();
}

#[test]
fn a_read_only_token_reads_and_does_not_save() {
    let folder = folder();
    let [write, read] = [&[][..], &["--read-only"]].map(|kind| token(&folder, kind));
    folder.configure(&HTTP_ONLY.replace("[server]\n", "[server]\ntoken_file = 'tokens'\n"));
    let server = start(&folder);
    let ask = |token: &str, method: &str, body: &str| {
        let bearer = format!("Bearer {token}");
        server.request(
            method,
            &path("a"),
            &[("Authorization", &bearer)],
            body.as_bytes(),
        )
    };
    let body = notebook("shared").to_string();
    let (status, answer) = ask(&read, "PUT", &body);
    assert_eq!(
        (status, &answer["error"]["code"]),
        (403, &json!("read_only"))
    );
    assert_eq!(ask(&write, "PUT", &body).0, 200);
    assert_eq!(ask(&read, "GET", "").1["title"], "shared");
    assert_eq!(ask(&read, "DELETE", "").0, 403);
    assert_eq!(server.get(&path("a")).0, 401);
    server.stop();
}

#[test]
fn backups_of_a_running_and_of_a_stopped_folder_have_them() {
    let folder = folder();
    let server = start(&folder);
    assert_eq!(server.post(&[], &ndjson(&records(20, 3))).0, 200);
    for name in ["a", "b-2"] {
        assert_eq!(put(&server, name, &notebook(name), &[]).0, 200);
    }
    let running = folder.path("running");
    folder.ask(&["backup", running.to_str().expect("text")]);
    assert_eq!(put(&server, "later", &notebook("later"), &[]).0, 200);
    server.stop();
    let stopped = folder.path("stopped");
    folder.ask(&["backup", stopped.to_str().expect("text")]);
    for (backup, expected) in [
        (running, vec!["a", "b-2"]),
        (stopped, vec!["a", "b-2", "later"]),
    ] {
        let restored = self::folder();
        copy(&backup, &restored.path("data"));
        let server = start(&restored);
        let list = server.get("/api/v1/notebooks").1;
        let names: Vec<&Value> = list["notebooks"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|entry| &entry["name"])
            .collect();
        assert_eq!(json!(names), json!(expected));
        assert_eq!(server.get(&path("a")).1["cells"], notebook("a")["cells"]);
        server.stop();
    }
}
