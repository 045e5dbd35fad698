//! Of which columns the overview shows the most frequent values: those that a person would ask for
//! by name, as far as the declaration says it.

use std::collections::BTreeSet;

use arrow::datatypes::DataType;

use super::MAX_TOPS;
use crate::schema::{Catalog, Stream};

/// A column and its type.
#[derive(Debug, Clone, PartialEq)]
struct Column<'a> {
    name: &'a str,
    is_list: bool,
}

/// What a declaration says of the columns of a stream.
#[derive(Debug, Default)]
struct Declared<'a> {
    /// `search.text`.
    text: Vec<Column<'a>>,
    /// Columns of entity tables, which the stream has too.
    of_entities: Vec<Column<'a>>,
    /// `session.track`.
    tracked: Option<Column<'a>>,
    /// `search.exact`.
    exact: Vec<Column<'a>>,
    /// Columns that other panels show.
    shown: BTreeSet<&'a str>,
}

/// The columns whose most frequent values are shown.
pub(super) fn most_frequent<'a>(stream: &'a Stream, catalog: &'a Catalog) -> Vec<&'a str> {
    declared(stream, catalog).chosen()
}

fn declared<'a>(stream: &'a Stream, catalog: &'a Catalog) -> Declared<'a> {
    let def = &stream.def;
    let column = |name: &'a str| column(stream, name);
    let mut shown = BTreeSet::new();
    if let Some(count) = &def.count {
        shown.extend(
            [&count.kind]
                .into_iter()
                .chain(&count.by)
                .map(String::as_str),
        );
    }
    let of_stream = |s: &str| s == stream.name;
    for window in catalog.windows.iter().filter(|w| of_stream(&w.stream)) {
        if !window.ranking().is_empty() {
            shown.extend(window.key_names());
        }
    }
    let entities = catalog.entities.iter().filter(|e| of_stream(&e.stream));
    let fields = entities.flat_map(|entity| entity.schema.fields());
    let search = def.search.as_ref();
    let searched = |columns: Option<&'a Vec<String>>| {
        let names = columns.into_iter().flatten();
        names.filter_map(|name| column(name)).collect()
    };
    Declared {
        text: searched(search.map(|search| &search.text)),
        of_entities: fields.filter_map(|field| column(field.name())).collect(),
        tracked: def.session.as_ref().and_then(|s| column(s.track.as_ref()?)),
        exact: searched(search.map(|search| &search.exact)),
        shown,
    }
}

/// A column of a stream that holds texts or lists of them.
fn column<'a>(stream: &Stream, name: &'a str) -> Option<Column<'a>> {
    let is_text = |ty: &DataType| matches!(ty, DataType::Utf8 | DataType::LargeUtf8);
    let field = stream.output.field_with_name(name).ok()?;
    let is_list = match field.data_type() {
        ty if is_text(ty) => false,
        DataType::List(item) | DataType::LargeList(item) if is_text(item.data_type()) => true,
        _ => return None,
    };
    Some(Column { name, is_list })
}

/// Whether a column holds names for people.
fn is_name(column: &str) -> bool {
    column == "name" || column.ends_with("_name")
}

/// What a column is about: `event` of `event_id` and `event_name`.
fn stem(column: &str) -> &str {
    column.rsplit_once('_').map_or(column, |(stem, _)| stem)
}

impl<'a> Declared<'a> {
    /// At most [`MAX_TOPS`]: lists, then names, then what sessions track, then values that are
    /// searched as a whole, if no name says the same. Pure.
    fn chosen(&self) -> Vec<&'a str> {
        let lists = self.text.iter().filter(|c| c.is_list);
        let names = self.text.iter().chain(&self.of_entities);
        let names = names.filter(|c| !c.is_list && is_name(c.name));
        let mut chosen: Vec<&'a str> = Vec::new();
        for column in lists.chain(names).chain(&self.tracked).chain(&self.exact) {
            let is_new = !chosen.contains(&column.name) && !self.shown.contains(column.name);
            let is_named = |name: &&'a str| is_name(name) && stem(name) == stem(column.name);
            let has_name = chosen.iter().chain(&self.shown).any(is_named);
            if is_new && !has_name {
                chosen.push(column.name);
            }
        }
        chosen.truncate(MAX_TOPS);
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns<'a>(names: &[&'a str]) -> Vec<Column<'a>> {
        let column = |name: &&'a str| Column {
            name: name.trim_end_matches("[]"),
            is_list: name.ends_with("[]"),
        };
        names.iter().map(column).collect()
    }

    #[test]
    fn lists_and_names_come_before_values_without_a_name() {
        let declared = Declared {
            text: columns(&["talk_name", "club_name", "comment", "tags[]"]),
            of_entities: columns(&["person_id", "person_name", "club_name"]),
            tracked: None,
            exact: columns(&["talk_id", "club_slug", "country", "city"]),
            shown: ["country", "talk_name"].into(),
        };
        assert_eq!(
            declared.chosen(),
            ["tags", "club_name", "person_name", "city"]
        );
    }

    #[test]
    fn without_names_values_and_what_sessions_track_are_shown() {
        let declared = Declared {
            text: columns(&["comment"]),
            tracked: columns(&["page"]).pop(),
            exact: columns(&["channel", "user_name"]),
            shown: ["channel"].into(),
            ..Declared::default()
        };
        assert_eq!(declared.chosen(), ["page", "user_name"]);
        assert!(Declared::default().chosen().is_empty());
    }

    #[test]
    fn there_are_not_too_many() {
        let declared = Declared {
            exact: columns(&["a", "b", "c", "d", "e", "f"]),
            ..Declared::default()
        };
        assert_eq!(declared.chosen().len(), MAX_TOPS);
    }
}
