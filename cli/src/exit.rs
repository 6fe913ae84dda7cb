//! From an error to an exit code, and to what is said of it.

use std::error::Error as _;
use std::io;
use std::process::ExitCode;

use avhdx::ErrorKind;
use serde_json::{Map, Value, json};

use crate::next::{self, Advice, Concerned};
use crate::output::printable;

/// What the program leaves with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Yes = 0,
    No = 1,
    Usage = 2,
    Io = 3,
    Damaged = 4,
    Parent = 5,
    InUse = 6,
    Refused = 7,
    Losses = 8,
    Interrupted = 130,
}

/// How a verb that did its work answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Yes,
    No,
    /// The work was done on an image that had lost bytes, as was agreed to.
    Losses,
}

/// Why a verb could not do its work.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    code: String,
    message: String,
    /// What else programs are told: the facts of the library's own error, where it is one.
    facts: Box<Map<String, Value>>,
    cause: Option<String>,
    /// Hints beside those that the table has, and commands instead of its own.
    own: Box<Advice>,
    /// Commands behind those.
    last: Vec<String>,
    /// The reader of our output went away: nothing to complain of.
    silent: bool,
}

impl Exit {
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

impl Outcome {
    pub(crate) fn code(self) -> ExitCode {
        match self {
            Self::Yes => Exit::Yes.code(),
            Self::No => Exit::No.code(),
            Self::Losses => Exit::Losses.code(),
        }
    }
}

/// What to leave with after clap printed something.
pub(crate) fn usage_code(is_error: bool) -> ExitCode {
    if is_error { Exit::Usage.code() } else { Exit::Yes.code() }
}

impl Failure {
    pub(crate) fn new(exit: Exit, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: code.into(),
            message: message.into(),
            facts: Box::default(),
            cause: None,
            own: Box::default(),
            last: Vec::new(),
            silent: false,
        }
    }

    /// The arguments make no sense.
    pub(crate) fn usage(code: &str, message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, code, message)
    }

    /// The host failed at `what`.
    pub(crate) fn io(code: &str, what: impl Into<String>, error: &io::Error) -> Self {
        Self { cause: Some(error.to_string()), ..Self::new(Exit::Io, code, what) }
    }

    /// Writing the answer failed.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        let is_gone = error.kind() == io::ErrorKind::BrokenPipe;
        let exit = if is_gone { Exit::Yes } else { Exit::Io };
        Self {
            silent: is_gone,
            cause: Some(error.to_string()),
            ..Self::new(exit, "stdout.write", "cannot write to standard output")
        }
    }

    /// Says that all was done that was asked, but this.
    pub(crate) fn of_what_is_done(self) -> Self {
        let message = format!("what was asked is done, and not told: {}", self.message);
        Self { code: "stdout.done".into(), message, ..self }
    }

    /// The user stopped the program.
    pub(crate) fn interrupted(message: &str) -> Self {
        Self::new(Exit::Interrupted, "interrupted", message)
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Whether it is the failure of this code.
    pub(crate) fn is(&self, code: &str) -> bool {
        self.code == code
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.own.hints.push(hint.into());
        self
    }

    /// Names a command to go on with, instead of those that are advised otherwise.
    pub(crate) fn then(mut self, command: impl Into<String>) -> Self {
        self.own.next.push(command.into());
        self
    }

    /// Names a command to go on with behind all others.
    pub(crate) fn or_else(mut self, command: impl Into<String>) -> Self {
        self.last.push(command.into());
        self
    }

    /// Says what else is to be known.
    pub(crate) fn also(mut self, what: &str) -> Self {
        self.message += &format!("; {what}");
        self
    }

    /// Says how many bytes were written before.
    pub(crate) fn with_written(mut self, bytes: u64) -> Self {
        self.facts.insert("written".into(), bytes.into());
        self.also(&format!("{bytes} bytes were written before"))
    }

    /// Calls a file by another name.
    pub(crate) fn renamed(mut self, from: &str, to: &str) -> Self {
        self.message = self.message.replace(from, to);
        if let Some(Value::String(file)) = self.facts.get_mut("file") {
            *file = file.replace(from, to);
        }
        self
    }

    /// What would help: this failure's own hints, then those of the table.
    fn advice(&self) -> Advice {
        let fact = |name: &str| self.facts.get(name).and_then(Value::as_str);
        let concerned = Concerned { file: fact("file"), child: fact("child") };
        let mut advice = next::advice(&self.code, fact("kind"), self.exit, concerned);
        advice.hints.splice(0..0, self.own.hints.iter().cloned());
        advice.hints.extend(fact("file").and_then(next::link_to));
        if !self.own.next.is_empty() {
            advice.next.clone_from(&self.own.next);
        }
        advice.next.extend(self.last.iter().cloned());
        advice
    }

    /// The text for people, or nothing where nothing is to be said.
    pub(crate) fn text(&self) -> Option<String> {
        if self.silent {
            return None;
        }
        let mut text = format!("avhdx: {}", printable(&self.message));
        if let Some(cause) = &self.cause {
            text += &format!(": {}", printable(cause));
        }
        let Advice { hints, next } = self.advice();
        for hint in hints {
            text += &format!("\n  hint: {hint}");
        }
        for command in next {
            text += &format!("\n  next: {command}");
        }
        Some(text)
    }

    /// The same for programs.
    pub(crate) fn json(&self) -> Option<Value> {
        if self.silent {
            return None;
        }
        let mut object = Map::new();
        object.insert("schema".into(), "avhdx.error/1".into());
        object.insert("exit".into(), (self.exit as u8).into());
        object.insert("code".into(), self.code.clone().into());
        object.insert("message".into(), self.message.clone().into());
        object.extend(self.facts.iter().map(|(key, value)| (key.clone(), value.clone())));
        if let Some(cause) = &self.cause {
            object.insert("cause".into(), cause.clone().into());
        }
        let Advice { hints, next } = self.advice();
        object.insert("hints".into(), json!(hints));
        object.insert("next".into(), json!(next));
        Some(object.into())
    }
}

impl From<avhdx::Error> for Failure {
    fn from(error: avhdx::Error) -> Self {
        Self {
            exit: exit_of(&error),
            code: error.code().into(),
            message: error.to_string(),
            cause: error.source().map(ToString::to_string),
            facts: Box::new(facts_of(&error)),
            own: Box::default(),
            last: Vec::new(),
            silent: false,
        }
    }
}

fn facts_of(error: &avhdx::Error) -> Map<String, Value> {
    let facts = [
        ("kind", Some(kind_name(error.kind()).into())),
        ("file", error.file().map(Value::from)),
        ("child", error.child().map(Value::from)),
        ("offset", error.offset().map(Value::from)),
        ("found", error.found().map(Value::from)),
        ("expected", error.expected().map(Value::from)),
        ("section", error.section().map(Value::from)),
    ];
    facts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

fn exit_of(error: &avhdx::Error) -> Exit {
    match error.kind() {
        ErrorKind::Io if error.code() == "create.exists" => Exit::Refused,
        ErrorKind::Io | ErrorKind::Poisoned | ErrorKind::NoSpace => Exit::Io,
        ErrorKind::Limit if error.code() == "limit.open-files" => Exit::Io,
        ErrorKind::NotVhdx | ErrorKind::Damaged | ErrorKind::LogWithoutEntries => Exit::Damaged,
        ErrorKind::ParentRequired
        | ErrorKind::ParentMissing
        | ErrorKind::ParentMismatch
        | ErrorKind::ParentDenied => Exit::Parent,
        ErrorKind::InUse => Exit::InUse,
        ErrorKind::InvalidInput => Exit::Usage,
        ErrorKind::Cancelled => Exit::Interrupted,
        // Unsupported, LogPending, LogOverlay, ReadOnly, HasChildren, Limit, and what is yet to come.
        _ => Exit::Refused,
    }
}

/// The names of kinds in JSON.
pub(crate) const KINDS: &[(ErrorKind, &str)] = &[
    (ErrorKind::Io, "io"),
    (ErrorKind::NotVhdx, "not-vhdx"),
    (ErrorKind::Damaged, "damaged"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::LogWithoutEntries, "log-without-entries"),
    (ErrorKind::LogPending, "log-pending"),
    (ErrorKind::LogOverlay, "log-overlay"),
    (ErrorKind::ParentRequired, "parent-required"),
    (ErrorKind::ParentMissing, "parent-missing"),
    (ErrorKind::ParentMismatch, "parent-mismatch"),
    (ErrorKind::ParentDenied, "parent-denied"),
    (ErrorKind::InUse, "in-use"),
    (ErrorKind::ReadOnly, "read-only"),
    (ErrorKind::HasChildren, "has-children"),
    (ErrorKind::Poisoned, "poisoned"),
    (ErrorKind::InvalidInput, "invalid-input"),
    (ErrorKind::Cancelled, "cancelled"),
    (ErrorKind::Limit, "limit"),
    (ErrorKind::Unproven, "unproven"),
    (ErrorKind::NoSpace, "no-space"),
    (ErrorKind::WouldLose, "would-lose"),
    (ErrorKind::Merged, "merged"),
    (ErrorKind::Unfinished, "unfinished"),
];

fn kind_name(kind: ErrorKind) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("other", |(_, name)| name)
}
