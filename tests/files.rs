//! Files as logrotate, editors and people treat them.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::server::Server;
use crate::support::{FILE_ONLY, FREE_PORT, TestFolder, ndjson, records, wait_until};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// A stream `rsvps` from these files.
fn with_source(path: &str) -> TestFolder {
    let folder = TestFolder::new("");
    for subfolder in ["logs/2024/05", "other"] {
        std::fs::create_dir_all(folder.path(subfolder)).expect("a folder");
    }
    folder.configure(&format!(
        "{FREE_PORT}{}",
        FILE_ONLY.replace("in.ndjson", path)
    ));
    folder
}

fn raw(folder: &TestFolder) -> u64 {
    folder.number("select count(*) from raw where kind = 'record'")
}

#[test]
fn a_file_that_was_rotated_and_compressed_is_read_once() {
    let folder = with_source("logs");
    let all = ndjson(&records(60, 1));
    folder.write("logs/app.log", &all);
    folder.run_once();
    std::fs::remove_file(folder.path("logs/app.log")).expect("removed");
    folder.write("logs/app.log.1.gz", &gzip(&all));
    folder.write("logs/app.log", &ndjson(&records(5, 2)));
    folder.run_once();
    assert_eq!(raw(&folder), 65);
}

#[test]
fn other_content_under_the_same_name_is_read_from_its_start_once() {
    let folder = with_source("in.ndjson");
    folder.write("in.ndjson", &ndjson(&records(40, 1)));
    folder.run_once();
    folder.write("in.ndjson", &ndjson(&records(70, 2)));
    folder.run_once();
    folder.run_once();
    assert_eq!(raw(&folder), 110);
    // It became shorter.
    folder.write("in.ndjson", &ndjson(&records(70, 2)[..30]));
    folder.run_once();
    folder.run_once();
    assert_eq!(raw(&folder), 140);
}

#[test]
fn one_bad_file_does_not_end_the_source() {
    let folder = with_source("logs");
    let all = ndjson(&records(50, 1));
    let packed = gzip(&all);
    folder.write("logs/a.gz", &packed[..packed.len() - 9]);
    folder.write("logs/empty", b"");
    folder.write("logs/z.ndjson", &ndjson(&records(20, 2)));
    assert!(folder.run_once().contains("ends too early"));
    folder.write("logs/a.gz", &packed);
    folder.run_once();
    assert_eq!(raw(&folder), 70);
}

#[test]
fn a_glob_a_link_and_subfolders_are_read() {
    let glob = with_source("logs/**/*.json");
    let all = records(30, 3);
    glob.write("logs/2024/05/a.json", &ndjson(&all[..10]));
    glob.write("logs/b.json", &ndjson(&all[10..20]));
    glob.write("other/c", &ndjson(&all[20..]));
    std::os::unix::fs::symlink(glob.path("other/c"), glob.path("logs/c.json")).expect("linked");
    std::os::unix::fs::symlink(glob.path("logs"), glob.path("logs/2024/loop")).expect("linked");
    glob.run_once();
    assert_eq!(raw(&glob), 30);
}

#[test]
fn a_run_that_ends_fails_with_the_path_that_does_not_exist() {
    let folder = with_source("later.ndjson");
    let message = folder.fail(&["run", "--once"], 1);
    assert!(message.contains("later.ndjson does not exist"), "{message}");
    folder.write("later.ndjson", &ndjson(&records(10, 1)));
    folder.run_once();
    assert_eq!(raw(&folder), 10);
}

#[test]
fn a_run_ends_over_a_file_that_does_not_stop_growing() {
    let folder = with_source("logs");
    let all = records(4_000, 4);
    let path = folder.path("logs/app.log");
    std::fs::write(&path, ndjson(&all[..100])).expect("written");
    let is_over = AtomicBool::new(false);
    let (written, is_cut_short) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut file = OpenOptions::new().append(true).open(&path).expect("a file");
            for (n, record) in all[100..].iter().enumerate() {
                if is_over.load(Ordering::Acquire) {
                    return (100 + n as u64, true);
                }
                file.write_all(&ndjson(std::slice::from_ref(record)))
                    .expect("written");
                std::thread::sleep(Duration::from_millis(5));
            }
            (all.len() as u64, false)
        });
        folder.run_once();
        is_over.store(true, Ordering::Release);
        writer.join().expect("no panic")
    });
    let read = raw(&folder);
    assert!(
        is_cut_short && (100..=written).contains(&read),
        "{read} of {written}"
    );
    folder.run_once();
    assert_eq!(raw(&folder), written);
}

#[test]
fn skipped_subfolders_are_named_once() {
    let folder = with_source("logs");
    folder.write("logs/2024/05/a.json", &ndjson(&records(10, 1)));
    folder.write("logs/b.json", &ndjson(&records(10, 2)));
    std::fs::create_dir(folder.path("logs/2025")).expect("a folder");
    let output = folder.output(&["run", "--once"]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(log.matches("`recursive = true`").count(), 1, "{log}");
    assert_eq!(raw(&folder), 10);
}

#[test]
fn unread_content_of_a_rotated_file_is_read_under_its_new_name_or_is_a_gap() {
    let folder = with_source("logs/app.log");
    let all = records(70, 5);
    let (live, one, two) = (
        folder.path("logs/app.log"),
        folder.path("logs/app.log.1"),
        folder.path("logs/app.log.2"),
    );
    // Older than the source: not its file.
    folder.write("logs/app.log.1", &ndjson(&records(9, 6)));
    folder.write("logs/app.log", &ndjson(&all[..10]));
    let server = Server::start(&mut folder.command(&["run"]), &folder.path("data"));
    wait_until("the file is read", || raw(&folder) == 10);
    let replace = |records| {
        let new = folder.path("logs/.new");
        std::fs::write(&new, ndjson(records)).expect("written");
        std::fs::rename(new, &live).expect("renamed");
    };
    // Rotated twice between two looks.
    std::fs::rename(&one, &two).expect("renamed");
    std::fs::rename(&live, &one).expect("renamed");
    replace(&all[10..30]);
    std::fs::rename(&live, folder.path("logs/app.log-20260101")).expect("renamed");
    replace(&all[30..40]);
    wait_until("both are read", || raw(&folder) == 40);
    assert_eq!(folder.number("select count(*) from weir.gaps"), 0);
    // Replaced faster than anyone looks: what was there in between is nowhere.
    for n in 40..70 {
        replace(&all[n..]);
    }
    wait_until("a gap is reported", || {
        folder.number("select count(*) from weir.gaps where source = 'in'") > 0
    });
    server.stop();
}
