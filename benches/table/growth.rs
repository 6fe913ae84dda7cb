//! How the cost of a random read grows with the disk, its blocks and its fragmentation, 64 deep.

use crate::images::{KIB, MIB, Owners, PAGE, Shape};
use crate::report::Report;
use crate::{Result, Run, reads};

const DEEP: usize = 64;

pub fn run(run: &Run, report: &mut Report) -> Result<()> {
    report.section("How a random 4 KiB read's cost grows, depth 64, index warm");
    let most = run.options.mib * MIB;
    let mut shapes = Vec::new();
    let scattered = most.min(64 * MIB);
    for (name, disk) in
        [("64 MiB", 64 * MIB), ("16 GiB", 16 << 30), ("1 TiB", 1 << 40), ("64 TiB", 64 << 40)]
    {
        let shape = Shape::new(scattered, DEEP, Owners::Runs(2 * MIB));
        let work = format!("disk of {name}, {} MiB with data all over it", scattered / MIB);
        shapes.push((work, Shape { disk, blocks: [2 * MIB; 2], ..shape }));
    }
    let size = most.min(256 * MIB);
    for block in [1, 2, 32, 256] {
        let shape = Shape::new(size, DEEP, Owners::Runs(PAGE));
        let work = format!("blocks of {block} MiB, by 4 KiB page");
        shapes.push((work, Shape { blocks: [block * MIB; 2], ..shape }));
    }
    for kib in [4, 16, 64, 256, 2048] {
        let shape = Shape::new(size, DEEP, Owners::Runs(kib * KIB));
        shapes.push((format!("runs of {kib} KiB with one owner"), shape));
    }
    for (work, shape) in
        shapes.into_iter().filter(|(work, _)| report.wants(work)).collect::<Vec<_>>()
    {
        let chain = run.chain(shape)?;
        report.row(reads::beside_bare(run, &chain, &chain.random()?, &work, None, None)?);
        chain.remove()?;
    }
    Ok(())
}
