//! What the ending of an output's name says about its format.

use std::path::Path;

use crate::args::{CopyFormat, NamingFlags};
use crate::failure::Failure;
use crate::output::Console;

/// The format that a name promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Vhdx,
    /// A child of another image.
    Avhdx,
    Raw,
    /// A format that the program does not write.
    Foreign(&'static str),
    /// None, or one that names no format.
    Unknown,
}

impl Ending {
    fn of(out: &Path) -> Self {
        let ending = out.extension().unwrap_or_default().to_ascii_lowercase();
        match ending.to_str().unwrap_or_default() {
            "vhdx" => Self::Vhdx,
            "avhdx" => Self::Avhdx,
            "raw" | "img" => Self::Raw,
            "vhd" => Self::Foreign("a VHD image"),
            "vhds" => Self::Foreign("a VHD set"),
            "qcow2" => Self::Foreign("a qcow2 image"),
            "vmdk" => Self::Foreign("a VMDK image"),
            _ => Self::Unknown,
        }
    }
}

/// Refuses a name for a new image that promises something else. `is_child` is whether it gets a parent.
pub(crate) fn check_image(
    out: &Path,
    is_child: bool,
    naming: NamingFlags,
    console: &mut Console,
) -> Result<(), Failure> {
    if naming.any_name {
        return Ok(());
    }
    match Ending::of(out) {
        Ending::Vhdx => Ok(()),
        Ending::Avhdx if is_child => Ok(()),
        Ending::Avhdx => Err(for_child(out)),
        Ending::Raw => {
            let failure = against(out, "a raw disk", "a VHDX image");
            Err(failure.hint("a raw disk is a file of its size: truncate -s SIZE FILE makes one"))
        }
        Ending::Foreign(what) => Err(foreign(out, what)),
        Ending::Unknown => {
            note_vhdx(out, console);
            Ok(())
        }
    }
}

/// The format of a copy: the one asked for, or else the one that the name promises.
pub(crate) fn copy_format(
    out: &Path,
    asked: Option<CopyFormat>,
    naming: NamingFlags,
    console: &mut Console,
) -> Result<CopyFormat, Failure> {
    if out.as_os_str() == "-" {
        return Ok(asked.unwrap_or(CopyFormat::Raw));
    }
    if naming.any_name {
        return Ok(asked.unwrap_or(CopyFormat::Vhdx));
    }
    match (Ending::of(out), asked) {
        (Ending::Vhdx, Some(CopyFormat::Raw)) => Err(against(out, "a VHDX image", "a raw disk")),
        (Ending::Raw, Some(CopyFormat::Vhdx | CopyFormat::VhdxFixed)) => {
            Err(against(out, "a raw disk", "a VHDX image"))
        }
        (Ending::Avhdx, _) => Err(for_child(out)),
        (Ending::Foreign(what), _) => Err(foreign(out, what)),
        (_, Some(format)) => Ok(format),
        (Ending::Vhdx, None) => Ok(CopyFormat::Vhdx),
        (Ending::Raw, None) => Ok(CopyFormat::Raw),
        (Ending::Unknown, None) => {
            note_vhdx(out, console);
            Ok(CopyFormat::Vhdx)
        }
    }
}

fn note_vhdx(out: &Path, console: &mut Console) {
    let message = format!("{}: the name has no known ending: made as VHDX", out.display());
    console.note("output.no-ending", &message);
}

fn for_child(out: &Path) -> Failure {
    let message = format!("{}: a name for a child, but the image has no parent", out.display());
    Failure::usage("output.ending", message)
}

fn against(out: &Path, named: &str, made: &str) -> Failure {
    let message = format!("{}: the name is for {named}, the file would be {made}", out.display());
    Failure::usage("output.ending", message)
}

fn foreign(out: &Path, what: &str) -> Failure {
    let message = format!("{}: the name is for {what}, which cannot be written", out.display());
    Failure::usage("output.no-writer", message)
}
