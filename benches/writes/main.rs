//! Writes to images and fresh children beside bare `pwrite`s to raw files of the same kind.
//!
//! Every figure is a ratio taken within one round, in which both sides do the same work one after the
//! other: bare time / own time, so that 1.00 is as fast as bare. Both end in a flush to the disk. The
//! row A/A sets bare against bare.
//!
//! ```text
//! cargo bench --bench writes -- [--rounds 30] [--only NAME]
//! AVHDX_BENCH_QUICK=1 cargo bench    a small run, to see that it runs
//! ```

// A bench writes files without the crate, to have something to compare it with.
#![allow(clippy::disallowed_methods)]

use std::error::Error;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions};
use avhdx_testkit::rng::Rng;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const MIB: u64 = 1 << 20;

/// One kind of writing.
struct Work {
    name: &'static str,
    target: Target,
    /// Bytes of a write.
    len: u64,
    /// Writes of a round.
    count: u64,
    random: bool,
    /// Whether each write is flushed, or only the last.
    flush_each: bool,
}

/// What is written to, and what it is held against.
#[derive(Clone, Copy, PartialEq)]
enum Target {
    /// An image whose blocks are all there, beside a raw file that was written before.
    Allocated,
    /// An empty dynamic image, beside a raw file that grows.
    Growing,
    /// An empty child of an image that is full, beside a sparse raw file of the disk's size.
    FreshChild,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("writes: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let quick = std::env::var_os("AVHDX_BENCH_QUICK").is_some();
    let mut rounds = if quick { 3 } else { 30 };
    let mut only: Option<String> = None;
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let value = args.next().ok_or("usage: writes [--rounds N] [--only NAME]")?;
        match arg.as_str() {
            "--rounds" => rounds = value.parse()?,
            "--only" => only = Some(value),
            _ => return Err("usage: writes [--rounds N] [--only NAME]".into()),
        }
    }
    let scale = if quick { 16 } else { 1 };
    let works = works(scale);
    let disk = 512 * MIB / scale;
    println!("writes, bare time / own time (1.00 = as fast as bare), {rounds} rounds each");
    println!("{:<38} {:>7} {:>7} {:>7} {:>12}", "", "median", "low 5%", "A/A", "MB/s of ours");
    let chosen = |work: &&Work| only.as_ref().is_none_or(|only| work.name.contains(only.as_str()));
    for work in works.iter().filter(chosen) {
        let folder = tempfile::Builder::new().prefix("avhdx-bench-").tempdir()?;
        measure(work, folder.path(), disk, rounds)?;
    }
    qemu(scale)
}

fn works(scale: u64) -> Vec<Work> {
    let work = |name, target, len, count: u64, random, flush_each| {
        let count = (count / scale).max(4);
        Work { name, target, len, count, random, flush_each }
    };
    use Target::{Allocated, FreshChild, Growing};
    vec![
        work("sequential 1 MiB, allocated", Allocated, MIB, 256, false, false),
        work("sequential 1 MiB, allocating", Growing, MIB, 256, false, false),
        work("random 4 KiB, allocated", Allocated, 4096, 16384, true, false),
        work("random 4 KiB, fresh child", FreshChild, 4096, 16384, true, false),
        work("random 4 KiB + flush, allocated", Allocated, 4096, 256, true, true),
        work("random 4 KiB + flush, fresh child", FreshChild, 4096, 256, true, true),
    ]
}

fn measure(work: &Work, folder: &Path, disk: u64, rounds: usize) -> Result<()> {
    let (mut ratios, mut noise, mut speeds) = (Vec::new(), Vec::new(), Vec::new());
    let base = folder.join("base.vhdx");
    if work.target != Target::Growing {
        fill(&CreateOptions::dynamic(disk).block_size(2 << 20).create(&base)?, disk)?;
    }
    let lasting = folder.join("lasting.raw");
    if work.target == Target::Allocated {
        std::fs::write(&lasting, vec![1; disk as usize])?;
        File::open(&lasting)?.sync_all()?;
    }
    for round in 0..rounds {
        let mut rng = Rng::new(round as u64);
        let offsets: Vec<u64> = (0..work.count)
            .map(|i| if work.random { rng.below(disk / work.len) } else { i } * work.len)
            .collect();
        let mut times = [0.0; 3];
        for place in 0..3 {
            let who = (place + round) % 3;
            times[who] = if who == 1 {
                let image = Image::new(work, folder, &base, disk)?;
                let time = timed(|| image.write(work, &offsets))?;
                image.remove()?;
                time
            } else {
                let path = folder.join("fresh.raw");
                let path = if work.target == Target::Allocated { &lasting } else { &path };
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path)?;
                if work.target == Target::FreshChild {
                    file.set_len(disk)?;
                }
                file.sync_all()?;
                let time = timed(|| Ok(write_bare(&file, work, &offsets)?))?;
                if work.target != Target::Allocated {
                    std::fs::remove_file(path)?;
                }
                time
            };
        }
        ratios.push(times[0] / times[1]);
        noise.push(times[0] / times[2]);
        speeds.push((work.count * work.len) as f64 / 1e6 / times[1]);
    }
    println!(
        "{:<38} {:>7.2} {:>7.2} {:>7.2} {:>12.1}",
        work.name,
        quantile(&mut ratios, 0.5),
        quantile(&mut ratios, 0.05),
        quantile(&mut noise, 0.5),
        quantile(&mut speeds, 0.5)
    );
    Ok(())
}

/// An image for one round.
struct Image {
    chain: DiffChain,
    /// What is removed after the round.
    path: Option<PathBuf>,
}

impl Image {
    fn new(work: &Work, folder: &Path, base: &Path, disk: u64) -> Result<Self> {
        let path = folder.join("fresh.vhdx");
        match work.target {
            Target::Allocated => {
                return Ok(Self {
                    chain: OpenOptions::new().writable(true).open(base)?,
                    path: None,
                });
            }
            Target::Growing => drop(CreateOptions::dynamic(disk).create(&path)?),
            Target::FreshChild => {
                let parent = avhdx::VhdxFile::open(base)?;
                drop(CreateOptions::child_of(&parent)?.create(&path)?);
            }
        }
        Ok(Self { chain: OpenOptions::new().writable(true).open(&path)?, path: Some(path) })
    }

    fn write(&self, work: &Work, offsets: &[u64]) -> Result<()> {
        let buf = vec![0xA5; work.len as usize];
        for at in offsets {
            self.chain.write_at(&buf, *at)?;
            if work.flush_each {
                self.chain.flush()?;
            }
        }
        Ok(self.chain.flush()?)
    }

    fn remove(self) -> Result<()> {
        self.chain.close()?;
        drop(self.chain);
        Ok(self.path.map_or(Ok(()), std::fs::remove_file)?)
    }
}

fn fill(disk: &impl Disk, size: u64) -> Result<()> {
    let buf = vec![1; MIB as usize];
    for at in (0..size).step_by(MIB as usize) {
        disk.write_at(&buf, at)?;
    }
    Ok(disk.flush()?)
}

fn write_bare(file: &File, work: &Work, offsets: &[u64]) -> io::Result<()> {
    let buf = vec![0xA5; work.len as usize];
    for at in offsets {
        write_all_at(file, &buf, *at)?;
        if work.flush_each {
            file.sync_data()?;
        }
    }
    file.sync_data()
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

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// QEMU's own driver at allocating writes, by its own clock, which does not count the last flush.
fn qemu(scale: u64) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("avhdx-bench-").tempdir()?;
    let path = folder.path().join("qemu.vhdx");
    let count = (256 / scale).max(4);
    let qemu = |args: &[&str]| Command::new("qemu-img").args(args).arg(&path).output();
    let size = format!("{}", count * MIB);
    let created = Command::new("qemu-img")
        .args(["create", "-q", "-f", "vhdx"])
        .arg(&path)
        .arg(&size)
        .status();
    if !created.is_ok_and(|status| status.success()) {
        println!("qemu-img is not here: left out");
        return Ok(());
    }
    let count = count.to_string();
    let out =
        qemu(&["bench", "-f", "vhdx", "-w", "-c", &count, "-d", "1", "-s", "1M", "-S", "1M"])?;
    let text = String::from_utf8_lossy(&out.stdout);
    let seconds = text.split_whitespace().find_map(|word| word.parse::<f64>().ok());
    let theirs = text.lines().find_map(|line| {
        let rest = line.strip_prefix("Run completed in ")?;
        rest.split(' ').next()?.parse::<f64>().ok()
    });
    let theirs = theirs.or(seconds).ok_or("qemu-img bench printed no time")?;
    let bytes: f64 = size.parse::<f64>()? / 1e6;
    let ours = folder.path().join("ours.vhdx");
    let image = CreateOptions::dynamic(size.parse()?).create(&ours)?;
    let buf = vec![0xA5; MIB as usize];
    let time = timed(|| {
        for at in (0..size.parse()?).step_by(MIB as usize) {
            image.write_at(&buf, at)?;
        }
        Ok(())
    })?;
    println!(
        "sequential 1 MiB, allocating, unflushed: ours {:.0} MB/s, qemu-img bench {:.0} MB/s",
        bytes / time,
        bytes / theirs
    );
    Ok(())
}

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share) as usize]
}
