//! The instructions of a read outside the kernel, counted by valgrind.
//!
//! ```text
//! cargo bench --no-run --bench table         # prints the program's path
//! table --reads-only ours --depth 64 --owned page --mib 64 --count 1000 --in DIR    builds the chain in DIR
//! valgrind --tool=callgrind --collect-atstart=no '--toggle-collect=*counted_reads*' \
//!     table --reads-only ours --depth 64 --owned page --mib 64 --count 100000 --in DIR
//! ```
//!
//! `bare` in place of `ours` executes the same reads by `pread`. Everything is read once before, so that
//! the index is warm. `touch` opens the chain `--count` times and reads each of its blocks once, with
//! `--toggle-collect=*counted_touches*`. `perf stat` or `perf record` can be used instead of valgrind.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

use avhdx::{DiffChain, Disk};

use crate::images::{Chain, KIB, MIB, Owners, PAGE, Reads, Shape};
use crate::reads::{opened_anew, touched};
use crate::report::{Fact, Report};
use crate::stats::timed;
use crate::{Result, Run};

/// Makes the program do nothing but reads.
pub const READS_ONLY: &str = "--reads-only";
const USAGE: &str = "usage: table --reads-only ours|bare|touch --in DIR [--depth N] [--owned page|cluster|block] [--mib N] [--count N]";

/// One loop of reads.
struct Loop {
    reads: What,
    shape: Shape,
    count: usize,
    folder: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Ours,
    Bare,
    /// Each block's first read.
    Touch,
}

impl Loop {
    fn parse(args: &[String]) -> Result<Self> {
        let (mut reads, mut folder) = (None, None);
        let (mut depth, mut owned, mut mib, mut count) = (64, PAGE, 64, 100_000);
        for pair in args.chunks(2) {
            let [name, value] = pair else { return Err(USAGE.into()) };
            match (name.as_str(), value.as_str()) {
                (READS_ONLY, "ours") => reads = Some(What::Ours),
                (READS_ONLY, "bare") => reads = Some(What::Bare),
                (READS_ONLY, "touch") => reads = Some(What::Touch),
                ("--owned", "page") => owned = PAGE,
                ("--owned", "cluster") => owned = 64 * KIB,
                ("--owned", "block") => owned = 2 * MIB,
                ("--in", path) => folder = Some(PathBuf::from(path)),
                ("--depth", number) => depth = number.parse()?,
                ("--mib", number) => mib = number.parse()?,
                ("--count", number) => count = number.parse()?,
                _ => return Err(USAGE.into()),
            }
        }
        let (Some(reads), Some(folder)) = (reads, folder) else { return Err(USAGE.into()) };
        let shape = Shape::new(mib * MIB, depth, Owners::Runs(owned));
        Ok(Self { reads, shape, count, folder: folder.join(format!("{depth}-{mib}-{owned}")) })
    }
}

pub fn reads_only(args: &[String]) -> Result<()> {
    let all = Loop::parse(args)?;
    let built = if fs::exists(&all.folder)? { Chain::open } else { Chain::build };
    let chain = built(&all.folder, all.shape)?;
    if all.reads == What::Touch {
        return touches(&chain, all.count);
    }
    let reads = chain.random()?;
    let mut buf = vec![0; PAGE as usize];
    let every = 0..reads.offsets.len();
    chain.read_bare(&reads, every.clone(), &mut buf)?;
    chain.read_ours(&reads, every, &mut buf)?;
    counted_reads(&chain, &reads, &all, &mut buf)
}

/// A separate function, so that counting starts and ends with it.
#[inline(never)]
fn counted_reads(chain: &Chain, reads: &Reads, all: &Loop, buf: &mut [u8]) -> Result<()> {
    let mut left = all.count;
    while left > 0 {
        let now = left.min(reads.offsets.len());
        if all.reads == What::Ours {
            chain.read_ours(reads, 0..now, black_box(buf))?;
        } else {
            chain.read_bare(reads, 0..now, black_box(buf))?;
        }
        left -= now;
    }
    Ok(())
}

/// Prints the time of a first touch beside that of a bare read of the same bytes.
fn touches(chain: &Chain, count: usize) -> Result<()> {
    let reads = touched(chain)?;
    let mut buf = vec![0; PAGE as usize];
    let every = 0..reads.offsets.len();
    let asked: usize = reads.offsets.iter().map(|at| chain.asked(*at) + 1).sum();
    for _ in 0..count {
        let disk = opened_anew(chain)?;
        let own = timed(|| counted_touches(&disk, &reads, &mut buf))?;
        let bare = timed(|| Ok(chain.read_bare(&reads, every.clone(), black_box(&mut buf))?))?;
        let [own, bare] = [own, bare].map(|time| time.as_secs_f64() * 1e6 / every.len() as f64);
        let allowed = asked as f64 / every.len() as f64;
        println!("own {own:.2} µs, bare {bare:.3} µs, allowed {allowed:.1} bare reads");
    }
    Ok(())
}

#[inline(never)]
fn counted_touches(disk: &DiffChain, reads: &Reads, buf: &mut [u8]) -> Result<()> {
    Ok(reads.offsets.iter().try_for_each(|at| disk.read_at(black_box(&mut *buf), *at))?)
}

pub fn run(run: &Run, report: &mut Report) -> Result<()> {
    report.section("Instructions of a random 4 KiB read in user space, by valgrind, index warm");
    let folder = run.folder.path().join("counted");
    for (depth, owned) in [(1, "page"), (64, "block"), (64, "cluster"), (64, "page")] {
        let what = format!("instructions, depth {depth}, by {owned}");
        if !report.wants(&what) {
            continue;
        }
        let [own, bare] = ["ours", "bare"].map(|who| counted(run, &folder, who, depth, owned));
        match (own?, bare?) {
            (Some(own), Some(bare)) => {
                report.fact(Fact::new(&what, own, "", None).note(format!("bare: {bare:.1}")))
            }
            _ => report.left_out(&what, "valgrind is not here, or does not run this program"),
        }
    }
    Ok(fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?)
}

/// The instructions of one read.
fn counted(run: &Run, folder: &Path, who: &str, depth: usize, owned: &str) -> Result<Option<f64>> {
    let (mib, count) = if run.options.quick { (2, 1_000) } else { (64, 100_000) };
    let program = std::env::current_exe()?;
    let args = format!(
        "{READS_ONLY} {who} --depth {depth} --owned {owned} --mib {mib} --count {count} --in"
    );
    let args = || args.split(' ').map(String::from).chain([folder.display().to_string()]);
    if !Command::new(&program).args(args()).status()?.success() {
        return Err("the loop of reads failed".into());
    }
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*counted_reads*"])
        .arg(&program)
        .args(args())
        .output();
    let Ok(output) = output else { return Ok(None) };
    let text = String::from_utf8_lossy(&output.stderr);
    let collected =
        text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    Ok(collected.filter(|_| output.status.success()).map(|all: f64| all / count as f64))
}
