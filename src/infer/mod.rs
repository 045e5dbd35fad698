//! Observed records → a declaration to start from. Pure and deterministic: the same records, name
//! and time give the same text.
//!
//! `profile` counts what is seen by path, in bounded memory; `columns` turns it into types and
//! columns under valid names (`naming`); `event_time` and `roles` guess what the columns are for;
//! `render` writes the guesses as a configuration, each with its reason and what else was possible
//! as a comment beside it. `times` recognizes times, `envelope` an array of records inside an
//! object, `identity` keys that would lose records.
//!
//! ```text
//! {"id":7,"createdAt":"2024-05-01T10:00:00Z","place":{"lat":59.9,"lon":10.7}}
//!   schema      id bigint, "createdAt" timestamp, place struct<lat double, lon double>
//!   event time  "createdAt": a time as text, in every record
//!   key         id: in every record, each value once
//!   geo         place_lat, place_lon
//! ```
//!
//! Every type reads every value of the sample: what no other type reads is `json`.

mod columns;
mod envelope;
mod event_time;
mod identity;
mod naming;
mod profile;
mod render;
mod roles;
mod times;

pub use envelope::envelope;
pub use naming::stream_name;
pub use profile::Profile;
pub use render::{Proposal, SourceKind, SourceText};
