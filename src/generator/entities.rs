//! Groups, venues and members of answers: generated once per seed, as pieces of JSON.

use std::fmt::Write;

use super::random::Random;

/// Groups of a seed; their numbers are below it.
pub const GROUPS: u64 = 6_000;
const VENUES_PER_GROUP: u64 = 3;
/// Members of a seed; their numbers are below it.
pub const MEMBERS: u64 = 120_000;

const ADJECTIVES: [&str; 24] = [
    "Downtown",
    "Weekly",
    "Monthly",
    "Annual",
    "Saturday",
    "Beginner",
    "Advanced",
    "Sunset",
    "Early Morning",
    "Northern",
    "International",
    "Friendly",
    "Open",
    "Creative",
    "Practical",
    "Social",
    "Outdoor",
    "Urban",
    "Riverside",
    "Women in",
    "Over 40s",
    "Young Professional",
    "Introverts &",
    "New in Town:",
];
const NOUNS: [&str; 28] = [
    "Photography Walk",
    "Language Exchange",
    "Hiking Club",
    "Book Circle",
    "Startup Drinks",
    "Data Science Night",
    "Yoga in the Park",
    "Board Games",
    "Open Mic",
    "Salsa Social",
    "Rust Hack Night",
    "Meditation",
    "Wine Tasting",
    "Running Group",
    "Film Screening",
    "Potluck Dinner",
    "Ski Trip",
    "Coding Dojo",
    "Poetry Reading",
    "Jazz Jam",
    "Board Meeting",
    "Real Estate Investors",
    "Toastmasters",
    "Trail Cleanup",
    "Kayak Tour",
    "Chess",
    "Karaoke",
    "Brunch",
];
const TAILS: [&str; 12] = [
    "",
    " (all levels welcome)",
    " – RSVP early",
    " & drinks after",
    " @ the usual place",
    ": part two",
    " with \\\"Coach\\\" Sam",
    " + newcomers' introduction",
    " — limited seats",
    " at 7pm sharp",
    ", bring a friend",
    " [members only]",
];
const FOREIGN: [&str; 14] = [
    "Café français",
    "Grüße aus Köln",
    "東京ミートアップ",
    "Noche de España",
    "한국어 교환",
    "Привет Москва",
    "São Paulo",
    "★ Party ★",
    "Ñandú",
    "日本語カフェ",
    "Żywiec",
    "Smørrebrød",
    "Élégance",
    "Zürich",
];
const ASTRAL: [&str; 4] = ["🎉", "🏃", "🎸", "😀"];
const FIRST: [&str; 20] = [
    "Ann", "Bob", "Carla", "Dmitri", "Eve", "Farid", "Grace", "Hiro", "Ines", "Jack", "Kim",
    "Lars", "Mona", "Nils", "Olga", "Paul", "Quinn", "Rosa", "Sam", "Tina",
];
const CITIES: [(&str, &str, &str, f64, f64); 30] = [
    ("New York", "us", "NY", 40.75, -73.98),
    ("San Francisco", "us", "CA", 37.77, -122.41),
    ("Chicago", "us", "IL", 41.88, -87.64),
    ("Austin", "us", "TX", 30.27, -97.74),
    ("Seattle", "us", "WA", 47.61, -122.33),
    ("Denver", "us", "CO", 39.74, -104.98),
    ("Boston", "us", "MA", 42.36, -71.06),
    ("Atlanta", "us", "GA", 33.75, -84.39),
    ("Portland", "us", "OR", 45.52, -122.67),
    ("Toronto", "ca", "ON", 43.65, -79.38),
    ("Vancouver", "ca", "BC", 49.28, -123.12),
    ("London", "gb", "", 51.52, -0.1),
    ("Manchester", "gb", "", 53.48, -2.24),
    ("Sydney", "au", "", -33.87, 151.21),
    ("Melbourne", "au", "", -37.81, 144.96),
    ("Brisbane", "au", "", -27.46, 153.02),
    ("Berlin", "de", "", 52.52, 13.38),
    ("München", "de", "", 48.14, 11.58),
    ("Paris", "fr", "", 48.86, 2.34),
    ("Madrid", "es", "", 40.42, -3.71),
    ("Tokyo", "jp", "", 35.67, 139.77),
    ("Singapore", "sg", "", 1.3, 103.85),
    ("Amsterdam", "nl", "", 52.37, 4.89),
    ("Dublin", "ie", "", 53.33, -6.25),
    ("Bangalore", "in", "", 12.97, 77.56),
    ("Zürich", "ch", "", 47.38, 8.54),
    ("São Paulo", "br", "", -23.53, -46.63),
    ("Auckland", "nz", "", -36.85, 174.78),
    ("Suva", "fj", "", -18.13, 178.43),
    ("Hong Kong", "hk", "", 22.27, 114.14),
];

/// A group with what its events can name.
pub struct Group {
    /// `"group":{…}`
    pub json: String,
    pub urlname: String,
    /// `"venue":{…},`
    pub venues: Vec<String>,
}

fn city(random: &mut Random) -> &'static (&'static str, &'static str, &'static str, f64, f64) {
    let country = match random.unit() {
        x if x < 0.62 => "us",
        x if x < 0.69 => "au",
        x if x < 0.76 => "gb",
        x if x < 0.81 => "ca",
        _ => "",
    };
    let is_fitting = |c: &&(&str, &str, &str, f64, f64)| {
        if country.is_empty() {
            !["us", "au", "gb", "ca"].contains(&c.1)
        } else {
            c.1 == country
        }
    };
    let fitting: Vec<_> = CITIES.iter().filter(is_fitting).collect();
    fitting[random.below(fitting.len() as u64) as usize]
}

/// A title; `foreign` of them are not ASCII.
pub fn title(random: &mut Random, foreign: f64) -> String {
    let mut text = format!(
        "{} {}{}",
        random.pick(&ADJECTIVES),
        random.pick(&NOUNS),
        random.pick(&TAILS).replace(['–', '—'], "-")
    );
    if random.chance(foreign) {
        let _ = write!(text, " {}", random.pick(&FOREIGN));
        if random.chance(0.05) {
            text.push_str(random.pick(&ASTRAL));
        }
    }
    text
}

/// A place so far from another as venues lie from their groups: median 4.5 km, a tenth beyond 23,
/// some absurdly far.
fn near(random: &mut Random, lat: f64, lon: f64) -> (f64, f64) {
    let km = if random.chance(0.003) {
        2_000.0 + random.unit() * 10_000.0
    } else {
        random.skewed(4.5, 1.1, 1.35).min(900.0)
    };
    let angle = random.unit() * std::f64::consts::TAU;
    let lat2 = (lat + km / 111.2 * angle.cos()).clamp(-89.0, 89.0);
    let lon2 = lon + km / 111.2 / lat.to_radians().cos().max(0.2) * angle.sin();
    (lat2, (lon2 + 540.0).rem_euclid(360.0) - 180.0)
}

fn topics(random: &mut Random) -> String {
    let count = (11.6 + random.normal() * 3.2).round().clamp(1.0, 21.0) as usize;
    let mut chosen: Vec<u64> = Vec::with_capacity(count);
    while chosen.len() < count {
        let x = random.unit();
        let topic = (x * x * 6_600.0) as u64;
        if !chosen.contains(&topic) {
            chosen.push(topic);
        }
    }
    let mut out = String::from("[");
    for (n, topic) in chosen.into_iter().enumerate() {
        let noun = NOUNS[topic as usize % NOUNS.len()];
        let adjective = ADJECTIVES[(topic as usize / NOUNS.len()) % ADJECTIVES.len()]
            .trim_end_matches([':', '&'])
            .trim();
        let key: String = format!("{adjective}-{noun}")
            .to_lowercase()
            .replace(' ', "-")
            .chars()
            .take(36)
            .collect();
        // A few keys go by two names.
        let name = if topic % 280 == 3 && random.chance(0.5) {
            noun.to_lowercase()
        } else {
            noun.to_owned()
        };
        let comma = if n > 0 { "," } else { "" };
        let _ = write!(
            out,
            "{comma}{{\"urlkey\":\"{key}-{topic}\",\"topic_name\":\"{name}\"}}"
        );
    }
    out.push(']');
    out
}

/// A group of a seed, by its number: the same at every call.
pub fn group(seed: u64, number: u64) -> Group {
    let random = &mut Random::new(seed.wrapping_mul(31).wrapping_add(number));
    let &(name, country, state, lat, lon) = city(random);
    let (lat, lon) = (
        (lat * 100.0f64).round() / 100.0,
        (lon * 100.0f64).round() / 100.0,
    );
    let urlname = format!(
        "{}-{number}",
        NOUNS[number as usize % NOUNS.len()].replace(' ', "-")
    );
    let title: String = title(random, 0.035).chars().take(58).collect();
    let title = title.trim_end_matches('\\');
    let state = if state.is_empty() {
        String::new()
    } else {
        format!("\"group_state\":\"{state}\",")
    };
    let json = format!(
        "\"group\":{{\"group_city\":\"{name}\",\"group_country\":\"{country}\",\"group_id\":{},\"group_lat\":{lat},\"group_lon\":{lon},\"group_name\":\"{title}\",{state}\"group_topics\":{},\"group_urlname\":\"{urlname}\"}}",
        7_000 + number * 3_000,
        topics(random),
    );
    let venues = (0..VENUES_PER_GROUP)
        .map(|n| {
            let id = 76_000 + (number * VENUES_PER_GROUP + n) * 1_000;
            let name = if random.chance(0.032) {
                random.pick(&FOREIGN)
            } else {
                random.pick(&NOUNS)
            };
            let place = if random.chance(0.049) {
                "\"lat\":0,\"lon\":0".to_owned()
            } else {
                let (lat, lon) = near(random, lat, lon);
                format!("\"lat\":{lat:.6},\"lon\":{lon:.6}")
            };
            format!("\"venue\":{{{place},\"venue_id\":{id},\"venue_name\":\"{name} Hall {n}\"}},")
        })
        .collect();
    Group {
        json,
        urlname,
        venues,
    }
}

/// `"member":{…},` of a member whose photo may have changed.
pub fn member(seed: u64, number: u64, photo: u64, out: &mut String) {
    let random = &mut Random::new(seed.wrapping_mul(37).wrapping_add(number));
    let id = 11_770 + number * 2_000;
    let has_photo = random.chance(0.95);
    let first = random.pick(&FIRST);
    let blank = if random.chance(0.025) { " " } else { "" };
    let foreign = if random.chance(0.018) { "é" } else { "" };
    out.push_str("\"member\":{");
    if random.chance(0.092) {
        let service = if random.chance(0.6) {
            "facebook"
        } else {
            "twitter"
        };
        let _ = write!(
            out,
            "\"other_services\":{{\"{service}\":{{\"identifier\":\"{first}{number}\"}}}},"
        );
    }
    if has_photo {
        let _ = write!(
            out,
            "\"photo\":\"http:\\/\\/photos{}.example.com\\/photos\\/member\\/{:x}\\/thumb_{id}.jpeg\",",
            photo % 4 + 1,
            id % 4096
        );
    }
    let letter = (b'A' + (number % 26) as u8) as char;
    let _ = write!(
        out,
        "\"member_id\":{id},\"member_name\":\"{first}{foreign} {letter}.{blank}\"}},"
    );
}
