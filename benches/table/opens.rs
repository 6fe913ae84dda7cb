//! The cost of opening, and the memory that touching a disk takes, each in a separate process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use avhdx::{Budget, DiffChain, Disk, OpenOptions};
use avhdx_testkit::build::{Block, Data, Image, write_chain};
use avhdx_testkit::rng::Rng;

use crate::images::{Chain, MIB, Owners, PAGE, Shape};
use crate::report::{Fact, Report};
use crate::stats::median;
use crate::{Result, Run, reads};

/// Makes the program open one chain, and touch every block of it if given a budget; see [`fresh`].
pub const FRESH: &str = "--fresh";
const BUDGETS: [u64; 3] = [8, 64, 512];
const DEEP: usize = 64;

pub fn run(run: &Run, report: &mut Report) -> Result<()> {
    report.section("Opening, in a fresh process; empty images in blocks of 1 MiB");
    for (size, depth, most) in
        [(64 * MIB, 1, None), (64 << 40, 1, None), (64 << 40, DEEP, Some((100.0, 64.0)))]
    {
        let name = if size < 1 << 40 { "64 MiB" } else { "64 TiB" };
        let time = format!("open, {depth} deep x {name}, median");
        let resident = format!("open, {depth} deep x {name}, most resident");
        if !report.wants(&time) && !report.wants(&resident) {
            continue;
        }
        let tip = empty(&run.folder.path().join("empty"), size, depth)?;
        let opened = (0..run.options.rounds.min(30)).map(|_| in_fresh(&tip, None));
        let opened = opened.collect::<Result<Vec<_>>>()?;
        let times: Vec<f64> = opened.iter().map(|opened| opened.millis).collect();
        report.fact(Fact::new(&time, median(&times), "ms", most.map(|(ms, _)| ms)));
        match opened.iter().map(|opened| opened.peak).collect::<Option<Vec<_>>>() {
            Some(peaks) => {
                let peak = peaks.into_iter().fold(0.0, f64::max);
                report.fact(Fact::new(&resident, peak, "MiB", most.map(|(_, mib)| mib)));
            }
            None => report.left_out(&resident, "measured on Linux only"),
        }
        fs::remove_dir_all(run.folder.path().join("empty"))?;
    }
    touches(run, report)?;
    budgets(run, report)
}

/// The tip of a chain of empty images.
fn empty(folder: &Path, size: u64, depth: usize) -> Result<PathBuf> {
    fs::create_dir(folder)?;
    let mut images = vec![Image::dynamic(size)];
    while images.len() < depth {
        images.push(images[images.len() - 1].new_child());
    }
    write_chain(folder, &images).pop().ok_or_else(|| "no image".into())
}

/// The memory in use after touching every block of a huge chain.
fn touches(run: &Run, report: &mut Report) -> Result<()> {
    report.section(
        "Memory after every block was touched once, 64 deep, blocks of 2 MiB, a few with data",
    );
    let (size, name) = if run.options.quick { (16 << 30, "16 GiB") } else { (1 << 40, "1 TiB") };
    let named = |budget: u64| format!("resident growth, {name} disks, budget {budget} MiB");
    if !BUDGETS.iter().any(|budget| report.wants(&named(*budget))) {
        return Ok(());
    }
    let folder = run.folder.path().join("touched");
    let tip = sparse(&folder, size)?;
    for budget in BUDGETS {
        let what = named(budget);
        if !report.wants(&what) {
            continue;
        }
        let touched = in_fresh(&tip, Some(budget))?;
        match touched.growth {
            Some(growth) => {
                let each = touched.millis * 1e3 / (size / (2 * MIB)) as f64;
                let fact = Fact::new(&what, growth, "MiB", Some(budget as f64));
                report.fact(fact.note(format!("{each:.1} µs a touch")));
            }
            None => report.left_out(&what, "measured on Linux only"),
        }
    }
    Ok(fs::remove_dir_all(folder)?)
}

/// The tip of a chain of disks of this size, with a few blocks of data in each layer.
fn sparse(folder: &Path, size: u64) -> Result<PathBuf> {
    fs::create_dir(folder)?;
    let mut rng = Rng::new(size);
    let mut images: Vec<Image> = Vec::new();
    for _ in 0..DEEP {
        let mut image = match images.last() {
            Some(below) => below.new_child(),
            None => Image { block_size: 2 << 20, ..Image::dynamic(size) },
        };
        for _ in 0..4 {
            let data = Data::Bytes(vec![7; PAGE as usize]);
            // A base has no bitmaps.
            let block = match images.is_empty() {
                true => Block::full(data),
                false => Block::partial_runs(data, &[(0, 8)]),
            };
            image.put(rng.below(size / (2 * MIB)), block);
        }
        images.push(image);
    }
    write_chain(folder, &images).pop().ok_or_else(|| "no image".into())
}

/// Reads with little memory and with much.
fn budgets(run: &Run, report: &mut Report) -> Result<()> {
    report.section("Random 4 KiB reads by budget, depth 64, by 4 KiB page");
    for budget in BUDGETS {
        let work = format!("random 4 KiB read, budget {budget} MiB");
        if !report.wants(&work) {
            continue;
        }
        let shape = Shape::new(run.options.mib * MIB, DEEP, Owners::Runs(PAGE));
        let options = OpenOptions::new().budget(Budget::new((budget * MIB) as usize));
        let chain: Chain = run.chain(shape)?.reopened(&options)?;
        report.row(reads::beside_bare(run, &chain, &chain.random()?, &work, None, None)?);
        chain.remove()?;
    }
    Ok(())
}

/// Measurements in a fresh process.
struct Fresh {
    /// The time of the open, or of all touches.
    millis: f64,
    /// In MiB; Linux only.
    peak: Option<f64>,
    growth: Option<f64>,
}

fn in_fresh(tip: &Path, budget: Option<u64>) -> Result<Fresh> {
    let mut program = Command::new(std::env::current_exe()?);
    program.arg(FRESH).arg(tip).args(budget.map(|mib| mib.to_string()));
    let output = program.output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [millis, before, after] = numbers[..] else {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    };
    let [peak, growth] = [after, after - before].map(|mib| (after > 0.0).then_some(mib));
    Ok(Fresh { millis, peak, growth })
}

/// Opens a chain and prints how many milliseconds it took, and the resident memory before and at its peak, in
/// MiB. With a budget in MiB, does the same for reading a page of each block.
pub fn fresh(args: &[String]) -> Result<()> {
    let (tip, budget) = match args {
        [_, tip] => (tip, None),
        [_, tip, budget] => (tip, Some(budget.parse::<usize>()?)),
        _ => return Err("usage: table --fresh TIP [BUDGET]".into()),
    };
    let Some(budget) = budget else {
        let before = resident("VmRSS:")?;
        let start = Instant::now();
        let disk = DiffChain::open(tip)?;
        let millis = start.elapsed().as_secs_f64() * 1e3;
        println!("{millis} {before} {}", resident("VmHWM:")?);
        drop(disk);
        return Ok(());
    };
    let disk = OpenOptions::new().budget(Budget::new(budget << 20)).open(tip)?;
    let mut buf = vec![0; PAGE as usize];
    // Code and buffers of a first read are not part of the budget.
    disk.read_at(&mut buf, 0)?;
    let before = resident("VmRSS:")?;
    let start = Instant::now();
    for at in (0..disk.geometry().size).step_by(2 << 20) {
        disk.read_at(&mut buf, at)?;
    }
    let millis = start.elapsed().as_secs_f64() * 1e3;
    println!("{millis} {before} {}", resident("VmHWM:")?);
    Ok(())
}

/// A line of Linux's status of this process, in MiB; 0 elsewhere.
fn resident(name: &str) -> Result<f64> {
    if !cfg!(target_os = "linux") {
        return Ok(0.0);
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()).ok_or("no such line")?;
    Ok(number.parse::<f64>()? / 1024.0)
}
