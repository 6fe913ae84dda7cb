//! Standard output and standard error, as text or as JSON.

use std::io::{self, BufWriter, Stdout, Write};

use avhdx::Warning;
use serde::Serialize;

use crate::failure::Failure;
use crate::paint::Painted;
use crate::render;
use crate::screen;
use crate::table::TextTable;
use crate::text::printable;
use crate::vocabulary::{AcceptedLoss, Answer, Document, Line};

/// Where answers, warnings and errors go.
#[derive(Debug)]
pub(crate) struct Console {
    json: bool,
    /// Neither progress nor notes are printed.
    quiet: bool,
    /// The width of standard output in cells; `None` if it is not a terminal.
    width: Option<usize>,
    has_colours: bool,
    out: BufWriter<Stdout>,
    /// The work is done; only its report is left.
    is_done: bool,
    /// An image was repaired before the work began, with --accept-loss.
    is_repaired: bool,
    /// The accepted losses, and whether data was lost.
    losses: Option<(AcceptedLoss, bool)>,
}

impl Console {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            width: screen::width(),
            has_colours: screen::has_colours(),
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

    /// Whether only answers, warnings and errors are printed.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The width of the terminal in cells, which names are shortened to; `None` if standard output is none.
    pub(crate) fn width(&self) -> Option<usize> {
        self.width
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

    /// Writes a line of an answer, with colours where standard output has them.
    pub(crate) fn painted(&mut self, line: &Painted) -> Result<(), Failure> {
        let line = line.render(self.has_colours);
        writeln!(self.out, "{line}").map_err(|error| self.failed(&error))
    }

    /// Writes a table and an empty line.
    pub(crate) fn table(&mut self, table: TextTable) -> Result<(), Failure> {
        for line in table.lines(self.width) {
            self.painted(&line)?;
        }
        self.line("")
    }

    /// Writes an answer on one line.
    pub(crate) fn object(&mut self, answer: &impl Answer) -> Result<(), Failure> {
        let written = serde_json::to_writer(&mut self.out, &Line::of(answer));
        let written = written.map_err(io::Error::from).and_then(|()| writeln!(self.out));
        written.map_err(|error| self.failed(&error))
    }

    /// Writes the whole answer, indented, with the accepted losses added.
    pub(crate) fn document(&mut self, answer: &impl Answer) -> Result<(), Failure> {
        let losses = self.losses.as_ref().map(|(losses, _)| losses);
        let written = serde_json::to_writer_pretty(&mut self.out, &Document::of(answer, losses));
        let written = written.map_err(io::Error::from).and_then(|()| writeln!(self.out));
        written.map_err(|error| self.failed(&error))
    }

    /// Records the accepted losses, and whether data was lost.
    pub(crate) fn lose(&mut self, losses: AcceptedLoss, any: bool) {
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

    /// Prints a note on standard error, unless the program is to be quiet.
    pub(crate) fn note(&mut self, code: &'static str, message: &str) {
        if self.quiet {
            return;
        }
        if self.json {
            say(&NoteAnswer { code, message });
        } else {
            aside("", message);
        }
    }

    /// Prints a warning on standard error.
    pub(crate) fn warn(&mut self, code: &'static str, message: &str) {
        self.warn_of(code, message, None);
    }

    /// Prints a failure as a warning: something was left out because of it.
    pub(crate) fn left_out(&mut self, failure: &Failure) {
        let cause = failure.cause().map_or(String::new(), |cause| format!(": {cause}"));
        self.warn_of(failure.code(), &format!("{}{cause}", failure.message()), None);
    }

    pub(crate) fn warnings(&mut self, warnings: &[Warning]) {
        for warning in warnings {
            self.warn_of(warning.code, &warning.to_string(), Some(&warning.file));
        }
    }

    fn warn_of(&mut self, code: &str, message: &str, file: Option<&str>) {
        if self.json {
            say(&WarningAnswer { code, message, file });
        } else {
            aside("warning: ", message);
        }
    }

    /// Prints a failure on standard error, after the part of the answer that exists.
    pub(crate) fn failure(&mut self, failure: &Failure) {
        // A broken standard output has been reported, or no longer matters.
        let _ = self.out.flush();
        complain(failure, self.json);
    }
}

/// A remark about what the program does.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct NoteAnswer<'a> {
    /// The stable name of the remark.
    code: &'a str,
    message: &'a str,
}

impl Answer for NoteAnswer<'_> {
    const SCHEMA: &'static str = "avhdx.note/1";
}

/// A warning.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct WarningAnswer<'a> {
    /// The stable name of the warning.
    code: &'a str,
    message: &'a str,
    /// The file that the warning concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
}

impl Answer for WarningAnswer<'_> {
    const SCHEMA: &'static str = "avhdx.warning/1";
}

/// Prints an answer on a line of standard error. A broken standard error cannot be reported.
pub(crate) fn say(answer: &impl Answer) {
    if let Ok(line) = serde_json::to_string(&Line::of(answer)) {
        print_error(&line);
    }
}

fn aside(prefix: &str, message: &str) {
    print_error(&format!("avhdx: {prefix}{}", printable(message)));
}

/// Prints a line on standard error, above a bar. A broken standard error cannot be reported.
fn print_error(line: &str) {
    screen::above(|| drop(writeln!(io::stderr(), "{line}")));
}

/// Prints a failure on standard error, in place of a bar. Does not touch standard output: another thread may hold its lock.
pub(crate) fn complain(failure: &Failure, json: bool) {
    let text = match json {
        true => render::json(failure),
        false => render::text(failure),
    };
    screen::end();
    if let Some(text) = text {
        print_error(&text);
    }
}
