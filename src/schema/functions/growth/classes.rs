//! Every function that SQL can call, by how its result grows with its arguments. A test compares
//! this list with the registry: a new function must be added here.

/// How the result of a scalar function grows, row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Growth {
    /// A number, boolean, time, or another value of a fixed size.
    Fixed,
    /// At most as large as its arguments.
    Within,
    /// Replaced by another call during planning.
    Planned,
    /// This many times its arguments, and a few bytes.
    Times(u32),
    /// Compares all items of one argument with all of another.
    Pairs,
    /// `repeat(text, n)`: the text, n times.
    Repeat,
    /// `lpad(text, n, fill)`: the text, and up to n characters of the fill text.
    Pad,
    /// `replace(text, from, to)`: as often as `from` fits into the text.
    Replace,
    /// `regexp_replace(text, pattern, to)`: `to` may repeat the whole text.
    RegexpReplace,
    /// `concat_ws(separator, …)`: all arguments, with a separator for each.
    ConcatWith,
    /// `array_repeat(item, n)`: the item, n times.
    ArrayRepeat,
    /// `array_resize(list, n, item)`: the list, and up to n items.
    ArrayResize,
    /// `range(from, to, step)`: so many numbers or times.
    Range,
    /// `array_replace_all(list, from, to)`: each item may become `to`.
    ArrayReplace,
    /// `array_to_string(list, separator, null)`: all items as text, each with a separator.
    ArrayToString,
    /// `arrays_zip(…)`: as many items as the longest list, with a value for each list.
    ArraysZip,
    /// `to_char(time, format)`: each letter of the format may become a whole time.
    Format,
}

use Growth::*;

/// Scalar functions.
pub const SCALAR: &[(Growth, &[&str])] = &[
    (
        Fixed,
        &[
            "abs",
            "array_avg",
            "array_dims",
            "array_distance",
            "array_has",
            "array_length",
            "array_max",
            "array_min",
            "array_ndims",
            "array_position",
            "array_product",
            "array_sum",
            "arrow_typeof",
            "ascii",
            "bit_length",
            "cardinality",
            "ceil",
            "character_length",
            "chr",
            "contains",
            "cosine_distance",
            "cot",
            "current_date",
            "current_time",
            "date_bin",
            "date_part",
            "date_trunc",
            "digest",
            "empty",
            "ends_with",
            "factorial",
            "file_row_index",
            "find_in_set",
            "floor",
            "from_unixtime",
            "gcd",
            "inner_product",
            "input_file_name",
            "isnan",
            "iszero",
            "json_contains",
            "json_get_bool",
            "json_get_float",
            "json_get_int",
            "json_length",
            "lcm",
            "log",
            "make_date",
            "make_time",
            "md5",
            "nanvl",
            "now",
            "octet_length",
            "pi",
            "power",
            "random",
            "regexp_count",
            "regexp_instr",
            "regexp_like",
            "round",
            "sha224",
            "sha256",
            "sha384",
            "sha512",
            "signum",
            "starts_with",
            "strpos",
            "to_date",
            "to_hex",
            "to_local_time",
            "to_time",
            "to_timestamp",
            "to_timestamp_micros",
            "to_timestamp_millis",
            "to_timestamp_nanos",
            "to_timestamp_seconds",
            "to_unixtime",
            "trunc",
            "union_tag",
            "uuid",
            "version",
            "acos",
            "acosh",
            "asin",
            "asinh",
            "atan",
            "atan2",
            "atanh",
            "cbrt",
            "cos",
            "cosh",
            "degrees",
            "exp",
            "ln",
            "log10",
            "log2",
            "radians",
            "sin",
            "sinh",
            "sqrt",
            "tan",
            "tanh",
        ],
    ),
    (
        Within,
        &[
            "array_any_value",
            "array_compact",
            "array_distinct",
            "array_element",
            "array_pop_back",
            "array_pop_front",
            "array_remove",
            "array_remove_all",
            "array_remove_n",
            "array_reverse",
            "array_slice",
            "array_sort",
            "arrow_field",
            "arrow_metadata",
            "btrim",
            "coalesce",
            "decode",
            "get_field",
            "greatest",
            "json_get",
            "json_get_json",
            "json_get_str",
            "json_as_text",
            "least",
            "left",
            "ltrim",
            "map_extract",
            "map_keys",
            "map_values",
            "nullif",
            "nvl",
            "nvl2",
            "right",
            "rtrim",
            "split_part",
            "substr",
            "substr_index",
            "union_extract",
            "with_metadata",
        ],
    ),
    (
        Planned,
        &[
            "arrow_cast",
            "arrow_try_cast",
            "cast_to_type",
            "try_cast_to_type",
        ],
    ),
    (
        Times(1),
        &[
            "array_add",
            "array_append",
            "array_concat",
            "array_normalize",
            "array_prepend",
            "array_scale",
            "array_subtract",
            "concat",
            "flatten",
            "make_array",
            "map",
            "map_entries",
            "named_struct",
            "overlay",
            "reverse",
            "struct",
        ],
    ),
    (Times(3), &["encode", "initcap", "lower", "upper"]),
    (Times(4), &["translate"]),
    (
        Times(8),
        &["array_positions", "json_from_scalar", "json_union_to_text"],
    ),
    (
        Times(24),
        &[
            "json_get_array",
            "json_object_keys",
            "regexp_match",
            "string_to_array",
        ],
    ),
    (
        Pairs,
        &[
            "array_except",
            "array_has_all",
            "array_has_any",
            "array_intersect",
            "array_union",
            "levenshtein",
        ],
    ),
    (Repeat, &["repeat"]),
    (Pad, &["lpad", "rpad"]),
    (Replace, &["replace"]),
    (RegexpReplace, &["regexp_replace"]),
    (ConcatWith, &["concat_ws"]),
    (ArrayRepeat, &["array_repeat"]),
    (ArrayResize, &["array_resize"]),
    (Range, &["range", "generate_series"]),
    (
        ArrayReplace,
        &["array_replace", "array_replace_all", "array_replace_n"],
    ),
    (ArrayToString, &["array_to_string"]),
    (ArraysZip, &["arrays_zip"]),
    (Format, &["to_char"]),
];

/// Functions that take lambdas: their list items are bounded, and the functions that a lambda calls
/// have their own bounds.
#[cfg(test)]
pub const HIGHER_ORDER: &[&str] = &[
    "array_any_match",
    "array_filter",
    "array_first",
    "array_transform",
];

/// Aggregates whose state has a fixed size, or holds one value of the rows.
#[cfg(test)]
pub const FIXED_AGGREGATES: &[&str] = &[
    "any_value",
    "approx_distinct",
    "approx_median",
    "approx_percentile_cont",
    "approx_percentile_cont_with_weight",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "first_value",
    "grouping",
    "last_value",
    "max",
    "min",
    "nth_value",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "stddev",
    "stddev_pop",
    "sum",
    "var",
    "var_pop",
];

/// Aggregates that retain every row's value: they report their size, which is charged to the
/// query's memory batch by batch.
#[cfg(test)]
pub const RETAINING_AGGREGATES: &[&str] = &["array_agg", "median", "percentile_cont", "string_agg"];

/// Window functions: each returns a value of its argument, or a number.
#[cfg(test)]
pub const WINDOW: &[&str] = &[
    "cume_dist",
    "dense_rank",
    "first_value",
    "lag",
    "last_value",
    "lead",
    "nth_value",
    "ntile",
    "percent_rank",
    "rank",
    "row_number",
];

/// Table functions: they generate rows batch by batch.
#[cfg(test)]
pub const TABLE: &[&str] = &["generate_series", "range"];

/// How the result of a scalar function grows; none if it is not listed.
pub fn growth(name: &str) -> Option<Growth> {
    SCALAR
        .iter()
        .find(|(_, names)| names.contains(&name))
        .map(|(growth, _)| *growth)
}
