//! Answers to invitations as Meetup's stream sent them, from a seed: their shapes, sizes, duplicates,
//! disorder and lateness follow measurements of recordings. Hostile ones test decoders.

mod demo;
mod entities;
mod random;
mod recording;

use std::collections::VecDeque;
use std::fmt::Write;

use crate::event::Micros;
use entities::{GROUPS, Group, MEMBERS};
use random::Random;

pub use demo::TO_TRY;
pub(crate) use demo::{demo_configuration, demo_welcome};
pub(crate) use recording::{mtime, shift};

/// The original stream's path on its server.
pub(crate) const PATH: &str = "/2/rsvps";

/// The default start of generated time: 2016-06-10T01:00:00Z.
pub(crate) const START_MS: i64 = 1_465_520_400_000;
/// The default of records per second of event time.
pub(crate) const RATE: f64 = 1.3;

/// What to generate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Equal settings generate equal records.
    pub seed: u64,
    /// Event time of the first record, in milliseconds since 1970.
    pub start_ms: i64,
    /// Records per second of event time.
    pub rate: f64,
    /// Per cent of records that are hostile.
    pub hostile: f64,
    /// The first id; a later run continues where the earlier one ended.
    pub first_id: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 0,
            start_ms: START_MS,
            rate: RATE,
            hostile: 0.0,
            first_id: 1_500_000_000,
        }
    }
}

/// An answer, before it is serialized.
#[derive(Debug, Clone)]
struct GeneratedEvent {
    id: u64,
    mtime: i64,
    yes: bool,
    guests: u64,
    member: u64,
    photo: u64,
    group: u64,
    event: u64,
}

/// Shares of records that duplicate or update an earlier one.
const TWINS_PER_EVENT: f64 = 0.193;
const UPDATES: f64 = 0.051;
const COPY_BURSTS: f64 = 0.0005;
const COPIES_PER_BURST: u64 = 30;
/// Recent events that updates choose from.
const MAX_RECENT: usize = 4_000;

/// An endless stream of records.
pub(crate) struct Generator {
    settings: Settings,
    random: Random,
    groups: Vec<Group>,
    now_ms: f64,
    next_id: u64,
    emitted: u64,
    recent: VecDeque<GeneratedEvent>,
    /// (due at this number of emitted records, event)
    due: Vec<(u64, GeneratedEvent)>,
    /// A member who answers several invitations in a row, and how many more.
    burst: (u64, u64),
    line: String,
}

impl Generator {
    pub fn new(settings: Settings) -> Self {
        Self {
            random: Random::new(settings.seed),
            groups: (0..GROUPS)
                .map(|n| entities::group(settings.seed, n))
                .collect(),
            now_ms: settings.start_ms as f64,
            next_id: settings.first_id,
            emitted: 0,
            recent: VecDeque::new(),
            due: Vec::new(),
            burst: (0, 0),
            line: String::new(),
            settings,
        }
    }

    /// The event time of the next record, in milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        self.now_ms as i64
    }

    /// The next record, a line without its newline, and its `mtime` in milliseconds since 1970.
    pub fn next_record(&mut self) -> (&str, Micros) {
        self.emitted += 1;
        self.now_ms += -(1.0 - self.random.unit()).ln() * 1_000.0 / self.settings.rate;
        let answer = self.next_event();
        let mtime = answer.mtime;
        self.line.clear();
        if self.settings.hostile > 0.0 && self.random.chance(self.settings.hostile / 100.0) {
            self.write_hostile(&answer);
        } else {
            self.write(&answer);
        }
        (&self.line, mtime)
    }

    fn next_event(&mut self) -> GeneratedEvent {
        if let Some(at) = self.due.iter().position(|(when, _)| *when <= self.emitted) {
            return self.due.swap_remove(at).1;
        }
        if self.random.chance(UPDATES) && self.recent.len() > 50 {
            let at = self.random.below(self.recent.len() as u64) as usize;
            let mut answer = self.recent[at].clone();
            if answer.yes && self.random.chance(0.6) {
                answer.guests = if answer.guests == 0 {
                    1 + self.random.below(2)
                } else {
                    0
                };
            } else {
                answer.yes = !answer.yes;
                answer.guests = 0;
            }
            answer.mtime = self.fresh_time();
            self.recent[at] = answer.clone();
            return answer;
        }
        let answer = self.new_event();
        if self.random.chance(TWINS_PER_EVENT) && answer.mtime % 1000 != 0 {
            let mut twin = answer.clone();
            twin.mtime = (answer.mtime + 500) / 1000 * 1000;
            let delay = 1 + self.random.below(10) + self.random.below(10);
            self.due.push((self.emitted + delay, twin));
        }
        if self.random.chance(COPY_BURSTS) {
            let mut old = answer.clone();
            old.mtime =
                (answer.mtime - 18_000_000 - self.random.below(80_000_000) as i64) / 1000 * 1000;
            for n in 1..=COPIES_PER_BURST {
                self.due
                    .push((self.emitted + n * (40 + self.random.below(60)), old.clone()));
            }
            return old;
        }
        self.recent.push_back(answer.clone());
        if self.recent.len() > MAX_RECENT {
            self.recent.pop_front();
        }
        answer
    }

    /// A little before now: messages with milliseconds are at most 0.27 s out of order.
    fn fresh_time(&mut self) -> i64 {
        self.now_ms as i64 - self.random.below(120) as i64
    }

    fn new_event(&mut self) -> GeneratedEvent {
        let member = match self.burst {
            (member, left) if left > 0 => {
                self.burst.1 = left - 1;
                member
            }
            _ => {
                let member = self.random.below(MEMBERS);
                if self.random.chance(0.12) {
                    self.burst = (member, 1 + self.random.below(6));
                }
                member
            }
        };
        // Flat popularity: most groups are alike, a few are frequent.
        let x = self.random.unit();
        let group = if self.random.chance(0.03) {
            self.random.below(8)
        } else {
            (x * GROUPS as f64) as u64
        };
        let yes = self.random.chance(0.77);
        let guests = match self.random.unit() {
            x if !yes || x > 0.091 => 0,
            x if x > 0.030 => 1,
            x if x > 0.010 => 2,
            x if x > 0.0006 => 3 + self.random.below(4),
            _ => 7 + self.random.below(52),
        };
        self.next_id += 1;
        let mtime = self.event_mtime();
        let event = self.random.below(2);
        GeneratedEvent {
            id: self.next_id,
            mtime,
            yes,
            guests,
            member,
            photo: u64::from(self.random.chance(0.01)),
            group,
            event,
        }
    }

    /// Now, or for a few re-sent old answers, whole seconds of long ago.
    fn event_mtime(&mut self) -> i64 {
        let fresh = self.fresh_time();
        let ago_s = match self.random.unit() {
            x if x < 0.0077 => 60 + self.random.below(240),
            x if x < 0.0128 => 300 + self.random.below(3_300),
            x if x < 0.0179 => 86_400 + (self.random.unit().powi(6) * 142.0 * 86_400.0) as u64,
            _ => return fresh,
        };
        (fresh - ago_s as i64 * 1_000) / 1000 * 1000
    }

    fn write(&mut self, answer: &GeneratedEvent) {
        let seed = self.settings.seed;
        let group = &self.groups[answer.group as usize];
        // The properties of an event follow from its number alone.
        let number = answer.group * 2 + answer.event;
        let random = &mut Random::new(seed.wrapping_mul(41).wrapping_add(number));
        let has_letters = random.chance(0.285);
        let has_time = !random.chance(0.008);
        let has_venue = !random.chance(0.193);
        let days = random.skewed(5.9, 2.2, 1.31).min(781.0);
        let title = entities::title(random, 0.06);
        let title: String = title.chars().take(80).collect();
        let title = title.trim_end_matches('\\');
        let numeric = 220_000_000 + number * 17;
        let line = &mut self.line;
        if has_venue {
            line.push('{');
            line.push_str(&group.venues[(number % 3) as usize]);
        } else {
            line.push('{');
        }
        let _ = write!(
            line,
            "\"visibility\":\"public\",\"response\":\"{}\",\"guests\":{},",
            if answer.yes { "yes" } else { "no" },
            answer.guests
        );
        entities::member(seed, answer.member, answer.photo, line);
        let _ = write!(
            line,
            "\"rsvp_id\":{},\"mtime\":{},\"event\":{{\"event_name\":\"{title}\",\"event_id\":\"",
            answer.id, answer.mtime
        );
        if has_letters {
            let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for _ in 0..12 {
                line.push((b'a' + (x % 26) as u8) as char);
                x /= 26;
            }
        } else {
            let _ = write!(line, "{numeric}");
        }
        line.push('"');
        if has_time {
            // A start at a quarter of an hour, after this answer.
            let start = (answer.mtime + (days * 86_400_000.0) as i64) / 900_000 * 900_000 + 900_000;
            let _ = write!(line, ",\"time\":{start}");
        }
        let _ = write!(
            line,
            ",\"event_url\":\"http:\\/\\/www.example.com\\/{}\\/events\\/{numeric}\\/\"}},",
            group.urlname
        );
        line.push_str(&group.json);
        line.push('}');
    }

    /// A record that looks like the others and is malformed somewhere.
    fn write_hostile(&mut self, answer: &GeneratedEvent) {
        self.write(answer);
        let line = &mut self.line;
        match self.random.below(10) {
            0 => line.truncate(floor_boundary(line, line.len() / 2)),
            1 => *line = line.replacen("\"rsvp_id\":", "\"rsvp_id\":\"x\",\"was\":", 1),
            2 => *line = line.replacen("\"mtime\":", "\"mtime\":null,\"was\":", 1),
            3 => *line = "{\"comment\":\"another kind of record\",\"rating\":5}".into(),
            4 => *line = format!("{{\"deep\":{}1{}}}", "[".repeat(200), "]".repeat(200)),
            5 => *line = line.replacen("\"guests\":", "\"guests\":99999999999,\"was\":", 1),
            6 => *line = line.replacen("\"lat\":", "\"lat\":\"north\",\"was\":", 1),
            7 => *line = "[1,2,3]".into(),
            8 => *line = "<script>alert(1)<\\/script>".into(),
            _ => *line = line.replacen("\"mtime\":1", "\"mtime\":9", 1),
        }
    }
}

fn floor_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeMap;

    fn records(count: usize) -> Vec<(Value, usize)> {
        let mut generator = Generator::new(Settings::default());
        (0..count)
            .map(|_| {
                let (line, _) = generator.next_record();
                let compact = line.replace("\\/", "/").len();
                (
                    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")),
                    compact,
                )
            })
            .collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let mut a = Generator::new(Settings::default());
        let mut b = Generator::new(Settings::default());
        for _ in 0..2_000 {
            assert_eq!(a.next_record().0, b.next_record().0);
        }
    }

    /// The relation of a record to earlier ones of its id: (response, guests, mtime).
    fn kind_of(record: &Value, mtime: i64, before: &[(Value, Value, i64)]) -> &'static str {
        let same = |b: &&(Value, Value, i64)| b.0 == record["response"] && b.1 == record["guests"];
        if before.is_empty() {
            "new"
        } else if before.iter().any(|b| same(&b) && b.2 == mtime) {
            "copy"
        } else if before
            .iter()
            .any(|b| same(&b) && (b.2 - mtime).abs() <= 500)
        {
            "twin"
        } else {
            "update"
        }
    }

    const SAMPLE: usize = 50_000;

    /// A property's name, its percentage of the records, and that of the recordings.
    type Share = (&'static str, f64, f64);

    /// Fails unless each is within 15 % of what was measured, or within `min_tolerance`.
    fn assert_close(shares: &[Share], min_tolerance: f64) {
        let wrong: Vec<String> = shares
            .iter()
            .filter(|(_, found, measured)| {
                (found - measured).abs() > f64::max(min_tolerance, measured * 0.15)
            })
            .map(|(name, found, measured)| format!("{name}: {found:.2}, measured {measured:.2}"))
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn fields_are_as_frequent_as_measured() {
        let records = records(SAMPLE);
        let share = |has: &dyn Fn(&Value) -> bool| {
            records.iter().filter(|(r, _)| has(r)).count() as f64 / SAMPLE as f64 * 100.0
        };
        let is_foreign = |text: &Value| text.as_str().is_some_and(|t| !t.is_ascii());
        let begins_with_letter = |text: &Value| {
            text.as_str()
                .is_some_and(|t| t.starts_with(char::is_alphabetic))
        };
        let shares = [
            ("yes", share(&|r| r["response"] == "yes"), 77.0),
            ("no guests", share(&|r| r["guests"] == 0), 93.0),
            ("venue", share(&|r| r["venue"].is_object()), 80.7),
            (
                "zero coordinates",
                share(&|r| r["venue"]["lat"] == 0),
                80.7 * 0.049,
            ),
            ("event time", share(&|r| r["event"]["time"].is_i64()), 99.2),
            ("photo", share(&|r| r["member"]["photo"].is_string()), 95.0),
            (
                "other services",
                share(&|r| r["member"]["other_services"].is_object()),
                9.2,
            ),
            (
                "state",
                share(&|r| r["group"]["group_state"].is_string()),
                67.5,
            ),
            ("us", share(&|r| r["group"]["group_country"] == "us"), 62.0),
            (
                "letters in event id",
                share(&|r| begins_with_letter(&r["event"]["event_id"])),
                28.5,
            ),
            (
                "foreign event name",
                share(&|r| is_foreign(&r["event"]["event_name"])),
                6.0,
            ),
            (
                "foreign group name",
                share(&|r| is_foreign(&r["group"]["group_name"])),
                3.5,
            ),
        ];
        assert_close(&shares, 1.0);
    }

    #[test]
    fn duplicates_and_lateness_are_as_measured() {
        let mut kinds: BTreeMap<&str, f64> = BTreeMap::new();
        let mut by_id: BTreeMap<u64, Vec<(Value, Value, i64)>> = BTreeMap::new();
        let (mut newest, mut late) = (i64::MIN, [0.0; 5]);
        let percent = 100.0 / SAMPLE as f64;
        for (r, _) in records(SAMPLE) {
            let (id, mtime) = (r["rsvp_id"].as_u64().unwrap(), r["mtime"].as_i64().unwrap());
            let before = by_id.entry(id).or_default();
            *kinds.entry(kind_of(&r, mtime, before)).or_default() += percent;
            before.push((r["response"].clone(), r["guests"].clone(), mtime));
            newest = newest.max(mtime);
            let limits = [10_000, 60_000, 300_000, 3_600_000, 86_400_000];
            for (share, limit) in late.iter_mut().zip(limits) {
                if newest - mtime > limit {
                    *share += percent;
                }
            }
        }
        let shares = [
            ("twins", kinds["twin"], 15.1),
            ("copies", kinds["copy"], 1.5),
            ("updates", kinds["update"], 5.1),
            ("late 10 s", late[0], 5.8),
            ("late 60 s", late[1], 2.9),
            ("late 5 min", late[2], 2.3),
            ("late 1 h", late[3], 1.9),
            ("late 1 day", late[4], 0.8),
        ];
        assert_close(&shares, 1.0);
    }

    #[test]
    fn sizes_are_as_measured() {
        let mut sizes: Vec<usize> = records(SAMPLE).into_iter().map(|(_, n)| n).collect();
        sizes.sort_unstable();
        let size = |p: f64| sizes[(p * SAMPLE as f64) as usize] as f64;
        let sizes = [
            ("size p50", size(0.5), 1_426.0),
            ("size p95", size(0.95), 1_746.0),
            ("size p99", size(0.99), 1_921.0),
        ];
        assert_close(&sizes, 0.0);
    }

    #[test]
    fn hostile_records_are_lines() {
        let mut generator = Generator::new(Settings {
            hostile: 100.0,
            ..Settings::default()
        });
        for _ in 0..1_000 {
            assert!(!generator.next_record().0.contains('\n'));
        }
    }
}
