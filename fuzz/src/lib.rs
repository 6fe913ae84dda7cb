//! Fuzz targets: each decodes bytes into a case, runs it, and panics where the library does not do what a model says.
//!
//! The cases are images with structures in their places and right sums, so that what is tried lies behind the first
//! checks. Expectations come from the test kit's naive reader, which shares no code with the library, from flat models,
//! and from what the image was built of.
//!
//! `tests/corpus.rs` runs the seeds in `corpus/` and inputs by chance; `cargo fuzz` searches for new ones.

#![forbid(unsafe_code)]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/rescue/judge.rs"]
#[allow(dead_code)] // what a table of shares needs
mod judge;
#[path = "../../tests/hostile/reading.rs"]
mod reading;
#[path = "../../tests/hostile/reshaping.rs"]
mod reshaping;
#[path = "../../tests/hostile/writing.rs"]
mod writing;

mod chain;
mod check;
mod compare;
mod crash;
mod hostile;
mod image;
mod input;
mod log;
mod metadata;
mod mutated;
mod operations;
mod place;
mod read;
mod repair;
mod rescue;
mod watch;

use input::Input;

/// Memory for tables of what is opened, in bytes.
const TABLES: usize = 1 << 20;

type Run = fn(&mut Input<'_>);

/// The targets: their names and what they run.
const TARGETS: &[(&str, Run)] = &[
    ("chain", chain::run),
    ("check", check::run),
    ("crash", crash::run),
    ("hostile", hostile::run),
    ("log", log::run),
    ("metadata", metadata::run),
    ("operations", operations::run),
    ("read", read::run),
    ("repair", repair::run),
    ("rescue", rescue::run),
];

/// The names of all targets.
pub fn targets() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().map(|(name, _)| *name)
}

/// Runs a target on an input.
///
/// # Panics
/// If the library does not do what it should, takes more than ten seconds, or much memory.
pub fn run(target: &str, input: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    watch::watched(|| run(&mut Input::new(input)));
}
