//! `weir try`: the declaration that it writes for samples of public formats is the one in
//! `examples/try`, and files, folders and URLs lead to one that runs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{TestFolder, wait_until, weir};

/// Samples in `testdata/try`, the example of each, and the number of its records.
const SAMPLES: [(&str, &str, u64); 6] = [
    ("rsvps.ndjson", "rsvps", 60),
    ("edits.ndjson", "edits", 60),
    ("github.ndjson", "github", 50),
    ("jetstream.ndjson", "jetstream", 50),
    ("quakes.geojson", "quakes", 40),
    ("nginx.ndjson", "nginx", 60),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sample(name: &str) -> Vec<u8> {
    std::fs::read(root().join("testdata/try").join(name)).expect("a sample")
}

/// Runs the verb in a folder.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command: Command = weir();
    let output = command
        .arg("try")
        .args(arguments)
        .current_dir(folder)
        .output();
    output.expect("the binary runs")
}

fn messages(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        messages(&output)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Runs the verb, which must refuse with this exit code.
fn fail(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(folder, arguments);
    let messages = messages(&output);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {messages}"
    );
    messages
}

/// The report, as JSON.
fn report(folder: &Path, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["--output", "json"]);
    serde_json::from_str(&succeed(folder, &all)).expect("JSON")
}

/// The examples are what the samples give, after comments on what a sample was compared with.
/// `testdata/try/README.md` has the command that writes them again.
#[test]
fn samples_of_public_formats_give_the_examples() {
    for (file, name, records) in SAMPLES {
        let path = format!("testdata/try/{file}");
        let output = run(root(), &[&path, "--print"]);
        let messages = messages(&output);
        assert!(output.status.success(), "{file}: {messages}");
        let all = format!("{records} of {records} records of {path} are accepted");
        assert!(messages.contains(&all), "{file}: {messages}");
        let example = root().join("examples/try").join(format!("{name}.toml"));
        let expected = std::fs::read_to_string(&example).expect("an example");
        let start = expected.find("# Proposed by").expect("a proposal");
        assert!(expected[..start].contains("compared with"), "{expected}");
        let found = String::from_utf8(output.stdout).expect("text");
        let expected = &expected[start..];
        assert_eq!(found, expected, "{path} and {}", example.display());
    }
}

#[test]
fn a_file_becomes_a_configuration_that_runs() {
    let folder = TestFolder::new("");
    let here = folder.path("");
    std::fs::remove_file(folder.path("weir.toml")).expect("it exists");
    folder.write("quakes.geojson", &sample("quakes.geojson"));
    let shown = succeed(&here, &["quakes.geojson"]);
    for part in [
        "40 of 40 records of quakes.geojson are accepted",
        "40 events, from 2024-06-0",
        "by ",
        "found by the word",
        "near ",
        "weir run",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    assert!(!folder.path("weir-data").exists());
    folder.run_once();
    assert_eq!(folder.number("select count(*) from quakes"), 40);
    assert_eq!(folder.number("select count(lat) from quakes"), 40);
    let refusal = fail(&here, &["quakes.geojson"], 2);
    assert!(refusal.contains("--force"), "{refusal}");
    // An overwritten one is another stream's.
    let report = report(&here, &["quakes.geojson", "--force", "--stream", "tremors"]);
    assert_eq!(report["stream"], "tremors");
    assert_eq!(report["accepted"], 40);
    let text = std::fs::read_to_string(folder.path("weir.toml")).expect("readable");
    assert!(text.contains("[streams.tremors]") && text.contains("unwrap = \"features\""));
}

#[test]
fn compressed_files_arrays_and_folders_are_read() {
    let folder = TestFolder::new("");
    let here = folder.path("");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&sample("nginx.ndjson")).expect("memory");
    folder.write("access.log.gz", &gzip.finish().expect("memory"));
    let lines = String::from_utf8(sample("edits.ndjson")).expect("text");
    let array = format!("[{}]", lines.trim_end().replace('\n', ",\n"));
    folder.write("edits.json", array.as_bytes());
    for (file, stream, records) in [("access.log.gz", "access", 60), ("edits.json", "edits", 60)] {
        let report = report(&here, &[file, "--force"]);
        assert_eq!(report["stream"], stream, "{report}");
        assert_eq!(report["accepted"], records, "{report}");
        assert_eq!(report["answers"]["events"], records, "{report}");
    }
    // Other files of a folder are left out.
    std::fs::create_dir(folder.path("logs")).expect("a folder");
    let lines = String::from_utf8(sample("nginx.ndjson")).expect("text");
    let half = lines.match_indices('\n').nth(29).expect("60 lines").0 + 1;
    folder.write("logs/a.ndjson", &lines.as_bytes()[..half]);
    folder.write("logs/b.ndjson", &lines.as_bytes()[half..]);
    folder.write("logs/README.md", b"# Logs\nThey are not JSON.\n");
    let report = report(&here, &["logs", "--force"]);
    assert_eq!(report["accepted"], 60, "{report}");
    let text = std::fs::read_to_string(folder.path("weir.toml")).expect("readable");
    assert!(text.contains("include = [\"*.ndjson\"]"), "{text}");
    folder.run_once();
    assert_eq!(folder.number("select count(*) from logs"), 60);
}

#[test]
fn what_cannot_be_read_is_refused_with_the_next_step() {
    let folder = TestFolder::new("");
    let here = folder.path("");
    folder.write("empty.json", b"\n");
    folder.write("table.csv", b"id,at\n1,2024-05-01\n");
    folder.write(
        "data.zip",
        b"PK\x03\x04 and more bytes than a magic number has",
    );
    for (from, parts) in [
        ("empty.json", ["there are no records", "name something"]),
        (
            "table.csv",
            ["is a JSON object", "one JSON object on each line"],
        ),
        ("data.zip", ["a ZIP archive", "unpack it"]),
        ("missing.json", ["missing.json", "name an existing file"]),
        ("ftp://example.com/a", ["ftp://", "https://"]),
    ] {
        let refusal = fail(&here, &[from, "--print"], 2);
        assert!(
            parts.iter().all(|part| refusal.contains(part)),
            "{from}: {refusal}"
        );
    }
    // A port at which nothing listens.
    let port = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/feed", port.local_addr().expect("an address"));
    drop(port);
    let refusal = fail(&here, &[&url, "--print"], 1);
    assert!(refusal.contains("check the URL"), "{refusal}");
}

#[test]
fn records_without_a_time_get_one_with_a_warning() {
    let folder = TestFolder::new("");
    folder.write(
        "parts.ndjson",
        b"{\"part\":\"bolt\",\"n\":1}\n{\"part\":\"nut\",\"n\":\"two\"}\n",
    );
    let output = run(&folder.path(""), &["parts.ndjson", "--print"]);
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    assert!(
        messages(&output).contains("no time was found"),
        "{}",
        messages(&output)
    );
    assert!(
        text.contains("timestamp '2000-01-01") && text.contains("n varchar"),
        "{text}"
    );
}

/// Answers each request with these bytes, and keeps connections open with `is_open`.
fn serve(answer: Vec<u8>, is_open: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4_096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(&answer);
            if is_open {
                open.push(stream);
            }
        }
    });
    port
}

fn answer(content_type: &str, length: Option<usize>, body: &[u8]) -> Vec<u8> {
    let length = length.map_or(String::new(), |n| format!("Content-Length: {n}\r\n"));
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{length}\r\n");
    [head.as_bytes(), body].concat()
}

#[test]
fn a_document_is_polled_and_an_open_stream_followed() {
    let folder = TestFolder::new("");
    let here = folder.path("");
    let written = || std::fs::read_to_string(folder.path("weir.toml")).expect("readable");
    let quakes = sample("quakes.geojson");
    let port = serve(
        answer("application/json", Some(quakes.len()), &quakes),
        false,
    );
    let url = format!("http://127.0.0.1:{port}/all_day.geojson?token=secret");
    let output = run(&here, &[&url, "--force"]);
    assert!(output.status.success(), "{}", messages(&output));
    // A parameter may be a secret: only the configuration has it.
    let shown = String::from_utf8_lossy(&output.stdout).into_owned() + messages(&output).as_str();
    assert!(
        !shown.contains("secret") && shown.contains("all_day.geojson"),
        "{shown}"
    );
    assert!(
        written().contains("type = \"http_poll\"") && written().contains("unwrap = \"features\"")
    );

    let lines = String::from_utf8(sample("jetstream.ndjson")).expect("text");
    let events: String = lines.lines().map(|l| format!("data: {l}\n\n")).collect();
    let port = serve(answer("text/event-stream", None, events.as_bytes()), true);
    let url = format!("http://127.0.0.1:{port}/subscribe");
    let answers = report(&here, &[&url, "--force", "--records", "50"]);
    assert_eq!(answers["accepted"], 50, "{answers}");
    assert!(
        written().contains("type = \"http_stream\""),
        "{}",
        written()
    );

    let port = serve(answer("application/x-ndjson", None, lines.as_bytes()), true);
    let url = format!("http://127.0.0.1:{port}/events");
    let answers = report(&here, &[&url, "--force", "--for", "1s"]);
    assert_eq!(answers["accepted"], 50, "{answers}");
    assert!(
        written().contains("type = \"http_stream\""),
        "{}",
        written()
    );
}

/// An answer in chunks, without a length. The last chunk, which says that it ends, is missing from
/// an open one.
fn chunked(body: &[u8], is_open: bool) -> Vec<u8> {
    let mut out = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n".to_vec();
    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
    for chunk in body.chunks(4_000) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    if !is_open {
        out.extend_from_slice(b"0\r\n\r\n");
    }
    out
}

/// No header says whether it ends, and it has more lines than a sample needs.
#[test]
fn a_chunked_answer_is_a_document_if_it_ends() {
    let folder = TestFolder::new("");
    let here = folder.path("");
    let line = |n: u32| {
        let (minute, second) = (n / 60, n % 60);
        format!("{{\"id\":{n},\"at\":\"2024-05-01T10:{minute:02}:{second:02}Z\"}}\n")
    };
    let lines: String = (0..3_000).map(line).collect();
    for (is_open, expected) in [(false, "http_poll"), (true, "http_stream")] {
        let port = serve(chunked(lines.as_bytes(), is_open), is_open);
        let url = format!("http://127.0.0.1:{port}/feed");
        let mut arguments = vec![url.as_str(), "--force"];
        arguments.extend(["--records", "100", "--for", "3s"]);
        let answers = report(&here, &arguments);
        assert_eq!(answers["accepted"], 100, "{answers}");
        let text = std::fs::read_to_string(folder.path("weir.toml")).expect("readable");
        let source = format!("type = \"{expected}\"");
        assert!(text.contains(&source), "{text}");
        assert_eq!(text.contains("had not ended"), is_open, "{text}");
    }
}

/// Whichever operation fails, also the last one, which makes the name durable: there is the old
/// file or the new one, nothing beside it, and the failure is reported.
#[test]
fn a_configuration_is_overwritten_durably_or_not_at_all() {
    const EIO: &str = "5";
    let folder = TestFolder::new("");
    let library = folder.build_library("disk.c");
    std::fs::create_dir(folder.path("conf")).expect("a folder");
    folder.write("quakes.geojson", &sample("quakes.geojson"));
    let root = folder.path("conf").canonicalize().expect("a folder");
    let path = root.join("weir.toml");
    let run = |after: u64| {
        std::fs::write(&path, "old").expect("a file");
        let mut command: Command = weir();
        let output = command
            .args(["try", "quakes.geojson", "--force", "-c", "conf/weir.toml"])
            .current_dir(folder.path(""))
            .env("LD_PRELOAD", &library)
            .env("FAIL_UNDER", &root)
            .env("FAIL_COUNT", folder.path("count"))
            .env("FAIL_AFTER", after.to_string())
            .env("FAIL_FOR", "1")
            .env("FAIL_WITH", EIO)
            .output();
        output.expect("the binary runs")
    };
    let output = run(1_000);
    assert!(output.status.success(), "{}", messages(&output));
    let count = std::fs::read_to_string(folder.path("count")).expect("a count");
    let count: u64 = count.parse().expect("a number");
    // The content, its sync, the rename, and the sync of the folder.
    assert!((4..50).contains(&count), "{count}");
    for after in 0..count {
        let output = run(after);
        let messages = messages(&output);
        assert_eq!(output.status.code(), Some(1), "{after}: {messages}");
        let text = std::fs::read_to_string(&path).expect("readable");
        let is_new = text.contains("[streams.quakes]") && text.ends_with("\"60s\"\n");
        assert!(text == "old" || is_new, "{after}: {text}");
        let entries = std::fs::read_dir(&root).expect("a folder");
        assert_eq!(entries.count(), 1, "{after}");
    }
}

#[test]
fn messages_of_a_websocket_are_looked_at_for_a_bounded_time() {
    let folder = TestFolder::new("");
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        free.local_addr().expect("an address").port()
    };
    let address = format!("127.0.0.1:{port}");
    let mut upstream = weir()
        .args([
            "generate", "--rate", "300", "--start", "now", "--serve", &address,
        ])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary runs");
    wait_until("the server listens", || {
        TcpStream::connect(&address).is_ok()
    });
    let url = format!("ws://{address}/2/rsvps");
    let answers = report(
        &folder.path(""),
        &[&url, "--force", "--records", "40", "--for", "30s"],
    );
    upstream
        .kill()
        .and_then(|()| upstream.wait())
        .expect("it ends");
    assert_eq!(answers["records"], 40, "{answers}");
    let text = std::fs::read_to_string(folder.path("weir.toml")).expect("readable");
    assert!(
        text.contains("type = \"websocket\"") && text.contains("key = \"rsvp_id\""),
        "{text}"
    );
}
