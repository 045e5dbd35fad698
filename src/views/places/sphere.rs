//! Points of the earth as unit vectors: the straight distance through the sphere orders them
//! exactly as the great circle does, also at the poles and across the date line.

use crate::event::is_place;

/// Mean radius of the earth in metres (IUGG).
pub const EARTH_RADIUS_M: f64 = 6_371_008.8;

/// The unit vector of a position in degrees; `None` for an invalid one.
pub fn unit_vector(lat: f64, lon: f64) -> Option<[f64; 3]> {
    if !is_place((lat, lon)) {
        return None;
    }
    let (lat, lon) = (lat.to_radians(), lon.to_radians());
    Some([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()])
}

/// Square of the chord that spans a great-circle distance in metres.
pub fn chord_squared(distance_m: f64) -> f64 {
    let half = (distance_m / (2.0 * EARTH_RADIUS_M)).min(std::f64::consts::FRAC_PI_2);
    (2.0 * half.sin()).powi(2)
}

/// Great-circle distance in metres between two positions in degrees (haversine).
pub fn distance_m(from: (f64, f64), to: (f64, f64)) -> f64 {
    let (lat1, lat2) = (from.0.to_radians(), to.0.to_radians());
    let (dlat, dlon) = (lat2 - lat1, (to.1 - from.1).to_radians());
    let a = (dlat / 2.0).sin().powi(2) + lat1.cos() * lat2.cos() * (dlon / 2.0).sin().powi(2);
    2.0 * EARTH_RADIUS_M * a.sqrt().min(1.0).asin()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quarter_of_the_earth() {
        let quarter = EARTH_RADIUS_M * std::f64::consts::FRAC_PI_2;
        assert!((distance_m((0.0, 0.0), (90.0, 17.0)) - quarter).abs() < 1e-6);
        assert!(
            (distance_m((0.0, 179.9), (0.0, -179.9)) - distance_m((0.0, 0.1), (0.0, -0.1))).abs()
                < 1e-6
        );
        assert_eq!(unit_vector(91.0, 0.0), None);
        assert_eq!(unit_vector(0.0, 0.0), None);
    }

    proptest! {
        #[test]
        fn chords_order_places_as_great_circles_do(
            a in (-90.0f64..=90.0, -180.0f64..=180.0).prop_filter("a place", |p| is_place(*p)),
            b in (-90.0f64..=90.0, -180.0f64..=180.0).prop_filter("a place", |p| is_place(*p)),
        ) {
            let (u, v) = (unit_vector(a.0, a.1).expect("a place"), unit_vector(b.0, b.1).expect("a place"));
            let chord: f64 = u.iter().zip(&v).map(|(x, y)| (x - y).powi(2)).sum();
            prop_assert!((chord - chord_squared(distance_m(a, b))).abs() < 1e-9);
        }
    }
}
