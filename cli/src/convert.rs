//! `avhdx convert`: the flat disk in another format.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use avhdx::ops::{Export, Exported};
use clap::ValueEnum;
use serde_json::json;

use crate::args::{self, Format, Opening};
use crate::exit::{Failure, Outcome};
use crate::input::Input;
use crate::output::{Console, size};
use crate::progress::Meter;
use crate::replace::Draft;

/// Write the flat disk to a file (sparse) or to standard output.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// The file to make; - is standard output.
    #[arg(value_name = "OUT")]
    out: OsString,
    /// What to make.
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: OutputFormat,
    /// What the input is.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    /// Replace OUT if it exists.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    opening: Opening,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OutputFormat {
    Raw,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let OutputFormat::Raw = args.output_format;
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    let mut meter = Meter::new(console);
    if args.out == "-" {
        let mut out = io::stdout().lock();
        let done = Export::new().stream(input.disk(), &mut out, &mut |now| meter.report(now));
        drop(meter);
        done.map_err(of_stdout)?;
        return out.flush().map(|()| Outcome::Yes).map_err(|error| Failure::stdout(&error));
    }
    let target = Path::new(&args.out);
    let draft = Draft::new(target, args.overwrite, &input.paths(), console)?;
    let done = Export::new().run(input.disk(), draft.storage(), &mut |now| meter.report(now));
    drop(meter);
    let exported = done.map_err(|error| of_copy(error, target))?;
    draft.publish()?;
    say(&args.out, exported, console)?;
    Ok(Outcome::Yes)
}

fn say(out: &OsString, exported: Exported, console: &mut Console) -> Result<(), Failure> {
    let out = out.to_string_lossy();
    if console.is_json() {
        return console.document(&json!({
            "schema": "avhdx.convert/1",
            "output": out,
            "format": "raw",
            "size": exported.size,
            "written": exported.written,
        }));
    }
    console.line(format!(
        "{out}: {}, of which {} written",
        size(exported.size),
        size(exported.written)
    ))
}

/// The copy is called by its name to be, not by the draft's.
fn of_copy(error: avhdx::Error, target: &Path) -> Failure {
    match host_error(&error) {
        Some(host) => {
            Failure::io("export.write", format!("{}: {}", target.display(), error.message()), host)
        }
        None => error.into(),
    }
}

/// A failure to write to standard output is one of its own kind.
fn of_stdout(error: avhdx::Error) -> Failure {
    match host_error(&error) {
        Some(host) => Failure::stdout(host),
        None => error.into(),
    }
}

/// What the host said to writing.
fn host_error(error: &avhdx::Error) -> Option<&io::Error> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref().filter(|_| error.code() == "export.write")
}
