//! Facets: the values of a search's hits, compared with a recount of the records.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::server::{Server, start};
use crate::support::{HTTP_ONLY, TestFolder, ndjson, records, wait_until};

/// A text as a parameter of an address.
fn encode(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b if b.is_ascii_alphanumeric() => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// A server whose index has these records.
fn served(all: &[Value]) -> (TestFolder, Server) {
    let folder = TestFolder::new("");
    folder.configure(HTTP_ONLY);
    let server = start(&folder);
    assert_eq!(server.post(&[], &ndjson(all)).0, 200);
    wait_until("the index has the records", || {
        server.get("/api/v1/search?q=open&limit=1").1["as_of"]["pending"] == 0
    });
    (folder, server)
}

/// A facet without a limit: the most frequent values first, then in the order of their texts.
fn facet(column: &str, records: &[&Value], value: impl Fn(&Value) -> Value) -> Value {
    let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
    for record in records {
        *numbers.entry(value(record).to_string()).or_default() += 1;
    }
    let mut all: Vec<(String, u64)> = numbers.into_iter().collect();
    all.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let value = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let values: Vec<Value> = all
        .iter()
        .map(|(text, n)| json!({"value": value(text), "n": n}))
        .collect();
    json!({"column": column, "distinct": all.len(), "complete": true, "values": values})
}

fn country(record: &Value) -> Value {
    let name = record["group"]["group_country"].as_str().expect("text");
    json!(name.to_lowercase())
}

#[test]
fn facets_are_counted_over_all_hits_that_pass_the_filters() {
    let all = records(600, 11);
    let (_folder, server) = served(&all);
    let is_open = |record: &&Value| record["event"]["event_name"] == "Open mic night";
    let open: Vec<&Value> = all.iter().filter(is_open).collect();
    assert!(open.len() > 50, "{} hits are more than a page", open.len());
    let path = "/api/v1/search/facets?q=open&columns=response,country,guests,topics";
    let (status, answer) = server.get(path);
    assert_eq!(status, 200, "{answer}");
    for number in ["total", "counted", "matching"] {
        assert_eq!(answer[number], open.len(), "{number}");
    }
    let expected = [
        facet("response", &open, |record| record["response"].clone()),
        facet("country", &open, country),
        facet("guests", &open, |record| record["guests"].clone()),
        facet("topics", &open, |_| json!("fun")),
    ];
    assert_eq!(answer["facets"], json!(expected));
    assert!(answer["as_of"]["pending"].is_u64(), "{answer}");

    let is_no = |record: &&&Value| record["response"] == "no";
    let no: Vec<&Value> = open.iter().filter(is_no).copied().collect();
    let filters = encode(r#"[["response", "no"], ["topics", "fun"], ["year", 2016]]"#);
    let path = format!("/api/v1/search/facets?q=open&columns=country&where={filters}");
    let (_, answer) = server.get(&path);
    assert_eq!(answer["total"], open.len());
    assert_eq!(answer["matching"], no.len());
    assert_eq!(answer["facets"], json!([facet("country", &no, country)]));

    let (_, answer) = server.get("/api/v1/search/facets?q=open&columns=country&limit=1");
    let mut most = facet("country", &open, country);
    if let Some(values) = most["values"].as_array_mut() {
        values.truncate(1);
    }
    assert_eq!(answer["facets"], json!([most]));

    let near = "q=open&near=40.7,-74&within=150km";
    let found = server.get(&format!("/api/v1/search?{near}")).1["total"].clone();
    let (_, answer) = server.get(&format!("/api/v1/search/facets?{near}&columns=country"));
    assert!(
        found.as_u64() > Some(0) && answer["matching"] == found,
        "{answer}"
    );
    server.stop();
}

#[test]
fn requests_for_facets_are_checked() {
    let (_folder, server) = served(&records(1, 1));
    let many = vec!["country"; 17].join(",");
    for (query, status) in [
        ("q=open&columns=country", 200),
        ("q=nothing&columns=country", 200),
        ("q=open", 400),
        ("columns=country", 400),
        ("q=open&columns=nothing", 400),
        (&*format!("q=open&columns={many}"), 400),
        ("q=open&columns=country&limit=101", 400),
        ("q=open&columns=country&sort=rank", 400),
        ("q=open&columns=country&where=7", 400),
        (
            &*format!(
                "q=open&columns=country&where={}",
                encode(r#"[["nothing", 1]]"#)
            ),
            400,
        ),
        ("q=open&columns=country&stream=nothing", 404),
    ] {
        let (found, answer) = server.get(&format!("/api/v1/search/facets?{query}"));
        assert_eq!(found, status, "{query}: {answer}");
    }
    server.stop();
}
