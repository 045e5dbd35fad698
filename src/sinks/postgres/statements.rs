//! The statements that write rows: COPY into a temporary table, then one that puts the newest row
//! of each key into the real one. Pure.

use super::schema::{CURSORS, Table, qualified, quoted};

/// The position of a row within its transaction.
const PLACE: &str = "\"weir$place\"";
/// Whether a row retracts the one of its key.
const RETRACTED: &str = "\"weir$retracted\"";

/// The temporary table of the sink's table `at`.
fn temporary(at: usize) -> String {
    format!("pg_temp.weir_rows_{at}")
}

fn columns(table: &Table) -> String {
    let names = table.columns.iter().map(|column| quoted(&column.name));
    names.collect::<Vec<_>>().join(", ")
}

/// Creates the temporary table.
pub fn create_temporary(table: &Table, at: usize) -> String {
    let columns = table
        .columns
        .iter()
        .map(|column| format!("{} {}", quoted(&column.name), column.ty.name()));
    format!(
        "create temporary table if not exists weir_rows_{at} ({}, {PLACE} bigint, {RETRACTED} boolean) on commit delete rows",
        columns.collect::<Vec<_>>().join(", ")
    )
}

/// Empties it within a transaction.
pub fn truncate(at: usize) -> String {
    format!("truncate {}", temporary(at))
}

/// Fills it.
pub fn copy(table: &Table, at: usize) -> String {
    format!(
        "copy {} ({}, {PLACE}, {RETRACTED}) from stdin (format binary)",
        temporary(at),
        columns(table)
    )
}

/// What is compared, most significant first, so that a row does not replace a newer one.
fn rank(table: &Table, of: &str) -> Vec<String> {
    let mut rank = Vec::new();
    if table.has_versions() {
        rank.push(format!(
            "coalesce({of}.\"version\", '-9223372036854775808'::bigint)"
        ));
    }
    rank.push(format!("coalesce({of}.\"lsn\", -1)"));
    rank
}

/// The condition under which row `new` replaces row `old`.
fn is_newer(table: &Table, new: &str, old: &str) -> String {
    let [new, old] = [new, old].map(|of| rank(table, of).join(", "));
    format!("({new}) >= ({old})")
}

/// The last row of each key.
fn newest(table: &Table, at: usize) -> String {
    let (key, from) = (table.key_list(), temporary(at));
    let rank = rank(table, "r").join(" desc, ");
    format!(
        "(select distinct on ({key}) * from {from} r order by {key}, {rank} desc, {PLACE} desc) b"
    )
}

/// Writes the rows, except those that retract one.
pub fn merge(schema: &str, table: &Table, at: usize) -> String {
    let (to, all, key) = (
        qualified(schema, &table.name),
        columns(table),
        table.key_list(),
    );
    let is_key = |column: usize| table.key.contains(&column);
    let set: Vec<String> = (0..table.columns.len())
        .filter(|column| !is_key(*column))
        .map(|column| quoted(&table.columns[column].name))
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    let update = if set.is_empty() {
        "nothing".to_owned()
    } else {
        format!(
            "update set {} where {}",
            set.join(", "),
            is_newer(table, "excluded", "t")
        )
    };
    format!(
        "insert into {to} as t ({all}) select {all} from {} where not {RETRACTED} on conflict ({key}) do {update}",
        newest(table, at)
    )
}

/// Writes rows of which only the key is known, where no row has it.
pub fn insert_missing(schema: &str, table: &Table, at: usize) -> String {
    let (to, all, key) = (
        qualified(schema, &table.name),
        columns(table),
        table.key_list(),
    );
    format!(
        "insert into {to} ({all}) select {all} from {} on conflict ({key}) do nothing",
        newest(table, at)
    )
}

/// Deletes the rows that were retracted. Groups with a null are deleted by a statement of their
/// own (`with_nulls`), which cannot use the whole index.
pub fn delete_retracted(schema: &str, table: &Table, at: usize, with_nulls: bool) -> String {
    let names = table.key.iter().map(|c| quoted(&table.columns[*c].name));
    let mut conditions: Vec<String> = names
        .enumerate()
        .map(|(place, name)| {
            // The first is the window's start.
            let equals = if with_nulls && place > 0 {
                "is not distinct from"
            } else {
                "="
            };
            format!("t.{name} {equals} b.{name}")
        })
        .collect();
    conditions.push(format!("b.{RETRACTED}"));
    conditions.push(is_newer(table, "b", "t"));
    format!(
        "delete from {} t using {} where {}",
        qualified(schema, &table.name),
        newest(table, at),
        conditions.join(" and ")
    )
}

/// Creates the table of the cursors unless it exists. Sinks of one schema may start together.
pub fn create_cursors(schema: &str, lock: i64) -> String {
    format!(
        "begin; select pg_advisory_xact_lock({lock}); create table if not exists {} (name text not null, log text not null, cursor text not null, updated timestamp with time zone not null default now(), primary key (name, log)); commit",
        cursors(schema)
    )
}

/// The table of the cursors.
pub fn cursors(schema: &str) -> String {
    qualified(schema, CURSORS)
}

/// Moves the cursor from `$4` to `$3`, if it is there; holds it until the transaction ends.
pub fn move_cursor(schema: &str) -> String {
    format!(
        "update {} set cursor = $3, updated = now() where name = $1 and log = $2 and cursor = $4",
        cursors(schema)
    )
}

/// Who holds the advisory lock `$1`: the server's process, its application, and whether it commits.
/// What others do is shown to their own user alone.
pub const LOCK_HOLDER: &str = "
select l.pid, coalesce(a.application_name, ''),
  coalesce(a.state = 'active' and a.query ilike 'commit%', false)
from pg_catalog.pg_locks l
left join pg_catalog.pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.objsubid = 1
  and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
  and (l.classid::bigint << 32 | l.objid::bigint) = $1::bigint
limit 1";

/// The columns of tables: table, column, type, whether it is not null, whether it has a default.
pub const COLUMNS: &str = "
select c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull,
  a.atthasdef or a.attidentity <> '' or a.attgenerated <> ''
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where n.nspname = $1::text and c.relname = any($2::text[]) and c.relkind in ('r', 'p')
order by c.relname, a.attnum";

/// Unique indexes of tables that `on conflict` can use: table, columns, whether nulls are equal.
pub const UNIQUE_INDEXES: &str = "
select c.relname::text,
  array(select a.attname::text
    from unnest(i.indkey::int2[]) with ordinality k (attnum, place)
    join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
    where k.place <= i.indnkeyatts),
  coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false)
from pg_catalog.pg_index i
join pg_catalog.pg_class c on c.oid = i.indrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text and c.relname = any($2::text[])
  and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null";

#[cfg(test)]
mod tests {
    use super::super::schema::{Column, ColumnType, Kind, Scalar};
    use super::*;

    fn table(kind: Kind, key: &[usize]) -> Table {
        let columns = ["lsn", "time", "version", "k", "v"].map(|name| Column {
            name: name.to_owned(),
            ty: ColumnType::Scalar(Scalar::BigInt),
        });
        Table {
            name: "t".into(),
            kind,
            columns: columns.into(),
            key: key.to_vec(),
            foreign_keys: Vec::new(),
        }
    }

    #[test]
    fn an_older_version_does_not_replace_a_newer_one() {
        let entity = table(Kind::Entity("s".into()), &[3]);
        insta::assert_snapshot!(merge("public", &entity, 2), @r#"insert into "public"."t" as t ("lsn", "time", "version", "k", "v") select "lsn", "time", "version", "k", "v" from (select distinct on ("k") * from pg_temp.weir_rows_2 r order by "k", coalesce(r."version", '-9223372036854775808'::bigint) desc, coalesce(r."lsn", -1) desc, "weir$place" desc) b where not "weir$retracted" on conflict ("k") do update set "lsn" = excluded."lsn", "time" = excluded."time", "version" = excluded."version", "v" = excluded."v" where (coalesce(excluded."version", '-9223372036854775808'::bigint), coalesce(excluded."lsn", -1)) >= (coalesce(t."version", '-9223372036854775808'::bigint), coalesce(t."lsn", -1))"#);
        let stream = table(Kind::Stream("s".into()), &[0]);
        insta::assert_snapshot!(merge("public", &stream, 0), @r#"insert into "public"."t" as t ("lsn", "time", "version", "k", "v") select "lsn", "time", "version", "k", "v" from (select distinct on ("lsn") * from pg_temp.weir_rows_0 r order by "lsn", coalesce(r."lsn", -1) desc, "weir$place" desc) b where not "weir$retracted" on conflict ("lsn") do update set "time" = excluded."time", "version" = excluded."version", "k" = excluded."k", "v" = excluded."v" where (coalesce(excluded."lsn", -1)) >= (coalesce(t."lsn", -1))"#);
    }

    #[test]
    fn a_retracted_group_is_deleted_unless_a_newer_row_is_there() {
        let window = table(Kind::Window, &[1, 3]);
        insta::assert_snapshot!(delete_retracted("public", &window, 0, false), @r#"delete from "public"."t" t using (select distinct on ("time", "k") * from pg_temp.weir_rows_0 r order by "time", "k", coalesce(r."lsn", -1) desc, "weir$place" desc) b where t."time" = b."time" and t."k" = b."k" and b."weir$retracted" and (coalesce(b."lsn", -1)) >= (coalesce(t."lsn", -1))"#);
        insta::assert_snapshot!(delete_retracted("public", &window, 0, true), @r#"delete from "public"."t" t using (select distinct on ("time", "k") * from pg_temp.weir_rows_0 r order by "time", "k", coalesce(r."lsn", -1) desc, "weir$place" desc) b where t."time" = b."time" and t."k" is not distinct from b."k" and b."weir$retracted" and (coalesce(b."lsn", -1)) >= (coalesce(t."lsn", -1))"#);
    }
}
