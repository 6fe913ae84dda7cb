//! A failure as text and as JSON, with what to do next.

use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::next::{self, Concerned, Suggestions};
use crate::text::printable;
use crate::typed;

/// The text of a failure; `None` if nothing is to be printed.
pub(crate) fn text(failure: &Failure) -> Option<String> {
    if failure.is_silent() {
        return None;
    }
    let mut text = format!("avhdx: {}", printable(failure.message()));
    if let Some(cause) = failure.cause() {
        text += &format!(": {}", printable(cause));
    }
    let Suggestions { hints, next } = suggestions(failure);
    for hint in hints {
        text += &format!("\n  hint: {hint}");
    }
    for command in next {
        text += &format!("\n{}", next_line(&command));
    }
    Some(text)
}

/// The line that suggests a command.
pub(crate) fn next_line(command: &str) -> String {
    format!("  next: {command}")
}

/// A failure as a JSON object; `None` if nothing is to be printed.
pub(crate) fn json(failure: &Failure) -> Option<Value> {
    if failure.is_silent() {
        return None;
    }
    let mut object = Map::new();
    object.insert("schema".into(), "avhdx.error/1".into());
    object.insert("exit".into(), (failure.exit as u8).into());
    object.insert("code".into(), failure.code().into());
    object.insert("message".into(), failure.message().into());
    object.extend(failure.facts().iter().map(|(key, value)| (key.clone(), value.clone())));
    if let Some(cause) = failure.cause() {
        object.insert("cause".into(), cause.into());
    }
    let Suggestions { hints, next } = suggestions(failure);
    object.insert("hints".into(), json!(hints));
    object.insert("next".into(), json!(next));
    Some(object.into())
}

/// The failure's own hints before those of the table; its own commands instead of those.
fn suggestions(failure: &Failure) -> Suggestions {
    let fact = |name: &str| failure.facts().get(name).and_then(Value::as_str);
    let concerned = Concerned { file: fact("file"), child: fact("child") };
    let (own, of_table) =
        (failure.advice(), next::advice(failure.code(), fact("kind"), failure.exit, concerned));
    let mut hints = own.hints.clone();
    hints.extend(of_table.hints);
    hints.extend(fact("file").and_then(typed::link_to));
    let mut next = if own.next.is_empty() { of_table.next } else { own.next.clone() };
    next.extend(own.last.iter().cloned());
    Suggestions { hints, next }
}
