//! Standard output and standard error, as text or as JSON.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use avhdx::Warning;
use serde_json::{Value, json};

use crate::exit::Failure;

/// Where answers, warnings and errors go.
#[derive(Debug)]
pub(crate) struct Console {
    json: bool,
    out: BufWriter<Stdout>,
    /// Whether what was asked is done, and only to be told yet.
    is_done: bool,
    /// Whether an image was mended before that, without what was lost.
    is_mended: bool,
    /// What of an image was given up on the way, for programs, and whether that is more than nothing.
    losses: Option<(Value, bool)>,
}

impl Console {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            out: BufWriter::with_capacity(64 << 10, io::stdout()),
            is_done: false,
            is_mended: false,
            losses: None,
        }
    }

    /// Whether answers are wanted as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Notes that what was asked is done: what fails from now on is the telling.
    pub(crate) fn done(&mut self) {
        self.is_done = true;
    }

    fn untold(&self, error: &io::Error) -> Failure {
        let failure = Failure::stdout(error);
        if self.is_done { failure.of_what_is_done() } else { failure }
    }

    /// Writes bytes of an answer as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| self.untold(&error))
    }

    /// Writes a line of an answer.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> Result<(), Failure> {
        let line = printable(line.as_ref());
        writeln!(self.out, "{}", line.trim_end()).map_err(|error| self.untold(&error))
    }

    /// Writes a table and an empty line.
    pub(crate) fn table(&mut self, table: Table) -> Result<(), Failure> {
        for line in table.lines() {
            self.line(line)?;
        }
        self.line("")
    }

    /// Writes an object on a line of its own.
    pub(crate) fn object(&mut self, object: &Value) -> Result<(), Failure> {
        writeln!(self.out, "{object}").map_err(|error| self.untold(&error))
    }

    /// Writes an object as the whole of an answer, laid out for people to read as well. What was lost on the way
    /// is part of it.
    pub(crate) fn document(&mut self, object: &Value) -> Result<(), Failure> {
        let mut object = object.clone();
        if let (Some(object), Some((losses, _))) = (object.as_object_mut(), &self.losses) {
            object.insert("accepted_loss".into(), losses.clone());
        }
        writeln!(self.out, "{object:#}").map_err(|error| self.untold(&error))
    }

    /// Notes what was given up, and whether bytes were.
    pub(crate) fn lose(&mut self, losses: Value, any: bool) {
        self.losses = Some((losses, any));
    }

    /// Whether bytes of an image were given up.
    pub(crate) fn has_losses(&self) -> bool {
        self.losses.as_ref().is_some_and(|(_, any)| *any)
    }

    /// Notes that an image was mended.
    pub(crate) fn mended(&mut self) {
        self.is_mended = self.losses.is_some();
    }

    pub(crate) fn is_mended(&self) -> bool {
        self.is_mended
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| self.untold(&error))
    }

    /// Says something beside the answer.
    pub(crate) fn note(&mut self, code: &str, message: &str) {
        self.aside("avhdx.note/1", "avhdx: ", code, message, None);
    }

    /// Warns of something beside the answer.
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

    /// The last word, after whatever of the answer was written before.
    pub(crate) fn failure(&mut self, failure: &Failure) {
        // A reader that went away has been noticed, or is no news any more.
        let _ = self.out.flush();
        complain(failure, self.json);
    }

    fn aside(&mut self, schema: &str, prefix: &str, code: &str, message: &str, file: Option<&str>) {
        // Nobody to tell when standard error is gone.
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

/// Says on standard error why there is no answer. Standard output is left alone: another thread may be
/// waiting for it.
pub(crate) fn complain(failure: &Failure, json: bool) {
    let text = if json { failure.json().map(|object| object.to_string()) } else { failure.text() };
    if let Some(text) = text {
        // Nobody to tell when standard error is gone.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// A title and rows below it, in columns.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
    remarks: Vec<String>,
}

impl Table {
    /// A table with column names; those that start with `>` are of numbers.
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        let names = columns.iter().map(|name| name.trim_start_matches('>').to_owned());
        Self {
            title: title.into(),
            right: columns.iter().map(|name| name.starts_with('>')).collect(),
            rows: vec![names.collect()],
            remarks: Vec::new(),
        }
    }

    /// A table of names and values.
    pub(crate) fn fields(title: &str) -> Self {
        Self { title: title.into(), right: vec![false; 2], rows: Vec::new(), remarks: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn field(&mut self, name: &str, value: impl ToString) {
        self.row([name.to_owned(), value.to_string()]);
    }

    pub(crate) fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    pub(crate) fn with_remark(mut self, remark: impl Into<String>) -> Self {
        self.remark(remark);
        self
    }

    fn lines(&self) -> Vec<String> {
        let mut widths = vec![0; self.right.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(printable(cell).chars().count());
            }
        }
        let mut lines = vec![self.title.clone()];
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), right) in
                row.iter().map(|cell| printable(cell)).zip(&widths).zip(&self.right)
            {
                line +=
                    &if *right { format!("  {cell:>width$}") } else { format!("  {cell:width$}") };
            }
            lines.push(line);
        }
        lines.extend(self.remarks.iter().map(|remark| format!("  {remark}")));
        lines
    }
}

/// Text without what would move the cursor of a terminal: names come from strangers' images.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        // Unicode's marks that turn the direction of writing hide what a name really is.
        let turns = matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns {
            safe.extend(c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Whether a person watches standard error.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// A size as `9439744 bytes (9.0 MiB)`.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        1 => "1 byte".into(),
        0..1024 => format!("{bytes} bytes"),
        _ => format!("{bytes} bytes ({})", units(bytes)),
    }
}

/// A size in the unit that fits: `9.0 MiB`, `32 MiB`.
pub(crate) fn units(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).min(6);
    let unit = UNITS[power as usize - 1];
    let whole = 1_u64 << (10 * power);
    if bytes.is_multiple_of(whole) {
        return format!("{} {unit}", bytes / whole);
    }
    // Cut, not rounded: 1023.99 KiB must not read as 1024.0.
    let tenths = u128::from(bytes) * 10 / u128::from(whole);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1), "1 byte");
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1024), "1024 bytes (1 KiB)");
        assert_eq!(size(9_439_744), "9439744 bytes (9.0 MiB)");
        assert_eq!(units((1 << 20) - 1), "1023.9 KiB");
        assert_eq!(units(64 << 40), "64 TiB");
        assert_eq!(units(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn strangers_names_do_not_reach_the_terminal_raw() {
        assert_eq!(printable("a\x1b[2J\nb\u{202e}c ä"), "a\\u{1b}[2J\\u{a}b\\u{202e}c ä");
    }
}
