//! Explores a history: its outcomes, their verdicts, and the counts.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use avhdx::Disk;
use avhdx_testkit::rng::Rng;

use crate::driver::{Driver, MIB, Recorded};
use crate::model::{Expected, Model};
use crate::outcomes::{Depth, Explorer, Outcome, describe};
use crate::sim::{Event, Files, SimHost};
use crate::stale::EXTENT;
use crate::verdict;

/// How thoroughly to explore a history.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub depth: Depth,
    /// One in this many cuts is looked at.
    pub each: usize,
    /// One in this many outcomes is opened, written and crashed again.
    pub second: u64,
    /// Whether to stop at the first failure.
    pub first_only: bool,
}

/// The result of a workload.
#[derive(Debug, Default)]
pub struct Tally {
    pub cuts: usize,
    plain: HashSet<u64>,
    metadata: HashSet<u64>,
    /// Outcomes of second crashes, not counted among the distinct ones.
    pub second: usize,
    pub failures: Vec<String>,
}

impl Tally {
    pub fn distinct(&self) -> usize {
        self.plain.len()
    }

    /// Outcomes that differ from another one only in payload.
    pub fn payload_only(&self) -> usize {
        self.plain.len() - self.metadata.len()
    }
}

struct Job {
    files: Files,
    expected: Arc<Expected>,
    sum: u64,
    story: String,
}

/// Judges every outcome of a history.
pub fn explore(recorded: &Recorded, effort: Effort, tally: &mut Tally) {
    let failures = Mutex::new(Vec::new());
    let second = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let (send, receive) = sync_channel::<Job>(64);
    let receive = Mutex::new(receive);
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = next(&receive) {
                    if is_over.load(Ordering::Relaxed) {
                        continue;
                    }
                    if let Err(why) = judge(recorded, &job, effort, &second) {
                        failures.lock().unwrap().push(format!("{}: {why}", job.story));
                        is_over.fetch_or(effort.first_only, Ordering::Relaxed);
                    }
                }
            });
        }
        walk(recorded, effort, tally, &mut |job| {
            send.send(job).unwrap();
            !is_over.load(Ordering::Relaxed)
        });
        drop(send);
    });
    tally.failures.extend(failures.into_inner().unwrap());
    tally.failures.extend(broken_rules(recorded));
    tally.second += second.into_inner();
}

fn next(receive: &Mutex<Receiver<Job>>) -> Option<Job> {
    receive.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Finds the outcomes that were not judged before.
fn walk(recorded: &Recorded, effort: Effort, tally: &mut Tally, send: &mut dyn FnMut(Job) -> bool) {
    let model = &recorded.model;
    let payload = payload(recorded);
    let segments = model.segments();
    let depth = effort.depth;
    let mut explorer = Explorer::new(recorded.start.clone(), &recorded.events, depth, 42);
    let mut seen = HashSet::new();
    let mut expected: Option<(usize, Arc<Expected>)> = None;
    let mut goes_on = true;
    let mut last_cut = usize::MAX;
    explorer.run(recorded.from, &|cut| model.epoch(cut), &mut |outcome: Outcome<'_>| {
        if !outcome.cut.is_multiple_of(effort.each) {
            return;
        }
        if last_cut != outcome.cut {
            last_cut = outcome.cut;
            tally.cuts += 1;
        }
        let sum = outcome.files.sum();
        if !goes_on || !seen.insert((sum.exact, model.epoch(outcome.cut))) {
            return;
        }
        tally.plain.insert(sum.plain);
        tally.metadata.insert(recorded.judge.sum_of_metadata(&outcome.files, &payload).plain);
        let expected = match &expected {
            Some((cut, expected)) if *cut == outcome.cut => Arc::clone(expected),
            _ => {
                let made = Arc::new(model.expected(&segments, outcome.cut));
                expected = Some((outcome.cut, Arc::clone(&made)));
                made
            }
        };
        let story = story(&recorded.events, &outcome);
        goes_on = send(Job { files: outcome.files, expected, sum: sum.exact, story });
    });
}

fn judge(
    recorded: &Recorded,
    job: &Job,
    effort: Effort,
    second: &AtomicUsize,
) -> Result<(), String> {
    let judged = guarded(|| recorded.judge.judge(&job.files, &job.expected))?;
    if judged && effort.second > 0 && job.sum.is_multiple_of(effort.second) {
        let again = guarded(|| aftermath(recorded, job))?;
        second.fetch_add(again.distinct(), Ordering::Relaxed);
        if let Some(failure) = again.failures.first() {
            return Err(format!("crashed again: {failure}"));
        }
    }
    Ok(())
}

/// Judges every distinct outcome of a crash within these events, in several threads; `judge` gets a sum of the files
/// too. Returns how many there are, and what is wrong with which.
pub fn judge_outcomes(
    files: &Files,
    events: &[Event],
    depth: Depth,
    judge: impl Fn(&Files, u64) -> Result<(), String> + Sync,
) -> (usize, Vec<String>) {
    let mut seen = HashSet::new();
    let mut outcomes = Vec::new();
    let mut explorer = Explorer::new(files.clone(), events, depth, 11);
    explorer.run(0, &|_| 0, &mut |outcome| {
        let sum = outcome.files.sum().exact;
        if seen.insert(sum) {
            let story = story(events, &outcome);
            outcomes.push((outcome.files, sum, story));
        }
    });
    let (count, outcomes) = (outcomes.len(), Mutex::new(outcomes));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                let next = || outcomes.lock().unwrap().pop();
                while let Some((files, sum, story)) = next() {
                    if let Err(why) = guarded(|| judge(&files, sum)) {
                        failures.lock().unwrap().push(format!("{story}: {why}"));
                    }
                }
            });
        }
    });
    (count, failures.into_inner().unwrap())
}

/// Turns panics into failures.
pub fn guarded<T>(judge: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(judge)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// Opens an outcome, writes to it, and crashes it again.
fn aftermath(recorded: &Recorded, job: &Job) -> Result<Tally, String> {
    let mut rng = Rng::new(job.sum);
    let segments = &job.expected.segments;
    let mut writes: Vec<(u64, u64)> = Vec::new();
    for _ in 0..3 {
        let at = segments[rng.below(segments.len() as u64) as usize].range.start;
        let write = (at, (512 << rng.below(5)).min(recorded.model.size - at));
        // A host that shows stale bytes does so in what a new block has not had written to yet, one extent at a time.
        let is_rest = |other: &&(u64, u64)| {
            let extents = |(at, len): (u64, u64)| at / EXTENT..(at + len).div_ceil(EXTENT);
            let block = |extent: u64| extent * EXTENT / recorded.model.block_size;
            let mut pairs = extents(write).flat_map(|n| extents(**other).map(move |m| (n, m)));
            pairs.any(|(n, m)| n != m && block(n) == block(m))
        };
        let other = writes.iter().find(is_rest).filter(|_| job.files.shows_stale);
        writes.push(other.copied().unwrap_or(write));
    }
    // Around those places, the expected contents are what the outcome reads.
    let mut model = Model::new(Default::default(), recorded.model.size, recorded.model.block_size);
    for (at, len) in &writes {
        model.begin(0, *at, &vec![0; *len as usize]);
    }
    let host = SimHost::new(job.files.clone());
    let chain = verdict::open(&host, &recorded.judge.tip, false)?;
    let mut base = crate::sim::Bytes::default();
    for range in model.segments() {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        chain.read_at(&mut bytes, range.start).map_err(|error| error.to_string())?;
        base.write(range.start, &bytes);
    }
    drop(chain);
    let model = Model::new(base, recorded.model.size, recorded.model.block_size);
    let driver = Driver::new(host, recorded.judge.tip.clone(), model);
    let chain = driver.open();
    for (seed, (at, len)) in (50..).zip(writes) {
        driver.write(&chain, seed, at, len);
        if seed != 51 {
            driver.flush(&chain);
        }
    }
    driver.kill(chain);
    let again = Recorded { judge: recorded.judge.clone(), ..driver.finish() };
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let depth = Depth { exhaustive: 5, samples: 10, torn: 2 };
    let effort = Effort { depth, each: 1, second: 0, first_only: false };
    walk(&again, effort, &mut tally, &mut |job| {
        if let Err(why) = guarded(|| again.judge.judge(&job.files, &job.expected)) {
            failures.push(format!("{}: {why}", job.story));
        }
        failures.is_empty()
    });
    tally.failures = failures;
    Ok(tally)
}

/// The ranges of the tip's file that are payload in every outcome.
fn payload(recorded: &Recorded) -> Vec<std::ops::Range<u64>> {
    if recorded.start.file(&recorded.judge.tip).is_none() {
        return Vec::new();
    }
    let Ok(layer) = verdict::layer(&recorded.end, &recorded.judge.tip) else { return Vec::new() };
    let mut tables: Vec<u64> = layer.bitmaps().unwrap_or_default();
    tables.sort_unstable();
    let mut from = layer.structures_end();
    let mut payload = Vec::new();
    for table in tables {
        payload.push(from..table);
        from = table + MIB;
    }
    payload.push(from..1 << 50);
    payload.retain(|range| range.start < range.end);
    payload
}

/// Describes how an outcome came about.
pub fn story(events: &[Event], outcome: &Outcome<'_>) -> String {
    use std::fmt::Write;
    let mut story = format!("cut {}", outcome.cut);
    if let Some(last) = outcome.cut.checked_sub(1) {
        write!(story, " after {}", describe(&events[last])).unwrap();
    }
    let kept: Vec<String> =
        outcome.kept.iter().rev().take(8).map(|i| describe(&events[*i])).collect();
    write!(story, ", kept {} ({})", outcome.kept.len(), kept.join(", ")).unwrap();
    for (torn, arrived) in outcome.torn.iter().take(4) {
        let arrived: String =
            arrived.iter().take(40).map(|unit| if *unit { '1' } else { '0' }).collect();
        write!(story, ", torn {} as {arrived}", describe(&events[*torn])).unwrap();
    }
    story
}

/// Checks rules of the log that no outcome reveals: the file lengths recorded in entries.
fn broken_rules(recorded: &Recorded) -> Vec<String> {
    let mut broken = Vec::new();
    let mut files = recorded.start.clone();
    let mut durable: Vec<u64> = files.files.iter().map(|file| file.len()).collect();
    let mut started = std::collections::HashMap::new();
    for (i, event) in recorded.events.iter().enumerate() {
        if let Event::Write(file, chunk) = event
            && chunk.data.starts_with(b"loge")
            && chunk.data.len() >= 64
        {
            let field = |at: usize| {
                let bytes = chunk.data[at..at + 8].iter().rev();
                bytes.fold(0, |n, byte| n << 8 | u64::from(*byte))
            };
            let len = files.files[*file].len();
            let (flushed, last) = (field(48), field(56));
            if flushed < len / MIB * MIB {
                broken.push(format!("event {i}: FlushedFileOffset {flushed:#x}, length {len:#x}"));
            }
            if durable.get(*file).is_none_or(|durable| flushed > *durable) {
                broken.push(format!("event {i}: FlushedFileOffset {flushed:#x} is not durable"));
            }
            if last < len {
                broken.push(format!("event {i}: LastFileOffset {last:#x}, length {len:#x}"));
            }
        }
        files.apply(event);
        match event {
            Event::FlushStart(file) => drop(started.insert(i, files.files[*file].len())),
            Event::FlushEnd(file, start) => {
                durable.resize(durable.len().max(file + 1), 0);
                durable[*file] = started[start];
            }
            _ => {}
        }
    }
    broken
}
