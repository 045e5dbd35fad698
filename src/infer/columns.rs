//! A profile as columns: the type of each path, and the columns of the stream's table, in which
//! structs are flattened.

use super::naming;
use super::profile::{Node, Profile};
use super::times::TimeForm;
use crate::schema::names;

/// Columns of the table; the ones after them are not read.
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
        self.ty == Type::Varchar
    }
}

/// A top-level key with its type.
pub(super) struct Field<'a> {
    pub key: &'a str,
    pub ty: Type,
    pub node: &'a Node,
}

/// What a profile becomes.
pub(super) struct Layout<'a> {
    pub fields: Vec<Field<'a>>,
    pub columns: Vec<Column<'a>>,
    /// Keys that are not read, each with the reason.
    pub unread: Vec<(String, &'static str)>,
}

/// The types and columns of a profile.
pub(super) fn layout(profile: &Profile) -> Layout<'_> {
    let mut out = Layout {
        fields: Vec::new(),
        columns: Vec::new(),
        unread: Vec::new(),
    };
    let (mut bytes, mut nested) = (0, 0);
    for (key, node) in &profile.root.fields {
        let reason = if !is_readable(key) {
            Some("its name cannot be written in a schema")
        } else if out.columns.len() >= MAX_COLUMNS {
            Some("there are too many columns")
        } else {
            None
        };
        if let Some(reason) = reason {
            out.unread.push((naming::printable(key), reason));
            continue;
        }
        let Some(ty) = type_of(key, node, 0, false) else {
            out.unread.push((naming::printable(key), "always null"));
            continue;
        };
        let sql = ty.sql();
        bytes += key.len() + sql.len();
        nested += sql.matches('<').count();
        if bytes > MAX_SCHEMA_BYTES || nested > MAX_NESTED_TYPES {
            out.unread
                .push((naming::printable(key), "the schema would be too long"));
            continue;
        }
        let before = out.columns.len();
        flatten(&mut vec![key], &ty, node, &mut out.columns);
        if out.columns.len() == before {
            out.unread
                .push((naming::printable(key), "there are too many columns"));
            continue;
        }
        out.fields.push(Field { key, ty, node });
    }
    naming::name_columns(&mut out.columns);
    out
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
    } else if out.len() < MAX_COLUMNS {
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
        return Type::Double;
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
}
