//! Standard output and standard error, as text or as JSON.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use avhdx::Warning;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::render;
use crate::table::TextTable;
use crate::text::printable;

/// Where answers, warnings and errors go.
#[derive(Debug)]
pub(crate) struct Console {
    json: bool,
    out: BufWriter<Stdout>,
    /// The work is done; only its report is left.
    is_done: bool,
    /// An image was repaired before the work began, with --accept-loss.
    is_repaired: bool,
    /// The accepted losses as JSON, and whether data was lost.
    losses: Option<(Value, bool)>,
}

impl Console {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            out: BufWriter::with_capacity(64 << 10, io::stdout()),
            is_done: false,
            is_repaired: false,
            losses: None,
        }
    }

    /// Whether the answer is JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Records that the work is done: a later failure to print is reported as such.
    pub(crate) fn done(&mut self) {
        self.is_done = true;
    }

    fn failed(&self, error: &io::Error) -> Failure {
        let failure = Failure::stdout(error);
        if self.is_done { failure.after_success() } else { failure }
    }

    /// Writes bytes of an answer unchanged.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| self.failed(&error))
    }

    /// Writes a line of an answer.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> Result<(), Failure> {
        let line = printable(line.as_ref());
        writeln!(self.out, "{}", line.trim_end()).map_err(|error| self.failed(&error))
    }

    /// Writes a table and an empty line.
    pub(crate) fn table(&mut self, table: TextTable) -> Result<(), Failure> {
        for line in table.lines() {
            self.line(line)?;
        }
        self.line("")
    }

    /// Writes an object on one line.
    pub(crate) fn object(&mut self, object: &Value) -> Result<(), Failure> {
        writeln!(self.out, "{object}").map_err(|error| self.failed(&error))
    }

    /// Writes an object as the whole answer, indented, with the accepted losses added.
    pub(crate) fn document(&mut self, object: &Value) -> Result<(), Failure> {
        let mut object = object.clone();
        if let (Some(object), Some((losses, _))) = (object.as_object_mut(), &self.losses) {
            object.insert("accepted_loss".into(), losses.clone());
        }
        writeln!(self.out, "{object:#}").map_err(|error| self.failed(&error))
    }

    /// Records the accepted losses, and whether data was lost.
    pub(crate) fn lose(&mut self, losses: Value, any: bool) {
        self.losses = Some((losses, any));
    }

    /// Whether data was lost with the user's consent.
    pub(crate) fn has_losses(&self) -> bool {
        self.losses.as_ref().is_some_and(|(_, any)| *any)
    }

    /// Records that an image was repaired.
    pub(crate) fn repaired(&mut self) {
        self.is_repaired = self.losses.is_some();
    }

    pub(crate) fn is_repaired(&self) -> bool {
        self.is_repaired
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| self.failed(&error))
    }

    /// Prints a note on standard error.
    pub(crate) fn note(&mut self, code: &str, message: &str) {
        self.aside("avhdx.note/1", "avhdx: ", code, message, None);
    }

    /// Prints a warning on standard error.
    pub(crate) fn warn(&mut self, code: &str, message: &str) {
        self.warn_of(code, message, None);
    }

    pub(crate) fn warnings(&mut self, warnings: &[Warning]) {
        for warning in warnings {
            self.warn_of(warning.code, &warning.to_string(), Some(&warning.file));
        }
    }

    fn warn_of(&mut self, code: &str, message: &str, file: Option<&str>) {
        self.aside("avhdx.warning/1", "avhdx: warning: ", code, message, file);
    }

    /// Prints a failure on standard error, after the part of the answer that exists.
    pub(crate) fn failure(&mut self, failure: &Failure) {
        // A broken standard output has been reported, or no longer matters.
        let _ = self.out.flush();
        complain(failure, self.json);
    }

    fn aside(&mut self, schema: &str, prefix: &str, code: &str, message: &str, file: Option<&str>) {
        // A broken standard error cannot be reported.
        let _ = if self.json {
            let mut object = json!({ "schema": schema, "code": code, "message": message });
            if let Some(file) = file {
                object["file"] = file.into();
            }
            writeln!(io::stderr(), "{object}")
        } else {
            writeln!(io::stderr(), "{prefix}{}", printable(message))
        };
    }
}

/// Prints a failure on standard error. Does not touch standard output: another thread may hold its lock.
pub(crate) fn complain(failure: &Failure, json: bool) {
    let text = match json {
        true => render::json(failure).map(|object| object.to_string()),
        false => render::text(failure),
    };
    if let Some(text) = text {
        // A broken standard error cannot be reported.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Whether standard error is a terminal.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}
