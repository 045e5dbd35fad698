//! `WEIR_…` variables, which take precedence over the file.

use super::limits::LIMITS;

/// Looks up an environment variable; a parameter, so that tests have one of their own.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Keys of the other sections that a variable may set.
const KEYS: [(&str, &[&str]); 3] = [
    (
        "server",
        &[
            "http",
            "ingest",
            "tls_cert",
            "tls_key",
            "token_file",
            "backups",
        ],
    ),
    ("log", &["segment", "keep", "budget"]),
    ("lake", &["url", "partition"]),
];

/// Keys of the top level that a variable may set.
const TOP_KEYS: [&str; 2] = ["data", "instance"];

/// The variable that sets a key of the top level.
fn top_variable(key: &str) -> String {
    format!("WEIR_{}", key.to_uppercase())
}

/// The variable that sets `[section] key`.
pub(super) fn variable(section: &str, key: &str) -> String {
    format!("WEIR_{}_{}", section.to_uppercase(), key.to_uppercase())
}

/// Sets `WEIR_DATA`, `WEIR_INSTANCE` and `WEIR_<SECTION>_<KEY>` (server, limits, log and lake) in
/// the file's table.
pub(super) fn overlay(table: &mut toml::Table, env: Environment<'_>) {
    for key in TOP_KEYS {
        if let Some(text) = env(&top_variable(key)) {
            table.insert(key.into(), value(text));
        }
    }
    let limits = LIMITS.iter().map(|limit| ("limits", limit.key));
    let others = KEYS
        .iter()
        .flat_map(|(section, keys)| keys.iter().map(move |key| (*section, *key)));
    for (section, key) in limits.chain(others) {
        let Some(text) = env(&variable(section, key)) else {
            continue;
        };
        let entry = table
            .entry(section)
            .or_insert_with(|| toml::Table::new().into());
        if let Some(section) = entry.as_table_mut() {
            section.insert(key.into(), value(text));
        }
    }
}

fn value(text: String) -> toml::Value {
    match (text.parse::<i64>(), text.parse::<bool>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(flag)) => flag.into(),
        _ => text.into(),
    }
}

/// Every variable with its section, which is empty for the keys of the top level.
#[cfg(test)]
pub(crate) fn variables() -> Vec<(&'static str, String)> {
    let top = TOP_KEYS.iter().map(|key| ("", top_variable(key)));
    let limits = LIMITS.iter().map(|limit| ("limits", limit.key));
    let others = KEYS
        .iter()
        .flat_map(|(section, keys)| keys.iter().map(|key| (*section, *key)));
    let others = limits
        .chain(others)
        .map(|(section, key)| (section, variable(section, key)));
    top.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_replace_and_add_keys() {
        let env = |name: &str| {
            let text = match name {
                "WEIR_INSTANCE" => "7",
                "WEIR_SERVER_INGEST" => "false",
                "WEIR_LIMITS_MEMORY" => "1GiB",
                "WEIR_LIMITS_SQL_ROWS" => "5",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let mut table: toml::Table = toml::from_str("[limits]\nsql_rows = 1").expect("valid");
        overlay(&mut table, &env);
        let expected =
            "instance = 7\n[server]\ningest = false\n[limits]\nmemory = \"1GiB\"\nsql_rows = 5";
        assert_eq!(table, toml::from_str(expected).expect("valid"));
    }
}
