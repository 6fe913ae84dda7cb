//! The time in which two points of a large disk are compared by their tables.

use std::fs;
use std::time::Instant;

use avhdx::ops::{Checkpoint, Diff};
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions};
use avhdx_testkit::rng::Rng;

use crate::images::MIB;
use crate::report::{Fact, Report};
use crate::stats::median;
use crate::{Result, Run};

const SECTOR: u64 = 512;
/// The sectors lie this far apart at least, so that each is a range of its own.
const APART: u64 = 4 * MIB;

pub fn run(run: &Run, report: &mut Report) -> Result<()> {
    report.section(
        "Differences of two points of a large disk, from tables that were not read before",
    );
    let (size, sectors) = if run.options.quick { (1_u64 << 30, 100) } else { (1 << 40, 10_000) };
    let name = if run.options.quick { "1 GiB" } else { "1 TiB" };
    let work = format!("diff of {name}, {sectors} scattered sectors");
    if !report.wants(&work) {
        return Ok(());
    }
    let folder = run.folder.path().join("diff");
    fs::create_dir(&folder)?;
    let base = folder.join("base.vhdx");
    drop(CreateOptions::dynamic(size).create(&base)?);
    let tip = folder.join("tip.avhdx");
    let chain = OpenOptions::new().writable(true).open(&base)?;
    Checkpoint::new().path(&tip).run(&chain)?;
    let mut rng = Rng::new(17);
    let places = size / APART / sectors;
    for n in 0..sectors {
        let place = (n * places + rng.below(places.max(1))) * APART;
        let at = place + rng.below(APART / 2 / SECTOR) * SECTOR;
        chain.write_at(&[7; SECTOR as usize], at)?;
    }
    chain.close()?;
    drop(chain);
    let mut times = Vec::new();
    for _ in 0..run.options.rounds {
        let chain = DiffChain::open(&tip)?;
        let point = chain.view(chain.layers()[1].id)?;
        let start = Instant::now();
        let found = Diff::new().run(&point, &chain)?.collect::<avhdx::Result<Vec<_>>>()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        let bytes: u64 = found.iter().map(|range| range.end - range.start).sum();
        if found.len() as u64 != sectors || bytes != sectors * SECTOR {
            return Err(format!("{} ranges with {bytes} bytes differ", found.len()).into());
        }
    }
    report.fact(Fact::new(&work, median(&times), "ms", None).note("own time, without opening"));
    Ok(fs::remove_dir_all(&folder)?)
}
