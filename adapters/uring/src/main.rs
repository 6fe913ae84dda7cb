//! Reads a chain of checkpoints with io_uring, 32 reads at a time, if the kernel allows it, and by `pread`
//! otherwise. Compares every byte with [`Disk::read_at`], and prints the speed as a ratio to it: above 1
//! is faster.
//!
//! ```sh
//! cargo run --release -p avhdx-uring-example              # a chain of its own, in a temporary folder
//! cargo run --release -p avhdx-uring-example -- tip.avhdx
//! ```
//!
//! The library plans ([`DiffChain::plan_read`]) and this program moves the bytes; `ring.rs` shows how.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[cfg(target_os = "linux")]
mod ring;
mod sample;

use std::error::Error;
use std::time::{Duration, Instant};

use avhdx::{Budget, DiffChain, Disk, OpenOptions, Planned};

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
    #[cfg(target_os = "linux")]
    compare("disk", &mut engine, &chain, &random(options.reads.div_ceil(40)), || forget(&chain))?;
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
                let mut places = places.iter().enumerate();
                loop {
                    while ring.has_room()
                        && let Some((n, place)) = places.next()
                    {
                        ring.start(n, chain.plan_read(range(*place))?)?;
                    }
                    if ring.is_idle() {
                        return Ok(());
                    }
                    ring.wait(&mut each)?;
                }
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
