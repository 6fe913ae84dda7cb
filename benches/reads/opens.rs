//! What it costs to open an empty image, small or huge: tables are not read before they are needed.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use avhdx::DiffChain;
use avhdx_testkit::build::Image;

use crate::Result;
use crate::images::MIB;
use crate::sample::{median, quantile};

/// Starts this program again to open one image and print its own memory.
pub const RESIDENT: &str = "--resident";
const SIZES: [u64; 2] = [64 * MIB, 64 << 40];

pub struct Opened {
    pub size: u64,
    /// Of all opens, in milliseconds.
    pub median: f64,
    pub max: f64,
    /// The most that a fresh process had resident before and after the open, in KiB; Linux only.
    pub resident: Option<[u64; 2]>,
}

/// Opens empty dynamic images of 1 MiB blocks, one size after the other in each round.
pub fn measure(folder: &Path, rounds: usize) -> Result<Vec<Opened>> {
    let paths = SIZES.map(|size| folder.join(format!("empty-{size}.vhdx")));
    for (path, size) in paths.iter().zip(SIZES) {
        Image::dynamic(size).write_to(path);
        std::fs::File::open(path)?.sync_all()?;
        DiffChain::open(path)?; // page cache warm, as for the reads
    }
    let mut times = SIZES.map(|_| Vec::new());
    for _ in 0..rounds {
        for (path, times) in paths.iter().zip(&mut times) {
            let start = Instant::now();
            let disk = DiffChain::open(path)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            drop(disk);
        }
    }
    let measured = SIZES.iter().zip(&paths).zip(times);
    measured
        .map(|((size, path), times)| {
            Ok(Opened {
                size: *size,
                median: median(times.iter().copied()),
                max: quantile(times, 1.0),
                resident: resident(path)?,
            })
        })
        .collect()
}

/// The other side of [`resident`].
pub fn print_resident(image: &Path) -> Result<()> {
    let before = peak()?;
    let disk = DiffChain::open(image)?;
    println!("{before} {}", peak()?);
    drop(disk);
    Ok(())
}

fn resident(image: &Path) -> Result<Option<[u64; 2]>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    let output = Command::new(std::env::current_exe()?).arg(RESIDENT).arg(image).output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let numbers = <[u64; 2]>::try_from(numbers);
    numbers.map(Some).map_err(|_| String::from_utf8_lossy(&output.stderr).into())
}

/// The most that this process ever had resident, in KiB.
fn peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmHWM")?;
    Ok(number.parse()?)
}
