//! Merges compared with copies of the same bytes into an existing file, all made durable.
//!
//! Each time is that of the whole: the copy, making it durable, and removing what was merged or copied. Ours is that of
//! opening the chain, merging its full tip into an allocated parent and removing the tip; dd copies a file and removes it;
//! QEMU commits a qcow2 overlay of the same size to its base and removes the overlay. What is removed was made durable
//! before the clock starts, and lies in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use avhdx::ops::Merge;
use avhdx::{CreateOptions, Disk, OpenOptions, VhdxFile};

use crate::images::MIB;
use crate::report::{Report, Row};
use crate::stats::{Contender, Times, rounds, timed};
use crate::tools::{Xfs, dd, make_durable, succeed, write_flat};
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
    let qemu = if with_qemu { files.base()? } else { Err("not asked for".into()) };
    let mut contenders: Vec<Contender<'_>> = vec![
        Box::new(|round| files.dd(round)),
        Box::new(|round| files.merge(round, true)),
        Box::new(|round| files.dd(round)),
        Box::new(|round| files.merge(round, false)),
    ];
    if qemu.is_ok() {
        contenders.push(Box::new(|_| files.commit()));
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
        report.row(speed(row, "dd conv=fsync,notrunc bs=1M and rm"));
    }
    match qemu {
        Ok(_) => {
            let row = Row::new(BESIDE_QEMU, 1, &times.of(&[(4, 1), (1, 1)]), Some(1.0));
            report.row(speed(row, "qemu-img commit -d of qcow2, sync and rm"));
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
        write_flat(&files.path("to.raw"), files.size)?;
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
        let (from, to) = (self.path("from.raw"), self.path("to.raw"));
        write_flat(&from, self.size)?;
        let mut dd = dd(&from, &to, "fsync,notrunc");
        timed(|| {
            succeed(&mut dd)?;
            Ok(fs::remove_file(&from)?)
        })
    }

    fn merge(&self, round: usize, share: bool) -> Result<Duration> {
        let (parent, child) = (self.path("parent.vhdx"), self.path("child.avhdx"));
        let options = CreateOptions::child_of(&VhdxFile::open(&parent)?)?;
        drop(options.create(&child)?);
        let chain = OpenOptions::new().writable(true).open(&child)?;
        self.fill(&chain, round as u8)?;
        chain.close()?;
        drop(chain);
        let taken = timed(|| {
            let chain = OpenOptions::new().writable(true).open(&child)?;
            let merge = Merge::new(chain.layers()[0].id).share(share);
            let merged = merge.run(&chain)?;
            if merged.moved != self.size {
                return Err(format!("moved {} bytes", merged.moved).into());
            }
            Ok(chain.close()?)
        })?;
        if child.exists() {
            return Err("the tip is still there".into());
        }
        // Verify the measured work.
        let mut found = vec![0; MIB as usize];
        let last = self.size - MIB;
        VhdxFile::open(&parent)?.read_at(&mut found, last)?;
        if found[..8] != last.to_le_bytes() || found[8..].iter().any(|byte| *byte != round as u8) {
            return Err("the parent does not hold what was merged".into());
        }
        Ok(taken)
    }

    /// Makes a full base, or returns the reason why there is none.
    fn base(&self) -> Result<Result<(), String>> {
        Ok(self.qcow2("base.qcow2", None, 3).map_err(|why| why.to_string()))
    }

    /// A full qcow2 image.
    fn qcow2(&self, name: &str, parent: Option<&str>, byte: u8) -> Result<()> {
        let (path, size) = (self.path(name), self.size.to_string());
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]);
        if let Some(parent) = parent {
            create.arg("-b").arg(self.path(parent)).args(["-F", "qcow2"]);
        }
        succeed(create.arg(&path).arg(&size)).map_err(|why| format!("qemu-img: {why}"))?;
        let mut write = Command::new("qemu-io");
        write.args(["-f", "qcow2", "-c", &format!("write -q -P {byte} 0 {size}")]).arg(&path);
        succeed(&mut write).map_err(|why| format!("qemu-io: {why}"))?;
        make_durable(&path)
    }

    fn commit(&self) -> Result<Duration> {
        self.qcow2("overlay.qcow2", Some("base.qcow2"), 4)?;
        let (overlay, base) = (self.path("overlay.qcow2"), self.path("base.qcow2"));
        let mut commit = Command::new("qemu-img");
        commit.args(["commit", "-q", "-d", "-f", "qcow2"]).arg(&overlay);
        timed(|| {
            succeed(&mut commit)?;
            make_durable(&base)?;
            Ok(fs::remove_file(&overlay)?)
        })
    }
}
