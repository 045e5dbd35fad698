//! Answers to invitations as the old Meetup stream sent them, from a seed: their shapes, sizes,
//! duplicates, disorder and lateness follow measurements of recordings; and hostile ones, which no
//! decoder should stumble over.

mod demo;
mod entities;
mod random;
mod recording;

use std::collections::VecDeque;
use std::fmt::Write;

use crate::event::Micros;
use entities::{GROUPS, Group, MEMBERS};
use random::Random;

pub use demo::{TO_TRY, demo_configuration, demo_welcome};
pub use recording::{mtime, shift};

/// Where the old stream was found on its server.
pub const PATH: &str = "/2/rsvps";

/// Where generated time begins unless told: 2016-06-10T01:00:00Z.
pub const START_MS: i64 = 1_465_520_400_000;
/// Records per second of event time, unless told.
pub const RATE: f64 = 1.3;

/// What to generate.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub seed: u64,
    pub start_ms: i64,
    /// Records per second of event time.
    pub rate: f64,
    /// Per cent of records that are hostile.
    pub hostile: f64,
    /// Ids begin here; a later run goes on where the earlier one ended.
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

/// An answer, before it is written.
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

/// Shares of records that repeat or change an earlier one.
const TWINS_PER_ACT: f64 = 0.193;
const UPDATES: f64 = 0.051;
const COPY_BURSTS: f64 = 0.0005;
const COPIES_PER_BURST: u64 = 30;
/// Acts that updates choose from.
const REMEMBERED: usize = 4_000;

/// An endless stream of records.
pub struct Generator {
    settings: Settings,
    random: Random,
    groups: Vec<Group>,
    now_ms: f64,
    next_id: u64,
    emitted: u64,
    recent: VecDeque<GeneratedEvent>,
    /// (due at this number of emitted records, act)
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

    /// The time of the next record, in milliseconds.
    pub fn now_ms(&self) -> i64 {
        self.now_ms as i64
    }

    /// The id that the next new answer gets.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// The next record, one line without its end, and its `mtime`.
    pub fn next_record(&mut self) -> (&str, Micros) {
        self.emitted += 1;
        self.now_ms += -(1.0 - self.random.unit()).ln() * 1_000.0 / self.settings.rate;
        let act = self.next_act();
        let mtime = act.mtime;
        self.line.clear();
        if self.settings.hostile > 0.0 && self.random.chance(self.settings.hostile / 100.0) {
            self.write_hostile(&act);
        } else {
            self.write(&act);
        }
        (&self.line, mtime)
    }

    fn next_act(&mut self) -> GeneratedEvent {
        if let Some(at) = self.due.iter().position(|(when, _)| *when <= self.emitted) {
            return self.due.swap_remove(at).1;
        }
        if self.random.chance(UPDATES) && self.recent.len() > 50 {
            let at = self.random.below(self.recent.len() as u64) as usize;
            let mut act = self.recent[at].clone();
            if act.yes && self.random.chance(0.6) {
                act.guests = if act.guests == 0 {
                    1 + self.random.below(2)
                } else {
                    0
                };
            } else {
                act.yes = !act.yes;
                act.guests = 0;
            }
            act.mtime = self.fresh_time();
            self.recent[at] = act.clone();
            return act;
        }
        let act = self.new_act();
        if self.random.chance(TWINS_PER_ACT) && act.mtime % 1000 != 0 {
            let mut twin = act.clone();
            twin.mtime = (act.mtime + 500) / 1000 * 1000;
            let delay = 1 + self.random.below(10) + self.random.below(10);
            self.due.push((self.emitted + delay, twin));
        }
        if self.random.chance(COPY_BURSTS) {
            let mut old = act.clone();
            old.mtime =
                (act.mtime - 18_000_000 - self.random.below(80_000_000) as i64) / 1000 * 1000;
            for n in 1..=COPIES_PER_BURST {
                self.due
                    .push((self.emitted + n * (40 + self.random.below(60)), old.clone()));
            }
            return old;
        }
        self.recent.push_back(act.clone());
        if self.recent.len() > REMEMBERED {
            self.recent.pop_front();
        }
        act
    }

    /// Now, less a little: messages with milliseconds come at most 0.27 s out of order.
    fn fresh_time(&mut self) -> i64 {
        self.now_ms as i64 - self.random.below(120) as i64
    }

    fn new_act(&mut self) -> GeneratedEvent {
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
        // Flat popularity: most groups are alike, a few are named often.
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
        let mtime = self.act_time();
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

    /// Now, or for a few re-sends of old answers, whole seconds of long ago.
    fn act_time(&mut self) -> i64 {
        let fresh = self.fresh_time();
        let ago_s = match self.random.unit() {
            x if x < 0.0077 => 60 + self.random.below(240),
            x if x < 0.0128 => 300 + self.random.below(3_300),
            x if x < 0.0179 => 86_400 + (self.random.unit().powi(6) * 142.0 * 86_400.0) as u64,
            _ => return fresh,
        };
        (fresh - ago_s as i64 * 1_000) / 1000 * 1000
    }

    fn write(&mut self, act: &GeneratedEvent) {
        let seed = self.settings.seed;
        let group = &self.groups[act.group as usize];
        // What belongs to an event follows from its number alone.
        let number = act.group * 2 + act.event;
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
            if act.yes { "yes" } else { "no" },
            act.guests
        );
        entities::member(seed, act.member, act.photo, line);
        let _ = write!(
            line,
            "\"rsvp_id\":{},\"mtime\":{},\"event\":{{\"event_name\":\"{title}\",\"event_id\":\"",
            act.id, act.mtime
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
            let start = (act.mtime + (days * 86_400_000.0) as i64) / 900_000 * 900_000 + 900_000;
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

    /// A record that looks like the others and is wrong somewhere.
    fn write_hostile(&mut self, act: &GeneratedEvent) {
        self.write(act);
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

    /// What a record is to those of its id before it: (response, guests, mtime).
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

    #[test]
    fn fifty_thousand_records_are_as_measured() {
        let records = records(50_000);
        let total = records.len() as f64;
        let share = |is: &dyn Fn(&Value) -> bool| {
            records.iter().filter(|(r, _)| is(r)).count() as f64 / total * 100.0
        };
        let venues = records
            .iter()
            .filter(|(r, _)| r["venue"].is_object())
            .count() as f64
            / total
            * 100.0;
        let has_other = |text: &Value| text.as_str().is_some_and(|t| !t.is_ascii());
        let mut kinds: BTreeMap<&str, f64> = BTreeMap::new();
        let mut seen: BTreeMap<u64, Vec<(Value, Value, i64)>> = BTreeMap::new();
        let (mut newest, mut late) = (i64::MIN, [0.0; 5]);
        for (r, _) in &records {
            let (id, mtime) = (r["rsvp_id"].as_u64().unwrap(), r["mtime"].as_i64().unwrap());
            let before = seen.entry(id).or_default();
            let kind = kind_of(r, mtime, before);
            before.push((r["response"].clone(), r["guests"].clone(), mtime));
            *kinds.entry(kind).or_default() += 100.0 / total;
            newest = newest.max(mtime);
            for (n, limit) in [10_000, 60_000, 300_000, 3_600_000, 86_400_000]
                .into_iter()
                .enumerate()
            {
                late[n] += if newest - mtime > limit {
                    100.0 / total
                } else {
                    0.0
                };
            }
        }
        let mut sizes: Vec<usize> = records.iter().map(|(_, n)| *n).collect();
        sizes.sort_unstable();
        let size = |p: f64| sizes[(p * total) as usize] as f64;
        // (what, found, measured, is a share in per cent)
        let checks = [
            ("yes", share(&|r| r["response"] == "yes"), 77.0, true),
            ("no guests", share(&|r| r["guests"] == 0), 93.0, true),
            ("venue", venues, 80.7, true),
            (
                "zero coordinates",
                share(&|r| r["venue"]["lat"] == 0),
                80.7 * 0.049,
                true,
            ),
            (
                "event time",
                share(&|r| r["event"]["time"].is_i64()),
                99.2,
                true,
            ),
            (
                "photo",
                share(&|r| r["member"]["photo"].is_string()),
                95.0,
                true,
            ),
            (
                "other services",
                share(&|r| r["member"]["other_services"].is_object()),
                9.2,
                true,
            ),
            (
                "state",
                share(&|r| r["group"]["group_state"].is_string()),
                67.5,
                true,
            ),
            (
                "us",
                share(&|r| r["group"]["group_country"] == "us"),
                62.0,
                true,
            ),
            (
                "letters in event id",
                share(&|r| {
                    r["event"]["event_id"]
                        .as_str()
                        .unwrap()
                        .starts_with(char::is_alphabetic)
                }),
                28.5,
                true,
            ),
            (
                "foreign event name",
                share(&|r| has_other(&r["event"]["event_name"])),
                6.0,
                true,
            ),
            (
                "foreign group name",
                share(&|r| has_other(&r["group"]["group_name"])),
                3.5,
                true,
            ),
            ("twins", kinds["twin"], 15.1, true),
            ("copies", kinds["copy"], 1.5, true),
            ("updates", kinds["update"], 5.1, true),
            ("late 10 s", late[0], 5.8, true),
            ("late 60 s", late[1], 2.9, true),
            ("late 5 min", late[2], 2.3, true),
            ("late 1 h", late[3], 1.9, true),
            ("late 1 day", late[4], 0.8, true),
            ("size p50", size(0.5), 1_426.0, false),
            ("size p95", size(0.95), 1_746.0, false),
            ("size p99", size(0.99), 1_921.0, false),
        ];
        let mut wrong = Vec::new();
        for (what, found, measured, is_share) in checks {
            let tolerance = if is_share {
                f64::max(1.0, measured * 0.15)
            } else {
                measured * 0.15
            };
            if (found - measured).abs() > tolerance {
                wrong.push(format!("{what}: {found:.2}, measured {measured:.2}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
