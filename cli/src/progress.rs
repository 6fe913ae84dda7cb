//! Progress: a bar on a terminal, JSON Lines with --json, nothing with --quiet.

use std::ops::ControlFlow;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use avhdx::ops::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::output::{Console, say};
use crate::screen;
use crate::vocabulary::Answer;

/// The interval between JSON lines.
const INTERVAL: Duration = Duration::from_secs(1);
/// Work that takes no longer shows no bar.
const MOMENT: Duration = Duration::from_millis(300);
/// The interval between two turns of what turns while the work has no measure.
const TURN: Duration = Duration::from_millis(100);

/// Work of a known number of bytes.
const OF_BYTES: &str =
    "{wide_bar} {percent:>3}%  {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
/// Work of a known time or a known number of steps.
const OF_STEPS: &str = "{msg}  {wide_bar} {percent:>3}%";
/// Work of a known number of bytes, where the terminal is too narrow for more.
const NARROW: &str = "{wide_bar} {percent:>3}%";
/// The width that a terminal has to have for the numbers beside a bar.
const WIDE: usize = 64;
/// Bytes without a known end.
const ENDLESS: &str = "{spinner}  {bytes}, {bytes_per_sec}";
/// Work without a measure.
const UNMEASURED: &str = "{spinner}  {msg}, {elapsed}";

/// How far the work is.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ProgressAnswer {
    /// In bytes.
    done: u64,
    total: u64,
}

impl Answer for ProgressAnswer {
    const SCHEMA: &'static str = "avhdx.progress/1";
}

#[derive(Debug)]
pub(crate) enum ProgressMeter {
    Silent,
    Bar(Bar),
    Lines { last: Option<Instant> },
}

impl ProgressMeter {
    /// A meter for bytes.
    pub(crate) fn new(console: &Console) -> Self {
        match console.is_json() && !console.is_quiet() {
            true => Self::Lines { last: Some(Instant::now()) },
            false => {
                let is_wide = screen::watched_width().is_none_or(|width| width >= WIDE);
                Self::bar(console, if is_wide { OF_BYTES } else { NARROW }, "")
            }
        }
    }

    /// A meter for an operation: the first JSON line comes at once.
    pub(crate) fn of_operation(console: &Console) -> Self {
        match Self::new(console) {
            Self::Lines { .. } => Self::Lines { last: None },
            meter => meter,
        }
    }

    /// A meter for bytes of an unknown number. JSON has no lines for it.
    pub(crate) fn endless(console: &Console) -> Self {
        Self::bar(console, ENDLESS, "")
    }

    /// A meter for bytes that go to standard output: a bar would lie across them on the same terminal.
    pub(crate) fn beside_output(console: &Console) -> Self {
        match Self::new(console) {
            Self::Bar(_) if screen::width().is_some() => Self::Silent,
            meter => meter,
        }
    }

    /// The same beside what goes to standard output: a bar would lie across it on the same terminal.
    pub(crate) fn endless_beside_output(console: &Console) -> Self {
        if screen::width().is_some() { Self::Silent } else { Self::endless(console) }
    }

    /// A meter for work that is not measured in bytes. JSON has no lines for it.
    pub(crate) fn of_steps(console: &Console, what: &'static str) -> Self {
        Self::bar(console, OF_STEPS, what)
    }

    /// A meter for bytes of disks that are not read, only looked up in tables.
    pub(crate) fn of_lookups(console: &Console, what: &'static str) -> Self {
        match Self::new(console) {
            Self::Bar(_) => Self::of_steps(console, what),
            meter => meter,
        }
    }

    fn bar(console: &Console, style: &'static str, what: &'static str) -> Self {
        let is_shown = !console.is_json() && !console.is_quiet() && screen::is_watched();
        if is_shown { Self::Bar(Bar::new(style, what)) } else { Self::Silent }
    }

    /// Shows a report; never stops the work.
    pub(crate) fn report(&mut self, progress: Progress) -> ControlFlow<()> {
        self.show(progress.done, progress.total);
        ControlFlow::Continue(())
    }

    /// Shows that `done` of `total` is processed.
    pub(crate) fn show(&mut self, done: u64, total: u64) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => bar.show(done, Some(total)),
            Self::Lines { last } if last.is_none_or(|last| last.elapsed() >= INTERVAL) => {
                *last = Some(Instant::now());
                say(&ProgressAnswer { done, total });
            }
            Self::Lines { .. } => {}
        }
    }

    /// Shows that `done` is processed, of an unknown number.
    pub(crate) fn show_endless(&mut self, done: u64) {
        if let Self::Bar(bar) = self {
            bar.show(done, None);
        }
    }
}

/// A bar that appears if the work takes longer than a moment, and disappears when it is dropped.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    start: Instant,
    is_shown: bool,
}

impl Bar {
    fn new(style: &str, what: &'static str) -> Self {
        let bar = styled(style, what);
        Self { bar, start: Instant::now(), is_shown: false }
    }

    fn show(&mut self, done: u64, total: Option<u64>) {
        if !self.is_shown {
            if self.start.elapsed() < MOMENT {
                return;
            }
            self.is_shown = true;
            screen::show(&self.bar);
        }
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.is_shown {
            screen::clear();
        }
    }
}

/// Shows that the program is at work where nothing says how far it is, until this is dropped.
#[derive(Debug)]
pub(crate) struct Activity(Option<(Sender<()>, JoinHandle<()>)>);

impl Activity {
    /// `what` is being done, such as `checking`.
    pub(crate) fn of(console: &Console, what: &'static str) -> Self {
        if console.is_json() || console.is_quiet() || !screen::is_watched() {
            return Self(None);
        }
        let (end, ended) = mpsc::channel();
        let is_over = move |time| ended.recv_timeout(time) != Err(RecvTimeoutError::Timeout);
        let turning = move || {
            if is_over(MOMENT) {
                return;
            }
            let bar = styled(UNMEASURED, what).with_elapsed(MOMENT);
            screen::show(&bar);
            loop {
                bar.tick();
                if is_over(TURN) {
                    break;
                }
            }
            screen::clear();
        };
        Self(Some((end, thread::spawn(turning))))
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        if let Some((end, turning)) = self.0.take() {
            drop(end);
            // A panic there leaves at most a line on the screen.
            drop(turning.join());
        }
    }
}

fn styled(style: &str, what: &'static str) -> ProgressBar {
    let bar = screen::bar().with_message(what);
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
