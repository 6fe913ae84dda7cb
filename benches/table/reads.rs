//! Reads of chains compared with bare `pread`s of the same bytes.

use std::cell::RefCell;
use std::fs::File;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use avhdx::ops::{Merge, Pace};
use avhdx::{Budget, DiffChain, Disk, OpenOptions};

use crate::images::{Chain, KIB, MIB, Owners, PAGE, Reads, Shape, read_exact_at};
use crate::report::{Report, Row};
use crate::stats::{Contender, rounds, timed};
use crate::{Result, Run};

/// The granularity at which layers own data.
const GRAINS: [(&str, u64); 3] =
    [("2 MiB block", 2 * MIB), ("64 KiB", 64 * KIB), ("4 KiB page", PAGE)];
const DEEP: usize = 64;
/// How many first reads there are in a round.
const FRESH: usize = 8;

pub fn run(run: &Run, report: &mut Report) -> Result<()> {
    report
        .section("Reads: bare is the same (file, offset, length) by plain pread, page cache warm");
    flat(run, report)?;
    for (grain, len) in GRAINS {
        deep(run, report, grain, len)?;
    }
    if run.options.reads_alone() {
        return Ok(());
    }
    very_deep(run, report)?;
    while_merging(run, report)?;
    unwritten(run, report)
}

/// A deep chain whose layers are being merged one after the other at a limited rate. The bare reads' places keep
/// their bytes, and their files stay open.
fn while_merging(run: &Run, report: &mut Report) -> Result<()> {
    let rate = 20 * MIB;
    let work = format!("random 4 KiB read, depth {DEEP}, merging 20 MiB/s");
    if !report.wants(&work) {
        return Ok(());
    }
    let chain = run.chain(Shape::new(run.options.mib * MIB, DEEP, Owners::Runs(64 * KIB)))?;
    let (pace, is_over) = (Pace::new(), AtomicBool::new(false));
    let reads = chain.random()?;
    // Warm, as in a running machine.
    chain.check(&reads)?;
    pace.limit(Some(rate));
    let (row, merged) = std::thread::scope(|scope| {
        let merging = scope.spawn(|| -> Result<u64, avhdx::Error> {
            let layers = chain.disk().layers();
            let merge = Merge::new(layers[2].id).into_layer(layers[DEEP - 2].id).pace(pace.clone());
            let mut done = 0;
            let merged = merge
                .on_progress(|progress| {
                    done = progress.done;
                    match is_over.load(Ordering::Relaxed) {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                })
                .run(chain.disk());
            match merged {
                Err(error) if error.kind() != avhdx::ErrorKind::Cancelled => Err(error),
                _ => Ok(done),
            }
        });
        let row = beside_bare(run, &chain, &reads, &work, None, None);
        let was_on = !merging.is_finished();
        is_over.store(true, Ordering::Relaxed);
        (row, merging.join().map(|merged| (merged, was_on)))
    });
    let (merged, was_on) = merged.map_err(|_| "the merge came to grief")?;
    let at_the_end = if was_on { "still going on" } else { "over by the end" };
    report.row(row?.note(format!("{} MiB merged, {at_the_end}", merged? / MIB)));
    chain.remove_rest()
}

/// One image.
fn flat(run: &Run, report: &mut Report) -> Result<()> {
    let [random, sequential] =
        ["random 4 KiB read, depth 1", "sequential 1 MiB read, depth 1"].map(String::from);
    if ![&random, &sequential].iter().any(|work| report.wants(work)) {
        return Ok(());
    }
    let chain = run.chain(Shape::new(run.options.mib * MIB, 1, Owners::Base))?;
    read_row(run, report, &chain, &random, Some(0.95))?;
    sequential_row(run, report, &chain, &sequential, Some(0.97))?;
    chain.remove()
}

/// A chain whose layers hold random runs of this length.
fn deep(run: &Run, report: &mut Report, grain: &str, len: u64) -> Result<()> {
    let named = |work: &str| format!("{work}, depth {DEEP}, by {grain}");
    let random = named("random 4 KiB read");
    let touch = named("first touch of a block");
    let very_first = named("very first read of a chain");
    let threads = named("two threads over one");
    let writable = format!("{threads}, writable");
    let sequential = named("sequential 1 MiB read");
    let all = [&random, &touch, &very_first, &threads, &writable, &sequential];
    if !all.iter().any(|work| report.wants(work)) {
        return Ok(());
    }
    let chain = run.chain(Shape::new(run.options.mib * MIB, DEEP, Owners::Runs(len)))?;
    read_row(run, report, &chain, &random, Some(0.93))?;
    touch_rows(run, report, &chain, [&touch, &very_first])?;
    if report.wants(&threads) {
        report.row(two_threads(run, &chain, &threads, Some(0.95))?);
    }
    let bar = match len {
        PAGE => Some(0.9),
        len if len >= 2 * MIB => Some(0.97),
        _ => None,
    };
    sequential_row(run, report, &chain, &sequential, bar)?;
    if report.wants(&writable) && len == PAGE {
        let chain = chain.reopened(&OpenOptions::new().writable(true))?;
        report.row(two_threads(run, &chain, &writable, None)?);
        return chain.remove();
    }
    chain.remove()
}

fn read_row(
    run: &Run,
    report: &mut Report,
    chain: &Chain,
    work: &str,
    bar: Option<f64>,
) -> Result<()> {
    if report.wants(work) {
        report.row(beside_bare(run, chain, &chain.random()?, work, run.raw()?, bar)?);
    }
    Ok(())
}

fn sequential_row(
    run: &Run,
    report: &mut Report,
    chain: &Chain,
    work: &str,
    bar: Option<f64>,
) -> Result<()> {
    if report.wants(work) {
        report.row(beside_bare(run, chain, &chain.sequential(MIB)?, work, run.raw()?, bar)?);
    }
    Ok(())
}

/// The reads by the chain and bare, after everything was read once both ways.
pub fn beside_bare(
    run: &Run,
    chain: &Chain,
    reads: &Reads,
    work: &str,
    raw: Option<&File>,
    bar: Option<f64>,
) -> Result<Row> {
    chain.check(reads)?;
    let which = |round| reads.of_round(round, run.options.sample);
    // One buffer for all: the speed of filling memory depends on where the host has placed it.
    let buf = RefCell::new(vec![0; reads.len as usize]);
    let bare = || -> Contender<'_> {
        Box::new(|round| {
            let buf = &mut *buf.borrow_mut();
            timed(|| Ok(chain.read_bare(reads, which(round), black_box(buf))?))
        })
    };
    let own: Contender<'_> = Box::new(|round| {
        let buf = &mut *buf.borrow_mut();
        timed(|| chain.read_ours(reads, which(round), black_box(buf)))
    });
    let mut contenders = vec![bare(), own, bare()];
    if let Some(raw) = raw {
        let warm = |at: &u64| read_exact_at(raw, &mut buf.borrow_mut(), *at);
        reads.offsets.iter().try_for_each(warm)?;
        contenders.push(Box::new(|round| {
            let offsets = &reads.offsets[which(round)];
            let buf = &mut *buf.borrow_mut();
            timed(|| {
                Ok(offsets.iter().try_for_each(|at| read_exact_at(raw, black_box(buf), *at))?)
            })
        }));
    }
    let times = rounds(run.options.rounds, contenders)?;
    Ok(Row::new(work, which(0).len(), &times, bar))
}

/// Freshly opened chains, without tables in memory: each block's first read,
/// and the first read of all. Compared with one bare read for each layer that has to be asked, and one more.
fn touch_rows(
    run: &Run,
    report: &mut Report,
    chain: &Chain,
    [touch, very_first]: [&str; 2],
) -> Result<()> {
    let reads = touched(chain)?;
    let asked = |which: &[u64]| -> usize { which.iter().map(|at| chain.asked(*at) + 1).sum() };
    let open = || opened_anew(chain);
    let count = reads.offsets.len();
    if report.wants(touch) {
        let bare = || -> Contender<'_> {
            let mut buf = vec![0; PAGE as usize];
            let reads = &reads;
            Box::new(move |_| {
                timed(|| Ok(chain.read_bare(reads, 0..count, black_box(&mut buf))?))
            })
        };
        let own = Box::new(|_| {
            let mut buf = vec![0; PAGE as usize];
            let disk = open()?;
            let offsets = &reads.offsets;
            timed(|| {
                Ok(offsets.iter().try_for_each(|at| disk.read_at(black_box(&mut buf), *at))?)
            })
        });
        let times = rounds(run.options.rounds, vec![bare(), own, bare()])?;
        let allowed = asked(&reads.offsets) as f64 / count as f64;
        report.row(Row::new(touch, count, &times, None).allow(allowed));
    }
    if report.wants(very_first) {
        let which = |round: usize| (0..FRESH).map(move |i| (round * FRESH + i) % count);
        let bare = || -> Contender<'_> {
            let mut buf = vec![0; PAGE as usize];
            let reads = &reads;
            Box::new(move |round| {
                which(round).try_fold(Duration::ZERO, |sum, read| {
                    let (file, at) = chain.file_anew(reads, read)?;
                    Ok(sum + timed(|| Ok(read_exact_at(&file, black_box(&mut buf), at)?))?)
                })
            })
        };
        let own = Box::new(|round| {
            let mut buf = vec![0; PAGE as usize];
            which(round).try_fold(Duration::ZERO, |sum, read| {
                let disk = open()?;
                let at = reads.offsets[read];
                Ok(sum + timed(|| Ok(disk.read_at(black_box(&mut buf), at)?))?)
            })
        });
        let times = rounds(run.options.rounds, vec![bare(), own, bare()])?;
        let of_round = |round| -> f64 {
            let offsets: Vec<u64> = which(round).map(|read| reads.offsets[read]).collect();
            asked(&offsets) as f64 / FRESH as f64
        };
        let all: Vec<f64> = (0..run.options.rounds).map(of_round).collect();
        let row = Row::new(very_first, FRESH, &times, None).allow_each(&all);
        report.row(row.note("bare: the first read of a file opened anew"));
    }
    Ok(())
}

/// One page of each block of the layers above the base, shuffled.
pub fn touched(chain: &Chain) -> Result<Reads> {
    let block = chain.shape.blocks[1];
    let mut rng = avhdx_testkit::rng::Rng::new(block);
    let mut offsets: Vec<u64> = (0..chain.shape.size / block)
        .map(|number| number * block + rng.below(block / PAGE) * PAGE)
        .collect();
    rng.shuffle(&mut offsets);
    let reads = chain.reads(PAGE, offsets)?;
    chain.check(&reads)?;
    Ok(reads)
}

/// The chain once more, without tables in memory.
pub fn opened_anew(chain: &Chain) -> Result<DiffChain> {
    Ok(OpenOptions::new().budget(Budget::new(64 << 20)).open(chain.tip())?)
}

/// How much faster two threads are than one, for a chain and bare.
fn two_threads(run: &Run, chain: &Chain, work: &str, bar: Option<f64>) -> Result<Row> {
    let reads = &chain.random()?;
    chain.check(reads)?;
    // Each thread has its own reads, as many as the single one.
    let half = reads.offsets.len() / 2;
    let which = |round, thread: usize| {
        let all = reads.of_round(round, run.options.sample.min(half as u64 * reads.len));
        let start = (all.start + thread * half) % (2 * half);
        start..(start + all.len()).min(2 * half)
    };
    let bare = |threads| -> Contender<'_> {
        Box::new(move |round| {
            at_once(threads, |thread, buf| Ok(chain.read_bare(reads, which(round, thread), buf)?))
        })
    };
    let own = |threads| -> Contender<'_> {
        Box::new(move |round| {
            at_once(threads, |thread, buf| chain.read_ours(reads, which(round, thread), buf))
        })
    };
    let contenders = vec![bare(1), own(1), bare(1), bare(2), own(2), bare(2)];
    let times = rounds(run.options.rounds, contenders)?;
    let ops = which(0, 0).len();
    let mut row = Row::new(work, 2 * ops, &times, bar);
    let scaling = |who: usize| times.each(|times| 2.0 * times[who] / times[who + 3]);
    let [bare, own, again] = [0, 1, 2].map(scaling);
    let by = |of: &[f64], by: &[f64]| of.iter().zip(by).map(|(of, by)| of / by).collect();
    (row.ratios, row.noise, row.raw) = (by(&own, &bare), Some(by(&again, &bare)), None);
    let per_op = |who| times.median(who) * 1e6 / (2 * ops) as f64;
    (row.bare, row.own) = (per_op(3), per_op(4));
    let [own, bare] = [own, bare].map(|scaling| crate::stats::median(&scaling));
    Ok(row.note(format!("own scaling {own:.2} / bare scaling {bare:.2}")))
}

/// Starts the threads, then the clock, and waits for the last.
fn at_once(
    threads: usize,
    work: impl Fn(usize, &mut [u8]) -> Result<()> + Sync,
) -> Result<Duration> {
    let barrier = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    let mut buf = vec![0; PAGE as usize];
                    barrier.wait();
                    work(thread, black_box(&mut buf)).map_err(|error| error.to_string())?;
                    Ok::<_, String>(Instant::now())
                })
            })
            .collect();
        // Taken before the last one arrives: no thread starts earlier.
        let start = Instant::now();
        barrier.wait();
        let ends =
            started.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?);
        let ends: Vec<Instant> = ends.collect::<Result<_, String>>()?;
        Ok(ends.iter().max().map_or(Duration::ZERO, |end| *end - start))
    })
}

/// 256 layers compared with one.
fn very_deep(run: &Run, report: &mut Report) -> Result<()> {
    let size = run.options.mib * MIB;
    let forms = [
        ("depth 256 beside 1, random 4 KiB, base has all", Owners::Base, Some(0.95)),
        ("depth 256 beside 1, random 4 KiB, never written", Owners::Nobody, None),
    ];
    for (work, owners, bar) in forms {
        if !report.wants(work) {
            continue;
        }
        // Same base and block size throughout: only the layers above it differ.
        let shape = Shape { blocks: [2 * MIB; 2], ..Shape::new(size, 256, owners) };
        let chain = run.chain(shape)?;
        let base = chain.tip().with_file_name("l0.vhdx");
        let base = DiffChain::open(base)?;
        let reads = chain.random()?;
        chain.check(&reads)?;
        let which = |round| reads.of_round(round, run.options.sample);
        let of = |disk| -> Contender<'_> {
            let (mut buf, reads): (_, &Reads) = (vec![0; PAGE as usize], &reads);
            let disk: &DiffChain = disk;
            Box::new(move |round| {
                let offsets = &reads.offsets[which(round)];
                let buf = black_box(&mut buf);
                timed(|| Ok(offsets.iter().try_for_each(|at| disk.read_at(buf, *at))?))
            })
        };
        reads.offsets.iter().try_for_each(|at| base.read_at(&mut vec![0; PAGE as usize], *at))?;
        let contenders = vec![of(&base), of(&chain.disk), of(&base)];
        let times = rounds(run.options.rounds, contenders)?;
        report.row(Row::new(work, which(0).len(), &times, bar).note("bare: the same at depth 1"));
        drop(base);
        chain.remove()?;
    }
    let work = "random 4 KiB read, depth 256, by 4 KiB page";
    if report.wants(work) {
        let chain = run.chain(Shape::new(size, 256, Owners::Runs(PAGE)))?;
        report.row(beside_bare(run, &chain, &chain.random()?, work, None, None)?);
        chain.remove()?;
    }
    Ok(())
}

/// Unwritten ranges are filled with zeros, compared with a `memset` of the same buffer.
fn unwritten(run: &Run, report: &mut Report) -> Result<()> {
    let lengths = [("1 MiB", MIB, Some(0.5)), ("64 KiB", 64 * KIB, None), ("4 KiB", PAGE, None)];
    for depth in [1, DEEP] {
        let works = lengths.map(|(name, len, bar)| {
            (format!("{name} read of never-written space, depth {depth}"), len, bar)
        });
        if !works.iter().any(|(work, ..)| report.wants(work)) {
            continue;
        }
        let chain = run.chain(Shape::new(run.options.mib * MIB, depth, Owners::Nobody))?;
        for (work, len, bar) in &works {
            if !report.wants(work) {
                continue;
            }
            let reads = chain.sequential(*len)?;
            chain.check(&reads)?;
            let which = |round| reads.of_round(round, run.options.sample);
            let fill = || -> Contender<'_> {
                let (mut buf, len) = (vec![0_u8; *len as usize], which(0).len());
                Box::new(move |_| {
                    timed(|| {
                        (0..len).for_each(|_| black_box(&mut buf).fill(0));
                        Ok(())
                    })
                })
            };
            let (mut buf, chain, all) = (vec![0; *len as usize], &chain, &reads);
            let own: Contender<'_> = Box::new(move |round| {
                timed(|| chain.read_ours(all, which(round), black_box(&mut buf)))
            });
            let times = rounds(run.options.rounds, vec![fill(), own, fill()])?;
            report.row(Row::new(work, which(0).len(), &times, *bar).note("bare: memset"));
        }
        chain.remove()?;
    }
    Ok(())
}
