//! The page at `/`: its frame in HTML, and the policy under which browsers run it. What it shows comes
//! from the API, by scripts of [`assets`]. Texts of events are hostile: they only ever become text
//! nodes, and the policy allows no script but the page's own.

pub mod assets;

use axum::http::header;
use axum::response::IntoResponse;
use maud::{DOCTYPE, Markup, html};

/// Everything comes from this server, and nothing is inline but an empty style element, whose hash
/// this is: plotly.js adds its rules to one. Downloads are `blob:`.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Sections by id, with their names and whether the navigation lists them.
const SECTIONS: [(&str, &str, bool); 6] = [
    ("overview", "Overview", true),
    ("map", "Map", true),
    ("search", "Search", true),
    ("sql", "SQL", true),
    ("notebook", "Notebook", false),
    ("pipeline", "Pipeline", true),
];

/// Whether a path is a part of the page itself, which has no data and so needs no token.
pub fn is_public(path: &str) -> bool {
    path == "/" || path.starts_with(assets::FOLDER)
}

/// The page.
#[utoipa::path(get, path = "/", responses((status = 200, content_type = "text/html", body = String)))]
pub async fn index() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, document().into_string())
}

fn document() -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Weir" }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/style.css";
                script type="module" src="/assets/app.js" {}
            }
            body {
                a .skip href="#content" { "Skip to the content" }
                (head())
                div #filters .filters role="status" hidden {}
                main #content tabindex="-1" {
                    noscript { p .error-box { "This page needs JavaScript. The API under /docs works without." } }
                    div #problem {}
                    @for (id, name, _) in SECTIONS {
                        section id=(id) aria-label=(name) hidden {}
                    }
                }
                footer .foot {
                    a #api-link href="/docs" { "API" }
                    a #metrics-link href="/metrics" { "Metrics" }
                    span { "Weir " (env!("CARGO_PKG_VERSION")) }
                }
            }
        }
    }
}

fn head() -> Markup {
    html! {
        header .top {
            a .brand href="#/overview" {
                svg viewBox="0 0 24 24" aria-hidden="true" {
                    path d="M3 7.5c3-2.2 6-2.2 9 0s6 2.2 9 0M3 12.5c3-2.2 6-2.2 9 0s6 2.2 9 0M3 17.5c3-2.2 6-2.2 9 0s6 2.2 9 0"
                        fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" {}
                }
                "Weir"
            }
            nav aria-label="Sections" {
                @for (id, name, _) in SECTIONS.iter().filter(|(.., is_listed)| *is_listed) {
                    a href={ "#/" (id) } data-section=(id) { (name) }
                }
            }
            div .top-right {
                span #stream hidden {}
                span #connection .connection data-state="connecting" role="status" {
                    span #connection-text { "Connecting" }
                }
                button #sign-out .link type="button" data-test="sign-out" hidden { "Sign out" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[tokio::test]
    async fn the_page_runs_scripts_of_this_server_only() {
        let response = index().await.into_response();
        let policy = &response.headers()[header::CONTENT_SECURITY_POLICY];
        let policy = policy.to_str().expect("text").to_owned();
        assert!(
            policy.contains("default-src 'none'; script-src 'self';"),
            "{policy}"
        );
        let scripts = policy
            .split(';')
            .find(|part| part.trim().starts_with("script-src"));
        assert_eq!(scripts.map(str::trim), Some("script-src 'self'"));
        assert!(!policy.contains("unsafe"), "{policy}");
        let page = to_bytes(response.into_body(), 1 << 20)
            .await
            .expect("a body");
        let page = String::from_utf8(page.to_vec()).expect("text");
        for forbidden in [
            "<style",
            " style=",
            " onclick=",
            "javascript:",
            "http:",
            "https:",
        ] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert_eq!(page.matches("<script").count(), 1);
    }

    #[test]
    fn only_the_page_itself_needs_no_token() {
        for (path, expected) in [
            ("/", true),
            ("/assets/app.js", true),
            ("/api/v1/status", false),
            ("/metrics", false),
            ("/assets", false),
        ] {
            assert_eq!(is_public(path), expected, "{path}");
        }
    }
}
