//! Mutated chains: a check ends, and what it finds no error in can be read and written.

use avhdx::ops::{Check, Severity};
use avhdx::{Disk, DiskExt, LogPolicy};

use crate::input::Input;
use crate::mutated::mutated;
use crate::place::{Place, path};
use crate::reading::{is_told, read_all};

pub fn run(input: &mut Input<'_>) {
    let place = Place::new(&mutated(input));
    let before = place.host.files().sum();
    let log = if input.chance(1, 8) { LogPolicy::Ignore } else { LogPolicy::Replay };
    let checked = Check::new().options(place.options().log(log)).run(path(place.count - 1));
    assert_eq!(place.host.files().sum(), before, "a check changed a file");
    let report = match checked {
        Ok(report) => report,
        Err(error) => return is_told(&error),
    };
    assert!(report.findings.iter().all(|finding| !finding.meaning.is_empty()));
    assert_eq!(report.is_sound(), report.count(Severity::Error) == 0);
    if report.count(Severity::Error) > 0 || log == LogPolicy::Ignore {
        return;
    }
    let told: Vec<&str> = report.findings.iter().map(|finding| finding.code).collect();
    let chain = place.open(&place.options());
    let chain = chain.unwrap_or_else(|error| panic!("no error is found, but {error}; {told:?}"));
    reads(&chain, &told);
    read_all(&chain);
    drop(chain);
    let chain = match place.open(&place.options().writable(true)) {
        // Warnings of what readers can do without, and writers cannot: numbers that are used up, a log.
        Err(error) if told.contains(&error.code()) || told.contains(&"log.place") => {
            return is_told(&error);
        }
        chain => chain.unwrap_or_else(|error| panic!("no error is found, but {error}; {told:?}")),
    };
    let size = chain.geometry().size;
    for _ in 0..3 {
        let at = input.below(size.max(1));
        let len = (size - at).min(1 + input.below(70_000));
        if let Err(error) = chain.write_at(&vec![0x5A; len as usize], at) {
            panic!("no error is found, but a write fails: {error}; {told:?}");
        }
    }
    chain.close().unwrap_or_else(|error| panic!("no error is found, but {error}; {told:?}"));
    drop(chain);
    let after = Check::new().options(place.options()).run(path(place.count - 1));
    let after = after.expect("a check after a write");
    let codes = after.findings.iter().filter(|finding| finding.severity == Severity::Error);
    let codes: Vec<&str> = codes.map(|finding| finding.code).collect();
    assert!(codes.is_empty(), "writing made errors: {codes:?}; before {told:?}");
}

/// Every byte of a small disk, and both ends of a large one.
fn reads(disk: &dyn Disk, told: &[&str]) {
    let size = disk.geometry().size;
    let mut bytes = vec![0; 1 << 20];
    for start in (0..size.min(16 << 20)).step_by(1 << 20).chain([size.saturating_sub(1 << 20)]) {
        let len = (size - start).min(1 << 20) as usize;
        if let Err(error) = disk.read_at(&mut bytes[..len], start) {
            panic!("no error is found, but {error}; {told:?}");
        }
    }
    for extent in disk.extents(0..size).take(1000) {
        match extent {
            Err(error) if error.kind() != avhdx::ErrorKind::LogOverlay => {
                panic!("no error is found, but {error}; {told:?}");
            }
            _ => {}
        }
    }
}
