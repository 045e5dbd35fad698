//! Data written by the library of Avro are read as the same JSON.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::DatumReader;
use super::datum::DatumError;

const LIMIT: usize = 1 << 20;

/// A schema, a value of it, and the JSON that it is to become.
#[derive(Debug, Clone)]
struct Sample {
    schema: Value,
    value: Avro,
    json: Value,
}

impl Sample {
    fn new(schema: Value, value: Avro, json: Value) -> Self {
        Self {
            schema,
            value,
            json,
        }
    }

    fn reader(&self) -> DatumReader {
        DatumReader::new(&self.schema.to_string(), &[]).expect("a schema")
    }

    fn datum(&self) -> Vec<u8> {
        let schema = Schema::parse(&self.schema).expect("a schema");
        let writer = GenericDatumWriter::builder(&schema)
            .build()
            .expect("a writer");
        writer
            .write_value_to_vec(self.value.clone())
            .expect("a value of the schema")
    }
}

fn read(reader: &DatumReader, datum: &[u8]) -> Result<Value, DatumError> {
    read_within(reader, datum, LIMIT)
}

fn read_within(reader: &DatumReader, datum: &[u8], limit: usize) -> Result<Value, DatumError> {
    let mut out = Vec::new();
    reader.to_json(datum, limit, &mut out)?;
    assert!(out.len() <= limit);
    Ok(serde_json::from_slice(&out).expect("JSON"))
}

fn double(number: f64) -> Value {
    serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn scalar() -> impl Strategy<Value = Sample> {
    let logical = |kind: &str, logical: &str| json!({"type": kind, "logicalType": logical});
    prop_oneof![
        Just(Sample::new(json!("null"), Avro::Null, Value::Null)),
        any::<bool>().prop_map(|v| Sample::new(json!("boolean"), Avro::Boolean(v), json!(v))),
        any::<i32>().prop_map(|v| Sample::new(json!("int"), Avro::Int(v), json!(v))),
        any::<i64>().prop_map(|v| Sample::new(json!("long"), Avro::Long(v), json!(v))),
        any::<f32>().prop_map(|v| Sample::new(json!("float"), Avro::Float(v), double(v.into()))),
        any::<f64>().prop_map(|v| Sample::new(json!("double"), Avro::Double(v), double(v))),
        any::<String>().prop_map(|v| Sample::new(
            json!("string"),
            Avro::String(v.clone()),
            json!(v)
        )),
        vec(any::<u8>(), 0..40).prop_map(|v| {
            let text = STANDARD.encode(&v);
            Sample::new(json!("bytes"), Avro::Bytes(v), json!(text))
        }),
        any::<i64>().prop_map(move |v| {
            let schema = logical("long", "timestamp-micros");
            Sample::new(schema, Avro::TimestampMicros(v), json!(v))
        }),
        any::<i32>().prop_map(move |v| Sample::new(
            logical("int", "date"),
            Avro::Date(v),
            json!(v)
        )),
        any::<[u8; 16]>().prop_map(move |v| {
            let id = uuid::Uuid::from_bytes(v);
            let schema = logical("string", "uuid");
            Sample::new(schema, Avro::Uuid(id), json!(id.to_string()))
        }),
        any::<i64>().prop_map(|v| {
            let schema =
                json!({"type": "bytes", "logicalType": "decimal", "precision": 19, "scale": 0});
            let value = Avro::Decimal(v.to_be_bytes().to_vec().into());
            Sample::new(schema, value, json!(v.to_string()))
        }),
    ]
}

/// Names of one schema differ by their number.
fn named(kind: &str, number: u64) -> serde_json::Map<String, Value> {
    let name = format!("{kind}_{number}");
    let schema = json!({"type": kind, "name": name, "namespace": "a.b"});
    schema.as_object().cloned().expect("an object")
}

fn fixed() -> impl Strategy<Value = Sample> {
    (any::<u64>(), vec(any::<u8>(), 1..20)).prop_map(|(number, bytes)| {
        let mut schema = named("fixed", number);
        schema.insert("size".into(), bytes.len().into());
        let text = STANDARD.encode(&bytes);
        Sample::new(schema.into(), Avro::Fixed(bytes.len(), bytes), json!(text))
    })
}

fn enumeration() -> impl Strategy<Value = Sample> {
    (any::<u64>(), 0u32..3).prop_map(|(number, index)| {
        let symbol = ["A", "B", "C"][index as usize];
        let mut schema = named("enum", number);
        schema.insert("symbols".into(), json!(["A", "B", "C"]));
        Sample::new(
            schema.into(),
            Avro::Enum(index, symbol.into()),
            json!(symbol),
        )
    })
}

fn array(item: Sample, count: usize) -> Sample {
    Sample {
        schema: json!({"type": "array", "items": item.schema}),
        value: Avro::Array(vec![item.value; count]),
        json: Value::Array(vec![item.json; count]),
    }
}

fn map(item: &Sample, keys: &[String]) -> Sample {
    let values = keys.iter().map(|key| (key.clone(), item.value.clone()));
    let members = keys.iter().map(|key| (key.clone(), item.json.clone()));
    Sample {
        schema: json!({"type": "map", "values": item.schema}),
        value: Avro::Map(values.collect::<HashMap<_, _>>()),
        json: Value::Object(members.collect()),
    }
}

fn record(number: u64, fields: &[Sample]) -> Sample {
    let names: Vec<String> = (0..fields.len()).map(|n| format!("f{n}")).collect();
    let declared = names.iter().zip(fields);
    let declared: Vec<Value> = declared
        .map(|(name, field)| json!({"name": name, "type": field.schema}))
        .collect();
    let values = names.iter().zip(fields);
    let values = values.map(|(name, field)| (name.clone(), field.value.clone()));
    let members = names.iter().zip(fields);
    let members = members.map(|(name, field)| (name.clone(), field.json.clone()));
    let mut schema = named("record", number);
    schema.insert("fields".into(), declared.into());
    Sample {
        schema: schema.into(),
        value: Avro::Record(values.collect()),
        json: Value::Object(members.collect()),
    }
}

/// Null or the sample.
fn nullable(sample: Sample, is_null: bool) -> Sample {
    let (index, value, json) = match is_null {
        true => (0, Avro::Null, Value::Null),
        false => (1, sample.value, sample.json),
    };
    Sample {
        schema: json!(["null", sample.schema]),
        value: Avro::Union(index, Box::new(value)),
        json,
    }
}

fn sample() -> impl Strategy<Value = Sample> {
    let leaf = prop_oneof![8 => scalar(), 1 => fixed(), 1 => enumeration()];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            (inner.clone(), 0usize..4).prop_map(|(item, count)| array(item, count)),
            (inner.clone(), vec("[a-z\"\\\\é]{0,6}", 0..4))
                .prop_map(|(item, keys)| map(&item, &keys)),
            (any::<u64>(), vec(inner.clone(), 0..5))
                .prop_map(|(number, fields)| record(number, &fields)),
            (inner, any::<bool>()).prop_map(|(item, is_null)| match &item.schema {
                // A union has no second null, and no union.
                Value::Array(_) => item,
                Value::String(name) if name == "null" => item,
                _ => nullable(item, is_null),
            }),
        ]
    })
}

proptest! {
    #[test]
    fn what_the_library_writes_is_read_as_the_same_json(sample in sample()) {
        let read = read(&sample.reader(), &sample.datum());
        prop_assert_eq!(read, Ok(sample.json));
    }

    #[test]
    fn a_datum_that_was_cut_off_or_continued_is_an_error(sample in sample(), part in 0.0..1.0) {
        let (reader, mut datum) = (sample.reader(), sample.datum());
        let length = (datum.len() as f64 * part) as usize;
        if length < datum.len() {
            prop_assert!(read(&reader, &datum[..length]).is_err());
        }
        datum.push(0);
        prop_assert!(read(&reader, &datum).is_err());
    }

    #[test]
    fn any_bytes_are_a_value_within_the_limit_or_an_error(
        sample in sample(),
        datum in vec(any::<u8>(), 0..60),
    ) {
        let _ = read_within(&sample.reader(), &datum, 100);
    }
}

#[test]
fn logical_types_keep_what_they_hold() {
    let fixed = |name: &str, size: usize, logical: &str| json!({"type": {"type": "fixed", "name": name, "size": size, "logicalType": logical, "precision": 20, "scale": 2}, "name": name});
    let schema = json!({"type": "record", "name": "R", "fields": [
        fixed("money", 10, "decimal"),
        {"name": "same", "type": "money"},
        fixed("id", 16, "uuid"),
        fixed("time", 12, "duration"),
        {"name": "big", "type": {"type": "bytes", "logicalType": "big-decimal"}},
        {"name": "other", "type": {"type": "string", "logicalType": "of-mine"}},
    ]});
    let money = [vec![0xff; 9], vec![0x85]].concat();
    let time = [1u32, 2, 3].map(u32::to_le_bytes).concat();
    // The bytes 12 34 in two's complement with the scale 2.
    let big = vec![8, 4, 0x04, 0xd2, 4];
    let other = vec![2, b'x'];
    let datum = [money.clone(), money, vec![7; 16], time, big, other].concat();
    let reader = DatumReader::new(&schema.to_string(), &[]).expect("a schema");
    assert_eq!(
        read(&reader, &datum),
        Ok(json!({
            "money": "-1.23",
            "same": "-1.23",
            "id": "07070707-0707-0707-0707-070707070707",
            "time": {"months": 1, "days": 2, "millis": 3},
            "big": "12.34",
            "other": "x",
        }))
    );
}

#[test]
fn numbers_that_json_does_not_have_are_null_and_floats_are_exact() {
    let schema = json!({"type": "array", "items": "double"}).to_string();
    let reader = DatumReader::new(&schema, &[]).expect("a schema");
    let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let datum = [vec![6], numbers.map(f64::to_le_bytes).concat(), vec![0]].concat();
    assert_eq!(read(&reader, &datum), Ok(json!([null, null, null])));
    let reader = DatumReader::new("\"float\"", &[]).expect("a schema");
    let read = read(&reader, &0.1f32.to_le_bytes());
    assert_eq!(read, Ok(json!(f64::from(0.1f32))));
}

#[test]
fn a_type_may_contain_itself_down_to_a_limit() {
    let schema = r#"{"type":"record","name":"N","namespace":"x","fields":[{"name":"next","type":["null","N"]}]}"#;
    let reader = DatumReader::new(schema, &[]).expect("a schema");
    let nested = |levels: usize| [vec![2; levels], vec![0]].concat();
    assert_eq!(
        read(&reader, &nested(2)),
        Ok(json!({"next": {"next": {"next": null}}}))
    );
    assert!(read(&reader, &nested(40)).is_ok());
    let error = read(&reader, &nested(500_000)).expect_err("too deep");
    let error = error.to_string();
    assert!(error.ends_with("deeper than 100 levels"), "{error}");
    // A type that has no end at all.
    let schema = r#"{"type":"record","name":"N","fields":[{"name":"next","type":"N"}]}"#;
    let reader = DatumReader::new(schema, &[]).expect("a schema");
    assert!(read(&reader, &[]).is_err());
}

#[test]
fn lengths_that_are_only_claimed_take_no_memory_and_no_time() {
    let schema = json!({"type": "array", "items": "null"}).to_string();
    let reader = DatumReader::new(&schema, &[]).expect("a schema");
    // A block of 2^62 items, which have no bytes.
    let count = [vec![0x80; 9], vec![1]].concat();
    let error = read_within(&reader, &count, 1_000).expect_err("too long");
    insta::assert_snapshot!(error, @"as JSON it has more than the 1000 bytes that `[limits] record` leaves beside key and headers");
    let reader = DatumReader::new("\"bytes\"", &[]).expect("a schema");
    assert!(read(&reader, &count).is_err());
}

#[test]
fn an_error_names_the_field() {
    let schema = json!({"type": "record", "name": "R", "fields": [
        {"name": "venue", "type": {"type": "map", "values": {"type": "record", "name": "V", "fields": [
            {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["a"]}},
        ]}}},
        {"name": "n", "type": ["null", "int", "string"]},
    ]});
    let reader = DatumReader::new(&schema.to_string(), &[]).expect("a schema");
    let wrong: [&[u8]; 10] = [
        &[2, 2, b'x', 2],
        &[2, 2, b'x', 0, 0, 6],
        &[2, 2, b'x'],
        &[0, 4, 6, 0xff, 0xff, 0xff],
        &[0, 4, 2, 0xff],
        &[0, 4, 3],
        &[0, 2, 0xfe, 0xff, 0xff, 0xff, 0x7f],
        &[0, 0, 1, 2],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3],
        &[1, 1],
    ];
    let errors = wrong.map(|datum| read(&reader, datum).expect_err("wrong").to_string());
    insta::assert_snapshot!(errors.join("\n"), @r#"
    venue.x.kind: symbol 1 of an enum of 1
    n: type 3 of a union of 3
    venue.x.kind: the message ends inside the value
    n: text that is not UTF-8
    n: text that is not UTF-8
    n: a length of -2
    n: 17179869183 is beyond the 32 bits of an int
    2 bytes follow after the value; was it written with another schema?
    venue: a number of more than 64 bits
    venue: a length of -1
    "#);
}

#[test]
fn names_of_other_schemas_are_resolved() {
    let point =
        json!({"type": "record", "name": "geo.Point", "fields": [{"name": "lat", "type": "int"}]});
    let path = json!({"type": "record", "name": "geo.Path", "fields": [{"name": "points", "type": {"type": "array", "items": "Point"}}]});
    let schema = json!({"type": "record", "name": "R", "fields": [{"name": "path", "type": "geo.Path"}, {"name": "end", "type": "geo.Point"}]});
    let references = [path, point].map(|schema| schema.to_string());
    let reader = DatumReader::new(&schema.to_string(), &references).expect("a schema");
    assert_eq!(
        read(&reader, &[2, 2, 0, 4]),
        Ok(json!({"path": {"points": [{"lat": 1}]}, "end": {"lat": 2}}))
    );
    assert!(DatumReader::new(&schema.to_string(), &references[..1]).is_err());
}
