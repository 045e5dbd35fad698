//! A profile as columns: the type of each path, and the columns of the stream's table, in which
//! structs are flattened.

use std::cmp::Reverse;

use super::naming;
use super::profile::{Node, Profile};
use super::times::TimeForm;
use crate::schema::names;

/// Columns of the table; deeper ones are not read.
const MAX_COLUMNS: usize = 120;
/// Bytes of a schema, and of its nested types; the limits of schemas are higher.
const MAX_SCHEMA_BYTES: usize = 40 << 10;
const MAX_NESTED_TYPES: usize = 300;
/// Structs and arrays within each other.
const MAX_DEPTH: usize = 5;
/// An object with more names than this, most of them in few records, is a map.
const MIN_MAP_KEYS: usize = 16;
/// Bytes of the name of a JSON key that is read.
const MAX_KEY_BYTES: usize = 100;
/// Whole numbers up to this one are exact as doubles.
const MAX_EXACT_INTEGER: i64 = 1 << 53;
const TOO_MANY_COLUMNS: &str = "there are too many columns";
const TOO_MANY_KEYS: &str = "there are too many keys";

/// A type of a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type {
    BigInt,
    Double,
    Boolean,
    Varchar,
    Timestamp(TimeForm),
    Json,
    Map,
    Struct(Vec<(String, Type)>),
    Array(Box<Type>),
}

impl Type {
    /// As a schema writes it.
    pub fn sql(&self) -> String {
        match self {
            Self::BigInt => "bigint".into(),
            Self::Double => "double".into(),
            Self::Boolean => "boolean".into(),
            Self::Varchar => "varchar".into(),
            Self::Timestamp(TimeForm::Seconds) => "timestamp(s)".into(),
            Self::Timestamp(TimeForm::Millis) => "timestamp(ms)".into(),
            Self::Timestamp(TimeForm::Micros) => "timestamp(us)".into(),
            Self::Timestamp(_) => "timestamp".into(),
            Self::Json => "json".into(),
            Self::Map => "map(varchar, varchar)".into(),
            Self::Array(item) => format!("array<{}>", item.sql()),
            Self::Struct(fields) => {
                let fields = fields
                    .iter()
                    .map(|(name, ty)| format!("{} {}", names::quoted(name), ty.sql()));
                format!("struct<{}>", fields.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// A column of the stream's table, before `event_time` is chosen.
pub(super) struct Column<'a> {
    /// Its name in the table.
    pub name: String,
    /// The keys that lead to it.
    pub path: Vec<&'a str>,
    pub ty: Type,
    pub node: &'a Node,
}

impl Column<'_> {
    /// The value in `select`.
    pub fn expression(&self) -> String {
        let mut keys = self.path.iter();
        let first = keys
            .next()
            .map(|key| names::quoted(key))
            .unwrap_or_default();
        keys.fold(first, |sql, key| {
            format!("{sql}['{}']", key.replace('\'', "''"))
        })
    }

    /// The value as the table stores it: texts that are numbers become numbers.
    pub fn stored(&self) -> String {
        match self.number() {
            Some(ty) => format!("try_cast({} as {ty})", self.expression()),
            None => self.expression(),
        }
    }

    /// The type of the numbers that its texts are, where its name is that of a measure.
    pub fn number(&self) -> Option<&'static str> {
        let (node, prose) = (self.node, &self.node.prose);
        let is_numeric =
            self.ty == Type::Varchar && node.numbers() == 0 && prose.is_numeric(node.texts);
        let has_fraction = prose.wholes < prose.numbers;
        if !is_numeric || !naming::is_measure(&self.leaf(), has_fraction) {
            return None;
        }
        Some(if has_fraction { "double" } else { "bigint" })
    }

    /// For people: the keys with a dot between two.
    pub fn shown(&self) -> String {
        naming::printable(&self.path.join("."))
    }

    /// The last key, in lower case, with `_` between its words.
    pub fn leaf(&self) -> String {
        naming::snake_case(self.path.last().copied().unwrap_or_default())
    }

    /// Objects around it.
    pub fn depth(&self) -> usize {
        self.path.len() - 1
    }

    /// The share of records in which it has a value.
    pub fn presence(&self, records: u64) -> f64 {
        self.node.present() as f64 / records.max(1) as f64
    }

    /// Whether it has text for people to search.
    pub fn is_text(&self) -> bool {
        self.ty == Type::Varchar && self.number().is_none()
    }

    /// Whether most of its texts are URLs.
    fn is_url(&self) -> bool {
        self.node.prose.urls * 2 > self.node.texts
    }
}

/// A top-level key with its type.
pub(super) struct Field<'a> {
    pub key: &'a str,
    pub ty: Type,
    pub node: &'a Node,
}

/// A key that is not read, with the reason.
type Unread = (String, &'static str);

/// What a profile becomes.
pub(super) struct Layout<'a> {
    pub fields: Vec<Field<'a>>,
    pub columns: Vec<Column<'a>>,
    pub unread: Vec<Unread>,
}

/// The types and columns of a profile.
pub(super) fn layout(profile: &Profile) -> Layout<'_> {
    let (mut fields, mut unread) = typed(profile);
    leave_out_long(&mut fields, &mut unread);
    let mut columns = Vec::new();
    for field in &fields {
        flatten(&mut vec![field.key], &field.ty, field.node, &mut columns);
    }
    keep_shallow(&mut columns, &fields, &mut unread);
    fields.retain(|field| columns.iter().any(|column| column.path[0] == field.key));
    for field in &fields {
        note_cut(field.key, &field.ty, field.node, &mut unread);
    }
    if profile.root.is_cut {
        unread.push(("other keys".to_owned(), TOO_MANY_KEYS));
    }
    naming::name_columns(&mut columns);
    Layout {
        fields,
        columns,
        unread,
    }
}

/// The keys that are read, with their types, and those that cannot be read.
fn typed(profile: &Profile) -> (Vec<Field<'_>>, Vec<Unread>) {
    let (mut fields, mut unread) = (Vec::new(), Vec::new());
    for (key, node) in &profile.root.fields {
        if !is_readable(key) {
            let reason = "its name cannot be written in a schema";
            unread.push((naming::printable(key), reason));
        } else if let Some(ty) = type_of(key, node, 0, false) {
            fields.push(Field { key, ty, node });
        } else {
            unread.push((naming::printable(key), "always null"));
        }
    }
    (fields, unread)
}

/// Leaves out the keys with the longest types, where the schema would be too long with them.
fn leave_out_long(fields: &mut Vec<Field<'_>>, unread: &mut Vec<Unread>) {
    let types: Vec<String> = fields.iter().map(|field| field.ty.sql()).collect();
    let mut by_length: Vec<usize> = (0..fields.len()).collect();
    by_length.sort_by_key(|at| types[*at].len());
    let (mut bytes, mut nested) = (0, 0);
    let mut is_left_out = vec![false; fields.len()];
    for at in by_length {
        bytes += fields[at].key.len() + types[at].len();
        nested += types[at].matches('<').count();
        is_left_out[at] = bytes > MAX_SCHEMA_BYTES || nested > MAX_NESTED_TYPES;
    }
    let mut left_out = is_left_out.into_iter();
    fields.retain(|field| {
        let is_left_out = left_out.next().unwrap_or_default();
        if is_left_out {
            unread.push((naming::printable(field.key), "the schema would be too long"));
        }
        !is_left_out
    });
}

/// Keeps as many columns as a table may have: the ones with fewest objects around them. Of these,
/// URLs are left out first, then what few records have.
fn keep_shallow(columns: &mut Vec<Column<'_>>, fields: &[Field<'_>], unread: &mut Vec<Unread>) {
    if columns.len() <= MAX_COLUMNS {
        return;
    }
    let mut by_depth: Vec<usize> = (0..columns.len()).collect();
    by_depth.sort_by_key(|at| {
        let column = &columns[*at];
        (
            column.depth(),
            column.is_url(),
            Reverse(column.node.present()),
        )
    });
    let mut is_kept = vec![false; columns.len()];
    by_depth
        .iter()
        .take(MAX_COLUMNS)
        .for_each(|at| is_kept[*at] = true);
    for field in fields {
        let all = columns.iter().zip(&is_kept);
        let of_field = all.filter(|(column, _)| column.path[0] == field.key);
        let kept: Vec<bool> = of_field.map(|(_, is_kept)| *is_kept).collect();
        let key = naming::printable(field.key);
        if !kept.contains(&true) {
            unread.push((key, TOO_MANY_COLUMNS));
        } else if kept.contains(&false) {
            unread.push((format!("some keys of {key}"), TOO_MANY_COLUMNS));
        }
    }
    let mut kept = is_kept.into_iter();
    columns.retain(|_| kept.next().unwrap_or_default());
}

/// Notes the structs whose keys were not all looked at.
fn note_cut(shown: &str, ty: &Type, node: &Node, unread: &mut Vec<Unread>) {
    let Type::Struct(fields) = ty else {
        return;
    };
    if node.is_cut {
        let shown = naming::printable(shown);
        unread.push((format!("some keys of {shown}"), TOO_MANY_KEYS));
    }
    for (key, node) in &node.fields {
        if let Some((_, ty)) = fields.iter().find(|(name, _)| name == key) {
            note_cut(&format!("{shown}.{key}"), ty, node, unread);
        }
    }
}

fn flatten<'a>(path: &mut Vec<&'a str>, ty: &Type, node: &'a Node, out: &mut Vec<Column<'a>>) {
    if let Type::Struct(fields) = ty {
        for (key, node) in &node.fields {
            let Some((_, ty)) = fields.iter().find(|(name, _)| name == key) else {
                continue;
            };
            path.push(key);
            flatten(path, ty, node, out);
            path.pop();
        }
    } else {
        out.push(Column {
            name: String::new(),
            path: path.clone(),
            ty: ty.clone(),
            node,
        });
    }
}

/// Whether a schema can name a key.
fn is_readable(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= MAX_KEY_BYTES
        && !key.contains(|c: char| c == '<' || c.is_control())
}

/// A type that reads every value that was seen; none if there was none but null. `is_stored`: it is
/// inside an array, whose structs are stored as they are.
fn type_of(name: &str, node: &Node, depth: usize, is_stored: bool) -> Option<Type> {
    let kinds = [
        node.booleans,
        node.numbers(),
        node.texts,
        node.objects,
        node.arrays,
    ];
    let kinds = kinds.map(|count| count > 0);
    Some(match kinds {
        [false, false, false, false, false] => return None,
        [true, false, false, false, false] => Type::Boolean,
        [false, true, false, false, false] => number_type(name, node),
        [false, _, true, false, false] => text_type(name, node),
        [false, false, false, true, false] => object_type(node, depth, is_stored),
        [false, false, false, false, true] => array_type(name, node, depth),
        _ => Type::Json,
    })
}

fn number_type(name: &str, node: &Node) -> Type {
    use TimeForm::{Micros, Millis, Seconds};
    if node.beyond > 0 {
        return Type::Varchar;
    }
    let name = naming::snake_case(name);
    if node.decimals > 0 || naming::is_coordinate(&name) {
        let exact = -MAX_EXACT_INTEGER..=MAX_EXACT_INTEGER;
        let is_exact = |(least, most): (i64, i64)| exact.contains(&least) && exact.contains(&most);
        return if node.integer_range.is_none_or(is_exact) {
            Type::Double
        } else {
            Type::Varchar
        };
    }
    match node.times.form() {
        Some(form @ (Seconds | Millis | Micros)) if naming::is_time(&name) => Type::Timestamp(form),
        _ => Type::BigInt,
    }
}

fn text_type(name: &str, node: &Node) -> Type {
    let is_time = node.numbers() == 0 && node.times.form() == Some(TimeForm::Text);
    // A version such as 2024-05-01 is text, a time of day with it is a time.
    let has_time_of_day = node.prose.chars > 10 * node.texts;
    if is_time && (has_time_of_day || naming::is_time(&naming::snake_case(name))) {
        Type::Timestamp(TimeForm::Text)
    } else {
        Type::Varchar
    }
}

fn object_type(node: &Node, depth: usize, is_stored: bool) -> Type {
    if depth >= MAX_DEPTH || node.fields.is_empty() {
        return Type::Json;
    }
    if is_map(node) {
        return if is_stored { Type::Json } else { Type::Map };
    }
    let mut fields: Vec<(String, Type)> = Vec::new();
    for (key, field) in &node.fields {
        let is_clash = |(other, _): &(String, Type)| names::is_same_ignoring_case(other, key);
        if !is_readable(key)
            || is_stored && (!names::has_readable_chars(key) || fields.iter().any(is_clash))
        {
            continue;
        }
        if let Some(ty) = type_of(key, field, depth + 1, is_stored) {
            fields.push((key.clone(), ty));
        }
    }
    if fields.is_empty() {
        Type::Json
    } else {
        Type::Struct(fields)
    }
}

/// Whether names of an object are data: there are many, and each is in few of the objects.
fn is_map(node: &Node) -> bool {
    let seen: u64 = node.fields.iter().map(|(_, f)| f.present() + f.nulls).sum();
    let all = node.objects * node.fields.len() as u64;
    node.objects > 1 && node.fields.len() > MIN_MAP_KEYS && seen * 4 < all
}

fn array_type(name: &str, node: &Node, depth: usize) -> Type {
    if node.is_cut || depth >= MAX_DEPTH {
        return Type::Json;
    }
    let item = node
        .item
        .as_ref()
        .and_then(|item| type_of(name, item, depth + 1, true));
    match item {
        Some(Type::Json) | None => Type::Json,
        Some(item) => Type::Array(Box::new(item)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(records: &[&str]) -> Vec<String> {
        let mut profile = Profile::default();
        records.iter().for_each(|r| profile.observe(r.as_bytes()));
        let layout = layout(&profile);
        let shown = layout
            .columns
            .iter()
            .map(|c| format!("{} {}", c.name, c.ty.sql()));
        shown.collect()
    }

    #[test]
    fn each_type_reads_every_value_that_was_seen() {
        for (records, expected) in [
            (&[r#"{"a":1}"#, r#"{"a":null}"#][..], "a bigint"),
            (&[r#"{"a":1}"#, r#"{"a":1.5}"#], "a double"),
            (&[r#"{"a":18446744073709551616}"#], "a varchar"),
            (&[r#"{"a":1e400}"#], "a varchar"),
            (&[r#"{"a":9007199254740993}"#], "a bigint"),
            (&[r#"{"a":9007199254740993}"#, r#"{"a":0.5}"#], "a varchar"),
            (&[r#"{"a":9007199254740992}"#, r#"{"a":0.5}"#], "a double"),
            (&[r#"{"a":1}"#, r#"{"a":"x"}"#], "a varchar"),
            (&[r#"{"a":true}"#, r#"{"a":"x"}"#], "a json"),
            (&[r#"{"a":[]}"#], "a json"),
            (&[r#"{"a":[1,null]}"#], "a array<bigint>"),
            (
                &[r#"{"a":[{"b":1},{"c":[true]}]}"#],
                "a array<struct<b bigint, c array<boolean>>>",
            ),
            (&[r#"{"a":{}}"#], "a json"),
            (&[r#"{"a":{"lat":1}}"#], "a_lat double"),
            (&[r#"{"a":{"a_id":1}}"#], "a_id bigint"),
            (&[r#"{"at":1714557600}"#], "at timestamp(s)"),
            (&[r#"{"orderId":1714557600}"#], "order_id bigint"),
            (&[r#"{"v":"2024-05-01"}"#], "v varchar"),
            (&[r#"{"v":"2024-05-01T10:00:00Z"}"#], "v timestamp"),
            (&[r#"{"source":1}"#], "source_value bigint"),
        ] {
            assert_eq!(types(records), [expected], "{records:?}");
        }
        assert!(types(&[r#"{"a":null}"#]).is_empty());
        assert_eq!(
            types(&[r#"{"a b":1,"A_B":2}"#]),
            ["a_b bigint", "a_b_2 bigint"]
        );
    }

    #[test]
    fn objects_with_many_rare_names_are_maps() {
        let records: Vec<String> = (0..30)
            .map(|n| format!("{{\"m\":{{\"k{n}\":{n}}}}}"))
            .collect();
        let records: Vec<&str> = records.iter().map(String::as_str).collect();
        assert_eq!(types(&records), ["m map(varchar, varchar)"]);
    }

    #[test]
    fn a_wide_object_hides_no_key_after_it() {
        let wide: Vec<String> = (0..190).map(|n| format!("\"k{n}\":{n}")).collect();
        let record = format!("{{\"wide\":{{{}}},\"id\":1}}", wide.join(","));
        let found = types(&[&record]);
        assert_eq!(found.len(), MAX_COLUMNS);
        assert_eq!(found.last().map(String::as_str), Some("id bigint"));
        let mut profile = Profile::default();
        profile.observe(record.as_bytes());
        let unread = layout(&profile).unread;
        assert_eq!(unread, [("some keys of wide".to_owned(), TOO_MANY_COLUMNS)]);
    }

    #[test]
    fn of_a_wide_object_urls_and_rare_keys_are_left_out_first() {
        let urls: Vec<String> = (0..60)
            .map(|n| format!("\"u{n}\":\"https://example.com/{n}\""))
            .collect();
        let rare: Vec<String> = (0..60).map(|n| format!("\"r{n}\":{n}")).collect();
        let usual: Vec<String> = (0..60).map(|n| format!("\"k{n}\":{n}")).collect();
        let (urls, rare, usual) = (urls.join(","), rare.join(","), usual.join(","));
        let found = types(&[
            &format!("{{\"a\":{{{urls},{rare},{usual}}}}}"),
            &format!("{{\"a\":{{{urls},{usual}}}}}"),
        ]);
        assert_eq!(found.len(), MAX_COLUMNS);
        let is_url = |column: &&String| column.starts_with("a_u");
        assert_eq!(found.iter().filter(is_url).count(), 0);
        assert!(found.contains(&"a_k59 bigint".to_owned()));
    }

    #[test]
    fn the_keys_with_the_longest_types_are_left_out_of_a_long_schema() {
        let long = "x".repeat(90);
        let wide: Vec<String> = (0..199)
            .map(|n| format!("\"{long}{n}\":[{{\"{long}\":1}}]"))
            .collect();
        let record = format!("{{\"a\":{{{}}},\"id\":1}}", wide.join(","));
        assert_eq!(types(&[&record]), ["id bigint"]);
    }
}
