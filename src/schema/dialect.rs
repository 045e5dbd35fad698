//! The dialect of Weir's SQL: DuckDB's, with `->` and `->>` as operators on JSON that bind tighter
//! than any other but `::` and `[]`. DuckDB reads `a -> …` as a lambda everywhere; here it is one
//! only where a function takes one.

use std::any::TypeId;

use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::{Dialect, DuckDbDialect};
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

use super::{bounds, rules, strict};

/// Functions whose arguments may be lambdas.
const HIGHER_ORDER_FUNCTIONS: [&str; 9] = [
    "array_transform",
    "list_transform",
    "array_filter",
    "list_filter",
    "array_first",
    "list_first",
    "array_any_match",
    "list_any_match",
    "any_match",
];
/// Between `::` (50) and the arithmetic (40).
const JSON_PRECEDENCE: u8 = 45;
/// How far back the name of a call is searched.
const MAX_TOKENS_BACK: usize = 1_000;

/// The dialect of the module.
#[derive(Debug)]
pub struct WeirDialect;

macro_rules! as_in_duckdb {
    ($($method:ident),* $(,)?) => {
        $(fn $method(&self) -> bool {
            DuckDbDialect.$method()
        })*
    };
}

impl Dialect for WeirDialect {
    fn dialect(&self) -> TypeId {
        TypeId::of::<DuckDbDialect>()
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        DuckDbDialect.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        DuckDbDialect.is_identifier_part(ch)
    }

    as_in_duckdb!(
        supports_trailing_commas,
        supports_filter_during_aggregation,
        supports_group_by_expr,
        supports_bitwise_shift_operators,
        supports_named_fn_args_with_eq_operator,
        supports_named_fn_args_with_assignment_operator,
        supports_dictionary_syntax,
        support_map_literal_syntax,
        supports_lambda_functions,
        allow_extract_single_quotes,
        supports_explain_with_utility_options,
        supports_load_extension,
        supports_array_typedef_with_brackets,
        supports_from_first_select,
        supports_order_by_all,
        supports_select_wildcard_exclude,
        supports_notnull_operator,
        supports_install,
        supports_detach,
        supports_select_wildcard_replace,
        supports_comma_separated_trim,
    );

    fn get_next_precedence(&self, parser: &Parser<'_>) -> Option<Result<u8, ParserError>> {
        let is_json = matches!(
            parser.peek_token_ref().token,
            Token::Arrow | Token::LongArrow | Token::HashArrow | Token::HashLongArrow
        );
        is_json.then_some(Ok(JSON_PRECEDENCE))
    }

    /// Parses a name before `->`, in parentheses or not, where no lambda can occur.
    fn parse_prefix(&self, parser: &mut Parser<'_>) -> Option<Result<ast::Expr, ParserError>> {
        let nth = |n: usize| &parser.peek_nth_token_ref(n).token;
        let (word_at, tokens) = match (nth(0), nth(1)) {
            (Token::Word(_), Token::Arrow) => (0, 1),
            (Token::LParen, Token::Word(_))
                if nth(2) == &Token::RParen && nth(3) == &Token::Arrow =>
            {
                (1, 3)
            }
            _ => return None,
        };
        if is_argument_of_higher_order_function(parser) {
            return None;
        }
        let token = parser.peek_nth_token_ref(word_at).clone();
        let Token::Word(word) = token.token else {
            return None;
        };
        for _ in 0..tokens {
            parser.next_token();
        }
        Some(Ok(ast::Expr::Identifier(word.into_ident(token.span))))
    }
}

/// Whether the next token begins an argument of a function that takes lambdas.
fn is_argument_of_higher_order_function(parser: &Parser<'_>) -> bool {
    let before = (0..parser.index())
        .rev()
        .take(MAX_TOKENS_BACK)
        .map(|at| &parser.token_at(at).token);
    let mut before = before
        .filter(|token| !matches!(token, Token::Whitespace(_)))
        .peekable();
    if !matches!(before.peek(), Some(Token::LParen | Token::Comma)) {
        return false;
    }
    let mut depth = 0_usize;
    while let Some(token) = before.next() {
        match token {
            Token::RParen | Token::RBracket | Token::RBrace => depth += 1,
            Token::LBracket | Token::LBrace if depth == 0 => return false,
            Token::LBracket | Token::LBrace => depth -= 1,
            Token::LParen if depth == 0 => {
                let Some(Token::Word(name)) = before.next() else {
                    return false;
                };
                return HIGHER_ORDER_FUNCTIONS
                    .iter()
                    .any(|known| name.value.eq_ignore_ascii_case(known));
            }
            Token::LParen => depth -= 1,
            _ => {}
        }
    }
    false
}

/// Names the limit in the parser's error about nesting.
fn name_nesting_limit(error: DataFusionError, limit: usize) -> DataFusionError {
    match error.find_root() {
        DataFusionError::SQL(parser, _)
            if matches!(**parser, ParserError::RecursionLimitExceeded) =>
        {
            let message = format!(
                "parentheses, calls and subqueries nest more than {limit} levels deep, which is the limit: split the statement, or use `with`"
            );
            bounds::Exceeded(message).into()
        }
        _ => error,
    }
}

/// Parses one statement.
pub fn parse(state: &SessionState, sql: &str) -> Result<Statement, DataFusionError> {
    bounds::text::check_tokens(sql)?;
    let limit = state.config_options().sql_parser.recursion_limit.get();
    let parser = DFParserBuilder::new(sql)
        .with_dialect(&WeirDialect)
        .with_recursion_limit(limit)
        .build();
    let mut statements = parser
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|e| name_nesting_limit(e, limit))?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(mut statement), true) => {
            bounds::text::check(&mut statement)?;
            strict::check(&statement)?;
            rules::rewrite_unnest(&mut statement);
            Ok(statement)
        }
        (None, _) => Err(DataFusionError::Plan("the SQL is empty".into())),
        (Some(_), false) => Err(DataFusionError::NotImplemented(
            "only one SQL statement is allowed".into(),
        )),
    }
}

/// Parses and plans one statement.
#[cfg(test)]
pub async fn plan(
    state: &SessionState,
    sql: &str,
) -> Result<datafusion::logical_expr::LogicalPlan, DataFusionError> {
    state.statement_to_plan(parse(state, sql)?).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(sql: &str) -> String {
        let mut parser = Parser::new(&WeirDialect).try_with_sql(sql).expect("tokens");
        let expression = parser.parse_expr().unwrap_or_else(|e| panic!("{sql}: {e}"));
        bracketed(&expression)
    }

    fn bracketed(expression: &ast::Expr) -> String {
        match expression {
            ast::Expr::BinaryOp { left, op, right } => {
                format!("({} {op} {})", bracketed(left), bracketed(right))
            }
            ast::Expr::Lambda(lambda) => format!("lambda({})", bracketed(&lambda.body)),
            ast::Expr::Nested(inner) => bracketed(inner),
            ast::Expr::Function(function) => match &function.args {
                ast::FunctionArguments::List(list) => {
                    let args = list.args.iter().map(|arg| match arg {
                        ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(e)) => bracketed(e),
                        other => other.to_string(),
                    });
                    format!("{}[{}]", function.name, args.collect::<Vec<_>>().join("; "))
                }
                _ => function.to_string(),
            },
            other => other.to_string(),
        }
    }

    #[test]
    fn arrows_are_operators_on_json_that_bind_tightly() {
        for (sql, wanted) in [
            ("p -> 'a'", "(p -> 'a')"),
            ("(p) -> 'a'", "(p -> 'a')"),
            ("p -> 'a' -> 'b' ->> 0", "(((p -> 'a') -> 'b') ->> 0)"),
            (
                "p ->> 'a' = 'x' and t.p -> 'b' is not null",
                "(((p ->> 'a') = 'x') AND t.p -> 'b' IS NOT NULL)",
            ),
            ("p ->> 'a' || 'x'", "((p ->> 'a') || 'x')"),
            ("1 + p -> 'a' * 2", "(1 + ((p -> 'a') * 2))"),
            (
                "coalesce(p -> 'a', q -> 'b')",
                "coalesce[(p -> 'a'); (q -> 'b')]",
            ),
            (
                "case when p -> 'a' = '1' then 1 end",
                "CASE WHEN p -> 'a' = '1' THEN 1 END",
            ),
        ] {
            assert_eq!(parsed(sql), wanted, "{sql}");
        }
    }

    #[test]
    fn arrows_are_lambdas_where_a_function_takes_one() {
        for (sql, wanted) in [
            (
                "array_transform(v, x -> x + 1)",
                "array_transform[v; lambda((x + 1))]",
            ),
            (
                "list_filter(f(v, 1), x -> x > 1 and x < 9)",
                "list_filter[f[v; 1]; lambda(((x > 1) AND (x < 9)))]",
            ),
            (
                "array_transform(v, (x) -> x)",
                "array_transform[v; lambda(x)]",
            ),
            (
                "array_transform(v, x -> (x -> 'a'))",
                "array_transform[v; lambda((x -> 'a'))]",
            ),
            (
                "array_transform(v, lambda x: x + 1)",
                "array_transform[v; lambda((x + 1))]",
            ),
        ] {
            assert_eq!(parsed(sql), wanted, "{sql}");
        }
    }
}
