//! The demo: its configuration, and commands to try.

/// The demo's configuration as TOML: HTTP at `port` of loopback, records from the websocket `url`.
pub fn demo_configuration(port: u16, url: &str) -> String {
    format!(
        r#"data = "./weir-data"
[server]
http = "127.0.0.1:{port}"
[limits]
disk = "2GiB"
[[sources]]
name = "demo"
type = "websocket"
url = "{url}"
stream = "rsvps"
[streams.rsvps]
preset = "rsvps"
"#
    )
}

/// Command lines to try while the demo runs; each has an answer after a few seconds.
pub const TO_TRY: [&str; 5] = [
    r#"weir sql "select country, count(*) as n from rsvps where not is_duplicate group by 1 order by 2 desc limit 5""#,
    "weir count --type yes --from now-1m",
    r#"weir search "language exchange" --limit 3"#,
    "weir nearby --lat 40.7128 --lon=-74.0060 --limit 3",
    "weir dead-letters list --limit 3",
];

/// The demo's message when it starts.
pub fn demo_welcome(port: u16) -> String {
    let binary = std::env::args().next().unwrap_or_else(|| "weir".into());
    let lines: Vec<String> = TO_TRY
        .iter()
        .map(|line| format!("  {}", line.replacen("weir", &binary, 1)))
        .collect();
    format!(
        "Live at http://127.0.0.1:{port}/ (API: http://127.0.0.1:{port}/docs), data in ./weir-data. Try in another terminal:\n\n{}\n\nCtrl-C stops it; the next start resumes.\n",
        lines.join("\n")
    )
}
