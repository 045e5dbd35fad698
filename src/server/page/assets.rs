//! The files of the page, compressed once: its own, which are in `src/server/dashboard`, and
//! plotly.js, which `build.rs` takes out of the crate `plotly`.

use std::io::{Read, Write};
use std::sync::{LazyLock, OnceLock};

use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use crate::server::error::ApiError;

/// What the URL of every asset begins with.
pub const FOLDER: &str = "/assets/";

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const DATA: &str = "application/json";
const IMAGE: &str = "image/svg+xml";

/// plotly.js, compressed.
const PLOTLY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/plotly.js.gz"));

/// The page's own files: name, media type, content.
macro_rules! own {
    ($($name:literal: $media_type:ident,)*) => {
        [$(($name, $media_type, include_bytes!(concat!("../dashboard/", $name)).as_slice()),)*]
    };
}

const OWN: [(&str, &str, &[u8]); 43] = own! {
    "access.js": SCRIPT,
    "api.js": SCRIPT,
    "app.js": SCRIPT,
    "cell.js": SCRIPT,
    "chart.js": SCRIPT,
    "configuration.js": SCRIPT,
    "deadletters.js": SCRIPT,
    "distance.js": SCRIPT,
    "dom.js": SCRIPT,
    "editor.js": SCRIPT,
    "facets.js": SCRIPT,
    "filtered.js": SCRIPT,
    "filters.js": SCRIPT,
    "find.js": SCRIPT,
    "flow.js": SCRIPT,
    "format.js": SCRIPT,
    "grid.js": SCRIPT,
    "highlights.js": SCRIPT,
    "history.js": SCRIPT,
    "hit.js": SCRIPT,
    "links.js": SCRIPT,
    "map.js": SCRIPT,
    "metrics.js": SCRIPT,
    "notebook.js": SCRIPT,
    "notebooks.js": SCRIPT,
    "overview.js": SCRIPT,
    "panels.js": SCRIPT,
    "pipeline.js": SCRIPT,
    "place.js": SCRIPT,
    "projection.js": SCRIPT,
    "prose.js": SCRIPT,
    "resources.js": SCRIPT,
    "result.js": SCRIPT,
    "search.js": SCRIPT,
    "signin.js": SCRIPT,
    "spark.js": SCRIPT,
    "sql.js": SCRIPT,
    "sqltext.js": SCRIPT,
    "state.js": SCRIPT,
    "world.js": SCRIPT,
    "icon.svg": IMAGE,
    "style.css": STYLE,
    "world.json": DATA,
};

/// A file that is served to browsers.
struct Asset {
    name: &'static str,
    media_type: &'static str,
    gzip: Bytes,
    /// Without compression: kept once a client has asked for it, so that many that read slowly
    /// share it.
    plain: OnceLock<Bytes>,
    /// Of its content, in quotes.
    etag: HeaderValue,
}

impl Asset {
    fn new(name: &'static str, media_type: &'static str, gzip: Bytes) -> Self {
        let hash = Sha256::digest(&gzip);
        let hex: String = hash.iter().take(16).map(|b| format!("{b:02x}")).collect();
        let etag = HeaderValue::from_str(&format!("\"{hex}\"")).expect("hexadecimal digits");
        Self {
            name,
            media_type,
            gzip,
            plain: OnceLock::new(),
            etag,
        }
    }

    /// The content as it was before compression, for clients that do not take gzip.
    fn plain(&self) -> Bytes {
        let unpack = || {
            let mut plain = Vec::new();
            GzDecoder::new(&*self.gzip)
                .read_to_end(&mut plain)
                .expect("what was compressed here");
            plain.into()
        };
        self.plain.get_or_init(unpack).clone()
    }
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let own = OWN
        .iter()
        .map(|(name, media_type, content)| Asset::new(name, media_type, compress(content).into()));
    own.chain([Asset::new("plotly.js", SCRIPT, Bytes::from_static(PLOTLY))])
        .collect()
});

fn compress(content: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(content)
        .and_then(|()| gzip.finish())
        .expect("memory takes any bytes")
}

/// Whether a client takes gzip.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter();
    accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|coding| {
            let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
            (!quality.trim().starts_with("q=0") || quality.contains("0.")).then(|| name.trim())
        })
        .any(|name| name.eq_ignore_ascii_case("gzip") || name == "*")
}

/// A file of the page. Browsers ask each time whether theirs is current, so that all files of a page
/// are of one version.
#[utoipa::path(get, path = "/assets/{name}", params(("name" = String, Path)),
    responses((status = 200, description = "the file, compressed for clients that take gzip"), (status = 304), (status = 404)))]
pub async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    let asset = asset.ok_or_else(|| {
        let message = format!("the page has no file `{name}`");
        ApiError::new(
            StatusCode::NOT_FOUND,
            "not_found",
            message,
            "reload the page",
        )
    })?;
    let common = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::VARY, HeaderValue::from_static("accept-encoding")),
        (header::ETAG, asset.etag.clone()),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
    ];
    let known = headers.get_all(header::IF_NONE_MATCH).iter();
    if known
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim().trim_start_matches("W/").as_bytes() == asset.etag.as_bytes())
    {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    let media_type = [(header::CONTENT_TYPE, asset.media_type)];
    if takes_gzip(&headers) {
        let encoding = [(header::CONTENT_ENCODING, "gzip")];
        return Ok((common, media_type, encoding, asset.gzip.clone()).into_response());
    }
    let plain = tokio::task::spawn_blocking(|| asset.plain()).await;
    let plain = plain.map_err(|e| ApiError::failed(e.to_string()))?;
    Ok((common, media_type, plain).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of plotly.js 3.0.1 as its authors published it.
    const PLOTLY_SHA256: &str = "a32e817bb121e9e89016ce4cee85ee3f1c66f6a6c95c4b53a5f488f77756d7a4";
    const MAX_PAGE_BYTES: usize = 2 << 20;
    const MAX_WORLD_BYTES: usize = 40_000;

    fn own(name: &str) -> &'static str {
        let file = OWN.iter().find(|(own, ..)| *own == name);
        let (.., content) = file.unwrap_or_else(|| panic!("{name} is missing"));
        std::str::from_utf8(content).expect("text")
    }

    #[test]
    fn plotly_is_the_published_one() {
        let plotly = ASSETS.iter().find(|asset| asset.name == "plotly.js");
        let plain = plotly.expect("an asset").plain();
        let hash = Sha256::digest(plain);
        let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hash, PLOTLY_SHA256);
    }

    #[test]
    fn all_files_together_are_small() {
        let size: usize = ASSETS.iter().map(|asset| asset.gzip.len()).sum();
        assert!(size <= MAX_PAGE_BYTES, "{size} bytes");
        assert!(own("world.json").len() <= MAX_WORLD_BYTES);
    }

    #[test]
    fn every_file_of_the_folder_is_served_and_every_import_exists() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/server/dashboard");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        let mut served: Vec<&str> = OWN.iter().map(|(name, ..)| *name).collect();
        served.sort_unstable();
        assert_eq!(served, names);
        for (name, media_type, content) in OWN {
            if media_type != SCRIPT {
                continue;
            }
            let text = std::str::from_utf8(content).expect("text");
            for import in text.split("\"./").skip(1) {
                let import = import.split('"').next().expect("a quoted name");
                assert!(served.contains(&import), "{name} imports {import}");
            }
            for asset in text.split("\"/assets/").skip(1) {
                let asset = asset.split('"').next().expect("a quoted name");
                assert!(ASSETS.iter().any(|a| a.name == asset), "{name}: {asset}");
            }
        }
    }

    #[test]
    fn no_script_makes_markup_of_texts() {
        for (name, media_type, content) in OWN {
            let text = std::str::from_utf8(content).expect("text");
            for sink in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                assert!(
                    media_type != SCRIPT || !text.contains(sink),
                    "{name}: {sink}"
                );
            }
        }
    }

    #[test]
    fn gzip_is_for_clients_that_take_it() {
        for (accepted, expected) in [
            ("gzip, deflate, br", true),
            ("GZIP;q=0.5", true),
            ("*", true),
            ("gzip;q=0", false),
            ("br", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted));
            assert_eq!(takes_gzip(&headers), expected, "{accepted}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn files_are_sent_once_per_version() {
        let get = |headers: HeaderMap| asset(Path("app.js".into()), headers);
        let first = get(HeaderMap::new()).await.expect("a file");
        assert_eq!(first.status(), StatusCode::OK);
        let etag = first.headers()[header::ETAG].clone();
        let again = get(HeaderMap::from_iter([(header::IF_NONE_MATCH, etag)])).await;
        assert_eq!(again.expect("a file").status(), StatusCode::NOT_MODIFIED);
        let missing = asset(Path("no.js".into()), HeaderMap::new()).await;
        assert_eq!(missing.err().map(|e| e.status), Some(StatusCode::NOT_FOUND));
    }
}
