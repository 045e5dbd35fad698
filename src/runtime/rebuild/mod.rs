//! Processing past records again for one view, under the configuration that is in force or is to
//! be. The view is built in a folder of its own next to the old one, which keeps serving, and
//! installed at the end of the log while nothing is taken in.
//!
//! `scope` finds the declarations that a view follows from, `build` processes the records that
//! `replay` and `retained_rows` read, `manifest` stores how far a build is, and `install` moves it
//! into place. Each step can be repeated after a crash.
//!
//! A window is rebuilt; `raw` begins with record 500, the stream's table with rows of 08:00:
//!
//! ```text
//! records       read from                     the build gets
//! 1 to 499      rows of the stream's table    frames with the rows that are left (`retained_rows`)
//! 500 to 899    `raw`, as it is committed     the original frames
//! 900 on        the log                       the original frames
//! ```
//!
//! From these it derives windows from 08:00 on. Earlier ones lack events, so their rows are carried
//! over from the old table, each at its LSN.

mod build;
mod install;
mod manifest;
mod replay;
mod retained_rows;
mod scope;

pub use build::ViewBuild;
pub(super) use install::{
    complete_builds, complete_install, has_builds, has_builds_to_move, has_installed_builds,
    install, views_of, waiting_builds,
};
pub use install::{complete_interrupted_installs, end_of_log, has_waiting, is_installed};
pub use scope::{dependent_view, names, view_named};
