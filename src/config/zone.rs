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

/// A name that is not in the IANA zone data of this binary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the time zone `{0}` does not exist; write an IANA name such as \"Europe/Berlin\" or \"UTC\""
)]
pub struct UnknownZone(String);

/// A time zone; written, read and stored as its IANA name, such as `Europe/Berlin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(pub chrono_tz::Tz);

impl FromStr for Zone {
    type Err = UnknownZone;

    fn from_str(name: &str) -> Result<Self, UnknownZone> {
        name.parse()
            .map(Self)
            .map_err(|_| UnknownZone(name.to_owned()))
    }
}

impl TryFrom<String> for Zone {
    type Error = UnknownZone;

    fn try_from(name: String) -> Result<Self, UnknownZone> {
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
        assert_eq!(
            "Berlin".parse::<Zone>().expect_err("unknown").to_string(),
            "the time zone `Berlin` does not exist; write an IANA name such as \"Europe/Berlin\" or \"UTC\""
        );
    }
}
