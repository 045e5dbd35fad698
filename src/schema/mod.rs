//! From a stream's declaration to what runs: the columns of the JSON, `select` and `require` planned
//! once into physical expressions, the table's Arrow schema. Every error in a declaration is found
//! here, by `weir check` and at start-up alike.

pub(crate) mod bounds;
mod catalog;
mod declaration_error;
pub(crate) mod dialect;
pub(crate) mod entity;
pub mod functions;
mod hints;
mod layout;
pub(crate) mod names;
mod plan_error;
mod rules;
pub mod select;
mod stream;
mod strict;
pub(crate) mod types;
pub(crate) mod window;

pub use crate::config::time_range::TimeRange;
pub use crate::config::zone;
pub use crate::config::{
    DUPLICATE_KEY_BYTES, Late, SearchDef, StreamDef, WINDOW_GROUP_BYTES, versions_of,
};
pub use catalog::Catalog;
pub use declaration_error::{DeclarationError, TABLE_KEY, WINDOW_KEY};
pub use entity::Entity;
pub use layout::{BUCKETS, Layout};
pub use plan_error::PlanError;
pub use stream::{MAP_SUFFIX, Selected, Stream};
pub use window::Window;
