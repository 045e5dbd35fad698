//! Which view a name means, and which declarations that view follows from.

use std::sync::Arc;

use super::super::RuntimeError;
use super::super::views::of_table;
use crate::config::Declarations;
use crate::operators::{checkpoints, tables};
use crate::schema::{Catalog, Entity, Stream, Window};

/// What a view shows, read from its name once.
enum Subject<'a> {
    /// Dead letters of every stream.
    DeadLetters,
    /// Rows of a stream that its windows no longer accepted.
    LateRows,
    Window(&'a Arc<Window>),
    Entity(&'a Arc<Entity>),
    /// A stream's table, its sessions, or an index of it.
    Stream(&'a str),
}

fn subject<'a>(catalog: &'a Catalog, view: &'a str) -> Subject<'a> {
    let (kind, name) = view.split_once('/').unwrap_or(("", view));
    let stream = name
        .strip_suffix(".sessions")
        .filter(|stream| catalog.streams.contains_key(*stream))
        .unwrap_or(name);
    if kind != "lake" {
        return Subject::Stream(stream);
    }
    if name == checkpoints::DEAD_LETTERS {
        return Subject::DeadLetters;
    }
    if catalog.streams.keys().any(|s| tables::late(s) == name) {
        return Subject::LateRows;
    }
    let window = catalog
        .windows
        .iter()
        .find(|w| tables::versions_of(&w.name) == name);
    let entity = || catalog.entities.iter().find(|e| e.name == name);
    match (window, entity) {
        (Some(window), _) => Subject::Window(window),
        (None, entity) => entity().map_or(Subject::Stream(stream), Subject::Entity),
    }
}

/// The declarations that one view follows from, so that less is processed.
///
/// A window over a window needs both, and those over them: a window that others read emits more
/// rows. With `b over a`, `c over b` and `d over s`, building `b` keeps `a`, `b` and `c`.
pub(super) fn minimal_declarations(catalog: &Catalog, view: &str) -> Declarations {
    let mut declared = catalog.declarations();
    let (stream, entity, chain) = match subject(catalog, view) {
        Subject::DeadLetters | Subject::LateRows => {
            declared.tables.clear();
            return declared;
        }
        Subject::Window(window) => (window.stream.as_str(), None, inputs_of(catalog, window)),
        Subject::Entity(entity) => (entity.stream.as_str(), Some(&entity.name), Vec::new()),
        Subject::Stream(stream) => (stream, None, Vec::new()),
    };
    let reads_chain = |name: &str| {
        let window = catalog.window(name);
        window.is_some_and(|w| chain.contains(&w.input.as_str()))
    };
    declared
        .windows
        .retain(|name, _| chain.contains(&name.as_str()) || reads_chain(name));
    declared.tables.retain(|table, _| Some(table) == entity);
    declared.streams.retain(|name, _| name == stream);
    declared
}

/// The names of a window and of those that it reads, directly or not.
fn inputs_of<'a>(catalog: &'a Catalog, window: &'a Window) -> Vec<&'a str> {
    let mut chain = Vec::new();
    let mut next = Some(window);
    while let Some(window) = next {
        chain.push(window.name.as_str());
        next = catalog.window(&window.input).map(|window| &**window);
    }
    chain
}

/// The view that a name means: a window, an entity table, another table, or `search`, `places`,
/// `counts` of a stream (the first one if none is named).
pub fn view_named(
    catalog: &Catalog,
    what: &str,
    stream: Option<&str>,
) -> Result<String, RuntimeError> {
    if let "search" | "places" | "counts" = what {
        return index_of(catalog, what, stream);
    }
    if catalog.window(what).is_some() {
        return Ok(of_table(&tables::versions_of(what)));
    }
    let tables = rebuildable_tables(catalog);
    if tables.iter().any(|name| name == what) {
        return Ok(of_table(what));
    }
    let windows = catalog.windows.iter().map(|w| w.name.clone());
    let all: Vec<String> = ["search", "places", "counts"]
        .map(str::to_owned)
        .into_iter()
        .chain(windows)
        .chain(tables)
        .collect();
    Err(RuntimeError::Config(format!(
        "`{what}` cannot be rebuilt; available: {}",
        all.join(", ")
    )))
}

fn index_of(catalog: &Catalog, what: &str, stream: Option<&str>) -> Result<String, RuntimeError> {
    let found = match stream {
        None => catalog.streams.values().next(),
        Some(name) => catalog.streams.get(name),
    };
    let Some(found) = found else {
        return Err(RuntimeError::Config(
            stream.map_or("no stream is declared".into(), |name| {
                format!("the stream `{name}` does not exist")
            }),
        ));
    };
    let (is_declared, view) = match what {
        "search" => (found.def.search.is_some(), checkpoints::search(&found.name)),
        "places" => (found.def.places.is_some(), checkpoints::places(&found.name)),
        _ => (found.def.count.is_some(), checkpoints::counts(&found.name)),
    };
    if is_declared {
        Ok(view)
    } else {
        let key = if what == "counts" { "count" } else { what };
        Err(RuntimeError::Config(format!(
            "stream `{}` does not declare `{key}`",
            found.name
        )))
    }
}

/// Tables other than windows' that can be rebuilt: all but `raw`.
fn rebuildable_tables(catalog: &Catalog) -> Vec<String> {
    let mut names: Vec<String> = catalog.entities.iter().map(|e| e.name.clone()).collect();
    for stream in catalog.streams.values() {
        names.push(stream.name.clone());
        names.extend(stream.session().map(|_| tables::sessions(&stream.name)));
        let has_windows = catalog.windows.iter().any(|w| w.input == stream.name);
        names.extend(has_windows.then(|| tables::late(&stream.name)));
    }
    names.push(checkpoints::DEAD_LETTERS.into());
    names
}

/// The view that is rebuilt together with this one: a search index stores the rows of its stream's
/// table.
pub fn dependent_view(catalog: &Catalog, view: &str) -> Option<String> {
    let is_of_table =
        |stream: &&Arc<Stream>| of_table(&stream.name) == view && stream.def.search.is_some();
    catalog
        .streams
        .values()
        .find(is_of_table)
        .map(|stream| checkpoints::search(&stream.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        let mut text = "data = \"d\"\n".to_owned();
        for (stream, more) in [
            (
                "a",
                "search = { text = [\"k\"] }\nsession = { key = \"k\", gap = \"30s\" }\n",
            ),
            ("b", ""),
        ] {
            text += &format!(
                "[streams.{stream}]\nschema = \"t bigint not null, k varchar\"\nselect = \"select to_timestamp_millis(t) as event_time, k from {stream}\"\n{more}"
            );
        }
        for (window, over, time) in [
            ("minutes", "a", "event_time"),
            ("hours", "minutes", "window_end"),
            ("others", "a", "event_time"),
        ] {
            text += &format!(
                "[windows.{window}]\nsql = \"select window_start, window_end, count(*) as n from tumble({over}, {time}, interval '1 hour') group by 1, 2\"\n"
            );
        }
        text += "[tables.\"a.keys\"]\nstream = \"a\"\nkey = [\"k\"]\nselect = \"select k\"\n";
        let config = crate::config::parse(None, text, None, &|_| None).expect("parses");
        Catalog::from_config(&config).expect("plans")
    }

    #[test]
    fn a_view_needs_only_what_it_follows_from() {
        let catalog = catalog();
        let all = "a b|hours minutes others|";
        for (view, needed) in [
            ("lake/a", "a||"),
            ("lake/b", "b||"),
            ("search/a", "a||"),
            ("lake/a.sessions", "a||"),
            ("lake/a.keys", "a||a.keys"),
            ("lake/dead_letters", all),
            ("lake/a.late", all),
            // It emits more rows where another window reads it.
            ("lake/weir.minutes", "a|hours minutes|"),
        ] {
            let view = view.replace("weir.minutes", &tables::versions_of("minutes"));
            let declared = minimal_declarations(&catalog, &view);
            let join = |names: Vec<&str>| names.join(" ");
            let found = [
                join(declared.streams.keys().map(String::as_str).collect()),
                join(declared.windows.keys().map(String::as_str).collect()),
                join(declared.tables.keys().map(String::as_str).collect()),
            ];
            assert_eq!(found.join("|"), needed, "{view}");
        }
        let hours = minimal_declarations(&catalog, &of_table(&tables::versions_of("hours")));
        assert!(hours.windows.contains_key("minutes") && hours.windows.contains_key("hours"));
    }

    #[test]
    fn a_name_means_one_view() {
        let catalog = catalog();
        let minutes = of_table(&tables::versions_of("minutes"));
        for (what, stream, view) in [
            ("search", None, "search/a"),
            ("search", Some("a"), "search/a"),
            ("a.sessions", None, "lake/a.sessions"),
            ("a.late", None, "lake/a.late"),
            ("a.keys", None, "lake/a.keys"),
            ("dead_letters", None, "lake/dead_letters"),
            ("minutes", None, minutes.as_str()),
        ] {
            assert_eq!(view_named(&catalog, what, stream).expect("named"), view);
        }
        for (what, stream, message) in [
            ("search", Some("b"), "does not declare `search`"),
            ("counts", None, "does not declare `count`"),
            ("search", Some("z"), "the stream `z` does not exist"),
            ("raw", None, "`raw` cannot be rebuilt; available: search"),
            ("b.late", None, "cannot be rebuilt"),
        ] {
            let error = view_named(&catalog, what, stream).expect_err("refused");
            assert!(error.to_string().contains(message), "{what}: {error}");
        }
        assert_eq!(
            dependent_view(&catalog, "lake/a").as_deref(),
            Some("search/a")
        );
        assert_eq!(dependent_view(&catalog, "lake/b"), None);
    }
}
