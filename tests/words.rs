//! Search over text of many scripts, and over places: existing text is found, and any pasted text is
//! a valid query.

use serde_json::json;

use crate::support::{FREE_PORT, TestFolder, file_source};

const MESSAGES: &str = include_str!("../testdata/messages.toml");

/// A stopped folder with these texts, numbered from 0.
fn indexed(texts: &[&str]) -> TestFolder {
    let folder = TestFolder::new("");
    folder.configure(MESSAGES);
    let lines = texts
        .iter()
        .enumerate()
        .map(|(n, msg)| json!({"n": n, "msg": msg, "level": "error"}).to_string() + "\n");
    folder.write("s.ndjson", lines.collect::<String>().as_bytes());
    folder.run_once();
    folder
}

/// Numbers of the texts that a query finds.
fn found(folder: &TestFolder, query: &str) -> Vec<u64> {
    let answer = folder.ask(&["search", query, "--limit", "100"]);
    let hits = answer["hits"].as_array().expect("hits").iter();
    let mut found: Vec<u64> = hits
        .map(|hit| hit["event"]["n"].as_u64().expect("a number"))
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn words_of_any_script_are_found_exactly() {
    let folder = indexed(&[
        "我有一只猫",
        "東京都に住んでいます",
        "ｶﾞﾝﾀﾞﾑ ガンダム",
        "한국어 검색엔진",
        "สวัสดีชาวโลก",
        "हिन्दी में काम कम है",
        "Zoë Straße naïve",
        "🎉 release party 👍🏽 👩‍💻",
        "He said \"hello: world\" AND left",
        "مرحبا بالعالم",
    ]);
    for (query, expected) in [
        ("猫", &[0][..]),
        ("一只猫", &[0]),
        ("只一", &[]),
        ("都", &[1]),
        ("東京", &[1]),
        ("\"京都 に\"", &[1]),
        ("ガンダム", &[2]),
        ("カ", &[]),
        ("검색", &[3]),
        ("색", &[3]),
        ("สวัสดี", &[4]),
        ("ชาวโลก", &[4]),
        ("โลก*", &[4]),
        ("काम", &[5]),
        ("कम", &[5]),
        ("कल", &[]),
        ("zoe naive", &[6]),
        ("strasse", &[]),
        ("🎉", &[7]),
        ("release 🎉", &[7]),
        ("👍", &[7]),
        ("👍🏽", &[7]),
        ("👍🏿", &[]),
        ("💻", &[7]),
        ("مَرْحَبا", &[9]),
    ] {
        assert_eq!(found(&folder, query), expected, "{query}");
    }
}

#[test]
fn any_pasted_text_is_a_query() {
    let folder = indexed(&[
        "He said \"hello: world\" AND left",
        "level: error in msg 5\" disk",
    ]);
    for (query, expected) in [
        ("He said \"hello", &[0][..]),
        ("\"hello: world\"", &[0]),
        ("hello: world", &[0]),
        ("level: error", &[1]),
        ("level:error", &[0, 1]),
        ("msg:hello", &[0]),
        ("msg:\"hello", &[0]),
        ("5\" disk", &[1]),
        ("[{\"said\": (hello]", &[0]),
    ] {
        assert_eq!(found(&folder, query), expected, "{query}");
    }
}

#[test]
fn highlights_mark_the_words_of_the_query() {
    let folder = indexed(&["我有一只猫", "สวัสดีชาวโลก", "party 🎉 time"]);
    for (query, expected) in [
        ("猫", "我有一只<b>猫</b>"),
        ("一只猫", "我有<b>一只猫</b>"),
        ("ชาวโลก", "สวัสดี<b>ชาวโลก</b>"),
        ("🎉", "party <b>🎉</b> time"),
        ("par*", "<b>party</b> 🎉 time"),
        ("msg:ti*", "party 🎉 <b>time</b>"),
    ] {
        let answer = folder.ask(&["search", query]);
        assert_eq!(answer["hits"][0]["highlights"]["msg"], expected, "{query}");
    }
}

#[test]
fn an_index_of_other_rules_or_an_older_format_is_rejected_with_a_fix_that_works() {
    let format = "\\\"version\\\":";
    for (now, before, named) in [
        ("weir_2".to_owned(), "weir_1".to_owned(), "weir_1"),
        (
            format!("{format}4"),
            format!("{format}3"),
            "older search format 3",
        ),
    ] {
        let folder = indexed(&["a word"]);
        let meta = folder.path("data/search/s/000000/meta.json");
        let text = std::fs::read_to_string(&meta).expect("an index");
        assert!(text.contains(&now), "{text}");
        std::fs::write(&meta, text.replace(&now, &before)).expect("writable");
        let message = folder.fail(&["search", "word"], 65);
        assert!(
            message.contains(named) && message.contains("`weir rebuild search --stream s`"),
            "{message}"
        );
        folder.fail(&["run", "--once"], 65);
        // The fix that the message names.
        folder.succeed(&["rebuild", "search", "--stream", "s"]);
        assert_eq!(found(&folder, "word"), [0]);
    }
}

#[test]
fn indexes_of_an_older_format_are_rebuilt_one_by_one_and_empty_ones_automatically() {
    let folder = TestFolder::new("");
    let stream = |name: &str| {
        MESSAGES
            .replace("streams.s]", &format!("streams.{name}]"))
            .replace("from s\"", &format!("from {name}\""))
    };
    let stream_only = |name: &str| {
        stream(name)
            .split_once("[streams.")
            .map(|(_, rest)| format!("[streams.{rest}"))
            .expect("a stream")
    };
    let all = ["a", "b", "c"];
    let config = all
        .iter()
        .map(|name| file_source(name))
        .chain(all.iter().map(|name| stream_only(name)))
        .collect::<String>();
    folder.configure(&format!("{FREE_PORT}{config}"));
    let line = json!({"n": 1, "msg": "a word", "level": "error"}).to_string() + "\n";
    folder.write("a.ndjson", line.as_bytes());
    folder.write("b.ndjson", line.as_bytes());
    folder.write("c.ndjson", b"");
    folder.run_once();
    for name in all {
        let meta = folder.path(&format!("data/search/{name}/000000/meta.json"));
        let text = std::fs::read_to_string(&meta).expect("an index");
        let older = text.replace("\\\"version\\\":4", "\\\"version\\\":3");
        let mut older: serde_json::Value = serde_json::from_str(&older).expect("JSON");
        older
            .as_object_mut()
            .expect("an object")
            .remove("persisted_custom_extensions");
        std::fs::write(&meta, older.to_string()).expect("writable");
    }
    // The first is installed, but the folder cannot be opened before the other is rebuilt, too.
    let message = folder.fail(&["rebuild", "search", "--stream", "a"], 65);
    assert!(
        message.contains("`weir rebuild search --stream b`"),
        "{message}"
    );
    folder.succeed(&["rebuild", "search", "--stream", "b"]);
    folder.write("c.ndjson", line.as_bytes());
    folder.run_once();
    for name in all {
        assert_eq!(
            folder.ask(&["search", "word", "--stream", name])["total"],
            1,
            "{name}"
        );
    }
}

#[test]
fn a_wrong_number_of_documents_is_damage_with_a_fix() {
    let texts: Vec<String> = (0..400).map(|n| format!("word {n}")).collect();
    let folder = indexed(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    for number in [1, 144, 401, 480, 4_496] {
        let meta = folder.path("data/search/s/000000/meta.json");
        let text = std::fs::read_to_string(&meta).expect("an index");
        let other = text
            .replace("\"max_doc\":400", &format!("\"max_doc\":{number}"))
            .replace("\"max_doc\": 400", &format!("\"max_doc\": {number}"));
        assert_ne!(other, text);
        std::fs::write(&meta, other).expect("writable");
        let message = folder.fail(&["search", "word"], 65);
        assert!(
            message.contains("`weir rebuild search --stream s`"),
            "{message}"
        );
        folder.succeed(&["rebuild", "search", "--stream", "s"]);
        assert_eq!(found(&folder, "word").len(), 100);
    }
}

#[test]
fn hits_show_rebuilt_rows_and_later_columns() {
    let folder = indexed(&["a word", "another word"]);
    let hits = |folder: &TestFolder| {
        let answer = folder.ask(&["search", "word"]);
        let hits: Vec<_> = answer["hits"]
            .as_array()
            .expect("hits")
            .iter()
            .map(|hit| hit["event"].clone())
            .collect();
        assert_eq!(hits, folder.rows("select * from s order by lsn desc"));
        hits
    };
    hits(&folder);
    let stream = MESSAGES;
    let changed = stream.replace("lat, lon from s", "upper(msg) as loud, lat, lon from s");
    folder.configure(&changed);
    folder.run_once();
    assert_eq!(hits(&folder)[0]["loud"], json!(null));
    folder.configure(&changed.replace("n, msg", "n, msg || '!' as msg"));
    folder.succeed(&["rebuild", "s"]);
    let first = &hits(&folder)[0];
    assert_eq!(
        (&first["loud"], &first["msg"]),
        (&json!("ANOTHER WORD"), &json!("another word!"))
    );
}

#[test]
fn search_and_nearby_agree_on_invalid_coordinates() {
    let folder = TestFolder::new("");
    folder.configure(MESSAGES);
    let places = [
        (10.0, 20.0),
        (10.0, 380.0),
        (170.0, 20.0),
        (0.0, 0.0),
        (-0.0, 0.0),
        (10.0, 20.001),
        (0.0, 0.1),
    ];
    let lines = places.iter().enumerate().map(|(n, (lat, lon))| {
        json!({"n": n, "msg": "here", "level": "x", "lat": lat, "lon": lon}).to_string() + "\n"
    });
    folder.write("s.ndjson", lines.collect::<String>().as_bytes());
    folder.run_once();
    let by_search = |near: &str, within: &str| {
        let near = format!("--near={near}");
        let answer = folder.ask(&["search", "here", &near, "--within", within]);
        let mut found: Vec<u64> = answer["hits"]
            .as_array()
            .expect("hits")
            .iter()
            .filter_map(|h| h["event"]["n"].as_u64())
            .collect();
        found.sort_unstable();
        found
    };
    let by_places = |lat: &str, lon: &str, within: &str| {
        let (lat, lon) = (format!("--lat={lat}"), format!("--lon={lon}"));
        let answer = folder.ask(&["nearby", &lat, &lon, "--within", within]);
        let mut found: Vec<u64> = answer["venues"]
            .as_array()
            .expect("venues")
            .iter()
            .filter_map(|v| v["venue_id"].as_u64())
            .collect();
        found.sort_unstable();
        found
    };
    assert_eq!(by_search("10,20", "1km"), [0, 5]);
    assert_eq!(by_places("10", "20", "1km"), [0, 5]);
    assert_eq!(by_search("0,0.05", "20km"), [6]);
    assert_eq!(by_places("0", "0.05", "20km"), [6]);
    assert_eq!(by_search("10,20", "30000km"), [0, 5, 6]);
    assert_eq!(by_places("10", "20", "30000km"), [0, 5, 6]);
    for [lat, lon] in [["0", "0"], ["91", "1"], ["1", "181"], ["NaN", "1"]] {
        let near = format!("--near={lat},{lon}");
        let (lat, lon) = (format!("--lat={lat}"), format!("--lon={lon}"));
        folder.fail(&["nearby", &lat, &lon], 2);
        folder.fail(&["search", "here", &near, "--within", "1km"], 2);
    }
}
