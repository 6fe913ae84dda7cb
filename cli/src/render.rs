//! A failure as text and as JSON, with what to do next.

use serde::Serialize;

use crate::failure::{Facts, Failure};
use crate::next::{self, Concerned, Suggestions};
use crate::text::printable;
use crate::typed;
use crate::vocabulary::{Answer, Line};

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

/// A failure, the last object on standard error.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ErrorAnswer {
    /// The exit code of the program.
    exit: u8,
    /// The stable name of the error.
    code: String,
    message: String,
    #[serde(flatten)]
    facts: Facts,
    /// The number of bytes written before the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<u64>,
    /// What the host says about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    hints: Vec<String>,
    /// Commands that go on from here, the likeliest first.
    next: Vec<String>,
}

impl Answer for ErrorAnswer {
    const SCHEMA: &'static str = "avhdx.error/1";
}

/// A failure as JSON; `None` if nothing is to be printed.
pub(crate) fn answer(failure: &Failure) -> Option<ErrorAnswer> {
    let Suggestions { hints, next } =
        if failure.is_silent() { return None } else { suggestions(failure) };
    Some(ErrorAnswer {
        exit: failure.exit as u8,
        code: failure.code().to_owned(),
        message: failure.message().to_owned(),
        facts: failure.facts().clone(),
        written: failure.written(),
        cause: failure.cause().map(str::to_owned),
        hints,
        next,
    })
}

/// A failure as a line of JSON; `None` if nothing is to be printed.
pub(crate) fn json(failure: &Failure) -> Option<String> {
    serde_json::to_string(&Line::of(&answer(failure)?)).ok()
}

/// The failure's own hints before those of the table; its own commands instead of those.
fn suggestions(failure: &Failure) -> Suggestions {
    let Facts { kind, file, child, .. } = failure.facts();
    let concerned = Concerned { file: file.as_deref(), child: child.as_deref() };
    let (own, of_table) =
        (failure.advice(), next::advice(failure.code(), *kind, failure.exit, concerned));
    let mut hints = own.hints.clone();
    hints.extend(of_table.hints);
    hints.extend(file.as_deref().and_then(typed::link_to));
    let mut next = if own.next.is_empty() { of_table.next } else { own.next.clone() };
    next.extend(own.last.iter().cloned());
    Suggestions { hints, next }
}
