//! Reads and writes a chain of checkpoints with io_uring, 32 at a time, if the kernel allows it, and by `pread` and
//! `pwrite` otherwise. Compares every byte with [`Disk::read_at`], and prints the speed as a ratio to that of plain calls,
//! and to that of io_uring alone at the same places of the files: above 1 is faster. Only a chain of its own is
//! written to.
//!
//! ```sh
//! cargo run --release -p avhdx-uring-example              # a chain of its own, in a temporary folder
//! cargo run --release -p avhdx-uring-example -- tip.avhdx
//! ```
//!
//! The library plans ([`DiffChain::plan_read`], [`DiffChain::plan_write`], [`DiffChain::plan_flush`]) and this program
//! moves the bytes; `ring.rs` shows how.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod place;
#[cfg(target_os = "linux")]
mod ring;
mod sample;

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avhdx::{Budget, DiffChain, Disk, OpenOptions, Planned, PlannedSource, PlannedWrite};

use place::FilePlace;
use sample::Rng;

const PAGE: usize = 4096;
const ROUNDS: usize = 7;
const USAGE: &str = "usage: avhdx-uring-example [IMAGE] [--reads N] [--depth N] [--pread]";

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from(std::env::args().skip(1))?;
    let folder = tempfile::tempdir()?;
    let tip = match &options.image {
        Some(path) => path.into(),
        None => sample::chain(folder.path())?,
    };
    let mut engine = Engine::new(&options);

    // With so little memory for tables that these too are read through the ring, and with enough.
    for budget in [0, 64 << 20] {
        let chain = OpenOptions::new().budget(Budget::new(budget)).open(&tip)?;
        let checked = check(&mut engine, &chain, options.reads / 20)?;
        println!("checked {checked} reads of any length with a budget of {budget} bytes");
    }

    let chain = OpenOptions::new().open(&tip)?;
    let size = chain.geometry().size;
    let pages = size / PAGE as u64;
    if pages == 0 {
        return Err("the disk is smaller than a page".into());
    }
    println!("{} layers, {} MiB, 4 KiB at random:", chain.layers().len(), size >> 20);
    let mut rng = Rng(1);
    let mut random = |reads: usize| -> Vec<Place> {
        (0..reads).map(|_| (rng.below(pages) * PAGE as u64, PAGE)).collect()
    };
    // Once, to warm the page cache and the chain's index.
    let places = random(options.reads);
    plain(&chain, &places)?;
    compare("page cache", &mut engine, &chain, &places, || Ok(()))?;
    beside_bare("reads", &mut engine, &chain, &places, None)?;
    #[cfg(target_os = "linux")]
    compare("disk", &mut engine, &chain, &random(options.reads.div_ceil(40)), || forget(&chain))?;
    drop(chain);
    if options.image.is_some() {
        return Ok(());
    }
    let chain = OpenOptions::new().writable(true).open(&tip)?;
    let checked = check_writes(&mut engine, &chain, 40)?;
    println!("checked {checked} writes of any length");
    let places = random(options.reads.div_ceil(4));
    let bytes = vec![7; PAGE];
    // Once, to give every page its place.
    engine.write(&chain, &places, |_| &bytes)?;
    engine.flush(&chain)?;
    beside_bare("writes in place", &mut engine, &chain, &places, Some(&bytes))?;
    chain.close()?;
    Ok(())
}

/// Times plans and the same I/O without plans in turn, and prints the median ratio.
fn beside_bare(
    what: &str,
    engine: &mut Engine,
    chain: &DiffChain,
    places: &[Place],
    write: Option<&[u8]>,
) -> Result<(), Box<dyn Error>> {
    let Some(bare) = engine.resolve(chain, places, write.is_some())? else { return Ok(()) };
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let by_plan = timed(|| match write {
            Some(bytes) => engine.write(chain, places, |_| bytes),
            None => engine.read(chain, places, |_, _| {}),
        })?;
        let alone = timed(|| engine.bare(&bare, write))?;
        ratios.push(alone.as_secs_f64() / by_plan.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    let (median, least, most) = (ratios[ROUNDS / 2], ratios[0], ratios[ROUNDS - 1]);
    println!("  {what} beside io_uring alone: ratio {median:.2} ({least:.2} to {most:.2})");
    Ok(())
}

/// Times both ways in turn and prints the medians.
fn compare(
    from: &str,
    engine: &mut Engine,
    chain: &DiffChain,
    places: &[Place],
    before: impl Fn() -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let (mut ratios, mut times) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        before()?;
        let by_plan = timed(|| engine.read(chain, places, |_, _| {}))?;
        before()?;
        let by_read_at = timed(|| plain(chain, places))?;
        times[0].push(by_plan);
        times[1].push(by_read_at);
        ratios.push(by_read_at.as_secs_f64() / by_plan.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    let [by_plan, by_read_at] = times.map(|mut times| {
        times.sort_unstable();
        places.len() as f64 / times[ROUNDS / 2].as_secs_f64()
    });
    println!(
        "  from the {from}: {} {by_plan:.0}/s, read_at {by_read_at:.0}/s, ratio {:.2} ({:.2} to {:.2})",
        engine.name(),
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1]
    );
    Ok(())
}

/// Asks the host to drop the chain's files from memory, as far as it does.
#[cfg(target_os = "linux")]
fn forget(chain: &DiffChain) -> Result<(), Box<dyn Error>> {
    use avhdx::storage::{Access, Host, LocalHost};
    use rustix::fs::{Advice, fadvise};
    for path in chain.layers().into_iter().filter_map(|layer| layer.path) {
        let file = LocalHost.open(&path, Access::Read)?;
        if let Some(file) = file.as_fd() {
            fadvise(file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// Offset on the disk, and length in bytes.
type Place = (u64, usize);

/// The places in files of one place on the disk.
type Bare = Arc<[FilePlace]>;

struct Options {
    image: Option<String>,
    reads: usize,
    depth: usize,
    /// Acts as if the kernel had no io_uring.
    pread: bool,
}

impl Options {
    fn from(mut args: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut options = Self { image: None, reads: 200_000, depth: 32, pread: false };
        while let Some(arg) = args.next() {
            let mut number = || match args.next().map(|value| value.parse()) {
                Some(Ok(n)) if n > 0 => Ok(n),
                _ => Err(USAGE),
            };
            match arg.as_str() {
                "--reads" => options.reads = number()?,
                "--depth" => options.depth = number()?.min(4096),
                "--pread" => options.pread = true,
                path if !path.starts_with('-') && options.image.is_none() => {
                    options.image = Some(arg);
                }
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }
}

/// Executes plans.
enum Engine {
    #[cfg(target_os = "linux")]
    Ring(Box<ring::Ring>, usize),
    /// One after the other.
    Pread,
}

impl Engine {
    fn new(options: &Options) -> Self {
        #[cfg(target_os = "linux")]
        if !options.pread {
            match ring::Ring::new(options.depth) {
                Ok(ring) => return Self::Ring(Box::new(ring), options.depth),
                Err(error) => eprintln!("no io_uring, so by pread: {error}"),
            }
        }
        let _ = (options.depth, options.pread);
        Self::Pread
    }

    fn name(&self) -> String {
        match self {
            #[cfg(target_os = "linux")]
            Self::Ring(_, depth) => format!("plans by io_uring, {depth} deep"),
            Self::Pread => "plans by pread".to_owned(),
        }
    }

    /// Writes to all these places, which must not overlap unless their bytes are the same.
    fn write<'a>(
        &mut self,
        chain: &DiffChain,
        places: &[Place],
        bytes: impl Fn(usize) -> &'a [u8],
    ) -> Result<(), Box<dyn Error>> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Ring(ring, _) => {
                let start =
                    |ring: &mut ring::Ring, n| ring.start_write(n, chain, places[n].0, bytes(n));
                drive(ring, places.len(), start, |_, _| {})
            }
            Self::Pread => {
                for (n, (at, len)) in places.iter().enumerate() {
                    let range = *at..at + *len as u64;
                    let mut planned = chain.plan_write(range.clone())?;
                    let plan = loop {
                        planned = match planned {
                            PlannedWrite::Ready(plan) => break plan,
                            PlannedWrite::Load(load) => load.load()?,
                            PlannedWrite::Wait(wait) => {
                                wait.run()?;
                                chain.plan_write(range.clone())?
                            }
                        };
                    };
                    plan.write(bytes(n))?;
                }
                Ok(())
            }
        }
    }

    /// Makes all writes durable.
    fn flush(&mut self, chain: &DiffChain) -> Result<(), Box<dyn Error>> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Ring(ring, _) => ring.flush(chain),
            Self::Pread => Ok(chain.flush()?),
        }
    }

    /// Where these places lie in the files, if this is a ring.
    fn resolve(
        &self,
        chain: &DiffChain,
        places: &[Place],
        to_write: bool,
    ) -> Result<Option<Vec<Bare>>, Box<dyn Error>> {
        if matches!(self, Self::Pread) {
            return Ok(None);
        }
        let mut all = Vec::new();
        for (at, len) in places {
            let range = *at..at + *len as u64;
            let mut bare = Vec::new();
            if to_write {
                let PlannedWrite::Ready(plan) = chain.plan_write(range)? else {
                    return Err("a page that was written has no place".into());
                };
                let flight = plan.begin();
                for step in flight.steps() {
                    let (from, len) = (step.buffer.start, step.buffer.len());
                    let storage = Arc::clone(step.storage);
                    bare.push(FilePlace { storage, at: step.at.get(), from, len });
                }
                flight.failed();
            } else {
                let Planned::Ready(plan) = chain.plan_read(range)? else {
                    return Err("a page that was read has no place".into());
                };
                for piece in plan.pieces() {
                    let PlannedSource::Data { storage, at: place, .. } = piece.source else {
                        continue;
                    };
                    let from = (piece.range.start - at) as usize;
                    let len = (piece.range.end - piece.range.start) as usize;
                    let storage = Arc::clone(storage);
                    bare.push(FilePlace { storage, at: place.get(), from, len });
                }
            }
            all.push(bare.into());
        }
        Ok(Some(all))
    }

    /// Reads from these places of files, or writes to them, without plans.
    fn bare(&mut self, places: &[Bare], write: Option<&[u8]>) -> Result<(), Box<dyn Error>> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Ring(ring, _) => {
                let start = |ring: &mut ring::Ring, n| ring.start_bare(n, &places[n], write);
                drive(ring, places.len(), start, |_, _| {})
            }
            Self::Pread => Err("no ring".into()),
        }
    }

    /// Reads from all these places, and passes on the bytes with the index of the place.
    fn read(
        &mut self,
        chain: &DiffChain,
        places: &[Place],
        mut each: impl FnMut(usize, &[u8]),
    ) -> Result<(), Box<dyn Error>> {
        let range = |(at, len): Place| at..at + len as u64;
        match self {
            #[cfg(target_os = "linux")]
            Self::Ring(ring, _) => {
                let start =
                    |ring: &mut ring::Ring, n| ring.start(n, chain.plan_read(range(places[n]))?);
                drive(ring, places.len(), start, each)
            }
            Self::Pread => {
                let mut buf = Vec::new();
                for (n, place) in places.iter().enumerate() {
                    let mut planned = chain.plan_read(range(*place))?;
                    let plan = loop {
                        planned = match planned {
                            Planned::Ready(plan) => break plan,
                            Planned::Load(load) => load.load()?,
                        };
                    };
                    buf.resize(place.1, 0);
                    plan.read(&mut buf)?;
                    each(n, &buf);
                }
                Ok(())
            }
        }
    }
}

/// Starts this many reads or writes, as there is room, and passes on each that has completed.
#[cfg(target_os = "linux")]
fn drive(
    ring: &mut ring::Ring,
    count: usize,
    mut start: impl FnMut(&mut ring::Ring, usize) -> Result<(), Box<dyn Error>>,
    mut each: impl FnMut(usize, &[u8]),
) -> Result<(), Box<dyn Error>> {
    let mut left = 0..count;
    loop {
        while ring.has_room()
            && let Some(n) = left.next()
        {
            start(ring, n)?;
        }
        if ring.is_idle() {
            return Ok(());
        }
        ring.wait(&mut each)?;
    }
}

/// Batches of writes of any length, with flushes in between, compared with plain reads of the whole range.
fn check_writes(
    engine: &mut Engine,
    chain: &DiffChain,
    batches: usize,
) -> Result<usize, Box<dyn Error>> {
    const SLOT: u64 = 96 << 10;
    const SLOTS: u64 = 300;
    let start = chain.geometry().size.saturating_sub(SLOT * SLOTS) / SLOT * SLOT;
    let mut expected = vec![0; (SLOT * SLOTS) as usize];
    chain.read_at(&mut expected, start)?;
    let mut rng = Rng(3);
    let mut written = 0;
    for batch in 0..batches {
        // Writes of a batch do not overlap: their order is not known.
        let first = rng.below(SLOTS);
        let places: Vec<Place> = (0..100)
            .map(|n| {
                let at = rng.below(180) * 512;
                let len =
                    512 * (1 + rng.below([4, 16, 200][n as usize % 3])).min((SLOT - at) / 512);
                (start + (first + n * 7) % SLOTS * SLOT + at, len as usize)
            })
            .collect();
        let texts: Vec<Vec<u8>> =
            places.iter().map(|(_, len)| vec![rng.next() as u8; *len]).collect();
        engine.write(chain, &places, |n| &texts[n])?;
        for ((at, len), text) in places.iter().zip(&texts) {
            expected[(at - start) as usize..][..*len].copy_from_slice(text);
        }
        if batch % 5 == 0 {
            engine.flush(chain)?;
        }
        written += places.len();
    }
    let mut read = vec![0; expected.len()];
    chain.read_at(&mut read, start)?;
    if read != expected {
        return Err("what was written does not read back".into());
    }
    Ok(written)
}

/// Random reads of any length, compared with plain reads.
fn check(engine: &mut Engine, chain: &DiffChain, reads: usize) -> Result<usize, Box<dyn Error>> {
    let size = chain.geometry().size;
    let mut rng = Rng(2);
    let mut anywhere = || {
        let at = rng.below(size);
        let most = match rng.below(40) {
            0 => 2 << 20,
            1..10 => 70_000,
            10..25 => 5000,
            _ => 700,
        };
        (at, (1 + rng.below(most)).min(size - at) as usize)
    };
    let places: Vec<Place> = (0..reads.max(1)).map(|_| anywhere()).collect();
    let mut seen = vec![false; places.len()];
    let mut wrong = None;
    let mut expected = Vec::new();
    engine.read(chain, &places, |n, bytes| {
        let (at, len) = places[n];
        expected.resize(len, 0);
        let is_right = chain.read_at(&mut expected, at).is_ok() && bytes == expected;
        if !is_right || std::mem::replace(&mut seen[n], true) {
            wrong = Some(places[n]);
        }
    })?;
    if let Some((at, len)) = wrong {
        return Err(format!("{len} bytes at {at} are not those of read_at").into());
    }
    if seen.contains(&false) {
        return Err("a read got lost".into());
    }
    Ok(places.len())
}

fn plain(chain: &DiffChain, places: &[Place]) -> Result<(), Box<dyn Error>> {
    let mut buf = vec![0; PAGE];
    places.iter().try_for_each(|(at, len)| chain.read_at(&mut buf[..*len], *at))?;
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pread: bool, depth: usize) -> Options {
        Options { image: None, reads: 0, depth, pread }
    }

    /// Both ways give the bytes of plain reads, with warm and with cold tables.
    #[test]
    fn plans_give_the_bytes_of_plain_reads() {
        let folder = tempfile::tempdir().unwrap();
        let tip = sample::chain(folder.path()).unwrap();
        for (pread, depth) in [(false, 32), (false, 1), (true, 1)] {
            let mut engine = Engine::new(&options(pread, depth));
            assert!(!pread || matches!(engine, Engine::Pread));
            for budget in [0, 64 << 20] {
                let options = OpenOptions::new().budget(Budget::new(budget));
                let chain = options.open(&tip).unwrap();
                assert_eq!(check(&mut engine, &chain, 300).unwrap(), 300, "{}", engine.name());
            }
        }
    }

    #[test]
    fn planned_writes_read_back_also_after_the_disk_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let tip = sample::chain(folder.path()).unwrap();
        for (pread, depth) in [(false, 32), (false, 1), (true, 1)] {
            let mut engine = Engine::new(&options(pread, depth));
            for budget in [0, 64 << 20] {
                let options = OpenOptions::new().writable(true).budget(Budget::new(budget));
                let chain = options.open(&tip).unwrap();
                assert_eq!(check_writes(&mut engine, &chain, 3).unwrap(), 300);
                let mut before = vec![0; 64 << 20];
                let at = chain.geometry().size - before.len() as u64;
                chain.read_at(&mut before, at).unwrap();
                chain.close().unwrap();
                drop(chain);
                let mut after = vec![0; before.len()];
                DiffChain::open(&tip).unwrap().read_at(&mut after, at).unwrap();
                assert!(before == after, "{}", engine.name());
            }
        }
    }

    /// Dropping a ring waits for the reads in flight.
    #[cfg(target_os = "linux")]
    #[test]
    fn reads_under_way_end_before_their_buffers() {
        let folder = tempfile::tempdir().unwrap();
        let chain = DiffChain::open(sample::chain(folder.path()).unwrap()).unwrap();
        let mut whole = vec![0; 1 << 20];
        chain.read_at(&mut whole, 0).unwrap();
        let Ok(mut ring) = ring::Ring::new(8) else {
            return println!("SKIPPED: no io_uring here");
        };
        for n in 0..8 {
            ring.start(n, chain.plan_read(0..1 << 20).unwrap()).unwrap();
        }
        assert!(!ring.has_room() && ring.start(9, chain.plan_read(0..1).unwrap()).is_err());
        drop(ring);
    }
}
