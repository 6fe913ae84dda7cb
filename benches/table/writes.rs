//! Writes compared with bare writes of the same bytes, both ending in an `fdatasync`.
//!
//! Both sides open their file before their time starts; ours includes the start of the session. Rows that say so have
//! one flush for new blocks, whatever the host says: what a flush costs does not depend on what a crash would leave.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use avhdx::{CreateOptions, Disk, OneFlush, OpenOptions, VhdxFile};
use avhdx_testkit::rng::Rng;

use crate::images::MIB;
use crate::report::{Report, Row};
use crate::stats::{rounds, timed};
use crate::{Result, Run};

/// One kind of writing.
struct Work {
    name: &'static str,
    target: Target,
    /// The size of a write in bytes.
    len: u64,
    /// The number of writes in a round.
    count: u64,
    random: bool,
    /// Whether each write is flushed, or only the last.
    flush_each: bool,
    bar: f64,
}

/// What is written to, and what it is compared with.
#[derive(Clone, Copy, PartialEq)]
enum Target {
    /// An image with all blocks allocated, and a raw file that was written before.
    Allocated,
    /// An empty dynamic image, and a raw file that grows.
    Growing,
    /// An empty dynamic image, and a sparse raw file of the disk's size.
    Fresh,
    /// An empty child of a full image, and a sparse raw file of the disk's size.
    FreshChild,
    /// An empty child of an empty image, and a sparse raw file of the disk's size.
    FreshChildOfEmpty,
}

pub fn run(run: &Run, report: &mut Report) -> Result<()> {
    report.section("Writes: bare writes a raw file, both sides end in fdatasync");
    let works = works(run);
    if !works.iter().any(|work| report.wants(work.name)) {
        return Ok(());
    }
    let folder = run.folder.path().join("writes");
    fs::create_dir(&folder)?;
    let files = Files { folder: &folder, size: run.options.mib * MIB };
    files.fill()?;
    for work in works.iter().filter(|work| report.wants(work.name)).collect::<Vec<_>>() {
        let (bare, again) = (|round| files.bare(work, round), |round| files.bare(work, round));
        let own = |round| files.own(work, round);
        let times =
            rounds(run.options.rounds, vec![Box::new(bare), Box::new(own), Box::new(again)])?;
        let row = Row::new(work.name, work.count as usize, &times, Some(work.bar));
        let speed = work.len as f64 / row.own;
        let beside = match work.target {
            Target::Allocated => "bare: a raw file written before",
            Target::Growing => "bare: a raw file that grows",
            Target::Fresh | Target::FreshChild | Target::FreshChildOfEmpty => {
                "bare: a fresh sparse raw file"
            }
        };
        report.row(row.note(format!("{beside}; own {speed:.1} MB/s")));
    }
    Ok(fs::remove_dir_all(&folder)?)
}

fn works(run: &Run) -> Vec<Work> {
    let all = run.options.mib;
    let [random, flushed] = if run.options.quick { [256, 8] } else { [16384, 256] };
    let work = |name, target, len, count, random, flush_each, bar| Work {
        name,
        target,
        len,
        count,
        random,
        flush_each,
        bar,
    };
    use Target::{Allocated, Fresh, FreshChild, FreshChildOfEmpty, Growing};
    vec![
        work("random 4 KiB write, allocated", Allocated, 4096, random, true, false, 0.93),
        work("random 4 KiB write, fresh child", FreshChild, 4096, random, true, false, 0.9),
        work("sequential 1 MiB write, allocated", Allocated, MIB, all, false, false, 0.95),
        work("sequential 1 MiB write, allocating", Growing, MIB, all, false, false, 0.95),
        work("random 4 KiB write + flush, allocated", Allocated, 4096, flushed, true, true, 0.9),
        work("random 4 KiB write + flush, fresh", Fresh, 4096, flushed, true, true, 0.85),
        work(
            "random 4 KiB write + flush, fresh child of empty",
            FreshChildOfEmpty,
            4096,
            flushed,
            true,
            true,
            0.85,
        ),
        work("random 4 KiB write + flush, fresh child", FreshChild, 4096, flushed, true, true, 0.5),
    ]
}

impl Work {
    /// The same for all contenders of a round.
    fn offsets(&self, size: u64, round: usize) -> Vec<u64> {
        let mut rng = Rng::new(round as u64);
        let places = size / self.len;
        let place = |i| if self.random { rng.below(places) } else { i };
        (0..self.count).map(place).map(|place| place * self.len).collect()
    }
}

/// The files that rounds write to.
struct Files<'a> {
    folder: &'a Path,
    size: u64,
}

impl Files<'_> {
    /// Fills those that are kept: one image and one raw file.
    fn fill(&self) -> Result<()> {
        let full = self.folder.join("full.vhdx");
        let full = CreateOptions::dynamic(self.size).block_size(2 << 20).create(full)?;
        let raw = File::create(self.folder.join("full.raw"))?;
        let buf = vec![1; MIB as usize];
        for at in (0..self.size).step_by(MIB as usize) {
            full.write_at(&buf, at)?;
            write_all_at(&raw, &buf, at)?;
        }
        raw.sync_all()?;
        let empty = CreateOptions::dynamic(self.size).block_size(2 << 20);
        drop(empty.create(self.folder.join("empty.vhdx"))?);
        Ok(full.flush()?)
    }

    fn bare(&self, work: &Work, round: usize) -> Result<Duration> {
        let offsets = work.offsets(self.size, round);
        let lasts = work.target == Target::Allocated;
        let path = self.folder.join(if lasts { "full.raw" } else { "fresh.raw" });
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
        if !matches!(work.target, Target::Allocated | Target::Growing) {
            file.set_len(self.size)?;
        }
        file.sync_all()?;
        let buf = vec![0xA5; work.len as usize];
        let taken = timed(|| {
            for at in &offsets {
                write_all_at(&file, &buf, *at)?;
                if work.flush_each {
                    file.sync_data()?;
                }
            }
            Ok(file.sync_data()?)
        })?;
        if !lasts {
            fs::remove_file(path)?;
        }
        Ok(taken)
    }

    fn own(&self, work: &Work, round: usize) -> Result<Duration> {
        let offsets = work.offsets(self.size, round);
        let (full, fresh) = (self.folder.join("full.vhdx"), self.folder.join("fresh.vhdx"));
        match work.target {
            Target::Allocated => {}
            Target::Growing => drop(CreateOptions::dynamic(self.size).create(&fresh)?),
            Target::Fresh => {
                drop(CreateOptions::dynamic(self.size).block_size(2 << 20).create(&fresh)?);
            }
            Target::FreshChild | Target::FreshChildOfEmpty => {
                let is_full = work.target == Target::FreshChild;
                let parent = if is_full { full.clone() } else { self.folder.join("empty.vhdx") };
                let parent = VhdxFile::open(parent)?;
                drop(CreateOptions::child_of(&parent)?.create(&fresh)?);
            }
        }
        let lasts = work.target == Target::Allocated;
        let path = if lasts { &full } else { &fresh };
        let buf = vec![0xA5; work.len as usize];
        let options = OpenOptions::new().writable(true).one_flush(OneFlush::Always);
        let disk = options.open(path)?;
        let taken = timed(|| {
            for at in &offsets {
                disk.write_at(&buf, *at)?;
                if work.flush_each {
                    disk.flush()?;
                }
            }
            Ok(disk.flush()?)
        })?;
        disk.close()?;
        if !lasts {
            fs::remove_file(path)?;
        }
        Ok(taken)
    }
}

#[cfg(unix)]
fn write_all_at(file: &File, buf: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, buf, at)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut buf: &[u8], mut at: u64) -> io::Result<()> {
    while !buf.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, buf, at)?;
        (buf, at) = (&buf[written..], at + written as u64);
    }
    Ok(())
}
