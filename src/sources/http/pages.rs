//! Where the next page of an answer is. Pure.

use std::fmt;

use reqwest::Url;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::config::NextPage;

/// Why the next page cannot be requested.
#[derive(Debug, thiserror::Error)]
pub(super) enum PageError {
    #[error("the answer is not JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("the member for the next page is {0}, not a string or a number")]
    NotText(&'static str),
    #[error("the next page is `{0}`, which is not a URL")]
    NotUrl(String),
    #[error("the next page is on another server, {0}, which must not get the headers")]
    OtherServer(String),
}

/// The URL of the page after `page`. `first` is the source's URL, `links` are the headers `Link`.
pub(super) fn after<'a>(
    next: &NextPage,
    first: &Url,
    page: &Url,
    links: impl Iterator<Item = &'a str>,
    body: &[u8],
) -> Result<Option<Url>, PageError> {
    let target = match next {
        NextPage::Link => links.filter_map(next_link).next(),
        NextPage::Url(path) => member(body, path)?,
        NextPage::Cursor { path, parameter } => {
            let cursor = member(body, path)?;
            return Ok(cursor.map(|cursor| with_parameter(first, parameter, &cursor)));
        }
    };
    let Some(target) = target else {
        return Ok(None);
    };
    let url = page
        .join(&target)
        .map_err(|_| PageError::NotUrl(target.clone()))?;
    if url.origin() != page.origin() {
        return Err(PageError::OtherServer(url.origin().ascii_serialization()));
    }
    Ok(Some(url))
}

/// The URL with this value of a parameter, whatever it was before.
fn with_parameter(url: &Url, parameter: &str, value: &str) -> Url {
    let others: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| name != parameter)
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    let mut url = url.clone();
    url.query_pairs_mut()
        .clear()
        .extend_pairs(others)
        .append_pair(parameter, value);
    url
}

/// The target of a link with the relation `next` in a header:
/// `<https://a.example/?page=2>; rel="next", <…>; rel="last"`.
fn next_link(header: &str) -> Option<String> {
    let mut rest = header;
    loop {
        let (target, after) = rest.split_once('<')?.1.split_once('>')?;
        let (parameters, others) = split_outside_quotes(after, ',');
        let mut parameters = parameters;
        while !parameters.is_empty() {
            let (parameter, after) = split_outside_quotes(parameters, ';');
            if is_next(parameter) {
                return Some(target.trim().to_owned());
            }
            parameters = after;
        }
        rest = others;
    }
}

/// Whether a parameter of a link says that it is the next page's.
fn is_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel")
        && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
}

/// What is before and after a separator that is not in quotes.
fn split_outside_quotes(text: &str, separator: char) -> (&str, &str) {
    let mut is_quoted = false;
    for (at, c) in text.char_indices() {
        if c == '"' {
            is_quoted = !is_quoted;
        } else if c == separator && !is_quoted {
            return (&text[..at], &text[at + c.len_utf8()..]);
        }
    }
    (text, "")
}

/// The text or number at a path of an answer. None where the member is missing, null, false or
/// empty: it was the last page. Anything else is not: the rest of the pages would be missed.
fn member(body: &[u8], path: &[String]) -> Result<Option<String>, PageError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let found = Member(path).deserialize(&mut json);
    match found.map_err(PageError::NotJson)? {
        Found::Text(text) => Ok(Some(text)),
        Found::Nothing => Ok(None),
        Found::Other(what) => Err(PageError::NotText(what)),
    }
}

/// What is at the path.
enum Found {
    Nothing,
    Text(String),
    /// Of this type.
    Other(&'static str),
}

/// Finds a member without building the values around it, which may be a large answer.
#[derive(Clone, Copy)]
struct Member<'p>(&'p [String]);

impl Member<'_> {
    fn text(self, text: String) -> Found {
        if self.0.is_empty() && !text.is_empty() {
            Found::Text(text)
        } else {
            Found::Nothing
        }
    }

    /// A value that is not a text, and whether it is empty.
    fn other(self, what: &'static str, is_empty: bool) -> Found {
        if self.0.is_empty() && !is_empty {
            Found::Other(what)
        } else {
            Found::Nothing
        }
    }
}

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.other("true", !value))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Found::Nothing)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.text(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(self.text(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(self.text(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(self.text(number.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut is_empty = true;
        while elements.next_element::<IgnoredAny>()?.is_some() {
            is_empty = false;
        }
        Ok(self.other("an array", is_empty))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let (mut found, mut is_empty) = (Found::Nothing, true);
        while let Some(name) = members.next_key::<String>()? {
            is_empty = false;
            match self.0.split_first() {
                Some((wanted, rest)) if *wanted == name => {
                    found = members.next_value_seed(Member(rest))?;
                }
                _ => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(if self.0.is_empty() {
            self.other("an object", is_empty)
        } else {
            found
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    fn next(next: &NextPage, links: &[&str], body: &str) -> Result<Option<String>, String> {
        let first = url("https://a.example/x/items?after=0&n=5");
        let page = url("https://a.example/x/items?after=9&n=5");
        after(next, &first, &page, links.iter().copied(), body.as_bytes())
            .map(|url| url.map(String::from))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn links_name_the_next_page() {
        let of = |header: &str| next(&NextPage::Link, &[header], "");
        let found = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(
            of(
                "<https://a.example/x?a=1,2&page=1>; rel=\"prev\", <https://a.example/x?page=3>; title=\"a, b; rel=next\"; rel=\"last next\""
            ),
            found("https://a.example/x?page=3")
        );
        assert_eq!(of("</y>;REL=Next"), found("https://a.example/y"));
        assert_eq!(
            of("<?p=2>; rel=next"),
            found("https://a.example/x/items?p=2")
        );
        for none in [
            "",
            "<https://a.example/>; rel=\"nextish\"",
            "<>",
            "<x",
            "rel=next",
        ] {
            assert_eq!(of(none), Ok(None), "{none}");
        }
        let links = ["<a>; rel=prev", "<b>; rel=next"];
        assert_eq!(
            next(&NextPage::Link, &links, ""),
            found("https://a.example/x/b")
        );
    }

    #[test]
    fn members_name_the_next_page_or_its_cursor() {
        let path = || vec!["meta".to_owned(), "next".to_owned()];
        let by_url = NextPage::Url(path());
        let by_cursor = NextPage::Cursor {
            path: path(),
            parameter: "after".into(),
        };
        let body = |value: &str| {
            format!(
                "{{\"rows\":[{{\"meta\":{{\"next\":1}}}}],\"meta\":{{\"a\":[],\"next\":{value}}}}}"
            )
        };
        let found = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(
            next(&by_url, &[], &body("\"/x/items?p=2\"")),
            found("https://a.example/x/items?p=2")
        );
        assert_eq!(
            next(&by_cursor, &[], &body("\"a b&c\"")),
            found("https://a.example/x/items?n=5&after=a+b%26c")
        );
        assert_eq!(
            next(&by_cursor, &[], &body("17")),
            found("https://a.example/x/items?n=5&after=17")
        );
        for last in ["null", "\"\"", "false", "[]", "{}"] {
            assert_eq!(next(&by_url, &[], &body(last)), Ok(None), "{last}");
        }
        assert_eq!(next(&by_url, &[], "[1,2]"), Ok(None));
        assert_eq!(next(&by_url, &[], "{\"meta\":5}"), Ok(None));
    }

    #[test]
    fn messages_say_what_is_wrong() {
        let by_url = NextPage::Url(vec!["n".into()]);
        let wrong = [
            "{\"n\":",
            "{\"n\":true}",
            "{\"n\":[\"/x?p=2\"]}",
            "{\"n\":{\"href\":\"/x?p=2\"}}",
            "{\"n\":\"http://[\"}",
            "{\"n\":\"https://b.example/x\"}",
            "{\"n\":\"http://a.example/x\"}",
        ];
        let messages: Vec<String> = wrong
            .iter()
            .map(|body| next(&by_url, &[], body).expect_err("wrong"))
            .collect();
        insta::assert_snapshot!(messages.join("\n"), @r"
        the answer is not JSON: EOF while parsing a value at line 1 column 5
        the member for the next page is true, not a string or a number
        the member for the next page is an array, not a string or a number
        the member for the next page is an object, not a string or a number
        the next page is `http://[`, which is not a URL
        the next page is on another server, https://b.example, which must not get the headers
        the next page is on another server, http://a.example, which must not get the headers
        ");
    }
}
