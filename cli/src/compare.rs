//! `avhdx compare`: compares the content of two disks.

use std::ffi::OsString;

use avhdx::ops::{Compare, Comparison};
use serde::Serialize;

use crate::args::{Format, ReadFlags};
use crate::failure::{Failure, Reply};
use crate::input::Input;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::{cells, padded, size};
use crate::vocabulary::Answer;

/// Compare two disks and print where they first differ.
///
/// Disks of different sizes are different (exit code 1), even if the rest of the longer one is zeros; --ignore-size
/// accepts that.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The first image, or point in time (IMAGE@SEL).
    #[arg(value_name = "A")]
    a: OsString,
    /// The second image, or point in time (IMAGE@SEL).
    #[arg(value_name = "B")]
    b: OsString,
    /// The format of A [default: by the ending of its name, else VHDX].
    #[arg(short = 'f', long, value_name = "FORMAT", value_enum)]
    format: Option<Format>,
    /// The format of B [default: by the ending of its name, else VHDX].
    #[arg(short = 'F', long, value_name = "FORMAT", value_enum)]
    other_format: Option<Format>,
    /// Accept different sizes if the rest of the longer disk is zeros.
    #[arg(long)]
    ignore_size: bool,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let a = Input::open(&args.a, args.format, &args.opening, console)?;
    let b = Input::open(&args.b, args.other_format, &args.opening, console)?;
    let mut meter = ProgressMeter::new(console);
    let found = Compare::new().on_progress(|now| meter.report(now)).run(a.disk(), b.disk());
    drop(meter);
    let found = found?;
    let equal = found.same_contents() && (found.same_size() || args.ignore_size);
    if console.is_json() {
        console.document(&CompareAnswer::of(&args, &found, equal))?;
    } else {
        for line in text(&args, &found) {
            console.line(line)?;
        }
    }
    Ok(if equal { Reply::Yes } else { Reply::No })
}

/// Whether two disks are equal, and where they first differ.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CompareAnswer {
    equal: bool,
    same_contents: bool,
    same_size: bool,
    a: ComparedDisk,
    b: ComparedDisk,
    first_difference: Option<FirstDifference>,
}

impl Answer for CompareAnswer {
    const SCHEMA: &'static str = "avhdx.compare/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ComparedDisk {
    image: String,
    virtual_size: u64,
}

/// The first byte that differs; a byte past the end of a disk is null.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct FirstDifference {
    offset: u64,
    value_a: Option<u8>,
    value_b: Option<u8>,
}

impl CompareAnswer {
    fn of(args: &Args, found: &Comparison, equal: bool) -> Self {
        let disk = |argument: &OsString, virtual_size| ComparedDisk {
            image: argument.to_string_lossy().into_owned(),
            virtual_size,
        };
        Self {
            equal,
            same_contents: found.same_contents(),
            same_size: found.same_size(),
            a: disk(&args.a, found.size_a),
            b: disk(&args.b, found.size_b),
            first_difference: found.first_difference.map(|first| FirstDifference {
                offset: first.offset,
                value_a: first.a,
                value_b: first.b,
            }),
        }
    }
}

fn text(args: &Args, found: &Comparison) -> Vec<String> {
    let (a, b) = (args.a.to_string_lossy(), args.b.to_string_lossy());
    let mut lines = Vec::new();
    match found.first_difference {
        Some(difference) => {
            let byte = |byte: Option<u8>| {
                byte.map_or("past the end".into(), |byte| format!("{byte:#04x}"))
            };
            let at = difference.offset;
            lines.push(format!("The disks differ at byte {at} ({at:#x}):"));
            let width = cells(&a).max(cells(&b));
            let named = |name, value| format!("  {}  {}", padded(name, width, false), byte(value));
            lines.push(named(&a, difference.a));
            lines.push(named(&b, difference.b));
        }
        None if found.same_size() => {
            lines.push(format!("The disks are the same: {}.", size(found.size_a)));
        }
        None => lines
            .push("The disks have the same content; the rest of the longer one is zeros.".into()),
    }
    if !found.same_size() {
        lines.push(format!(
            "Their sizes differ: {} and {}.",
            size(found.size_a),
            size(found.size_b)
        ));
    }
    lines
}
