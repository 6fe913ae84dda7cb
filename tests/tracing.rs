//! Spans and events, as a subscriber of `tracing` gets them.
#![allow(clippy::disallowed_methods)] // real files

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::ops::Merge;
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, OpenOptions, PlannedFlush};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Collects a line for each span that begins and each event.
#[derive(Clone, Default)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    /// Panics at lines that start with this.
    fails_at: Option<&'static str>,
}

impl Lines {
    fn add(&self, name: &str, fill: impl FnOnce(&mut Fields)) {
        let mut fields = Fields::default();
        fill(&mut fields);
        let mut line = fields.0.remove("message").unwrap_or_else(|| name.to_owned());
        for (name, value) in fields.0 {
            write!(line, " {name}={value}").unwrap();
        }
        let is_wrong = self.fails_at.is_some_and(|words| line.starts_with(words));
        self.lines.lock().unwrap().push(line);
        assert!(!is_wrong, "a subscriber that fails");
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "avhdx"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.add(span.metadata().name(), |fields| span.record(fields));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.add("", |fields| event.record(fields));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event that is first reached while no thread has a subscriber counts as unwanted for a moment: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many lines start with these words.
fn count(lines: &[String], words: &str) -> usize {
    lines.iter().filter(|line| line.starts_with(words)).count()
}

#[test]
fn a_subscriber_learns_of_opens_flushes_entries_replays_and_operations() {
    let _alone = alone();
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || tell(&lines));
}

fn tell(lines: &Lines) {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let [base, child] = ["base.vhdx", "child.avhdx"].map(|name| folder.path().join(name));
    let left = elsewhere.path().join("left.avhdx");
    let image = CreateOptions::dynamic(8 << 20).block_size(1 << 20).create(&base).unwrap();
    drop(CreateOptions::child_of(&image).unwrap().create(&child).unwrap());
    drop(image);

    lines.take();
    let chain = OpenOptions::new().writable(true).open(&child).unwrap();
    let opened = lines.take();
    let has =
        |words: [&str; 2]| opened.iter().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(
        has(["child.avhdx", "writable=true"]) && has(["base.vhdx", "writable=false"]),
        "{opened:?}"
    );
    assert_eq!(count(&opened, "opened a chain"), 1);
    assert!(has(["opened a chain", "layers=2"]));

    chain.write_at(&[1; 4096], 0).unwrap();
    let first = lines.take();
    assert_eq!(count(&first, "began to change an image"), 1, "{first:?}");
    let before = chain.counters();
    chain.flush().unwrap();
    let flushed = lines.take();
    let counted = chain.counters().since(&before);
    assert_eq!((count(&flushed, "commit"), count(&flushed, "log entry")), (1, 1), "{flushed:?}");
    assert_eq!(count(&flushed, "flush") as u64, counted.flushes);
    assert!(flushed.iter().any(|line| line.contains(&format!("length={}", counted.log_bytes))));

    // No read tells of itself.
    chain.read_at(&mut [0; 8192], 0).unwrap();
    DiffChain::flush(&chain).unwrap();
    assert_eq!(lines.take(), [""; 0]);

    std::fs::copy(&child, &left).unwrap();
    let merged = chain.layers()[0].id;
    Merge::new(merged).run(&chain).unwrap();
    let merging = lines.take();
    assert_eq!(count(&merging, "operation name=\"merge\""), 1, "{merging:?}");
    drop(chain);
    lines.take();
    drop(OpenOptions::new().writable(true).open_image(&left).unwrap());
    assert_eq!(count(&lines.take(), "replayed a log"), 1);
}

/// What the log entry was to hold may be in it or not: nothing that follows may be believed.
#[test]
fn a_subscriber_that_panics_in_a_flush_poisons_the_chain_also_if_it_is_planned() {
    let _alone = alone();
    for is_planned in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.vhdx");
        drop(CreateOptions::dynamic(64 << 20).block_size(1 << 20).create(&path).unwrap());
        let chain = OpenOptions::new().writable(true).open(&path).unwrap();
        chain.write_at(&[1; 512], 0).unwrap();
        chain.flush().unwrap();
        chain.write_at(&[2; 512], 1 << 20).unwrap();
        let lines = Lines { fails_at: Some("log entry"), ..Lines::default() };
        let panicked = tracing::subscriber::with_default(lines, || {
            let flush = || match is_planned {
                false => chain.flush().unwrap(),
                true => {
                    let mut planned = chain.plan_flush().unwrap();
                    while let PlannedFlush::Ready(plan) = planned {
                        let flight = plan.begin();
                        for write in flight.writes() {
                            flight.storage().write_at(write.bytes, write.at.get()).unwrap();
                        }
                        planned = flight.done().unwrap();
                    }
                }
            };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(flush)).is_err()
        });
        assert!(panicked);
        assert_eq!(chain.flush().unwrap_err().kind(), ErrorKind::Poisoned, "planned: {is_planned}");
    }
}
