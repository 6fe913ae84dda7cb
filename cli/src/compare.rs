//! `avhdx compare`: do two disks hold the same bytes?

use std::ffi::OsString;

use avhdx::ops::{Compare, Comparison};
use serde_json::json;

use crate::args::{Format, Opening};
use crate::exit::{Failure, Outcome};
use crate::input::Input;
use crate::output::{Console, size};
use crate::progress::Meter;

/// Compare two disks and say where they first differ.
///
/// Disks of different sizes count as different (exit code 1), even if the longer one goes on in zeros;
/// --ignore-size lets those pass.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The first image, or point in time (IMAGE@SEL).
    #[arg(value_name = "A")]
    a: OsString,
    /// The second image, or point in time (IMAGE@SEL).
    #[arg(value_name = "B")]
    b: OsString,
    /// What A is.
    #[arg(short = 'f', long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    /// What B is.
    #[arg(short = 'F', long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    other_format: Format,
    /// Let disks pass whose sizes differ, if the longer one goes on in zeros.
    #[arg(long)]
    ignore_size: bool,
    #[command(flatten)]
    opening: Opening,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let a = Input::open(&args.a, args.format, &args.opening, console)?;
    let b = Input::open(&args.b, args.other_format, &args.opening, console)?;
    let mut meter = Meter::new(console);
    let found = Compare::new().run(a.disk(), b.disk(), &mut |now| meter.report(now));
    drop(meter);
    let found = found?;
    let equal = found.same_contents() && (found.same_size() || args.ignore_size);
    if console.is_json() {
        console.document(&object(&found, equal))?;
    } else {
        for line in text(&args, &found) {
            console.line(line)?;
        }
    }
    Ok(if equal { Outcome::Yes } else { Outcome::No })
}

fn object(found: &Comparison, equal: bool) -> serde_json::Value {
    let difference = found.first_difference.map(
        |difference| json!({ "offset": difference.offset, "a": difference.a, "b": difference.b }),
    );
    json!({
        "schema": "avhdx.compare/1",
        "equal": equal,
        "same_contents": found.same_contents(),
        "same_size": found.same_size(),
        "size_a": found.size_a,
        "size_b": found.size_b,
        "first_difference": difference,
    })
}

fn text(args: &Args, found: &Comparison) -> Vec<String> {
    let (a, b) = (args.a.to_string_lossy(), args.b.to_string_lossy());
    let mut lines = Vec::new();
    match found.first_difference {
        Some(difference) => {
            let byte =
                |byte: Option<u8>| byte.map_or("its end".into(), |byte| format!("{byte:#04x}"));
            let at = difference.offset;
            lines.push(format!("The disks differ at byte {at} ({at:#x}):"));
            let width = a.chars().count().max(b.chars().count());
            lines.push(format!("  {a:width$}  {}", byte(difference.a)));
            lines.push(format!("  {b:width$}  {}", byte(difference.b)));
        }
        None if found.same_size() => {
            lines.push(format!("The disks are the same: {}.", size(found.size_a)));
        }
        None => lines.push("The disks hold the same bytes, the longer one then zeros.".into()),
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
