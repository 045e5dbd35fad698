//! Records of one column, from their JSON to Arrow values.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use proptest::prelude::*;

use super::rejections::REJECTED_BYTES;
use super::*;
use crate::bounds;
use crate::schema::StreamDef;

/// A stream of one column `v`, whose event time is `at`.
fn stream(ty: &str, keys: &str) -> Stream {
    let text = format!(
        "schema = \"at timestamp not null, v {ty}\"\nselect = \"select at as event_time, v from s\"\n{keys}"
    );
    let def: StreamDef = toml::from_str(&text).expect("a stream");
    Stream::compile("s", &def).expect("valid")
}

fn records(values: &[&str]) -> Vec<String> {
    values
        .iter()
        .map(|v| format!(r#"{{"at":"2024-05-01T00:00:00Z","v":{v}}}"#))
        .collect()
}

fn decoded(stream: &Stream, records: &[String]) -> Decoded {
    decode(stream, records.iter().map(String::as_bytes), received())
}

/// A time of arrival after that of every record.
fn received() -> Received<'static> {
    Received {
        at: 1_800_000_000_000_000,
        ..Received::default()
    }
}

/// Each value as text, or the reason why its record is rejected.
fn texts(ty: &str, values: &[&str]) -> Vec<Result<Option<String>, String>> {
    let decoded = decoded(&stream(ty, ""), &records(values));
    let column = arrow::compute::cast(decoded.rows.column(1), &arrow::datatypes::DataType::Utf8)
        .expect("text");
    let column = column.as_string::<i32>();
    let mut out: Vec<_> = decoded
        .rejected
        .into_iter()
        .map(|r| (r.index, Err(r.reason.to_string())))
        .collect();
    out.extend(
        decoded
            .index
            .iter()
            .zip(column.iter())
            .map(|(i, v)| (*i, Ok(v.map(str::to_owned)))),
    );
    out.sort_by_key(|(index, _)| *index);
    out.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn numbers_keep_their_digits_as_text() {
    let values = [
        "1.10",
        "\"a\"",
        "123456789012345678901234567890",
        "1e400",
        "-0",
        "0.1",
        "7",
        "null",
    ];
    let wanted = [
        Some("1.10"),
        Some("a"),
        Some("123456789012345678901234567890"),
        Some("1e400"),
        Some("-0"),
        Some("0.1"),
        Some("7"),
        None,
    ];
    let found = texts("varchar", &values);
    assert_eq!(found, wanted.map(|v| Ok(v.map(str::to_owned))));
    // One by one, as a frame of one record has them.
    let alone: Vec<_> = values.iter().flat_map(|v| texts("varchar", &[v])).collect();
    assert_eq!(alone, found);
}

#[test]
fn integers_are_exact_however_they_are_written() {
    let found = texts(
        "bigint",
        &[
            "1000.0",
            "1e3",
            "-0",
            "9007199254740993.0",
            "0.5",
            "9223372036854775808",
            "1e400",
        ],
    );
    let ok = |text: &str| Ok(Some(text.to_owned()));
    assert_eq!(
        found[..4],
        [ok("1000"), ok("1000"), ok("0"), ok("9007199254740993")]
    );
    let reasons: Vec<_> = found[4..]
        .iter()
        .map(|r| r.clone().expect_err("rejected"))
        .collect();
    assert!(
        reasons[0].starts_with("v: a decimal number where the schema has bigint"),
        "{reasons:?}"
    );
    assert!(
        reasons[1].starts_with("v: a number beyond 64 bits") && reasons[1].contains("varchar"),
        "{reasons:?}"
    );
    assert_eq!(reasons[1], reasons[2]);
    let found = texts("int", &["1e3", "2147483648", "-2147483648.0"]);
    assert_eq!((&found[0], &found[2]), (&ok("1000"), &ok("-2147483648")));
    assert!(
        found[1]
            .clone()
            .expect_err("rejected")
            .contains("beyond 32 bits")
    );
}

#[test]
fn doubles_are_the_nearest() {
    let values = [
        "1.5777777777770001",
        "123456789012345678901234567890",
        "18446744073709551615",
        "5e-324",
        "-0.0",
    ];
    let rows = decoded(&stream("double", ""), &records(&values)).rows;
    let found: Vec<u64> = rows
        .column(1)
        .as_primitive::<Float64Type>()
        .values()
        .iter()
        .map(|v| v.to_bits())
        .collect();
    assert_eq!(
        found,
        values.map(|v| v.parse::<f64>().expect("a number").to_bits())
    );
    assert!(
        texts("double", &["1e400"])[0]
            .clone()
            .expect_err("rejected")
            .contains("out of range")
    );
}

#[test]
fn maps_take_every_value_as_text() {
    let map = r#"{"s":"x","n":1.10,"big":100000000000000000001,"t":true,"none":null,"o":{"b": 1, "a":[ ]},"l":["a", 1],"s":"y"}"#;
    let decoded = decoded(
        &stream("map(varchar, varchar)", ""),
        &records(&[map, "[]", "[1]", "{\"s\":\"z\"}"]),
    );
    assert_eq!(decoded.index, [0, 1, 3]);
    assert!(
        decoded.rejected[0]
            .reason
            .contains("an array where the schema has map")
    );
    let map = decoded.rows.column(1).as_map();
    let (keys, values) = (
        map.keys().as_string::<i32>(),
        map.values().as_string::<i32>(),
    );
    let entries: Vec<_> = keys.iter().flatten().zip(values.iter()).collect();
    assert_eq!(
        entries,
        [
            ("n", Some("1.10")),
            ("big", Some("100000000000000000001")),
            ("t", Some("true")),
            ("none", None),
            ("o", Some(r#"{"b":1,"a":[]}"#)),
            ("l", Some(r#"["a",1]"#)),
            ("s", Some("y")),
            ("s", Some("z")),
        ]
    );
}

#[test]
fn json_takes_any_value() {
    let values = [
        "\"text\"",
        "[]",
        "{ \"userid\": 1234567 }",
        "[\"a\", 1]",
        "1.10",
        "true",
        "null",
        "1e400",
    ];
    let wanted = [
        "\"text\"",
        "[]",
        "{\"userid\":1234567}",
        "[\"a\",1]",
        "1.10",
        "true",
        "",
        "1e400",
    ];
    let found: Vec<String> = texts("json", &values)
        .into_iter()
        .map(|v| v.expect("taken").unwrap_or_default())
        .collect();
    assert_eq!(found, wanted);
    let deep = "[".repeat(200) + &"]".repeat(200);
    assert!(
        texts("json", &[&deep])[0]
            .clone()
            .expect_err("rejected")
            .contains("deeper")
    );
    assert!(
        texts("varchar", &["{}"])[0]
            .clone()
            .expect_err("rejected")
            .contains("json takes any value")
    );
}

#[test]
fn lone_surrogates_become_replacement_characters() {
    let lone = r#""party \ud83d""#;
    assert_eq!(
        texts("varchar", &[lone]),
        [Ok(Some("party \u{FFFD}".to_owned()))]
    );
    assert_eq!(
        texts("json", &[lone]),
        [Ok(Some("\"party \u{FFFD}\"".to_owned()))]
    );
    let key = r#"{"at":"2024-05-01T00:00:00Z","\udc00":1,"v":"fine \ud83d\ude00"}"#.to_owned();
    let decoded = decoded(&stream("varchar", ""), &[key]);
    assert_eq!(
        (decoded.index.len(), decoded.drift),
        (1, vec![("\u{FFFD}".to_owned(), 1)])
    );
}

#[test]
fn unknown_keys_are_counted_once_however_often_a_record_is_read() {
    let record =
        r#"{"a":1,"at":"2024-05-01T00:00:00Z","v":1.50,"b":{"c":2},"d":"\ud83d"}"#.to_owned();
    let decoded = decoded(&stream("varchar", ""), &[record]);
    assert_eq!(
        decoded.drift,
        ["a", "b", "d"].map(|key| (key.to_owned(), 1))
    );
}

#[test]
fn times_are_read_as_declared() {
    let micros = |ty: &str, keys: &str, values: &[&str]| {
        let decoded = decoded(&stream(ty, keys), &records(values));
        let times = decoded
            .rows
            .column(1)
            .as_primitive::<TimestampMicrosecondType>()
            .values()
            .to_vec();
        (
            times,
            decoded
                .rejected
                .into_iter()
                .map(|r| r.reason)
                .collect::<Vec<_>>(),
        )
    };
    let second = 1_714_557_600_000_000;
    assert_eq!(
        micros(
            "timestamp(s)",
            "",
            &["1714557600", "1714557600.25", "\"1714557600\""]
        )
        .0,
        [second, second + 250_000, second]
    );
    assert_eq!(
        micros(
            "timestamp(ms)",
            "",
            &["1714557600000", "\"2024-05-01 10:00\""]
        )
        .0,
        [second, second]
    );
    assert_eq!(
        micros("timestamp(us)", "", &["1714557600000000"]).0,
        [second]
    );
    assert_eq!(
        micros(
            "timestamp",
            "time_zone = \"Europe/Berlin\"",
            &["\"2024-05-01 12:00:00\""]
        )
        .0,
        [second]
    );
    let (_, reasons) = micros("timestamp", "", &["1714557600", "\"01/05/2024\""]);
    assert!(
        reasons[0].contains("timestamp(s)") && reasons[1].contains("`01/05/2024`"),
        "{reasons:?}"
    );
    let (_, reasons) = micros("timestamp(s)", "", &["1714557600000"]);
    assert!(reasons[0].contains("years 1 to 9999"), "{reasons:?}");
    let (_, reasons) = micros(
        "timestamp",
        "time_zone = \"Europe/Berlin\"",
        &["\"2024-03-31 02:30:00\""],
    );
    assert!(
        reasons[0].contains("does not exist in Europe/Berlin"),
        "{reasons:?}"
    );
}

#[test]
fn event_times_outside_the_range_are_rejected() {
    let records = [
        "0001-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z",
        "2200-01-01T00:00:00Z",
    ]
    .map(|at| format!(r#"{{"at":"{at}","v":1}}"#));
    let far = "watermark = { max_ahead = \"3650000d\" }\n";
    let found = decoded(&stream("int", far), &records);
    assert_eq!(found.index, [1]);
    assert_eq!(
        &*found.rejected[0].reason,
        "event_time 0001-01-01T00:00:00.000Z is outside the stream's time_range, 1900-01-01 to 2200-01-01"
    );
    let wide = format!("{far}time_range = [\"0001-01-01\", \"9999-12-31\"]");
    assert_eq!(decoded(&stream("int", &wide), &records).index, [0, 1, 2]);
}

#[test]
fn reasons_are_bounded_and_equal_ones_are_shared() {
    let long = format!("\"{}\"", "x".repeat(100_000));
    let stream = stream("varchar", "").def;
    let def = StreamDef {
        select: "select at as event_time, cast(v as bigint) as v from s".into(),
        ..stream
    };
    let stream = Stream::compile("s", &def).expect("valid");
    let values = [long.as_str(), "\"y\"", "1", "\"y\"", "\"z\""];
    let decoded = decoded(&stream, &records(&values));
    assert_eq!(decoded.index, [2]);
    assert!(
        decoded
            .rejected
            .iter()
            .all(|rejected| rejected.reason.len() <= REASON_BYTES)
    );
    assert!(Arc::ptr_eq(
        &decoded.rejected[1].reason,
        &decoded.rejected[2].reason
    ));
    let bytes = 4 * REJECTED_BYTES;
    let within = |max_bytes| {
        let records = records(&values);
        decode_within(
            &stream,
            records.iter().map(String::as_bytes),
            received(),
            max_bytes,
        )
        .is_ok()
    };
    assert!(!within(bytes) && within(bytes + 6 * REASON_BYTES));
}

#[test]
fn an_array_of_too_many_records_says_so() {
    let array = |items: usize| format!("[{}{{}}]", "{},".repeat(items - 1));
    let records = [array(2), array(bounds::MAX_ELEMENTS + 1), "{},{".into()];
    let reasons: Vec<_> = decoded(&stream("varchar", ""), &records)
        .rejected
        .into_iter()
        .map(|r| r.reason)
        .collect();
    assert_eq!(
        &*reasons[0],
        "invalid type: sequence, expected a JSON object"
    );
    assert!(
        reasons[1].starts_with("an array of more than 65536 records"),
        "{}",
        reasons[1]
    );
}

#[test]
fn a_large_map_takes_linear_time() {
    // Compared one by one, these keys would take a hundred thousand times a hundred thousand
    // steps.
    let record = |keys: usize| {
        let members: Vec<String> = (0..keys).map(|n| format!("\"key{n}\":\"v\"")).collect();
        format!("{{{},\"key0\":\"last\"}}", members.join(","))
    };
    let max = json::MAX_MAP_KEYS;
    let decoded = decoded(
        &stream("map(varchar, varchar)", ""),
        &records(&[&record(max - 1), &record(max)]),
    );
    assert_eq!(decoded.rows.column(1).as_map().keys().len(), max - 1);
    assert_eq!(
        &*decoded.rejected[0].reason,
        "v: a map of more than 100000 keys"
    );
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|v| v.to_string()),
        any::<f64>().prop_map(|v| if v.is_finite() {
            format!("{v:?}")
        } else {
            "1e400".to_owned()
        }),
        "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        Just("true".to_owned()),
        Just("null".to_owned()),
        Just(r#""\ud83d""#.to_owned()),
        Just(r#"{"a": [1.0, {}]}"#.to_owned()),
        "[a-zé ]{0,5}".prop_map(|v| format!("{v:?}")),
    ]
}

proptest! {
    #[test]
    fn rows_do_not_depend_on_other_records_of_the_frame(
        values in prop::collection::vec(any_value(), 1..12),
        ty in prop::sample::select(vec!["bigint", "int", "varchar", "json", "boolean", "timestamp", "timestamp(ms)"])
    ) {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let alone: Vec<_> = values.iter().flat_map(|v| texts(ty, &[v])).collect();
        prop_assert_eq!(texts(ty, &values), alone);
    }

    #[test]
    fn integers_pass_through_unchanged(value: i64) {
        let rows = decoded(&stream("bigint", ""), &records(&[&value.to_string()])).rows;
        prop_assert_eq!(rows.column(1).as_primitive::<Int64Type>().value(0), value);
    }
}

#[test]
fn a_message_without_a_value_becomes_what_its_tombstone_says() {
    use crate::message::{MessageMetadata, Messages, Tombstone};
    let def: StreamDef = toml::from_str(
        "schema = \"v int\"\nselect = \"select kafka_timestamp as event_time, kafka_key, v from s\"",
    )
    .expect("a stream");
    let stream = Stream::compile("s", &def).expect("valid");
    let metadata: Vec<_> = [
        None,
        Some(Tombstone::DeadLetter),
        Some(Tombstone::Skip),
        Some(Tombstone::Row),
    ]
    .into_iter()
    .enumerate()
    .map(|(n, tombstone)| MessageMetadata {
        key: Some(vec![b'a' + n as u8]),
        timestamp_ms: Some(1_000),
        tombstone,
        ..MessageMetadata::default()
    })
    .collect();
    let received = Received {
        messages: Messages {
            metadata: &metadata,
            partition: "t/0",
            offsets: &[1, 2, 3, 4],
        },
        ..received()
    };
    let records: [&[u8]; 4] = [b"{\"v\":7}", b"", b"", b""];
    let decoded = decode(&stream, records.into_iter(), received);
    assert_eq!(decoded.index, [0, 3]);
    let keys = decoded.rows.column(1).as_string::<i32>();
    assert_eq!([keys.value(0), keys.value(1)], ["a", "d"]);
    let rejected: Vec<_> = decoded.rejected.iter().map(|r| r.index).collect();
    assert_eq!(rejected, [1]);
}

#[test]
fn a_message_that_its_source_could_not_read_is_rejected_with_its_place() {
    use crate::message::{MessageMetadata, Messages};
    let stream = Stream::compile(
        "s",
        &toml::from_str(
            "schema = \"v int\"\nselect = \"select kafka_timestamp as event_time, v from s\"",
        )
        .expect("a stream"),
    );
    let metadata = [
        MessageMetadata {
            timestamp_ms: Some(1_000),
            ..MessageMetadata::default()
        },
        MessageMetadata {
            rejected: Some("Avro: the message ends inside the value".into()),
            ..MessageMetadata::default()
        },
    ];
    let received = Received {
        messages: Messages {
            metadata: &metadata,
            partition: "t/3",
            offsets: &[7, 8],
        },
        ..received()
    };
    // Whatever its bytes look like.
    let records: [&[u8]; 2] = [b"{\"v\":1}", b"{\"v\":2}"];
    let decoded = decode(&stream.expect("valid"), records.into_iter(), received);
    assert_eq!(decoded.index, [0]);
    assert_eq!(decoded.rejected[0].index, 1);
    assert_eq!(
        &*decoded.rejected[0].reason,
        "t/3, offset 8: Avro: the message ends inside the value"
    );
}
