//! Copies between formats beside `qemu-img convert` of the same disk, both made durable, in turns.
//!
//! A ratio is the time of QEMU by that of avhdx: more is faster. `AVHDX_BENCH_QUICK=1` makes every row in small.

#![allow(clippy::disallowed_methods)] // real files

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use avhdx::ops::Export;
use avhdx::storage::{Access, Host, LocalHost};
use avhdx::{CreateOptions, Disk, OpenOptions, RawDisk};
use avhdx_formats::{qcow2, vhd};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: u64 = 1 << 20;

/// A copy from a file to a new one: by avhdx, and by QEMU with these formats.
struct Row {
    what: &'static str,
    from: &'static str,
    to: &'static str,
    copy: fn(&Path, &Path) -> Result<()>,
    qemu: [&'static str; 2],
}

const ROWS: &[Row] = &[
    Row { what: "raw to VHDX", from: "a.raw", to: "o.vhdx", copy: to_vhdx, qemu: ["raw", "vhdx"] },
    Row { what: "VHDX to raw", from: "a.vhdx", to: "o.raw", copy: to_raw, qemu: ["vhdx", "raw"] },
    Row {
        what: "VHDX to qcow2",
        from: "a.vhdx",
        to: "o.qcow2",
        copy: to_qcow2,
        qemu: ["vhdx", "qcow2"],
    },
    Row { what: "VHDX to VHD", from: "a.vhdx", to: "o.vhd", copy: to_vhd, qemu: ["vhdx", "vpc"] },
    Row {
        what: "qcow2 to raw",
        from: "a.qcow2",
        to: "o.raw",
        copy: to_raw,
        qemu: ["qcow2", "raw"],
    },
    Row {
        what: "packed qcow2 to raw",
        from: "c.qcow2",
        to: "o.raw",
        copy: to_raw,
        qemu: ["qcow2", "raw"],
    },
];

fn main() -> Result<()> {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("qemu-img is not here: nothing is measured");
        return Ok(());
    }
    let is_quick = std::env::var_os("AVHDX_BENCH_QUICK").is_some();
    let (size, rounds) = if is_quick { (64 * MIB, 2) } else { (2048 * MIB, 8) };
    let folder = tempfile::Builder::new().prefix("avhdx-convert").tempdir_in(".")?;
    let at = |name: &str| folder.path().join(name);
    make_raw(&at("a.raw"), size)?;
    to_vhdx(&at("a.raw"), &at("a.vhdx"))?;
    convert(["raw", "qcow2"], &[], &at("a.raw"), &at("a.qcow2"))?;
    convert(["raw", "qcow2"], &["-c"], &at("a.raw"), &at("c.qcow2"))?;
    println!("{} MiB, every second MiB a hole; {rounds} rounds; medians (least, most)", size / MIB);
    for row in ROWS {
        let (from, own, other) = (at(row.from), at(row.to), at(&format!("q-{}", row.to)));
        let (mut owns, mut ratios) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let run_own = || timed(&own, || (row.copy)(&from, &own));
            let run_qemu = || timed(&other, || convert(row.qemu, &[], &from, &other));
            let (own, qemu) = match round % 2 {
                0 => {
                    let qemu = run_qemu()?;
                    (run_own()?, qemu)
                }
                _ => (run_own()?, run_qemu()?),
            };
            owns.push(own.as_secs_f64());
            ratios.push(qemu.as_secs_f64() / own.as_secs_f64());
        }
        let (median, least, most) = spread(&mut ratios);
        println!(
            "{:<20} {median:.2} ({least:.2}, {most:.2}), own {:.2} s",
            row.what,
            spread(&mut owns).0
        );
    }
    Ok(())
}

/// How long it takes until the new file is durable. It is removed afterwards.
fn timed(to: &Path, run: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    run()?;
    File::open(to)?.sync_all()?;
    let time = start.elapsed();
    fs::remove_file(to)?;
    Ok(time)
}

fn convert(formats: [&str; 2], flags: &[&str], from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.arg("convert").args(flags).args(["-f", formats[0], "-O", formats[1]]);
    if formats[1] == "vpc" {
        command.args(["-o", "force_size=on"]);
    }
    let done = command.arg(from).arg(to).output()?;
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).into_owned().into()),
    }
}

/// A raw disk of which every second MiB is a hole; the others hold words that pack a little.
fn make_raw(path: &Path, size: u64) -> Result<()> {
    let file = LocalHost.create_new(path)?;
    file.set_len(size)?;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = vec![0; MIB as usize];
    for at in (0..size).step_by(2 * MIB as usize) {
        for word in bytes.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&(state & 0x00FF_FFFF_FFFF_FFFF).to_le_bytes());
        }
        file.write_at(&bytes, at)?;
    }
    Ok(file.flush()?)
}

fn open(path: &Path) -> Result<Box<dyn Disk>> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    Ok(match ending {
        Some("vhdx") => Box::new(OpenOptions::new().open(path)?),
        Some("qcow2") => Box::new(qcow2::OpenOptions::new().open(path)?),
        _ => Box::new(RawDisk::new(LocalHost.open(path, Access::Read)?)?),
    })
}

fn to_raw(from: &Path, to: &Path) -> Result<()> {
    let file = LocalHost.create_new(to)?;
    Export::new().share(false).run(open(from)?.as_ref(), file.as_ref())?;
    Ok(file.flush()?)
}

fn to_vhdx(from: &Path, to: &Path) -> Result<()> {
    let disk = open(from)?;
    let image = CreateOptions::dynamic(disk.geometry().size).create(to)?;
    Export::new().share(false).onto(disk.as_ref(), &image)?;
    Ok(image.close()?)
}

fn to_qcow2(from: &Path, to: &Path) -> Result<()> {
    let disk = open(from)?;
    let options = qcow2::CreateOptions::new(disk.geometry().size);
    let image = options.create(LocalHost.create_new(to)?)?;
    Export::new().share(false).onto(disk.as_ref(), &image)?;
    Ok(image.finish()?)
}

fn to_vhd(from: &Path, to: &Path) -> Result<()> {
    let disk = open(from)?;
    let options = vhd::CreateOptions::dynamic(disk.geometry().size);
    let image = options.create(LocalHost.create_new(to)?)?;
    Export::new().share(false).onto(disk.as_ref(), &image)?;
    Ok(image.finish()?)
}

/// The median, the least and the most.
fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    };
    (median, values[0], values[values.len() - 1])
}
