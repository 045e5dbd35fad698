//! JSON into columns: `visitors` drive the parser, `compact` writes values that are stored as
//! JSON text, `keys` finds duplicate keys, `surrogates` repairs strings.

mod compact;
mod keys;
mod surrogates;
mod visitors;

pub(super) use compact::{MAX_DEPTH, TooDeep, compact};
pub(super) use surrogates::replace_lone_surrogates;
pub(super) use visitors::{MAX_MAP_KEYS, Target, read};
