//! Reads of images and chains beside bare `pread`s of the same bytes, and what an open costs.
//!
//! Every figure is a ratio taken within one round, in which all contenders read the same list one
//! after the other: bare time / own time, so that 1.00 is as fast as bare. The row A/A sets bare
//! against bare and shows how far the machine's noise reaches.
//!
//! ```text
//! cargo bench --bench reads -- [--mib 256,1024] [--depth 1,4,16,64] [--rounds 40] [--json FILE]
//! AVHDX_BENCH_QUICK=1 cargo bench    a small run, to see that it runs
//! ```

// A bench reads files without the crate, to have something to compare it with.
#![allow(clippy::disallowed_methods)]

mod images;
mod opens;
mod report;
mod sample;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use images::{Images, MIB, Order};
use report::Report;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const USAGE: &str = "usage: reads [--mib N,N] [--depth N,N] [--rounds N] [--json FILE]";

/// What one run measures.
struct Options {
    /// Sizes of the working set, which is the whole disk, in MiB.
    mib: Vec<u64>,
    depths: Vec<usize>,
    rounds: usize,
    opens: usize,
    /// Bytes that each contender reads in a round.
    sample: u64,
    json: Option<PathBuf>,
}

impl Options {
    fn parse(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self::of_this_run(std::env::var_os("AVHDX_BENCH_QUICK").is_some());
        let mut args = args;
        while let Some(arg) = args.next() {
            if arg == "--bench" {
                continue; // Cargo says so itself
            }
            let value = args.next().ok_or(USAGE)?;
            match arg.as_str() {
                "--mib" => options.mib = numbers(&value)?,
                "--depth" => options.depths = numbers(&value)?,
                "--rounds" => options.rounds = numbers(&value)?[0],
                "--json" => options.json = Some(value.into()),
                _ => return Err(USAGE.into()),
            }
        }
        let too_deep = options.depths.iter().any(|depth| !(1..=256).contains(depth));
        if too_deep || options.mib.contains(&0) || options.rounds == 0 {
            return Err("sizes and rounds start at 1, depths lie from 1 to 256".into());
        }
        Ok(options)
    }

    fn of_this_run(quick: bool) -> Self {
        let (mib, depths) =
            if quick { (vec![16], vec![1, 4]) } else { (vec![256, 1024], vec![1, 4, 16, 64]) };
        let (rounds, opens, sample) = if quick { (8, 5, 8 * MIB) } else { (40, 30, 64 * MIB) };
        Self { mib, depths, rounds, opens, sample, json: None }
    }
}

fn numbers<T: std::str::FromStr>(list: &str) -> Result<Vec<T>> {
    list.split(',').map(|number| number.trim().parse().map_err(|_| USAGE.into())).collect()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [only, image] if only == opens::RESIDENT => opens::print_resident(Path::new(image)),
        _ => Options::parse(args.into_iter()).and_then(|options| run(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reads: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("avhdx-bench-").tempdir()?;
    images::check_space(folder.path(), &options.mib)?;
    let mut report = Report::default();
    for mib in &options.mib {
        let raw = images::write_raw(folder.path(), mib * MIB)?;
        for depth in &options.depths {
            eprintln!("{mib} MiB, {depth} deep ...");
            let images = Images::build(folder.path(), mib * MIB, *depth, &raw)?;
            for order in [Order::Random, Order::Sequential] {
                let reads = images.reads(order)?;
                images.check(&reads)?;
                report.reads.push(sample::measure(&images, &reads, options)?);
            }
            images.remove()?;
        }
    }
    eprintln!("opens ...");
    report.opens = opens::measure(folder.path(), options.opens)?;
    print!("{report}");
    if let Some(path) = &options.json {
        std::fs::write(path, report.to_json())?;
    }
    Ok(folder.close()?)
}
