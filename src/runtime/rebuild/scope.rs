//! Which view a name means, and which declarations that view follows from.

use std::sync::Arc;

use super::super::RuntimeError;
use crate::config::Declarations;
use crate::ids::{TableId, ViewId};
use crate::schema::{Catalog, Window};

/// The declarations that one view follows from, so that less is processed.
///
/// A window over a window needs both, and those over them: a window that others read emits more
/// rows. With `b over a`, `c over b` and `d over s`, building `b` keeps `a`, `b` and `c`.
pub(super) fn minimal_declarations(catalog: &Catalog, view: &ViewId) -> Declarations {
    let mut declared = catalog.declarations();
    let (entity, chain) = match view {
        ViewId::Lake(TableId::Raw | TableId::DeadLetters | TableId::Late(_)) => {
            declared.tables.clear();
            return declared;
        }
        ViewId::Lake(TableId::Window(name)) => (None, inputs_of(catalog, catalog.window(name))),
        ViewId::Lake(TableId::Entity(name)) => (Some(&**name), Vec::new()),
        ViewId::Lake(TableId::Stream(_) | TableId::Sessions(_))
        | ViewId::Counts(_)
        | ViewId::Places(_)
        | ViewId::Search(_) => (None, Vec::new()),
    };
    let stream = match view {
        ViewId::Lake(table) => catalog.stream_of(table),
        ViewId::Counts(stream) | ViewId::Places(stream) | ViewId::Search(stream) => Some(&**stream),
    };
    let reads_chain = |name: &str| {
        let window = catalog.window(name);
        window.is_some_and(|w| chain.contains(&w.input.as_str()))
    };
    declared
        .windows
        .retain(|name, _| chain.contains(&name.as_str()) || reads_chain(name));
    declared
        .tables
        .retain(|table, _| Some(table.as_str()) == entity);
    declared
        .streams
        .retain(|name, _| Some(name.as_str()) == stream);
    declared
}

/// The names of a window and of those that it reads, directly or not.
fn inputs_of<'a>(catalog: &'a Catalog, window: Option<&'a Arc<Window>>) -> Vec<&'a str> {
    let mut chain = Vec::new();
    let mut next = window;
    while let Some(window) = next {
        chain.push(window.name.as_str());
        next = catalog.window(&window.input);
    }
    chain
}

/// The view that a name means: a window, an entity table, another table, or `search`, `places`,
/// `counts` of a stream (the first one if none is named).
pub fn view_named(
    catalog: &Catalog,
    what: &str,
    stream: Option<&str>,
) -> Result<ViewId, RuntimeError> {
    if let "search" | "places" | "counts" = what {
        return index_of(catalog, what, stream);
    }
    if catalog.window(what).is_some() {
        return Ok(TableId::window(what).view());
    }
    let tables = rebuildable_tables(catalog);
    if let Some(table) = tables.iter().find(|table| table.to_string() == what) {
        return Ok(table.view());
    }
    Err(RuntimeError::Config(format!(
        "`{what}` cannot be rebuilt; available: {}",
        names(catalog).join(", ")
    )))
}

/// The names of everything that can be rebuilt.
pub fn names(catalog: &Catalog) -> Vec<String> {
    let windows = catalog.windows.iter().map(|w| w.name.clone());
    let tables = rebuildable_tables(catalog);
    ["search", "places", "counts"]
        .map(str::to_owned)
        .into_iter()
        .chain(windows)
        .chain(tables.iter().map(TableId::to_string))
        .collect()
}

fn index_of(catalog: &Catalog, what: &str, stream: Option<&str>) -> Result<ViewId, RuntimeError> {
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
        "search" => (found.def.search.is_some(), ViewId::search(&found.name)),
        "places" => (found.def.places.is_some(), ViewId::places(&found.name)),
        _ => (found.def.count.is_some(), ViewId::counts(&found.name)),
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
fn rebuildable_tables(catalog: &Catalog) -> Vec<TableId> {
    let entities = catalog.entities.iter();
    let mut tables: Vec<TableId> = entities.map(|e| TableId::entity(&e.name)).collect();
    for stream in catalog.streams.values() {
        let name = &stream.name;
        tables.push(TableId::stream(name));
        tables.extend(stream.session().map(|_| TableId::sessions(name)));
        let has_windows = catalog.windows.iter().any(|w| w.input == *name);
        tables.extend(has_windows.then(|| TableId::late(name)));
    }
    tables.push(TableId::DeadLetters);
    tables
}

/// The view that is rebuilt together with this one: a search index stores the rows of its stream's
/// table.
pub fn dependent_view(catalog: &Catalog, view: &ViewId) -> Option<ViewId> {
    let ViewId::Lake(TableId::Stream(name)) = view else {
        return None;
    };
    let stream = catalog.streams.get(&**name)?;
    stream.def.search.is_some().then(|| ViewId::search(name))
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
            (TableId::stream("a").view(), "a||"),
            (TableId::stream("b").view(), "b||"),
            (ViewId::search("a"), "a||"),
            (TableId::sessions("a").view(), "a||"),
            (TableId::entity("a.keys").view(), "a||a.keys"),
            (TableId::DeadLetters.view(), all),
            (TableId::late("a").view(), all),
            // It emits more rows where another window reads it.
            (TableId::window("minutes").view(), "a|hours minutes|"),
        ] {
            let declared = minimal_declarations(&catalog, &view);
            let join = |names: Vec<&str>| names.join(" ");
            let found = [
                join(declared.streams.keys().map(String::as_str).collect()),
                join(declared.windows.keys().map(String::as_str).collect()),
                join(declared.tables.keys().map(String::as_str).collect()),
            ];
            assert_eq!(found.join("|"), needed, "{view}");
        }
        let hours = minimal_declarations(&catalog, &TableId::window("hours").view());
        assert!(hours.windows.contains_key("minutes") && hours.windows.contains_key("hours"));
    }

    #[test]
    fn a_name_means_one_view() {
        let catalog = catalog();
        for (what, stream, view) in [
            ("search", None, ViewId::search("a")),
            ("search", Some("a"), ViewId::search("a")),
            ("a.sessions", None, TableId::sessions("a").view()),
            ("a.late", None, TableId::late("a").view()),
            ("a.keys", None, TableId::entity("a.keys").view()),
            ("dead_letters", None, TableId::DeadLetters.view()),
            ("minutes", None, TableId::window("minutes").view()),
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
            dependent_view(&catalog, &TableId::stream("a").view()),
            Some(ViewId::search("a"))
        );
        assert_eq!(dependent_view(&catalog, &TableId::stream("b").view()), None);
    }
}
