//! An operation that changes the layers of a chain: how far it has come, and how it is stopped.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avhdx::ops::Progress;

use crate::exit::Failure;
use crate::interrupt::{UnderWay, under_way};
use crate::output::Console;
use crate::progress::Meter;

/// Runs an operation with its progress shown. An interruption does not end the program then, but is heard by the
/// operation, which stops where nothing is lost; a second one ends the program.
pub(crate) fn run<T>(
    console: &Console,
    operation: impl FnOnce(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> avhdx::Result<T>,
) -> Result<T, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    *under_way() = UnderWay::Operation(Arc::clone(&stop));
    let mut meter = Meter::of_operation(console);
    let done = operation(&mut |progress| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => meter.report(progress),
    });
    drop(meter);
    *under_way() = UnderWay::Nothing;
    Ok(done?)
}
