//! Other programs, the files that they copy, and a volume whose files can share bytes.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::images::MIB;
use crate::{Result, Run};

/// Writes a flat file without zeros, durably.
pub fn write_flat(path: &Path, size: u64) -> Result<()> {
    let file = fs::File::create(path)?;
    let mut bytes = vec![2; MIB as usize];
    for at in (0..size).step_by(MIB as usize) {
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        io::Write::write_all(&mut &file, &bytes)?;
    }
    Ok(file.sync_all()?)
}

/// A `dd` of a file to another, which it makes durable.
pub fn dd(from: &Path, to: &Path, conv: &str) -> Command {
    let mut dd = Command::new("dd");
    dd.args(["bs=1M", "status=none"]).arg(format!("conv={conv}"));
    for (key, path) in [("if=", from), ("of=", to)] {
        let mut arg = OsString::from(key);
        arg.push(path);
        dd.arg(arg);
    }
    dd
}

/// Makes a file durable that another program has written.
pub fn make_durable(path: &Path) -> Result<()> {
    Ok(fs::File::open(path)?.sync_all()?)
}

/// Removes a file if it is there.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// An XFS volume in a file, whose files can share bytes.
pub struct Xfs {
    pub folder: PathBuf,
}

impl Xfs {
    /// Mounts the volume, or returns the reason why it is unavailable.
    pub fn mount(run: &Run) -> Result<Result<Self, String>> {
        let (file, folder) = (run.folder.path().join("xfs.img"), run.folder.path().join("xfs"));
        fs::create_dir_all(&folder)?;
        // Two images, two raw files and the log of the volume.
        drop(fs::remove_file(&file));
        fs::File::create(&file)?.set_len((5 * run.options.mib + 512) * MIB)?;
        let mut format = Command::new("mkfs.xfs");
        let mut mount = Command::new("mount");
        let made = succeed(format.args(["-q", "-m", "reflink=1"]).arg(&file));
        let made = made.and_then(|()| succeed(mount.args(["-o", "loop"]).arg(&file).arg(&folder)));
        Ok(match made {
            Ok(()) => Ok(Self { folder }),
            Err(why) => Err(format!("needs root, mkfs.xfs and loop devices: {why}")),
        })
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        if let Err(error) = succeed(Command::new("umount").arg(&self.folder)) {
            eprintln!("{} stays mounted: {error}", self.folder.display());
        }
    }
}

pub fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into())
}
