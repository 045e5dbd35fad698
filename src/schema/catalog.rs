//! All streams, windows and entity tables of a configuration, compiled.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{DeclarationError, Entity, PlanError, Stream, TABLE_KEY, WINDOW_KEY, Window};
use super::{bounds, names, window};
use crate::config::{
    Config, ConfigError, Declarations, IdempotencyLimits, SqlBounds, TableDef, WindowDef,
};
use crate::ids::{TableId, ViewId};

type Streams = BTreeMap<String, Arc<Stream>>;

/// A configuration's declarations, ready to run.
#[derive(Debug, Default)]
pub struct Catalog {
    /// A hash of the declarations, which every frame names.
    pub id: u64,
    /// By name.
    pub streams: Streams,
    /// In topological order: a window follows the one that it reads.
    pub windows: Vec<Arc<Window>>,
    /// In the order of their names, `<stream>.<table>`.
    pub entities: Vec<Arc<Entity>>,
    /// Version of the zone data that the configuration was stored with.
    pub zone_data: String,
    /// Bounds on the table of answered requests.
    pub idempotency: IdempotencyLimits,
    /// Bounds on what functions may produce, for all its SQL.
    pub sql: SqlBounds,
}

impl Catalog {
    /// Compiles declarations, on a stack large enough for the deepest SQL.
    pub fn compile(declared: &Declarations) -> Result<Self, DeclarationError> {
        let compiled = bounds::on_large_stack(|| Self::compile_here(declared));
        compiled.unwrap_or_else(|e| {
            let message = format!("no thread can be started: {e}");
            Err(DeclarationError::new("", WINDOW_KEY, message))
        })
    }

    fn compile_here(declared: &Declarations) -> Result<Self, DeclarationError> {
        let stream = |(name, def): (&String, _)| {
            let stream = Stream::compile_with_bounds(name, def, declared.sql)?;
            Ok((name.clone(), Arc::new(stream)))
        };
        let streams = declared
            .streams
            .iter()
            .map(stream)
            .collect::<Result<Streams, DeclarationError>>()?;
        let windows = compile_windows(&declared.windows, &streams, declared.sql)?;
        let entities = declared
            .tables
            .iter()
            .map(|(name, def)| compile_entity(name, def, &streams).map(Arc::new))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id: declared.id(),
            streams,
            windows,
            entities,
            zone_data: declared.zone_data.clone(),
            idempotency: declared.idempotency,
            sql: declared.sql,
        })
    }

    /// Compiles a configuration's declarations; errors point into its file.
    pub fn from_config(config: &Config) -> Result<Self, ConfigError> {
        Self::compile(&config.declared).map_err(|e| e.in_file(config))
    }

    /// The declarations, as the log stores them.
    pub fn to_json(&self) -> String {
        self.declarations().to_json()
    }

    /// The declarations that it was compiled from.
    pub fn declarations(&self) -> Declarations {
        Declarations {
            streams: self
                .streams
                .iter()
                .map(|(name, stream)| (name.clone(), stream.def.clone()))
                .collect(),
            windows: self
                .windows
                .iter()
                .map(|w| (w.name.clone(), w.def.clone()))
                .collect(),
            tables: self
                .entities
                .iter()
                .map(|e| (e.name.clone(), e.def.clone()))
                .collect(),
            zone_data: self.zone_data.clone(),
            idempotency: self.idempotency,
            sql: self.sql,
        }
    }

    /// Compiles declarations of [`Self::to_json`].
    pub fn from_json(text: &str) -> Result<Self, String> {
        let declared = Declarations::from_json(text).map_err(|e| e.to_string())?;
        Self::compile(&declared).map_err(|e| e.to_string())
    }

    /// The window of a name; a configuration has few.
    pub fn window(&self, name: &str) -> Option<&Arc<Window>> {
        self.windows.iter().find(|w| w.name == name)
    }

    /// A declared entity table, by its whole name.
    pub fn entity(&self, name: &str) -> Option<&Arc<Entity>> {
        self.entities.iter().find(|e| e.name == name)
    }

    /// The table of the lake that a name in SQL reads, or an id's text names; none if it is not
    /// declared. A window reads the table of all its rows.
    pub fn table_id(&self, name: &str) -> Option<TableId> {
        let Ok(table) = name.parse();
        let is_declared = match &table {
            TableId::Raw | TableId::DeadLetters => true,
            TableId::Sessions(stream) | TableId::Late(stream) => {
                self.streams.contains_key(&**stream)
            }
            TableId::Entity(name) => self.entity(name).is_some(),
            // Of a stream, or of a window: the text does not say it.
            TableId::Stream(name) | TableId::Window(name) => self.streams.contains_key(&**name),
        };
        if is_declared {
            return Some(table);
        }
        let windows = self.windows.iter().map(|w| w.name.as_str());
        let mut windows = windows.map(|window| (window, TableId::window(window)));
        let found = windows.find(|(window, id)| *window == name || *id == table);
        found.map(|(_, id)| id)
    }

    /// A view whose id was text, with the kind of its table.
    pub fn view_id(&self, view: ViewId) -> ViewId {
        let table = view.table().and_then(|t| self.table_id(&t.to_string()));
        table.map_or(view, ViewId::Lake)
    }

    /// The stream that a table's rows come from; none of `raw` and dead letters, and of what is not
    /// declared.
    pub fn stream_of(&self, table: &TableId) -> Option<&str> {
        let stream = match table {
            TableId::Raw | TableId::DeadLetters => return None,
            TableId::Stream(name) | TableId::Sessions(name) | TableId::Late(name) => &**name,
            TableId::Window(name) => self.window(name)?.stream.as_str(),
            TableId::Entity(name) => self.entity(name)?.stream.as_str(),
        };
        self.streams.get(stream).map(|stream| stream.name.as_str())
    }
}

fn compile_entity(
    name: &str,
    def: &TableDef,
    streams: &Streams,
) -> Result<Entity, DeclarationError> {
    let stream = streams.get(&def.stream).ok_or_else(|| {
        let message = format!("the stream `{}` does not exist", def.stream);
        DeclarationError::new(name, TABLE_KEY, message)
    })?;
    Entity::plan(name, def, stream)
        .map_err(|e| DeclarationError::new(name, TABLE_KEY, e.locate_in(&def.select)))
}

/// A declared window that has not been planned.
struct PendingWindow<'a> {
    name: &'a str,
    def: &'a WindowDef,
    /// The stream or window that it reads.
    input: String,
}

impl<'a> PendingWindow<'a> {
    fn new(name: &'a str, def: &'a WindowDef, sql: SqlBounds) -> Result<Self, DeclarationError> {
        let input = window::input_table(&def.sql, sql).map_err(|e| window_error(name, def, e))?;
        Ok(Self { name, def, input })
    }

    /// Plans it over what it reads; none if that is a window that has not been planned.
    fn plan(
        &self,
        planned: &[Arc<Window>],
        streams: &Streams,
        sql: SqlBounds,
    ) -> Result<Option<Window>, PlanError> {
        let name = self.input.as_str();
        let inner = planned.iter().find(|w| w.name == name);
        let input = match (inner, streams.get(name)) {
            (Some(inner), _) => window::Input {
                name,
                stream: &inner.stream,
                schema: &inner.schema,
                marked: &inner.schema,
            },
            (None, Some(stream)) => window::Input {
                name,
                stream: name,
                schema: &stream.table_schema,
                marked: &stream.marked,
            },
            (None, None) => return Ok(None),
        };
        Window::plan(self.name, self.def, &input, sql).map(Some)
    }

    fn error(&self, error: PlanError) -> DeclarationError {
        window_error(self.name, self.def, error)
    }

    /// An error that points at what the window reads.
    fn input_error(&self, message: String) -> DeclarationError {
        self.error(PlanError::at_words(&[&self.input], message))
    }
}

fn window_error(name: &str, def: &WindowDef, error: PlanError) -> DeclarationError {
    DeclarationError::new(name, WINDOW_KEY, error.locate_in(&def.sql))
}

/// Plans windows in topological order: each pass plans those whose input is planned.
fn compile_windows(
    declared: &BTreeMap<String, WindowDef>,
    streams: &Streams,
    sql: SqlBounds,
) -> Result<Vec<Arc<Window>>, DeclarationError> {
    let mut pending = declared
        .iter()
        .map(|(name, def)| PendingWindow::new(name, def, sql))
        .collect::<Result<Vec<_>, _>>()?;
    let mut planned: Vec<Arc<Window>> = Vec::new();
    while !pending.is_empty() {
        let before = pending.len();
        let mut rest = Vec::new();
        for window in pending {
            match window.plan(&planned, streams, sql) {
                Ok(Some(done)) => planned.push(Arc::new(done)),
                Ok(None) if declared.contains_key(&window.input) => rest.push(window),
                Ok(None) => {
                    let message = format!(
                        "no stream or window is called `{}`; available: {}",
                        window.input,
                        names::join(streams.keys().chain(declared.keys()))
                    );
                    return Err(window.input_error(message));
                }
                Err(error) => return Err(window.error(error)),
            }
        }
        if let Some(window) = rest.first().filter(|_| rest.len() == before) {
            let cycle = names::join(rest.iter().map(|w| w.name));
            let message = format!(
                "the windows {cycle} read each other in a cycle; let one of them read a stream"
            );
            return Err(window.input_error(message));
        }
        pending = rest;
    }
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        let mut text = "data = \"d\"\n".to_owned();
        for stream in ["a", "b_versions"] {
            text += &format!(
                "[streams.{stream}]\nschema = \"t bigint not null, k varchar\"\nselect = \"select to_timestamp_millis(t) as event_time, k from {stream}\"\n"
            );
        }
        text += "[windows.minutes]\nsql = \"select window_start, window_end, count(*) as n from tumble(b_versions, event_time, interval '1 hour') group by 1, 2\"\n";
        text += "[tables.\"a.keys\"]\nstream = \"a\"\nkey = [\"k\"]\nselect = \"select k\"\n";
        let config = crate::config::parse(None, text, None, &|_| None).expect("parses");
        Catalog::from_config(&config).expect("plans")
    }

    #[test]
    fn a_name_is_resolved_to_a_table_of_the_declared_kind() {
        let catalog = catalog();
        for (name, table, stream) in [
            ("raw", TableId::Raw, None),
            ("dead_letters", TableId::DeadLetters, None),
            ("a", TableId::stream("a"), Some("a")),
            ("a.sessions", TableId::sessions("a"), Some("a")),
            ("a.late", TableId::late("a"), Some("a")),
            ("a.keys", TableId::entity("a.keys"), Some("a")),
            ("minutes", TableId::window("minutes"), Some("b_versions")),
            (
                "minutes_versions",
                TableId::window("minutes"),
                Some("b_versions"),
            ),
            (
                "b_versions",
                TableId::stream("b_versions"),
                Some("b_versions"),
            ),
        ] {
            let found = catalog.table_id(name).expect("declared");
            // The kind, too: equality is that of texts.
            assert_eq!(format!("{found:?}"), format!("{table:?}"), "{name}");
            assert_eq!(catalog.stream_of(&found), stream, "{name}");
        }
        for name in [
            "c",
            "c.late",
            "a.others",
            "minutes.sessions",
            "weir.views",
            "",
        ] {
            assert!(catalog.table_id(name).is_none(), "{name}");
        }
        let parsed: ViewId = TableId::window("minutes")
            .view()
            .to_string()
            .parse()
            .expect("a view");
        let resolved = catalog.view_id(parsed);
        assert!(
            matches!(resolved, ViewId::Lake(TableId::Window(_))),
            "{resolved:?}"
        );
        assert_eq!(catalog.view_id(ViewId::search("a")), ViewId::search("a"));
    }
}
