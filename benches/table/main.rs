//! A table of the crate's cost compared with bare calls of the host: reads, writes, opening, memory, and
//! other programs.
//!
//! ```text
//! cargo bench --bench table -- [--only NAME] [--rounds 30] [--mib 1024] [--json FILE] [--svg FILE]
//! AVHDX_BENCH_QUICK=1 cargo bench    every row on a small scale, to see that it runs
//! ```
//!
//! - Every ratio is taken within one round, in which all contenders do the same work in
//!   turn: bare time / own time, so that 1.00 is as fast as bare and more is faster.
//! - `ratio` is the median over the rounds, `low95` the lower bound of that median's 95 % confidence
//!   interval by order statistics.
//! - `A/A` is bare against bare in the same rounds: the noise of the machine.
//! - `to raw` is the time for one flat raw file with the disk's contents / own time.
//! - A bar is reached (`yes`) if `low95` reaches it, or only `by its median`.
//!
//! `--mib` is the working set, which is the whole disk. Above 2048 only reads are compared with bare ones;
//! since scattered pages in that many files keep a disk busy for long, `TMPDIR=/dev/shm` is recommended. For other
//! modes of the program see [`instructions`].

// The benchmark reads files without the crate for comparison.
#![allow(clippy::disallowed_methods)]

mod busy;
mod chart;
mod copies;
mod diffs;
mod growth;
mod images;
mod instructions;
mod merges;
mod opens;
mod peers;
mod reads;
mod report;
mod stats;
mod tools;
mod writes;

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use images::{Chain, MIB, Shape};
use report::Report;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const USAGE: &str = "usage: table [--only NAME] [--rounds N] [--mib N] [--json FILE] [--svg FILE]";
/// Runs above this size in MiB only show the effect of the chain's own memory.
const READS_ALONE: u64 = 2048;

/// What a run measures.
struct Options {
    quick: bool,
    /// The working set, which is the whole disk, in MiB.
    mib: u64,
    rounds: usize,
    /// How many bytes each contender reads in a round.
    sample: u64,
    only: Option<String>,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

/// One run of the program.
struct Run {
    options: Options,
    folder: tempfile::TempDir,
    raw: OnceLock<File>,
}

impl Options {
    fn parse(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self::of_this_run(std::env::var_os("AVHDX_BENCH_QUICK").is_some());
        let mut args = args;
        while let Some(arg) = args.next() {
            let value = args.next().ok_or(USAGE)?;
            match arg.as_str() {
                "--only" => options.only = Some(value),
                "--rounds" => options.rounds = value.parse()?,
                "--mib" => options.mib = value.parse()?,
                "--json" => options.json = Some(value.into()),
                "--svg" => options.svg = Some(value.into()),
                _ => return Err(USAGE.into()),
            }
        }
        if !(1..=1000).contains(&options.rounds)
            || options.mib < 4
            || !options.mib.is_multiple_of(2)
        {
            return Err(
                "there are 1 to 1000 rounds, and the working set is even and at least 4 MiB".into(),
            );
        }
        Ok(options)
    }

    fn of_this_run(quick: bool) -> Self {
        let (mib, rounds, sample) = if quick { (16, 6, 2 * MIB) } else { (1024, 30, 64 * MIB) };
        Self { quick, mib, rounds, sample, only: None, json: None, svg: None }
    }

    fn reads_alone(&self) -> bool {
        self.mib > READS_ALONE
    }
}

impl Run {
    /// A chain of this shape, in the folder of the previous one.
    fn chain(&self, shape: Shape) -> Result<Chain> {
        Chain::build(&self.folder.path().join("chain"), shape)
    }

    /// A flat file with the contents that all non-empty chains have.
    fn raw(&self) -> Result<Option<&File>> {
        if self.options.reads_alone() {
            return Ok(None);
        }
        if self.raw.get().is_none() {
            let file = images::write_raw(self.folder.path(), self.options.mib * MIB)?;
            _ = self.raw.set(file);
        }
        Ok(self.raw.get())
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let done = match args.first().map(String::as_str) {
        Some(instructions::READS_ONLY) => instructions::reads_only(&args),
        Some(opens::FRESH) => opens::fresh(&args),
        _ => Options::parse(args.into_iter()).and_then(measure),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("table: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: Options) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("avhdx-bench-").tempdir()?;
    check_space(folder.path(), options.mib)?;
    let run = Run { options, folder, raw: OnceLock::new() };
    let mut report = Report::only(run.options.only.clone());
    println!(
        "Working set {} MiB, {} rounds, page cache warm. ratio = bare time / own time, median; low95 = lower bound",
        run.options.mib, run.options.rounds
    );
    println!(
        "of its 95 % confidence interval (order statistics); A/A = bare / bare; to raw = flat raw file / own."
    );
    if run.options.quick {
        println!("A quick run: it shows that every row runs, and is too small to judge any by.");
    }
    reads::run(&run, &mut report)?;
    if !run.options.reads_alone() {
        writes::run(&run, &mut report)?;
        merges::run(&run, &mut report)?;
        busy::run(&run, &mut report)?;
        copies::run(&run, &mut report)?;
        diffs::run(&run, &mut report)?;
        opens::run(&run, &mut report)?;
        let points = peers::run(&run, &mut report)?;
        if let Some(path) = &run.options.svg {
            std::fs::write(path, chart::svg(&points))?;
        }
        growth::run(&run, &mut report)?;
        instructions::run(&run, &mut report)?;
    }
    let (bars, missed) = report.verdict();
    println!("\n{} of {bars} bars reached", bars - missed.len());
    missed.iter().for_each(|work| println!("missed: {work}"));
    if let Some(path) = &run.options.json {
        std::fs::write(path, report.to_json())?;
    }
    Ok(run.folder.close()?)
}

/// Refuses to start on a volume without enough space for the images.
fn check_space(folder: &Path, mib: u64) -> Result<()> {
    // Raw files and images that are kept, new ones beside them, and their bitmaps and tables.
    let needed = if mib > READS_ALONE { 2 * mib + 512 } else { 7 * mib + 512 } * MIB;
    let in_folder = format!("{} MiB in {}", needed / MIB, folder.display());
    eprintln!("needs {in_folder} (TMPDIR chooses another), and as much memory for the page cache");
    #[cfg(unix)]
    {
        let volume = rustix::fs::statvfs(folder)?;
        let free = volume.f_bavail * volume.f_frsize;
        if free < needed {
            return Err(format!("needs {in_folder}, which has {} MiB free", free / MIB).into());
        }
    }
    Ok(())
}
