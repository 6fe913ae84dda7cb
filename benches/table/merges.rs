//! Merges compared with copies of the same bytes into an existing file, all made durable.
//!
//! Our time is that of opening the chain, merging its full tip into an allocated parent and removing the tip's
//! name. The tip's file is held open meanwhile, which postpones the host's work of freeing its bytes. The
//! others do no such work: dd keeps its source, and so does QEMU, which commits a qcow2 overlay of the same
//! size to its base.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use avhdx::ops::Merge;
use avhdx::{CreateOptions, Disk, OpenOptions, VhdxFile};

use crate::images::MIB;
use crate::report::{Report, Row};
use crate::stats::{Contender, Times, rounds, timed};
use crate::{Result, Run};

/// The maximum number of rounds, each of which writes the bytes several times.
const MOST_ROUNDS: usize = 10;

const BY_HOST: &str = "merge beside dd";
const BY_HAND: &str = "merge without sharing beside dd";
const BESIDE_QEMU: &str = "merge beside qemu-img commit";
const XFS_SHARED: &str = "merge on XFS beside dd";
const XFS_BY_HAND: &str = "merge on XFS without sharing beside dd";

pub fn run(run: &Run, report: &mut Report) -> Result<()> {
    report.section("Merges of a full tip into an allocated parent, beside copies made durable");
    let (here, on_xfs) = ([BY_HOST, BY_HAND, BESIDE_QEMU], [XFS_SHARED, XFS_BY_HAND]);
    if here.iter().any(|work| report.wants(work)) {
        let folder = run.folder.path().join("merges");
        fs::create_dir(&folder)?;
        measure(&Files::new(&folder, run)?, run, report, [BY_HOST, BY_HAND], Some(0.8))?;
        fs::remove_dir_all(&folder)?;
    }
    if on_xfs.iter().any(|work| report.wants(work)) {
        match Xfs::mount(run)? {
            Ok(volume) => {
                measure(&Files::new(&volume.folder, run)?, run, report, on_xfs, None)?;
            }
            Err(why) => {
                for work in on_xfs.into_iter().filter(|work| report.wants(work)).collect::<Vec<_>>()
                {
                    report.left_out(work, &why);
                }
            }
        }
    }
    Ok(())
}

/// All contenders in the same rounds: dd, a merge by the host, dd again, a merge by hand, and QEMU if installed.
fn measure(
    files: &Files<'_>,
    run: &Run,
    report: &mut Report,
    works: [&str; 2],
    bar: Option<f64>,
) -> Result<()> {
    if let Err(why) = files.dd(0) {
        works.iter().for_each(|work| report.left_out(work, &format!("dd: {why}")));
        return Ok(());
    }
    let with_qemu = works[0] == BY_HOST && report.wants(BESIDE_QEMU);
    let qemu = if with_qemu { files.overlay()? } else { Err("not asked for".into()) };
    let mut contenders: Vec<Contender<'_>> = vec![
        Box::new(|round| files.dd(round)),
        Box::new(|round| files.merge(round, true)),
        Box::new(|round| files.dd(round)),
        Box::new(|round| files.merge(round, false)),
    ];
    if let Ok(overlay) = &qemu {
        contenders.push(Box::new(|_| files.commit(overlay)));
    }
    let times: Times = rounds(run.options.rounds.min(MOST_ROUNDS), contenders)?;
    let speed = |row: Row, beside: &str| {
        let speed = files.size as f64 / row.own;
        row.note(format!("bare: {beside}; own {speed:.0} MB/s"))
    };
    for (work, own) in
        works.into_iter().zip([1, 3]).filter(|(work, _)| report.wants(work)).collect::<Vec<_>>()
    {
        let row = Row::new(work, 1, &times.of(&[(0, 1), (own, 1), (2, 1)]), bar);
        report.row(speed(row, "dd conv=fsync,notrunc bs=1M"));
    }
    match qemu {
        Ok(_) => {
            let row = Row::new(BESIDE_QEMU, 1, &times.of(&[(4, 1), (1, 1)]), Some(1.0));
            report.row(speed(row, "qemu-img commit -d of qcow2, and sync"));
        }
        Err(why) if with_qemu => report.left_out(BESIDE_QEMU, &why),
        Err(_) => {}
    }
    Ok(())
}

/// What is merged and copied, and where.
struct Files<'a> {
    folder: &'a Path,
    size: u64,
}

impl<'a> Files<'a> {
    fn new(folder: &'a Path, run: &Run) -> Result<Self> {
        let files = Self { folder, size: run.options.mib * MIB };
        let parent = CreateOptions::dynamic(files.size).create(files.path("parent.vhdx"))?;
        files.fill(&parent, 1)?;
        parent.close()?;
        for name in ["from.raw", "to.raw"] {
            let file = fs::File::create(files.path(name))?;
            let mut bytes = vec![2; MIB as usize];
            for at in (0..files.size).step_by(MIB as usize) {
                bytes[..8].copy_from_slice(&at.to_le_bytes());
                io::Write::write_all(&mut &file, &bytes)?;
            }
            file.sync_all()?;
        }
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn fill(&self, disk: &dyn Disk, with: u8) -> Result<()> {
        let mut bytes = vec![with; MIB as usize];
        for at in (0..self.size).step_by(MIB as usize) {
            bytes[..8].copy_from_slice(&at.to_le_bytes());
            disk.write_at(&bytes, at)?;
        }
        Ok(disk.flush()?)
    }

    fn dd(&self, _round: usize) -> Result<Duration> {
        let mut dd = Command::new("dd");
        dd.args(["bs=1M", "conv=fsync,notrunc", "status=none"]);
        let mut of = |key: &str, name: &str| {
            let mut arg = std::ffi::OsString::from(key);
            arg.push(self.path(name));
            dd.arg(arg);
        };
        of("if=", "from.raw");
        of("of=", "to.raw");
        timed(|| succeed(&mut dd))
    }

    fn merge(&self, round: usize, share: bool) -> Result<Duration> {
        let (parent, child) = (self.path("parent.vhdx"), self.path("child.avhdx"));
        let options = CreateOptions::child_of(&VhdxFile::open(&parent)?)?;
        drop(options.create(&child)?);
        let chain = OpenOptions::new().writable(true).open(&child)?;
        self.fill(&chain, round as u8)?;
        chain.close()?;
        drop(chain);
        let held = fs::File::open(&child)?;
        let taken = timed(|| {
            let chain = OpenOptions::new().writable(true).open(&child)?;
            let merge = Merge::new(chain.layers()[0].id).share(share);
            let merged = merge.run(&chain)?;
            if merged.moved != self.size {
                return Err(format!("moved {} bytes", merged.moved).into());
            }
            Ok(chain.close()?)
        })?;
        drop(held);
        // Verify the measured work.
        let mut found = vec![0; MIB as usize];
        let last = self.size - MIB;
        VhdxFile::open(&parent)?.read_at(&mut found, last)?;
        if found[..8] != last.to_le_bytes() || found[8..].iter().any(|byte| *byte != round as u8) {
            return Err("the parent does not hold what was merged".into());
        }
        Ok(taken)
    }

    /// A full overlay over a full base, or the reason why there is none.
    fn overlay(&self) -> Result<Result<PathBuf, String>> {
        let (base, overlay) = (self.path("base.qcow2"), self.path("overlay.qcow2"));
        let size = self.size.to_string();
        for (path, parent) in [(&base, None), (&overlay, Some(&base))] {
            let mut create = Command::new("qemu-img");
            create.args(["create", "-q", "-f", "qcow2"]);
            if let Some(parent) = parent {
                create.arg("-b").arg(parent).args(["-F", "qcow2"]);
            }
            if let Err(why) = succeed(create.arg(path).arg(&size)) {
                return Ok(Err(format!("qemu-img: {why}")));
            }
            let mut write = Command::new("qemu-io");
            write.args(["-f", "qcow2", "-c", &format!("write -q -P 3 0 {size}")]).arg(path);
            if let Err(why) = succeed(&mut write) {
                return Ok(Err(format!("qemu-io: {why}")));
            }
        }
        Ok(Ok(overlay))
    }

    fn commit(&self, overlay: &Path) -> Result<Duration> {
        let mut commit = Command::new("qemu-img");
        commit.args(["commit", "-q", "-d", "-f", "qcow2"]).arg(overlay);
        timed(|| {
            succeed(&mut commit)?;
            Ok(fs::File::open(self.path("base.qcow2"))?.sync_all()?)
        })
    }
}

/// An XFS volume in a file, whose files can share bytes.
struct Xfs {
    folder: PathBuf,
}

impl Xfs {
    /// Mounts the volume, or returns the reason why it is unavailable.
    fn mount(run: &Run) -> Result<Result<Self, String>> {
        let (file, folder) = (run.folder.path().join("xfs.img"), run.folder.path().join("xfs"));
        fs::create_dir(&folder)?;
        // Two images, two raw files and the log of the volume.
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

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into())
}
