//! Addresses in messages, logs and states, which all clients with a token may read.

/// What stands for a secret.
pub const HIDDEN: &str = "hidden";

/// An address without what may be secret in it: user, password, parameters and fragment. Written for
/// addresses as they are typed, which need not be valid.
pub fn public_address(address: &str) -> String {
    let place = address.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = match place.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), place),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}{HIDDEN}@{host}{path}"),
        // What looks like a port is a password with one of `/?#`, which end the authority.
        None if address.contains('@') && !port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{scheme}{HIDDEN}")
        }
        None => format!("{scheme}{authority}{path}"),
    }
}

/// The same with the names of the parameters, as the configuration is shown.
pub(super) fn with_parameters(address: &str) -> String {
    let mut shown = public_address(address);
    let before_fragment = address.split('#').next().unwrap_or_default();
    let query = before_fragment.split_once('?').map(|(_, query)| query);
    for (n, parameter) in query.into_iter().flat_map(|q| q.split('&')).enumerate() {
        shown.push(if n == 0 { '?' } else { '&' });
        match parameter.split_once('=') {
            Some((name, _)) => shown += &format!("{name}={HIDDEN}"),
            None => shown += HIDDEN,
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_what_may_be_secret() {
        for (address, place, parameters) in [
            ("https://example.com/feed", "https://example.com/feed", ""),
            (
                "wss://u:p@example.com:1/x",
                "wss://hidden@example.com:1/x",
                "",
            ),
            ("https://u:p@ss@host/a@b", "https://hidden@host/a@b", ""),
            (
                "http://h/?key=abc&page&n=1",
                "http://h/",
                "?key=hidden&hidden&n=hidden",
            ),
            ("http://h?token=a?b#secret", "http://h", "?token=hidden"),
            ("http://h#a?b=c", "http://h", ""),
            ("wss://u:pa/ss@host/x", "wss://hidden", ""),
            ("wss://u:p#ss@host/x", "wss://hidden", ""),
            ("https://host:80/a@b", "https://host:80/a@b", ""),
            ("http://[::1]:80/x", "http://[::1]:80/x", ""),
            ("u:p@host", "hidden@host", ""),
            ("", "", ""),
        ] {
            assert_eq!(public_address(address), place, "{address}");
            assert_eq!(with_parameters(address), format!("{place}{parameters}"));
        }
    }
}
