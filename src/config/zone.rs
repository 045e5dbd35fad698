//! Time zones: IANA names, and the version of the zone data that this binary carries.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The version of the IANA zone data that local times are computed with, for example `2025b`. It
/// belongs to the stored configuration: a binary with other zone data starts a new configuration
/// instead of continuing the old one silently.
pub fn data_version() -> &'static str {
    chrono_tz::IANA_TZDB_VERSION
}

/// A time zone by its IANA name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(pub chrono_tz::Tz);

impl FromStr for Zone {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let unknown = |_| {
            format!(
                "the time zone `{name}` does not exist; write an IANA name such as \"Europe/Berlin\" or \"UTC\""
            )
        };
        name.parse().map(Self).map_err(unknown)
    }
}

impl TryFrom<String> for Zone {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.0.name().to_owned()
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_by_their_iana_names() {
        assert_eq!(
            "Europe/Berlin".parse::<Zone>().expect("known").to_string(),
            "Europe/Berlin"
        );
        assert!(
            "Berlin"
                .parse::<Zone>()
                .expect_err("unknown")
                .contains("IANA")
        );
    }
}
