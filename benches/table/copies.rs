//! Flat copies of a deep chain, and images made shorter, beside other programs, all made durable.
//!
//! A flatten opens the chain, writes a new image and closes it. Beside it, dd writes as many bytes to a new file, and
//! QEMU converts a qcow2 chain in which the same layers hold the same bytes to a new qcow2 image. All sources lie in
//! memory, and no copy exists when the clock starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use avhdx::ops::{Compact, Export};
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions, VhdxFile, Zeroing};

use crate::images::{Chain, MIB, Owners, Shape};
use crate::peers::qcow2_chain;
use crate::report::{Report, Row};
use crate::stats::{Contender, Times, rounds, timed};
use crate::tools::{Xfs, dd, make_durable, remove_if_there, succeed, write_flat};
use crate::{Result, Run};

/// The maximum number of rounds, each of which writes the bytes several times.
const MOST_ROUNDS: usize = 10;
const DEEP: usize = 16;

const BESIDE_DD: &str = "flatten of 16 layers beside dd";
const BESIDE_QEMU: &str = "flatten of 16 layers beside qemu-img convert";
const ON_XFS: &str = "flatten on XFS beside dd";
const ON_XFS_BY_HAND: &str = "flatten on XFS without sharing beside dd";
const ON_XFS_BESIDE_CP: &str = "flatten on XFS beside cp --reflink";
const COMPACT: &str = "compact, half zeroed, beside qemu-img convert";

pub fn run(run: &Run, report: &mut Report) -> Result<()> {
    report.section("Flat copies of 16 layers into a new image, beside copies made durable");
    if [BESIDE_DD, BESIDE_QEMU].iter().any(|work| report.wants(work)) {
        here(run, report)?;
    }
    let on_xfs = [ON_XFS, ON_XFS_BY_HAND, ON_XFS_BESIDE_CP];
    let wanted: Vec<&str> = on_xfs.into_iter().filter(|work| report.wants(work)).collect();
    if !wanted.is_empty() {
        match Xfs::mount(run)? {
            Ok(volume) => shared(&volume, run, report)?,
            Err(why) => wanted.iter().for_each(|work| report.left_out(work, &why)),
        }
    }
    report.section(
        "An image with every second block zeroed, made shorter in place, beside a copy of it",
    );
    if report.wants(COMPACT) { compact(run, report) } else { Ok(()) }
}

fn here(run: &Run, report: &mut Report) -> Result<()> {
    let folder = run.folder.path().join("flatten");
    let files = Files::new(&folder, run)?;
    let qemu = match report.wants(BESIDE_QEMU).then(|| qcow2_chain(run, &files.chain)) {
        Some(Some(tip)) => Some(tip?),
        Some(None) => {
            report.left_out(BESIDE_QEMU, "qemu-img and qemu-io are not here");
            None
        }
        None => None,
    };
    let mut contenders: Vec<Contender<'_>> =
        vec![Box::new(|_| files.dd()), Box::new(|_| files.flatten(true)), Box::new(|_| files.dd())];
    if let Some(tip) = &qemu {
        contenders.push(Box::new(|_| files.convert(tip, "qcow2")));
    }
    let times = rounds(run.options.rounds.min(MOST_ROUNDS), contenders)?;
    if report.wants(BESIDE_DD) {
        let row = Row::new(BESIDE_DD, 1, &times.of(&[(0, 1), (1, 1), (2, 1)]), None);
        report.row(files.speed(row, "dd conv=fsync bs=1M to a new file"));
    }
    if let Some(tip) = qemu {
        let row = Row::new(BESIDE_QEMU, 1, &times.of(&[(3, 1), (1, 1)]), Some(1.0));
        report.row(files.speed(row, "qemu-img convert of 16 qcow2 layers, and sync"));
        tip.parent().map_or(Ok(()), fs::remove_dir_all)?;
    }
    drop(files);
    Ok(fs::remove_dir_all(&folder)?)
}

fn shared(volume: &Xfs, run: &Run, report: &mut Report) -> Result<()> {
    let files = Files::new(&volume.folder.join("flatten"), run)?;
    let times: Times = rounds(
        run.options.rounds.min(MOST_ROUNDS),
        vec![
            Box::new(|_| files.dd()),
            Box::new(|_| files.flatten(true)),
            Box::new(|_| files.flatten(false)),
            Box::new(|_| files.dd()),
            Box::new(|_| files.clone_flat()),
        ],
    )?;
    let rows = [
        (ON_XFS, vec![(0, 1), (1, 1), (3, 1)], "dd conv=fsync bs=1M to a new file"),
        (ON_XFS_BY_HAND, vec![(0, 1), (2, 1), (3, 1)], "dd conv=fsync bs=1M to a new file"),
        (ON_XFS_BESIDE_CP, vec![(4, 1), (1, 1)], "cp --reflink=always of one flat file, and sync"),
    ];
    for (work, who, beside) in rows {
        if report.wants(work) {
            report.row(files.speed(Row::new(work, 1, &times.of(&who), None), beside));
        }
    }
    Ok(())
}

/// A chain, a flat file of as many bytes, and what they are copied to.
struct Files {
    chain: Chain,
    flat: PathBuf,
    copy: PathBuf,
}

impl Files {
    fn new(folder: &Path, run: &Run) -> Result<Self> {
        let size = run.options.mib * MIB;
        let chain = Chain::build(folder, Shape::new(size, DEEP, Owners::Runs(2 * MIB)))?;
        chain.paths().iter().try_for_each(|path| make_durable(path))?;
        let (flat, copy) = (folder.join("flat.raw"), folder.join("copy"));
        write_flat(&flat, size)?;
        Ok(Self { chain, flat, copy })
    }

    fn speed(&self, row: Row, beside: &str) -> Row {
        let speed = self.chain.shape.size as f64 / row.own;
        row.note(format!("bare: {beside}; own {speed:.0} MB/s"))
    }

    fn dd(&self) -> Result<Duration> {
        remove_if_there(&self.copy)?;
        let mut dd = dd(&self.flat, &self.copy, "fsync");
        timed(|| succeed(&mut dd))
    }

    fn clone_flat(&self) -> Result<Duration> {
        remove_if_there(&self.copy)?;
        let mut cp = Command::new("cp");
        cp.arg("--reflink=always").arg(&self.flat).arg(&self.copy);
        timed(|| {
            succeed(&mut cp)?;
            make_durable(&self.copy)
        })
    }

    fn convert(&self, tip: &Path, format: &str) -> Result<Duration> {
        remove_if_there(&self.copy)?;
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", format, "-O", format]).arg(tip).arg(&self.copy);
        timed(|| {
            succeed(&mut convert)?;
            make_durable(&self.copy)
        })
    }

    fn flatten(&self, share: bool) -> Result<Duration> {
        remove_if_there(&self.copy)?;
        let size = self.chain.shape.size;
        let taken = timed(|| {
            let chain = DiffChain::open(self.chain.tip())?;
            let image = CreateOptions::dynamic(size).create(&self.copy)?;
            Export::new().share(share).onto(&chain, &image)?;
            Ok(image.close()?)
        })?;
        // Verify the measured work.
        let mut bytes = [vec![0; MIB as usize], vec![1; MIB as usize]];
        self.chain.disk().read_at(&mut bytes[0], size - MIB)?;
        VhdxFile::open(&self.copy)?.read_at(&mut bytes[1], size - MIB)?;
        if bytes[0] != bytes[1] {
            return Err("the copy does not hold what the chain does".into());
        }
        Ok(taken)
    }
}

/// Every second block of a full image is zeroed, which leaves its file with holes. Ours moves blocks down and cuts the file;
/// QEMU writes a new image.
fn compact(run: &Run, report: &mut Report) -> Result<()> {
    const BLOCK: u64 = 2 * MIB;
    let folder = run.folder.path().join("compact");
    fs::create_dir(&folder)?;
    let (model, image, copy) =
        (folder.join("model.vhdx"), folder.join("image.vhdx"), folder.join("copy.vhdx"));
    let size = run.options.mib * MIB;
    let disk = CreateOptions::dynamic(size).block_size(BLOCK as u32).create(&model)?;
    let mut bytes = vec![7; MIB as usize];
    for at in (0..size).step_by(MIB as usize) {
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        disk.write_at(&bytes, at)?;
    }
    for at in (0..size).step_by(2 * BLOCK as usize) {
        disk.write_zeroes(at..(at + BLOCK).min(size), Zeroing::MayUnmap)?;
    }
    disk.close()?;
    drop(disk);
    let full = fs::metadata(&model)?.len();
    let own = || -> Result<Duration> {
        fs::copy(&model, &image)?;
        make_durable(&image)?;
        let taken = timed(|| {
            let chain = OpenOptions::new().writable(true).open(&image)?;
            Compact::new().run(&chain)?;
            Ok(chain.close()?)
        })?;
        let (short, least) = (fs::metadata(&image)?.len(), size / 2);
        match (least..full - size / 4).contains(&short) {
            true => Ok(taken),
            false => Err(format!("the image has {short} of {full} bytes").into()),
        }
    };
    let qemu = || -> Result<Duration> {
        remove_if_there(&copy)?;
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "vhdx", "-O", "vhdx"]).arg(&model).arg(&copy);
        timed(|| {
            succeed(&mut convert)?;
            make_durable(&copy)
        })
    };
    match qemu() {
        Ok(_) => {
            let contenders: Vec<Contender<'_>> =
                vec![Box::new(|_| qemu()), Box::new(|_| own()), Box::new(|_| qemu())];
            let times = rounds(run.options.rounds.min(MOST_ROUNDS), contenders)?;
            let row = Row::new(COMPACT, 1, &times, Some(1.0));
            report.row(row.note("bare: qemu-img convert into a new VHDX image, and sync"));
        }
        Err(why) => report.left_out(COMPACT, &format!("qemu-img: {why}")),
    }
    Ok(fs::remove_dir_all(&folder)?)
}
