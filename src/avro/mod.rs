//! Values in Avro → JSON, by the schema that they were written with. No I/O.
//!
//! A schema is compiled once into [`DatumReader`], which copies a datum into JSON without a tree in
//! between: nothing is allocated by a length that the datum only claims, and every datum ends
//! exactly at its last byte. The library of Avro reads a datum that was cut off as one with nulls,
//! and has no limit of its depth; here it parses schemas.
//!
//! | Avro | JSON |
//! |---|---|
//! | `null`, `boolean`, `int`, `long` | the same, integers with all digits |
//! | `float`, `double` | the shortest number that is read as the same double; NaN and infinities are `null` |
//! | `string`, `enum` | text |
//! | `bytes`, `fixed` | text in base64 |
//! | `array` | array |
//! | `map`, `record` | object |
//! | `union` | the value, without its type |
//! | `decimal`, `big-decimal` | text with all digits: `"-12.50"` |
//! | `uuid` | text |
//! | `date`, `time-…`, `timestamp-…`, `local-timestamp-…` | the integer: days, ms, µs or ns |
//! | `duration` | `{"months":…,"days":…,"millis":…}` |

mod datum;
mod decimal;
mod schema;
#[cfg(test)]
mod tests;

pub use schema::{DatumReader, SchemaError};
