//! From a stream's declaration to what runs: the columns of the JSON, `select` and `require` planned
//! once into physical expressions, the table's Arrow schema. Every error in a declaration is found
//! here, by `weir check` and at start-up alike.

pub(crate) mod bounds;
mod catalog;
mod declaration_error;
pub(crate) mod dialect;
pub(crate) mod entity;
mod evaluation_error;
pub mod functions;
mod hints;
mod layout;
pub(crate) mod names;
mod plan_error;
mod rules;
pub(crate) mod select;
mod stream;
mod strict;
pub(crate) mod types;
pub(crate) mod window;
mod wording;

pub(crate) use crate::config::zone;
pub(crate) use crate::config::{
    DUPLICATE_KEY_BYTES, Late, SearchDef, StreamDef, WINDOW_GROUP_BYTES,
};
pub use catalog::Catalog;
pub use declaration_error::{DeclarationError, TABLE_KEY, WINDOW_KEY};
pub use entity::Entity;
pub use evaluation_error::EvaluationError;
pub(crate) use layout::BUCKETS;
pub use layout::Layout;
pub use plan_error::PlanError;
pub use select::session_config;
pub use stream::Stream;
pub(crate) use stream::{MAP_SUFFIX, MessageColumn, Selected};
pub use window::Window;
