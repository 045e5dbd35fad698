//! A sink `postgres` whose cursor does not fit its configuration or its folder: a table that was
//! added, an older copy of the folder, a cursor that was removed. It halts until it is resumed or
//! reset.

use crate::sink_postgres::{Database, assert_same, configure, folder};
use crate::support::{copy, ndjson, records};

#[test]
fn a_table_that_is_added_to_a_sink_halts_it_until_someone_decides() {
    let Some(database) = Database::start() else {
        return;
    };
    let all = records(300, 12);
    let folder = folder(&database, &["rsvps.members"], "");
    folder.write("in.ndjson", &ndjson(&all[..100]));
    folder.run_once();
    let before = database.cursor("db");
    // Also in front of the others.
    configure(&folder, &database, &["rsvps.venues", "rsvps.members"], "");
    folder.write("in.ndjson", &ndjson(&all[..200]));
    let message = folder.fail(&["run", "--once"], 1);
    assert!(
        message.contains("the table `rsvps.venues` was added after the sink had delivered"),
        "{message}"
    );
    folder.succeed(&["sinks", "resume", "db"]);
    folder.run_once();
    assert_same(&database, &folder, "members", "rsvps.members");
    let newer = format!("select count(*) from rsvps.venues where lsn > {before}");
    let newer = folder.number(&newer);
    assert_eq!(database.number("select count(*) from venues") as u64, newer);
    // A reset sends what was before, too.
    configure(
        &folder,
        &database,
        &["rsvps.events", "rsvps.venues", "rsvps.members"],
        "",
    );
    folder.succeed(&["sinks", "reset", "db", "--from", "earliest"]);
    folder.write("in.ndjson", &ndjson(&all));
    folder.run_once();
    for table in ["events", "venues", "members"] {
        assert_same(&database, &folder, table, &format!("rsvps.{table}"));
    }
}

#[test]
fn a_sink_of_an_older_copy_of_the_folder_halts_until_it_is_reset() {
    let Some(database) = Database::start() else {
        return;
    };
    let all = records(300, 5);
    let folder = folder(&database, &["rsvps"], "");
    folder.write("in.ndjson", &ndjson(&all[..100]));
    folder.run_once();
    copy(&folder.path("data"), &folder.path("older"));
    folder.write("in.ndjson", &ndjson(&all[..200]));
    folder.run_once();
    std::fs::remove_dir_all(folder.path("data")).expect("a folder");
    std::fs::rename(folder.path("older"), folder.path("data")).expect("a folder");
    // Also once the log is longer than the target's cursor: its records are other ones.
    for part in [120, 300] {
        folder.write("in.ndjson", &ndjson(&all[..part]));
        let message = folder.fail(&["run", "--once", "--sinks-timeout", "20s"], 1);
        assert!(message.contains("probably an older backup"), "{message}");
    }
    assert_eq!(database.number("select count(*) from rsvps"), 200);
    // Some are of records that this log has under other LSNs.
    database.execute("delete from rsvps");
    folder.succeed(&["sinks", "reset", "db", "--from", "earliest"]);
    folder.run_once();
    assert_same(&database, &folder, "rsvps", "rsvps");
}

#[test]
fn a_reset_counts_also_where_the_stored_cursor_was_removed() {
    let Some(database) = Database::start() else {
        return;
    };
    let folder = folder(&database, &["rsvps"], "");
    folder.write("in.ndjson", &ndjson(&records(100, 6)));
    folder.run_once();
    let forget = || {
        std::fs::remove_dir_all(folder.path("data/sinks")).expect("a folder");
        database.execute("delete from rsvps");
    };
    for _ in 0..2 {
        folder.succeed(&["sinks", "reset", "db", "--from", "earliest"]);
    }
    folder.run_once();
    // The database knows where the sink is, in an epoch that the folder has forgotten.
    forget();
    folder.run_once();
    assert_eq!(database.number("select count(*) from rsvps"), 0);
    forget();
    folder.succeed(&["sinks", "reset", "db", "--from", "earliest"]);
    folder.run_once();
    assert_same(&database, &folder, "rsvps", "rsvps");
}
