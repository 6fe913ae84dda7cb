//! `avhdx cp`: copies files of a file system inside the disk to this machine, or into an archive.
//!
//! Nothing in an image, and nobody who changes the target meanwhile, makes it write outside of the target: names are
//! checked one by one, a folder is entered only if it is one and no link, and nothing that exists is replaced or changed.
//! What is copied is this user's alone until it has its own permissions.

mod archive;
#[cfg(unix)]
mod by_descriptor;
#[cfg(not(unix))]
mod by_path;
mod copy;
mod facts;
mod header;
mod report;
mod source;
mod walk;
mod work;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::args::ImageArg;
use crate::failure::{Failure, Reply};
use crate::next;
use crate::output::Console;
use crate::volume::{self, VolumeFlags};
#[cfg(test)]
pub(crate) use report::CpAnswer;
use source::Source;

/// Copy files of a file system inside the disk to this machine, or into an archive.
///
/// Into DEST if that is a folder, else to the name DEST. Times are kept, the permissions of ext, and which names of what is
/// copied are of one file (where the host can); attributes, access lists, extended attributes and alternate data streams
/// are not. Links are copied as links, also one named as SRC; with a / at its end, what it leads to is copied. Nothing that
/// exists is replaced or changed. Of several files, what cannot be copied, or not be written here, is reported, and the
/// rest is copied all the same (exit code 8). What is copied is accessible to its owner alone until it is complete. Ctrl-C
/// leaves what is complete; where the host has no files without names, a killed run leaves its last file as
/// .NAME.HEX.tmp.
///
/// An archive (PAX, read by GNU tar, bsdtar and others) has owners, all permissions and devices without being asked, times
/// to the nanosecond, holes that fill whole aligned 256 KiB as holes, and the same bytes whenever it is made of the same
/// files.
#[derive(clap::Args, Debug)]
#[command(override_usage = "avhdx cp [OPTIONS] IMAGE SRC... DEST\n       \
                            avhdx cp [OPTIONS] IMAGE SRC... --to-tar FILE")]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// Paths from the top of the volume, and where the copies go [DEST].
    #[arg(value_name = "SRC", num_args = 1.., required = true)]
    sources_and_out: Vec<OsString>,
    /// Copy folders with all they hold.
    #[arg(short, long)]
    recursive: bool,
    /// Set the owners and groups of ext too, and setuid, setgid and sticky bits; most need root.
    #[arg(long, conflicts_with = "out")]
    owners: bool,
    /// Make devices and pipes too; devices need root.
    #[arg(long, conflicts_with = "out")]
    devices: bool,
    /// Write a tar archive instead, or with - to standard output.
    #[arg(long, id = "out", value_name = "FILE")]
    to_tar: Option<PathBuf>,
    /// Replace the archive if it exists.
    #[arg(long, requires = "out")]
    overwrite: bool,
    #[command(flatten)]
    volume: VolumeFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let mut sources = args.sources_and_out;
    let out = if args.to_tar.is_none() { sources.pop().map(PathBuf::from) } else { None };
    if sources.is_empty() {
        let message = "DEST is missing: a folder or a name for the copy, or --to-tar FILE";
        return Err(Failure::usage("usage", message));
    }
    let tree = args.volume.open(&args.image, console)?;
    // All of them are found before anything is copied.
    let mut found = Vec::new();
    for typed in &sources {
        let source = Source::find(&tree, &volume::path(typed))?;
        if source.is_folder() && !args.recursive {
            let message = format!("{}: this is a folder", tree.place(source.entry.path()));
            let failure = Failure::usage("cp.folder", message);
            return Err(next::listing(typed).into_iter().fold(failure, Failure::or_else));
        }
        found.push(source);
    }
    let image = args.image.name();
    match (&args.to_tar, out) {
        (Some(archive), _) => archive::write(&tree, found, image, archive, args.overwrite, console),
        (None, out) => {
            let wanted = facts::Wanted { owners: args.owners, devices: args.devices };
            let out = out.as_deref().unwrap_or(Path::new("."));
            copy::run(&tree, found, image, out, wanted, console)
        }
    }
}
