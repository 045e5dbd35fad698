//! `endpoints.md`: the routes of the OpenAPI document.

use serde_json::Value;

use super::markdown::{cell, code, paragraph, table};

const INTRODUCTION: &str = "A server describes its routes at `/openapi.json`, and at `/docs` as a page to try them. An error is \
`{\"error\": {\"code\", \"message\", \"hint\"}}`; its hint says what to do. With tokens, a request has \
`Authorization: Bearer TOKEN`; a read-only token gets 403 where something would be written.";

/// The page.
pub fn page() -> String {
    let document = crate::server::document();
    let mut out = "# Endpoints\n\n".to_owned() + &paragraph(INTRODUCTION);
    let operations = operations(&document);
    let overview: Vec<[String; 2]> = operations
        .iter()
        .map(|(name, operation)| [code(name), summary(operation)])
        .collect();
    out += &table(["route", "does"], &overview);
    for (name, operation) in &operations {
        out += &format!("## `{name}`\n\n{}", paragraph(&description(operation)));
        out += &parameters(name, operation);
        out += &body(&document, operation);
        out += &responses(operation);
    }
    out
}

/// `METHOD /path` with its operation, in the order of the document.
fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let methods = ["get", "post", "put", "patch", "delete"];
    let mut out = Vec::new();
    for (path, item) in paths {
        for method in methods {
            if let Some(operation) = item.get(method) {
                out.push((format!("{} {path}", method.to_uppercase()), operation));
            }
        }
    }
    out
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn summary(operation: &Value) -> String {
    cell(text(operation, "summary"))
}

fn description(operation: &Value) -> String {
    let (summary, more) = (text(operation, "summary"), text(operation, "description"));
    if more.starts_with(summary) {
        more.to_owned()
    } else {
        format!("{summary} {more}")
    }
}

/// The type of a schema, without null.
fn type_of(schema: &Value) -> String {
    let one = |ty: &Value| ty.as_str().filter(|ty| *ty != "null").map(str::to_owned);
    match &schema["type"] {
        Value::Array(types) => types
            .iter()
            .filter_map(one)
            .collect::<Vec<_>>()
            .join(" or "),
        ty => one(ty).unwrap_or_else(|| "value".to_owned()),
    }
}

/// What the verb that asks the endpoint says of its flag of this name: parameters have the flags'
/// names, but for the text of a search.
fn meaning_of_flag(route: &str, parameter: &str) -> String {
    let verb = route.split('/').nth(3).unwrap_or_default();
    let flag = if parameter == "q" { "text" } else { parameter };
    let command = crate::cli::command();
    let find = |verb: &clap::Command| {
        let named = |arg: &&clap::Arg| arg.get_long().unwrap_or(arg.get_id().as_str()) == flag;
        verb.get_arguments().find(named).cloned()
    };
    let own = command.get_subcommands().find(|of| of.get_name() == verb);
    // A stream is the same of all verbs.
    let any = || {
        let mut verbs = command.get_subcommands().filter(|_| flag == "stream");
        verbs.find_map(find)
    };
    let arg = own.and_then(find).or_else(any);
    let arg = arg.as_ref();
    let help = arg.and_then(|arg| arg.get_long_help().or(arg.get_help()));
    help.map(|help| cell(&help.to_string())).unwrap_or_default()
}

fn parameters(route: &str, operation: &Value) -> String {
    let Some(parameters) = operation["parameters"].as_array().filter(|p| !p.is_empty()) else {
        return String::new();
    };
    let row = |parameter: &Value| {
        let required = if parameter["required"] == true {
            ", required"
        } else {
            ""
        };
        let place = format!("{}{required}", text(parameter, "in"));
        let own = cell(text(parameter, "description"));
        let name = text(parameter, "name");
        let meaning = match (own.is_empty(), text(parameter, "in")) {
            (false, _) => own,
            // What it is, the path says.
            (true, "path") => "–".to_owned(),
            (true, _) => meaning_of_flag(route, name),
        };
        [code(name), place, type_of(&parameter["schema"]), meaning]
    };
    let rows: Vec<[String; 4]> = parameters.iter().map(row).collect();
    table(["parameter", "in", "type", "meaning"], &rows)
}

/// The members of a body that the document describes.
fn body(document: &Value, operation: &Value) -> String {
    let Some(content) = operation["requestBody"]["content"].as_object() else {
        return String::new();
    };
    let types: Vec<String> = content.keys().map(|ty| code(ty)).collect();
    let mut out = paragraph(&format!("Body: {}.", types.join(", ")));
    let schema = content
        .values()
        .next()
        .map_or(&Value::Null, |media| &media["schema"]);
    let name = text(schema, "$ref").rsplit('/').next().unwrap_or_default();
    let schema = &document["components"]["schemas"][name];
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    if let Some(properties) = schema["properties"].as_object() {
        let row = |(name, property): (&String, &Value)| {
            let is_required = required.iter().any(|of| of == name.as_str());
            let ty = type_of(property) + if is_required { ", required" } else { "" };
            [code(name), ty, cell(text(property, "description"))]
        };
        let rows: Vec<[String; 3]> = properties.iter().map(row).collect();
        out += &table(["member", "type", "meaning"], &rows);
    }
    out
}

fn responses(operation: &Value) -> String {
    let Some(responses) = operation["responses"].as_object() else {
        return String::new();
    };
    let one = |(status, response): (&String, &Value)| {
        let description = cell(text(response, "description"));
        if description.is_empty() {
            code(status)
        } else {
            format!("{} {}", code(status), code(&description))
        }
    };
    let all: Vec<String> = responses.iter().map(one).collect();
    paragraph(&format!("Answers: {}.", all.join(", ")))
}
