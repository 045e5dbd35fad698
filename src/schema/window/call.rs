//! The call of `tumble`, `hop` or `session` in a window's SQL: what it reads, and how it cuts time.

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::assigner::{Calendar, Step, WindowAssigner, gcd};
use super::zone::LocalTime;
use crate::config::zone::Zone;
use crate::event::{MICROS_PER_DAY, Micros};
use crate::schema::PlanError;

/// The name under which the windowed input is planned.
pub(super) const INPUT: &str = "windowed";
/// Shortest slide and longest size of a window, and the most panes that a hop's size has.
const SHORTEST: Micros = 1_000;
pub(super) const LONGEST: Micros = 400 * MICROS_PER_DAY;
const LONGEST_MONTHS: i64 = 13;
const MOST_PANES: i64 = 100_000;
/// What a window's SQL must look like.
pub(super) const FORM: &str = "write `select window_start, window_end, … from tumble(STREAM, event_time, interval '10 seconds') [where …] group by window_start, window_end, …` (or hop(STREAM, TIME, SLIDE, SIZE), session(STREAM, TIME, GAP, KEY))";

/// How a window cuts time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// By the calendar or the clock, whatever the events are.
    Aligned(WindowAssigner),
    /// Events of one key with no more than `gap` between them; `key` is its column in the input.
    Session { gap: Micros, key: usize },
}

pub(super) struct Call {
    pub function: String,
    pub over: ast::Ident,
    pub time: ast::Ident,
    pub arguments: Vec<ast::Expr>,
}

/// Takes the call of `tumble`, `hop` or `session` out of the statement; the plain input stands
/// there afterwards.
pub(super) fn call(statement: &mut Statement) -> Result<Call, PlanError> {
    let Statement::Statement(inner) = statement else {
        return Err(FORM.into());
    };
    let ast::Statement::Query(query) = inner.as_mut() else {
        return Err(FORM.into());
    };
    if query.with.is_some() {
        return Err(PlanError::about(
            &["with"],
            format!("`with` is not allowed here; {FORM}"),
        ));
    }
    let ast::SetExpr::Select(select) = query.body.as_mut() else {
        return Err(FORM.into());
    };
    if let (true, Some(last)) = (select.from.is_empty(), select.projection.last()) {
        return Err(PlanError::after(
            last,
            format!("`from` is missing behind the columns; {FORM}"),
        ));
    }
    let [from] = select.from.as_mut_slice() else {
        return Err(PlanError::about(
            &["from"],
            format!("it reads more than one table; {FORM}"),
        ));
    };
    if !from.joins.is_empty() {
        return Err(PlanError::about(
            &["join"],
            format!("joins are not allowed here; {FORM}"),
        ));
    }
    let ast::TableFactor::Table {
        name, alias, args, ..
    } = &mut from.relation
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
            format!("`{other}` is no argument of a window; {FORM}"),
        )),
    });
    let mut name_of = |what: &str| match arguments.next() {
        Some(Ok(ast::Expr::Identifier(name))) => Ok(name),
        Some(Err(error)) => Err(error),
        Some(Ok(other)) => Err(PlanError::at(
            &other,
            format!("`{other}` is no {what}; {FORM}"),
        )),
        None => Err(PlanError::about(
            &[&function],
            format!("the {what} is missing; {FORM}"),
        )),
    };
    let (over, time) = (name_of("stream")?, name_of("time column")?);
    let arguments = arguments.collect::<Result<_, _>>()?;
    *name = ast::ObjectName::from(vec![ast::Ident::new(INPUT)]);
    if alias.is_none() {
        *alias = Some(ast::TableAlias {
            explicit: true,
            name: ast::Ident::new(&over.value),
            columns: Vec::new(),
            at: None,
        });
    }
    Ok(Call {
        function,
        over,
        time,
        arguments,
    })
}

/// An interval, whose units are of a fixed length only where there is no calendar.
#[derive(Debug, Clone, Copy)]
struct Length {
    months: i64,
    days: i64,
    micros: Micros,
}

impl Length {
    /// Microseconds, where a day has 24 hours.
    fn fixed(self) -> Micros {
        self.days * MICROS_PER_DAY + self.micros
    }
}

/// The interval that an argument says; `in_zone` where months have their place in a calendar.
fn interval(
    function: &str,
    expression: Option<&ast::Expr>,
    what: &str,
    in_zone: bool,
) -> Result<Length, PlanError> {
    let wrong = |why: &str| {
        let message = format!("the {what} {why}; write for example interval '10 seconds'");
        let refusal = PlanError::about(&["interval", function], message);
        expression.map_or(refusal.clone(), |found| {
            refusal.placed(ast::Spanned::span(found))
        })
    };
    let Some(ast::Expr::Interval(interval)) = expression else {
        return Err(wrong("is missing or no interval"));
    };
    let value = match interval.value.as_ref() {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::SingleQuotedString(text) => text.clone(),
            ast::Value::Number(number, _) => number.clone(),
            _ => return Err(wrong("is no interval")),
        },
        _ => return Err(wrong("is no constant")),
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
        (0, _) if (SHORTEST..=LONGEST).contains(&length.fixed()) => Ok(length),
        (0, _) => Err(wrong("lies outside 1 ms to 400 days")),
        (_, false) => Err(wrong(
            "has months or years, which are equally long only by a calendar: name a zone, for example 'UTC'",
        )),
        (_, true) if days != 0 || length.micros != 0 => {
            Err(wrong("mixes months with shorter units"))
        }
        (_, true) if (1..=LONGEST_MONTHS).contains(&months) => Ok(length),
        (_, true) => Err(wrong(&format!("lies outside 1 to {LONGEST_MONTHS} months"))),
    }
}

/// The zone that the last argument of `tumble` or `hop` names.
fn zone(argument: &ast::Expr) -> Option<Result<&'static LocalTime, PlanError>> {
    let ast::Expr::Value(value) = argument else {
        return None;
    };
    let ast::Value::SingleQuotedString(name) = &value.value else {
        return None;
    };
    Some(
        name.parse()
            .map(|zone: Zone| LocalTime::of(zone))
            .map_err(|message: String| PlanError::at(argument, message)),
    )
}

/// Windows of local time: a slide, and a size that is some of them.
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
        ) => (Step::Clock(micros), whole(size.fixed(), micros)),
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
        ) => (Step::Days(days), whole(size.days, days)),
        (
            Length {
                months,
                days: 0,
                micros: 0,
            },
            Length {
                days: 0, micros: 0, ..
            },
        ) if months > 0 => (Step::Months(months), whole(size.months, months)),
        _ => {
            let message = "local time is cut by hours and shorter, by days and weeks, or by months: write one of these kinds";
            return Err(PlanError::at(at, message));
        }
    };
    let count = count.filter(|n| *n <= MOST_PANES).ok_or_else(|| {
        let message = format!(
            "where a zone is named, the size is a multiple of the slide, at most {MOST_PANES} of it"
        );
        PlanError::at(at, message)
    })?;
    Ok(WindowAssigner::Local {
        calendar: Calendar { zone, step },
        steps: count as usize,
    })
}

/// How many of a part a whole is.
fn whole(whole: i64, part: i64) -> Option<i64> {
    (whole >= part && whole % part == 0).then(|| whole / part)
}

/// How the call cuts time; `column` finds a column of what it reads.
pub(super) fn shape(
    call: &Call,
    column: &dyn Fn(&ast::Ident) -> Result<usize, PlanError>,
) -> Result<Shape, PlanError> {
    let mut arguments = call.arguments.as_slice();
    let zone = arguments.last().and_then(zone).transpose()?;
    if let (Some(_), [before @ .., last]) = (zone, arguments) {
        if call.function == "session" {
            let message = "a session has no zone: its gap is as long everywhere; leave it out";
            return Err(PlanError::at(last, message));
        }
        arguments = before;
    }
    let at =
        |n: usize, what: &str| interval(&call.function, arguments.get(n), what, zone.is_some());
    let exactly = |n: usize| {
        if arguments.len() == n {
            return Ok(());
        }
        let message = format!("{} takes {} arguments; {FORM}", call.function, n + 2);
        Err(PlanError::about(&[&call.function], message))
    };
    match call.function.as_str() {
        "tumble" => {
            exactly(1)?;
            let size = at(0, "size")?;
            Ok(Shape::Aligned(match zone {
                Some(zone) => in_zone(zone, size, size, &arguments[0])?,
                None => WindowAssigner::Fixed {
                    slide: size.fixed(),
                    size: size.fixed(),
                },
            }))
        }
        "hop" => {
            exactly(2)?;
            let (slide, size) = (at(0, "slide")?, at(1, "size")?);
            if let Some(zone) = zone {
                return in_zone(zone, slide, size, &arguments[1]).map(Shape::Aligned);
            }
            let (slide, size) = (slide.fixed(), size.fixed());
            if slide > size {
                let message = "the slide is longer than the size: hop(STREAM, TIME, SLIDE, SIZE)";
                return Err(PlanError::at(&arguments[0], message));
            }
            if size / gcd(slide, size) > MOST_PANES {
                let message = format!(
                    "size and slide have no larger common part than a {MOST_PANES}th; lengthen the slide"
                );
                return Err(PlanError::at(&arguments[0], message));
            }
            Ok(Shape::Aligned(WindowAssigner::Fixed { slide, size }))
        }
        "session" => {
            if arguments.len() == 1 {
                return Err(PlanError::about(
                    &["session"],
                    format!("a session without a key is not bounded; {FORM}"),
                ));
            }
            exactly(2)?;
            let gap = at(0, "gap")?.fixed();
            match &arguments[1] {
                ast::Expr::Identifier(key) => Ok(Shape::Session {
                    gap,
                    key: column(key)?,
                }),
                other => Err(PlanError::at(
                    other,
                    format!("`{other}` is no key column; {FORM}"),
                )),
            }
        }
        other => Err(PlanError::about(
            &[other],
            format!("there is no window `{other}`; {FORM}"),
        )),
    }
}
