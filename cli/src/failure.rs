//! Why a verb failed, and the exit code for it.

use std::error::Error as _;
use std::io;
use std::process::ExitCode;

use avhdx::ErrorKind;
use serde::Serialize;

/// The exit codes of the program.
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

/// The answer of a verb that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Yes,
    No,
    /// The verb succeeded on an image that had lost data, with the user's consent.
    Losses,
}

/// Why a verb failed, with everything that text and JSON show of it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    code: String,
    message: String,
    /// The facts of the library's error, if there is one.
    facts: Box<Facts>,
    /// The number of bytes written before the failure.
    written: Option<u64>,
    cause: Option<String>,
    advice: Box<Advice>,
    /// Standard output is a closed pipe: nothing is printed.
    silent: bool,
}

/// The facts of an error; what does not apply is left out.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Facts {
    /// The kind of the error, such as `parent-missing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    /// The file that the error concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<String>,
    /// The image whose parent the file is or should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) child: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file_offset: Option<u64>,
    /// The value found there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) found: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expected: Option<String>,
    /// The section of [MS-VHDX] with the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) section: Option<&'static str>,
}

/// An error of the library within an answer.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ErrorFacts {
    /// The stable name of the error.
    code: &'static str,
    message: String,
    #[serde(flatten)]
    facts: Facts,
    /// What the host says about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

impl From<&avhdx::Error> for ErrorFacts {
    fn from(error: &avhdx::Error) -> Self {
        Self {
            code: error.code(),
            message: error.to_string(),
            facts: facts_of(error),
            cause: error.source().map(ToString::to_string),
        }
    }
}

/// What a failure itself suggests, beside the table in `next`.
#[derive(Debug, Default)]
pub(crate) struct Advice {
    pub(crate) hints: Vec<String>,
    /// Commands that replace those of the table.
    pub(crate) next: Vec<String>,
    /// Commands that follow all others.
    pub(crate) last: Vec<String>,
}

impl Exit {
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

impl Reply {
    pub(crate) fn code(self) -> ExitCode {
        match self {
            Self::Yes => Exit::Yes.code(),
            Self::No => Exit::No.code(),
            Self::Losses => Exit::Losses.code(),
        }
    }
}

impl Failure {
    pub(crate) fn new(exit: Exit, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: code.into(),
            message: message.into(),
            facts: Box::default(),
            written: None,
            cause: None,
            advice: Box::default(),
            silent: false,
        }
    }

    /// The arguments are wrong.
    pub(crate) fn usage(code: &str, message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, code, message)
    }

    /// The host failed; `message` says at what.
    pub(crate) fn io(code: &str, message: impl Into<String>, error: &io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::StorageFull => "the volume is full: ",
            io::ErrorKind::QuotaExceeded => "the quota is used up: ",
            _ => "",
        };
        let message = reason.to_owned() + &message.into();
        Self { cause: Some(error.to_string()), ..Self::new(Exit::Io, code, message) }
    }

    /// Standard input failed.
    pub(crate) fn stdin(error: avhdx::Error) -> Self {
        match error.source().and_then(|source| source.downcast_ref()) {
            Some(host) => Self::io("stdin.read", "cannot read standard input", host),
            None => error.into(),
        }
    }

    /// Standard output failed. A closed pipe is not an error.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        let is_gone = error.kind() == io::ErrorKind::BrokenPipe;
        let exit = if is_gone { Exit::Yes } else { Exit::Io };
        Self {
            silent: is_gone,
            cause: Some(error.to_string()),
            ..Self::new(exit, "stdout.write", "cannot write to standard output")
        }
    }

    /// The work is done, and only its report failed.
    pub(crate) fn after_success(self) -> Self {
        let message = format!("the command succeeded, but its output was lost: {}", self.message);
        Self { code: "stdout.done".into(), message, ..self }
    }

    /// The user stopped the program.
    pub(crate) fn interrupted(message: &str) -> Self {
        Self::new(Exit::Interrupted, "interrupted", message)
    }

    pub(crate) fn code(&self) -> &str {
        &self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn written(&self) -> Option<u64> {
        self.written
    }

    pub(crate) fn advice(&self) -> &Advice {
        &self.advice
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Whether the failure has this code.
    pub(crate) fn is(&self, code: &str) -> bool {
        self.code == code
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.advice.hints.push(hint.into());
        self
    }

    /// Suggests a command in place of those that the table has.
    pub(crate) fn then(mut self, command: impl Into<String>) -> Self {
        self.advice.next.push(command.into());
        self
    }

    /// Suggests a command after all others.
    pub(crate) fn or_else(mut self, command: impl Into<String>) -> Self {
        self.advice.last.push(command.into());
        self
    }

    /// Says what it happened to.
    pub(crate) fn within(mut self, name: &str) -> Self {
        self.message = format!("{name}: {}", self.message);
        self
    }

    /// Appends to the message.
    pub(crate) fn also(mut self, what: &str) -> Self {
        self.message += &format!("; {what}");
        self
    }

    /// Reports how many bytes were written before the failure.
    pub(crate) fn with_written(mut self, bytes: u64) -> Self {
        self.written = Some(bytes);
        self.also(&format!("{bytes} bytes were written before"))
    }

    /// Says something in other words, in the message and the facts.
    pub(crate) fn worded(mut self, from: &str, to: &str) -> Self {
        self.message = self.message.replace(from, to);
        if let Some(expected) = &mut self.facts.expected {
            *expected = expected.replace(from, to);
        }
        self
    }

    /// Replaces a file name in the message and the facts.
    pub(crate) fn renamed(mut self, from: &str, to: &str) -> Self {
        self.message = self.message.replace(from, to);
        if let Some(file) = &mut self.facts.file {
            *file = file.replace(from, to);
        }
        self
    }
}

impl From<avhdx::Error> for Failure {
    fn from(error: avhdx::Error) -> Self {
        Self {
            cause: error.source().map(ToString::to_string),
            facts: Box::new(facts_of(&error)),
            ..Self::new(exit_of(&error), error.code(), error.to_string())
        }
    }
}

impl From<avhdx_files::Error> for Failure {
    fn from(error: avhdx_files::Error) -> Self {
        use avhdx_files::ErrorKind as Kind;
        let place =
            [error.volume(), error.path()].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let error = match error.into_disk_error() {
            Ok(error) => return Self::from(error).also(&format!("it is read for {place}")),
            Err(error) => error,
        };
        let (exit, kind) = match error.kind() {
            Kind::Damaged => (Exit::Damaged, Some("damaged")),
            Kind::NotFound => (Exit::Usage, None),
            Kind::InvalidInput => (Exit::Usage, Some("invalid-input")),
            Kind::Limit => (Exit::Refused, Some("limit")),
            Kind::Unclean => (Exit::Refused, Some("unclean")),
            // Unsupported, and kinds added later.
            _ => (Exit::Refused, Some("unsupported")),
        };
        let facts = Facts { kind, ..Facts::default() };
        let cause = error.source().map(ToString::to_string);
        let message = error.to_string();
        Self { facts: Box::new(facts), cause, ..Self::new(exit, error.code(), message) }
    }
}

fn facts_of(error: &avhdx::Error) -> Facts {
    Facts {
        kind: Some(kind_name(error.kind())),
        file: error.file().map(str::to_owned),
        child: error.child().map(str::to_owned),
        file_offset: error.offset(),
        found: error.found().map(str::to_owned),
        expected: error.expected().map(str::to_owned),
        section: error.section(),
    }
}

/// The exit code for an error of the library.
pub(crate) fn exit_of(error: &avhdx::Error) -> Exit {
    match error.kind() {
        ErrorKind::Io if error.code() == "create.exists" => Exit::Refused,
        ErrorKind::Io | ErrorKind::Poisoned | ErrorKind::NoSpace | ErrorKind::Other => Exit::Io,
        ErrorKind::Limit if error.code() == "limit.open-files" => Exit::Io,
        ErrorKind::NotVhdx | ErrorKind::Damaged | ErrorKind::LogWithoutEntries => Exit::Damaged,
        ErrorKind::ParentRequired
        | ErrorKind::ParentMissing
        | ErrorKind::ParentMismatch
        | ErrorKind::ParentDenied => Exit::Parent,
        ErrorKind::InUse => Exit::InUse,
        ErrorKind::InvalidInput => Exit::Usage,
        ErrorKind::Cancelled => Exit::Interrupted,
        // Unsupported, LogPending, LogOverlay, ReadOnly, HasChildren, Limit, and kinds added later.
        _ => Exit::Refused,
    }
}

/// The names of error kinds in JSON.
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
    (ErrorKind::Other, "other"),
];

fn kind_name(kind: ErrorKind) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("other", |(_, name)| name)
}
