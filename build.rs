//! Compresses the script of the charts, which the crate `plotly` carries, into the build folder. Of
//! what the crate has, only this script is used.

use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;

const BEGIN: &str = "<script type=\"text/javascript\">";
const END: &str = "</script>";

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let sources = plotly::Plot::offline_js_sources();
    let script = sources
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END))
        .map(|(script, _)| script);
    // The first script of the crate is plotly.js; the second one, for formulas, is not used.
    let script = script.filter(|script| script.contains("plotly.js v"));
    let script = script.ok_or_else(|| std::io::Error::other("`plotly` has no script"))?;
    let folder = std::env::var_os("OUT_DIR").ok_or_else(|| std::io::Error::other("no OUT_DIR"))?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(script.as_bytes())?;
    std::fs::write(PathBuf::from(folder).join("plotly.js.gz"), gzip.finish()?)
}
