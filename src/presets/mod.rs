//! Ready-made stream declarations, each a TOML file. Only presets and the generator know a domain.

/// Names and texts of the presets; `{stream}` in a text is replaced by the stream's name.
const PRESETS: [(&str, &str); 4] = [
    ("rsvps", include_str!("rsvps.toml")),
    ("events", include_str!("events.toml")),
    ("sessions", include_str!("sessions.toml")),
    ("edits", include_str!("edits.toml")),
];

/// The preset as TOML, for a stream of this name: keys of `[streams.NAME]`, and its windows and
/// tables. `None` if the preset does not exist.
pub fn text(preset: &str, stream: &str) -> Option<String> {
    PRESETS
        .iter()
        .find(|(name, _)| *name == preset)
        .map(|(_, text)| text.replace("{stream}", stream))
}

/// Names that a stream's `preset` may have, in the order in which messages list them.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}
