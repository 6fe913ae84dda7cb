//! Takes checkpoints of a disk, and gives two of them up, while four threads write to it.
//!
//! ```sh
//! cargo run --release --example live
//! ```
//!
//! Writers never learn of it: the same `DiffChain` serves them from the first byte to the last. Each of them writes a
//! rising number to its own sectors, so that every point in time can be judged afterwards: a sector holds a number
//! that its writer had written by then, and none that it wrote later.

use std::error::Error;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use avhdx::ops::{Checkpoint, Delete, Pace};
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions};

const SIZE: u64 = 256 << 20;
const SECTOR: u64 = 4096;
const WRITERS: u64 = 4;

/// What each writer has written at least, and at most.
type Numbers = Vec<u64>;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let base = folder.path().join("web.vhdx");
    CreateOptions::dynamic(SIZE).create(&base)?.close()?;
    let chain = OpenOptions::new().writable(true).open(&base)?;

    let written: Vec<AtomicU64> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    let numbers = || -> Numbers { written.iter().map(|n| n.load(Ordering::SeqCst)).collect() };
    let stop = AtomicBool::new(false);
    let mut points = Vec::new();
    let tip = thread::scope(|scope| -> Result<_, Box<dyn Error>> {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (chain, written, stop) = (chain.clone(), &written[writer as usize], &stop);
                scope.spawn(move || write_on(&chain, writer, written, stop))
            })
            .collect();
        let changed = change(&chain, &mut points, &numbers);
        stop.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.join().map_err(|_| "a writer panicked")??;
        }
        changed
    })?;
    let end = numbers();
    chain.close()?;
    // Its lock goes with the last clone.
    drop(chain);

    let chain = DiffChain::open(tip)?;
    println!("\n{} layers are left", chain.layers().len());
    for (label, least, most) in points {
        judge(&chain.view_at(&label)?, &least, &most)?;
        println!("  {label:8} shows what was written by then");
    }
    judge(&chain, &end, &end)?;
    println!("  {:8} shows all {} writes", "now", end.iter().sum::<u64>());
    Ok(())
}

/// Takes five checkpoints, gives up the second and the fourth, and returns where the tip lies.
fn change(
    chain: &DiffChain,
    points: &mut Vec<(String, Numbers, Numbers)>,
    numbers: &dyn Fn() -> Numbers,
) -> Result<std::path::PathBuf, Box<dyn Error>> {
    let mut tip = None;
    for day in ["monday", "tuesday", "wednesday", "thursday", "friday"] {
        thread::sleep(Duration::from_millis(100));
        let least = numbers();
        let made = Checkpoint::new().label(day).run(chain)?;
        points.push((day.to_owned(), least, numbers()));
        println!("checkpoint  {day}: {}", made.path.display());
        tip = Some(made.path);
    }
    for day in ["tuesday", "thursday"] {
        let listed = chain.points();
        let point = listed.iter().find(|point| point.label.as_deref() == Some(day));
        let pace = Pace::new();
        pace.limit(Some(400 << 20));
        let mut most = 0;
        let deleted = Delete::point(point.ok_or("no such point")?.layer)
            .pace(pace)
            .on_progress(|now| {
                most = now.total;
                ControlFlow::Continue(())
            })
            .run(chain)?;
        println!("delete      {day}: {} of {most} bytes moved", deleted.moved);
        points.retain(|(label, ..)| label != day);
    }
    Ok(tip.ok_or("no checkpoint")?)
}

/// Writes rising numbers to the sectors of one writer until it is told to stop.
fn write_on(
    chain: &DiffChain,
    writer: u64,
    written: &AtomicU64,
    stop: &AtomicBool,
) -> avhdx::Result<()> {
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        let sector = place(writer, number);
        let bytes = (number + 1).to_le_bytes().repeat((SECTOR / 8) as usize);
        chain.write_at(&bytes, sector)?;
        number += 1;
        written.store(number, Ordering::SeqCst);
        if number % 256 == 0 {
            chain.flush()?;
        }
    }
    Ok(())
}

/// Where a writer writes its `number`th sector.
fn place(writer: u64, number: u64) -> u64 {
    let sectors = SIZE / SECTOR / WRITERS;
    (number * 7919 % sectors * WRITERS + writer) * SECTOR
}

/// Checks every sector: each writer got at least as far as `least`, and no further than one write after `most`.
fn judge(disk: &DiffChain, least: &[u64], most: &[u64]) -> Result<(), Box<dyn Error>> {
    let mut bytes = vec![0; SIZE as usize];
    disk.read_at(&mut bytes, 0)?;
    let sectors = SIZE / SECTOR / WRITERS;
    for writer in 0..WRITERS {
        let (least, most) = (least[writer as usize], most[writer as usize] + 1);
        for place_of in 0..sectors.min(most) {
            let at = place(writer, place_of) as usize;
            let found = bytes[at..at + SECTOR as usize].chunks(8);
            let numbers: Vec<_> =
                found.map(|n| u64::from_le_bytes(n.try_into().unwrap_or_default())).collect();
            let is_one = numbers.iter().all(|n| *n == numbers[0]);
            // The last write to this sector that was over by then.
            let oldest =
                (0..).map(|lap| place_of + lap * sectors).take_while(|n| *n < least).last();
            if !is_one || numbers[0] > most || numbers[0] < oldest.map_or(0, |n| n + 1) {
                return Err(format!("sector {at} of writer {writer} holds {}", numbers[0]).into());
            }
        }
    }
    Ok(())
}
