//! The call of `tumble`, `hop` or `session` in a window's SQL: what it reads, and how it divides time.

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::assigner::{Calendar, CalendarStep, WindowAssigner, gcd};
use super::zone::LocalTime;
use crate::config::zone::Zone;
use crate::event::{MICROS_PER_DAY, Micros};
use crate::schema::PlanError;

/// The name under which the windowed input is planned.
pub(super) const INPUT: &str = "windowed";
const MIN_SIZE: Micros = 1_000;
pub(super) const MAX_SIZE: Micros = 400 * MICROS_PER_DAY;
const MAX_MONTHS: i64 = 13;
/// Panes of one sliding window.
const MAX_PANES: i64 = 100_000;
/// What a window's SQL must look like.
pub(crate) const FORM: &str = "write `select window_start, window_end, … from tumble(STREAM, event_time, interval '10 seconds') [where …] group by window_start, window_end, …` (or hop(STREAM, TIME, SLIDE, SIZE), session(STREAM, TIME, GAP, KEY))";

/// How a window divides time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// By the calendar or the clock, independent of the events.
    Aligned(WindowAssigner),
    /// Events of one key with no more than `gap` between them; `key` is its column in the input.
    Session { gap: Micros, key: usize },
}

/// `function(input, time, arguments…)`
pub(super) struct Call {
    pub(crate) function: String,
    pub(crate) input: ast::Ident,
    pub(crate) time: ast::Ident,
    pub(crate) arguments: Vec<ast::Expr>,
}

/// Replaces the call of `tumble`, `hop` or `session` in the statement by the table [`INPUT`].
pub(super) fn take_call(statement: &mut Statement) -> Result<Call, PlanError> {
    let ast::TableFactor::Table {
        name, alias, args, ..
    } = from_of(statement)?
    else {
        return Err(FORM.into());
    };
    let function = name.to_string().to_lowercase();
    let Some(found) = args.take() else {
        let message =
            format!("an aggregate over `{function}` without a window would never end; {FORM}");
        return Err(PlanError::at(&*name, message));
    };
    let mut arguments = found.args.into_iter().map(|argument| match argument {
        ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(expression)) => Ok(expression),
        other => Err(PlanError::at(
            &other,
            format!("`{other}` is not an argument of a window; {FORM}"),
        )),
    });
    let mut name_of = |what: &str| match arguments.next() {
        Some(Ok(ast::Expr::Identifier(name))) => Ok(name),
        Some(Err(error)) => Err(error),
        Some(Ok(other)) => Err(PlanError::at(
            &other,
            format!("`{other}` is not a {what}; {FORM}"),
        )),
        None => Err(PlanError::at_words(
            &[&function],
            format!("the {what} is missing; {FORM}"),
        )),
    };
    let (input, time) = (name_of("stream")?, name_of("time column")?);
    let arguments = arguments.collect::<Result<_, _>>()?;
    *name = ast::ObjectName::from(vec![ast::Ident::new(INPUT)]);
    if alias.is_none() {
        *alias = Some(ast::TableAlias {
            explicit: true,
            name: ast::Ident::new(&input.value),
            columns: Vec::new(),
            at: None,
        });
    }
    Ok(Call {
        function,
        input,
        time,
        arguments,
    })
}

/// The one table of `select … from TABLE`.
fn from_of(statement: &mut Statement) -> Result<&mut ast::TableFactor, PlanError> {
    let Statement::Statement(inner) = statement else {
        return Err(FORM.into());
    };
    let ast::Statement::Query(query) = inner.as_mut() else {
        return Err(FORM.into());
    };
    if query.with.is_some() {
        let message = format!("`with` is not allowed here; {FORM}");
        return Err(PlanError::at_words(&["with"], message));
    }
    let ast::SetExpr::Select(select) = query.body.as_mut() else {
        return Err(FORM.into());
    };
    if let (true, Some(last)) = (select.from.is_empty(), select.projection.last()) {
        let message = format!("`from` is missing after the columns; {FORM}");
        return Err(PlanError::after(last, message));
    }
    let [from] = select.from.as_mut_slice() else {
        let message = format!("only one table can be read; {FORM}");
        return Err(PlanError::at_words(&["from"], message));
    };
    if !from.joins.is_empty() {
        let message = format!("joins are not allowed here; {FORM}");
        return Err(PlanError::at_words(&["join"], message));
    }
    Ok(&mut from.relation)
}

/// An interval by its parts: days and months have a fixed length only without a calendar.
#[derive(Debug, Clone, Copy)]
struct Length {
    months: i64,
    days: i64,
    micros: Micros,
}

impl Length {
    /// Microseconds, with days of 24 hours.
    fn fixed(self) -> Micros {
        self.days * MICROS_PER_DAY + self.micros
    }
}

/// Parses an interval argument; months are allowed only `in_zone`, by its calendar.
fn interval(
    function: &str,
    expression: Option<&ast::Expr>,
    what: &str,
    in_zone: bool,
) -> Result<Length, PlanError> {
    let wrong = |why: &str| {
        let message = format!("the {what} {why}; write for example interval '10 seconds'");
        let error = PlanError::at_words(&["interval", function], message);
        expression.map_or(error.clone(), |found| {
            error.at_span(ast::Spanned::span(found))
        })
    };
    let Some(ast::Expr::Interval(interval)) = expression else {
        return Err(wrong("is missing or not an interval"));
    };
    let value = match interval.value.as_ref() {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::SingleQuotedString(text) => text.clone(),
            ast::Value::Number(number, _) => number.clone(),
            _ => return Err(wrong("is not an interval")),
        },
        _ => return Err(wrong("is not a constant")),
    };
    let unit = interval
        .leading_field
        .as_ref()
        .map_or(String::new(), |unit| format!(" {unit}"));
    let parsed = arrow::compute::kernels::cast_utils::parse_interval_month_day_nano(&format!(
        "{value}{unit}"
    ))
    .map_err(|e| wrong(&e.to_string()))?;
    let (months, days) = (i64::from(parsed.months), i64::from(parsed.days));
    let length = Length {
        months,
        days,
        micros: parsed.nanoseconds / 1_000,
    };
    match (months, in_zone) {
        (0, _) if (MIN_SIZE..=MAX_SIZE).contains(&length.fixed()) => Ok(length),
        (0, _) => Err(wrong("is outside 1 ms to 400 days")),
        (_, false) => Err(wrong(
            "has months or years, whose length depends on the calendar: name a zone, for example 'UTC'",
        )),
        (_, true) if days != 0 || length.micros != 0 => {
            Err(wrong("mixes months with shorter units"))
        }
        (_, true) if (1..=MAX_MONTHS).contains(&months) => Ok(length),
        (_, true) => Err(wrong(&format!("is outside 1 to {MAX_MONTHS} months"))),
    }
}

/// The time zone, if an argument is one.
fn zone(argument: &ast::Expr) -> Option<Result<&'static LocalTime, PlanError>> {
    let ast::Expr::Value(value) = argument else {
        return None;
    };
    let ast::Value::SingleQuotedString(name) = &value.value else {
        return None;
    };
    Some(
        name.parse::<Zone>()
            .map(LocalTime::from_zone)
            .map_err(|e| PlanError::at(argument, e.to_string())),
    )
}

/// Windows of local time, whose size is a multiple of the slide.
fn in_zone(
    zone: &'static LocalTime,
    slide: Length,
    size: Length,
    at: &ast::Expr,
) -> Result<WindowAssigner, PlanError> {
    let (step, count) = match (slide, size) {
        (
            Length {
                months: 0,
                days: 0,
                micros,
            },
            Length { months: 0, .. },
        ) => (CalendarStep::Clock(micros), multiple(size.fixed(), micros)),
        (
            Length {
                months: 0,
                days,
                micros: 0,
            },
            Length {
                months: 0,
                micros: 0,
                ..
            },
        ) => (CalendarStep::Days(days), multiple(size.days, days)),
        (
            Length {
                months,
                days: 0,
                micros: 0,
            },
            Length {
                days: 0, micros: 0, ..
            },
        ) if months > 0 => (CalendarStep::Months(months), multiple(size.months, months)),
        _ => {
            let message = "local time is divided by hours or less, by days and weeks, or by months: write one of these kinds";
            return Err(PlanError::at(at, message));
        }
    };
    let count = count.filter(|n| *n <= MAX_PANES).ok_or_else(|| {
        let message = format!(
            "with a time zone, the size must be a multiple of the slide, at most {MAX_PANES} times"
        );
        PlanError::at(at, message)
    })?;
    Ok(WindowAssigner::Local {
        calendar: Calendar { zone, step },
        steps: count as usize,
    })
}

/// How many slides a size has, if it is a multiple.
fn multiple(size: i64, slide: i64) -> Option<i64> {
    (size >= slide && size % slide == 0).then(|| size / slide)
}

/// The arguments of a call after its time column, without the zone.
struct Arguments<'a> {
    function: &'a str,
    expressions: &'a [ast::Expr],
    zone: Option<&'static LocalTime>,
}

impl<'a> Arguments<'a> {
    fn from_call(call: &'a Call) -> Result<Self, PlanError> {
        let mut expressions = call.arguments.as_slice();
        let zone = expressions.last().and_then(zone).transpose()?;
        if let (Some(_), [before @ .., last]) = (zone, expressions) {
            if call.function == "session" {
                let message = "a session has no zone: its gap is a fixed time; leave it out";
                return Err(PlanError::at(last, message));
            }
            expressions = before;
        }
        Ok(Self {
            function: &call.function,
            expressions,
            zone,
        })
    }

    fn check_count(&self, count: usize) -> Result<(), PlanError> {
        if self.expressions.len() == count {
            return Ok(());
        }
        // The stream and the time column are arguments too.
        let message = format!("{} takes {} arguments; {FORM}", self.function, count + 2);
        Err(PlanError::at_words(&[self.function], message))
    }

    fn interval(&self, at: usize, what: &str) -> Result<Length, PlanError> {
        let expression = self.expressions.get(at);
        interval(self.function, expression, what, self.zone.is_some())
    }
}

/// How the call divides time; `column` finds a column of its input.
pub(super) fn shape(
    call: &Call,
    column: &dyn Fn(&ast::Ident) -> Result<usize, PlanError>,
) -> Result<Shape, PlanError> {
    let arguments = Arguments::from_call(call)?;
    match arguments.function {
        "tumble" => tumbling(&arguments),
        "hop" => sliding(&arguments),
        "session" => session(&arguments, column),
        other => Err(PlanError::at_words(
            &[other],
            format!("`{other}` is not a window function; {FORM}"),
        )),
    }
}

fn tumbling(arguments: &Arguments<'_>) -> Result<Shape, PlanError> {
    arguments.check_count(1)?;
    let size = arguments.interval(0, "size")?;
    Ok(Shape::Aligned(match arguments.zone {
        Some(zone) => in_zone(zone, size, size, &arguments.expressions[0])?,
        None => WindowAssigner::Fixed {
            slide: size.fixed(),
            size: size.fixed(),
        },
    }))
}

fn sliding(arguments: &Arguments<'_>) -> Result<Shape, PlanError> {
    arguments.check_count(2)?;
    let slide = arguments.interval(0, "slide")?;
    let size = arguments.interval(1, "size")?;
    if let Some(zone) = arguments.zone {
        return in_zone(zone, slide, size, &arguments.expressions[1]).map(Shape::Aligned);
    }
    let (slide, size) = (slide.fixed(), size.fixed());
    if slide > size {
        let message = "the slide is longer than the size: hop(STREAM, TIME, SLIDE, SIZE)";
        return Err(PlanError::at(&arguments.expressions[0], message));
    }
    if size / gcd(slide, size) > MAX_PANES {
        let message =
            format!("slide and size give more than {MAX_PANES} panes; lengthen the slide");
        return Err(PlanError::at(&arguments.expressions[0], message));
    }
    Ok(Shape::Aligned(WindowAssigner::Fixed { slide, size }))
}

fn session(
    arguments: &Arguments<'_>,
    column: &dyn Fn(&ast::Ident) -> Result<usize, PlanError>,
) -> Result<Shape, PlanError> {
    if arguments.expressions.len() == 1 {
        return Err(PlanError::at_words(
            &["session"],
            format!("a session without a key is unbounded; {FORM}"),
        ));
    }
    arguments.check_count(2)?;
    let gap = arguments.interval(0, "gap")?.fixed();
    match &arguments.expressions[1] {
        ast::Expr::Identifier(key) => Ok(Shape::Session {
            gap,
            key: column(key)?,
        }),
        other => Err(PlanError::at(
            other,
            format!("`{other}` is not a key column; {FORM}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::SessionContext;

    const SECOND: Micros = 1_000_000;

    fn parse(call: &str) -> Result<Call, PlanError> {
        let state = SessionContext::new().state();
        let sql = format!("select window_start from {call} group by window_start");
        take_call(&mut crate::schema::dialect::parse(&state, &sql)?)
    }

    fn shape_of(call: &str) -> Result<Shape, PlanError> {
        shape(&parse(call)?, &|_| Ok(7))
    }

    #[test]
    fn a_call_gives_the_input_the_time_and_the_shape() {
        let call = parse("Tumble(s, t, interval '10 seconds')").expect("a call");
        assert_eq!(
            (call.input.value.as_str(), call.time.value.as_str()),
            ("s", "t")
        );
        let fixed = |slide: i64, size: i64| {
            Shape::Aligned(WindowAssigner::Fixed {
                slide: slide * SECOND,
                size: size * SECOND,
            })
        };
        let session = Shape::Session {
            gap: 60 * SECOND,
            key: 7,
        };
        for (call, expected) in [
            ("tumble(s, t, interval '10 seconds')", fixed(10, 10)),
            (
                "hop(s, t, interval '1 minute', interval 2 hour)",
                fixed(60, 7_200),
            ),
            ("session(s, t, interval '1 minute', user)", session),
        ] {
            assert_eq!(shape_of(call), Ok(expected), "{call}");
        }
        let zoned = shape_of("hop(s, t, interval '1 day', interval '1 week', 'UTC')");
        assert!(matches!(
            zoned,
            Ok(Shape::Aligned(WindowAssigner::Local { steps: 7, .. }))
        ));
    }

    #[test]
    fn a_call_that_cannot_be_bounded_is_rejected() {
        for (call, part) in [
            ("s", "would never end"),
            ("tumble(s, t)", "takes 3 arguments"),
            (
                "tumble(s, t, interval '401 days')",
                "outside 1 ms to 400 days",
            ),
            ("tumble(s, t, interval '1 month')", "name a zone"),
            (
                "hop(s, t, interval '2 hours', interval '1 hour')",
                "longer than the size",
            ),
            ("hop(s, t, interval '1 ms', interval '1 day')", "panes"),
            (
                "hop(s, t, interval '5 days', interval '7 days', 'UTC')",
                "a multiple of the slide",
            ),
            ("session(s, t, interval '1 hour')", "unbounded"),
            ("slide(s, t, interval '1 hour')", "not a window function"),
        ] {
            let error = shape_of(call).expect_err(call);
            assert!(error.message.contains(part), "{call}: {error}");
        }
    }
}
