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
}

impl Console {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, out: BufWriter::with_capacity(64 << 10, io::stdout()) }
    }

    /// Whether answers are wanted as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Writes bytes of an answer as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| Failure::stdout(&error))
    }

    /// Writes a line of an answer.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> Result<(), Failure> {
        let line = line.as_ref().trim_end();
        writeln!(self.out, "{line}").map_err(|error| Failure::stdout(&error))
    }

    /// Writes an object on a line of its own.
    pub(crate) fn object(&mut self, object: &Value) -> Result<(), Failure> {
        writeln!(self.out, "{object}").map_err(|error| Failure::stdout(&error))
    }

    /// Writes an object as the whole of an answer, laid out for people to read as well.
    pub(crate) fn document(&mut self, object: &Value) -> Result<(), Failure> {
        writeln!(self.out, "{object:#}").map_err(|error| Failure::stdout(&error))
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| Failure::stdout(&error))
    }

    /// Says something beside the answer.
    pub(crate) fn note(&mut self, code: &str, message: &str) {
        self.aside("avhdx.note/1", "avhdx: ", code, message);
    }

    /// Warns of something beside the answer.
    pub(crate) fn warn(&mut self, code: &str, message: &str) {
        self.aside("avhdx.warning/1", "avhdx: warning: ", code, message);
    }

    pub(crate) fn warnings(&mut self, warnings: &[Warning]) {
        for warning in warnings {
            self.warn(warning.code, &warning.message);
        }
    }

    /// The last word, after whatever of the answer was written before.
    pub(crate) fn failure(&mut self, failure: &Failure) {
        // A reader that went away has been noticed, or is no news any more.
        let _ = self.out.flush();
        let text = if self.json {
            failure.json().map(|object| object.to_string())
        } else {
            failure.text()
        };
        if let Some(text) = text {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    fn aside(&mut self, schema: &str, prefix: &str, code: &str, message: &str) {
        // Nobody to tell when standard error is gone.
        let _ = if self.json {
            let object = json!({ "schema": schema, "code": code, "message": message });
            writeln!(io::stderr(), "{object}")
        } else {
            writeln!(io::stderr(), "{prefix}{message}")
        };
    }
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
}
