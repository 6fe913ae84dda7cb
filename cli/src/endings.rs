//! What the ending of an output's name says about its format.

use std::path::{Path, PathBuf};

use avhdx::storage::{Host, LocalHost};

use crate::args::{CopyFormat, NamingFlags};
use crate::failure::Failure;
use crate::next;
use crate::output::Console;
use crate::shell;

/// The format that a name promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Vhdx,
    /// A child of another image.
    Avhdx,
    Raw,
    Vhd,
    Qcow2,
    Foreign(Foreign),
    /// None, or one that names no format.
    Unknown,
}

/// A format that the program does not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Foreign {
    /// Completes the sentence "this is …".
    what: &'static str,
    /// QEMU's name for the format, and an option that keeps the size, if QEMU writes it.
    qemu: Option<&'static str>,
}

impl Ending {
    fn of(out: &Path) -> Self {
        let foreign = |what, qemu| Self::Foreign(Foreign { what, qemu });
        let ending = out.extension().unwrap_or_default().to_ascii_lowercase();
        match ending.to_str().unwrap_or_default() {
            "vhdx" => Self::Vhdx,
            "avhdx" => Self::Avhdx,
            "raw" | "img" => Self::Raw,
            "vhd" => Self::Vhd,
            "vhds" => foreign("a VHD set", None),
            "qcow2" => Self::Qcow2,
            "qcow" => foreign("a qcow image", Some("qcow")),
            "qed" => foreign("a QED image", Some("qed")),
            "vdi" => foreign("a VDI image", Some("vdi")),
            "hdd" | "hds" => foreign("a Parallels image", Some("parallels")),
            "vmdk" => foreign("a VMDK image", Some("vmdk")),
            _ => Self::Unknown,
        }
    }
}

const OF_CHILD: &str = "a child has the format of its parent";

/// Refuses a name for a new image that promises something else. `is_child` is whether the image gets a parent.
pub(crate) fn check_image(
    out: &Path,
    is_child: bool,
    naming: NamingFlags,
    console: &mut Console,
) -> Result<(), Failure> {
    match Ending::of(out) {
        Ending::Vhdx => Ok(()),
        Ending::Unknown => {
            note_vhdx(out, console);
            Ok(())
        }
        _ if naming.any_name => Ok(()),
        Ending::Avhdx if is_child => Ok(()),
        Ending::Avhdx => Err(for_child(out)),
        Ending::Raw => {
            let failure = against(out, "a raw disk", "a VHDX image");
            let failure = failure.hint(match is_child {
                true => OF_CHILD,
                false => "a raw disk is a file of its size: truncate -s SIZE FILE makes one",
            });
            Err(or_any_name(failure, out))
        }
        Ending::Vhd | Ending::Qcow2 => {
            let named =
                if Ending::of(out) == Ending::Vhd { "a VHD image" } else { "a qcow2 image" };
            let failure = against(out, named, "a VHDX image");
            if is_child {
                return Err(or_any_name(failure.hint(OF_CHILD), out));
            }
            let between = between(out, "vhdx");
            let Some(first) = next::elsewhere(&between) else { return Err(failure) };
            let files = [&between, out].map(shell::argument).join(" ");
            Err(failure.then(format!("{first} && avhdx convert {files}")))
        }
        Ending::Foreign(Foreign { what, .. }) if is_child => {
            let failure = no_writer(out, what).hint(OF_CHILD);
            Err(or_any_name(failure, out))
        }
        Ending::Foreign(foreign) => Err(by_qemu(out, foreign, CopyFormat::Vhdx)),
    }
}

/// The format of a copy: the one asked for, or else the one that the name promises.
pub(crate) fn copy_format(out: &Path, asked: Option<CopyFormat>) -> CopyFormat {
    let promised = match Ending::of(out) {
        Ending::Raw => CopyFormat::Raw,
        Ending::Vhd => CopyFormat::Vhd,
        Ending::Qcow2 => CopyFormat::Qcow2,
        _ if out.as_os_str() == "-" => CopyFormat::Raw,
        _ => CopyFormat::Vhdx,
    };
    asked.unwrap_or(promised)
}

/// Refuses a name for a copy that promises another format than [`copy_format`].
pub(crate) fn check_copy(
    out: &Path,
    asked: Option<CopyFormat>,
    naming: NamingFlags,
    console: &mut Console,
) -> Result<(), Failure> {
    let format = copy_format(out, asked);
    let made = format.what();
    let is_vhdx = matches!(format, CopyFormat::Vhdx | CopyFormat::VhdxFixed);
    match Ending::of(out) {
        Ending::Unknown => {
            if asked.is_none() {
                note_vhdx(out, console);
            }
            Ok(())
        }
        _ if naming.any_name => Ok(()),
        Ending::Vhdx if is_vhdx => Ok(()),
        Ending::Vhdx => Err(against(out, "a VHDX image", made)),
        Ending::Raw if format == CopyFormat::Raw => Ok(()),
        Ending::Raw => Err(against(out, "a raw disk", made)),
        Ending::Vhd if format.is_vhd() => Ok(()),
        Ending::Vhd => Err(against(out, "a VHD image", made)),
        Ending::Qcow2 if format == CopyFormat::Qcow2 => Ok(()),
        Ending::Qcow2 => Err(against(out, "a qcow2 image", made)),
        Ending::Avhdx if is_vhdx => Err(for_child(out)),
        Ending::Avhdx => Err(against(out, "a VHDX image with a parent", made)),
        Ending::Foreign(foreign) => Err(by_qemu(out, foreign, format)),
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

/// The way on for a verb that takes the name of its output from a flag.
fn or_any_name(failure: Failure, out: &Path) -> Failure {
    let command = match next::elsewhere(out) {
        Some(_) => None,
        None => next::with_flag("--any-name"),
    };
    command.into_iter().fold(failure, Failure::then)
}

fn no_writer(out: &Path, what: &str) -> Failure {
    let message = format!("{}: the name is for {what}, which cannot be written", out.display());
    Failure::usage("output.no-writer", message)
}

/// The refusal of a foreign format, with the way over a file that QEMU reads.
fn by_qemu(out: &Path, foreign: Foreign, format: CopyFormat) -> Failure {
    let failure = no_writer(out, foreign.what);
    let (ending, from) = match format {
        CopyFormat::Raw => ("raw", "raw"),
        CopyFormat::Vhd | CopyFormat::VhdFixed => ("vhd", "vpc"),
        CopyFormat::Qcow2 => ("qcow2", "qcow2"),
        CopyFormat::Vhdx | CopyFormat::VhdxFixed => ("vhdx", "vhdx"),
    };
    let between = between(out, ending);
    let (Some(to), Some(first)) = (foreign.qemu, next::elsewhere(&between)) else { return failure };
    let files = [&between, out].map(shell::foreign_argument).join(" ");
    failure.then(format!("{first} && qemu-img convert -f {from} -O {to} {files}"))
}

/// A free name for the file between the program and QEMU.
fn between(out: &Path, ending: &str) -> PathBuf {
    let named = |n: usize| {
        let mut name = out.as_os_str().to_owned();
        name.push(if n == 0 { format!(".{ending}") } else { format!("-{n}.{ending}") });
        PathBuf::from(name)
    };
    let is_free = |path: &PathBuf| LocalHost.stat(path).is_err();
    (0..100).map(named).find(is_free).unwrap_or_else(|| named(0))
}
