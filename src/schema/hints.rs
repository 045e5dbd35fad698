//! Suggestions for names that do not exist.

use datafusion::common::utils::datafusion_strsim::levenshtein;

/// Functions of other engines, and their equivalent here.
const EQUIVALENTS: [(&[&str], &str); 26] = [
    (&["date", "to_date_time", "todate"], "t::date"),
    (&["if", "iif"], "case when … then … else … end"),
    (&["age"], "b - a"),
    (&["to_json", "row_to_json"], "a column of type json"),
    (
        &["haversine", "distance", "st_distance"],
        "`weir nearby`, or /api/v1/nearby",
    ),
    (
        &["quantile", "quantile_disc", "percentile", "approx_quantile"],
        "approx_percentile_cont(x, 0.95)",
    ),
    (&["epoch", "unix_timestamp"], "to_unixtime(t)"),
    (
        &["epoch_ms", "to_unix_timestamp_millis"],
        "to_unixtime(t) * 1000",
    ),
    (
        &["date_diff", "datediff", "timestampdiff"],
        "(to_unixtime(b) - to_unixtime(a)) / 60",
    ),
    (
        &["date_add", "dateadd", "timestampadd"],
        "t + interval '1 day'",
    ),
    (&["date_sub", "datesub"], "t - interval '1 day'"),
    (
        &[
            "strftime",
            "date_format",
            "format_datetime",
            "formatdatetime",
        ],
        "to_char(t, '%Y-%m-%d')",
    ),
    (
        &[
            "strptime",
            "str_to_date",
            "parse_datetime",
            "parse_timestamp",
        ],
        "to_timestamp(text, '%Y-%m-%d')",
    ),
    (
        &[
            "year",
            "month",
            "day",
            "hour",
            "minute",
            "second",
            "week",
            "quarter",
            "dayofweek",
        ],
        "extract(hour from t)",
    ),
    (
        &["tostartofhour", "tostartofday", "tostartofminute"],
        "date_trunc('hour', t)",
    ),
    (&["getdate", "sysdate"], "now()"),
    (
        &["max_by", "arg_max", "argmax"],
        "first_value(x order by y desc)",
    ),
    (
        &["min_by", "arg_min", "argmin"],
        "first_value(x order by y)",
    ),
    (&["arbitrary", "any"], "any_value(x)"),
    (&["mode"], "… group by x order by count(*) desc limit 1"),
    (&["group_concat", "listagg"], "string_agg(x, ',')"),
    (&["count_if", "countif"], "count(*) filter (where …)"),
    (&["sum_if", "sumif"], "sum(x) filter (where …)"),
    (
        &["approx_count_distinct", "uniq", "hll"],
        "approx_distinct(x)",
    ),
    (
        &["json_extract", "json_value", "get_json_object"],
        "json_get(text, 'key')",
    ),
    (
        &[
            "json_extract_string",
            "json_extract_scalar",
            "json_extract_path_text",
        ],
        "json_get_str(text, 'key')",
    ),
];

/// Replaces the planner's message on an unknown function, whose suggestion may be far-fetched.
pub fn for_function(message: &str) -> Option<String> {
    let (wrong, meant) = message.split_once("Did you mean ")?;
    let error = wrong.trim_end().trim_end_matches('.');
    let quoted = |text: &str| text.split('\'').nth(1).map(str::to_lowercase);
    let Some(name) = error.strip_prefix("Invalid function ").and_then(quoted) else {
        return Some(format!("{error}; did you mean {meant}"));
    };
    if let Some((_, instead)) = EQUIVALENTS
        .iter()
        .find(|(names, _)| names.contains(&name.as_str()))
    {
        return Some(format!("{error}; write `{instead}`"));
    }
    let is_near = quoted(meant).is_some_and(|meant| is_near(&name, &meant));
    Some(if is_near {
        format!("{error}; did you mean {meant}")
    } else {
        format!("{error}; no function has a similar name")
    })
}

fn is_near(name: &str, other: &str) -> bool {
    levenshtein(name, other) <= (name.chars().count() / 3).max(1)
}

/// The existing name that was probably meant, if one is near.
pub fn nearest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let name = name.to_lowercase();
    let distance = |other: &&&str| levenshtein(&name, &other.to_lowercase());
    names
        .iter()
        .filter(|other| is_near(&name, &other.to_lowercase()))
        .min_by_key(distance)
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_column_is_proposed() {
        let names = ["response", "received_at", "Responses"];
        assert_eq!(nearest("respons", &names), Some("response"));
        assert_eq!(nearest("RESPONSES", &names), Some("Responses"));
        assert_eq!(nearest("guests", &names), None);
    }

    #[test]
    fn only_a_near_name_is_proposed() {
        let hint = |name: &str, nearest: &str| {
            for_function(&format!(
                "Invalid function '{name}'.\nDid you mean '{nearest}'?"
            ))
            .expect("a message on a function")
        };
        assert_eq!(
            hint("uper", "upper"),
            "Invalid function 'uper'; did you mean 'upper'?"
        );
        assert_eq!(
            hint("lenght", "length"),
            "Invalid function 'lenght'; did you mean 'length'?"
        );
        assert_eq!(
            hint("frobnicate", "list_cat"),
            "Invalid function 'frobnicate'; no function has a similar name"
        );
        assert_eq!(
            hint("max_by", "max"),
            "Invalid function 'max_by'; write `first_value(x order by y desc)`"
        );
        assert_eq!(
            hint("EPOCH_MS", "asin"),
            "Invalid function 'EPOCH_MS'; write `to_unixtime(t) * 1000`"
        );
        assert_eq!(for_function("another message"), None);
        assert_eq!(
            for_function("no table. Did you mean 'a'?").as_deref(),
            Some("no table; did you mean 'a'?")
        );
    }
}
