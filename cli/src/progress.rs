//! Progress: a bar on a terminal, JSON Lines with --json.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use avhdx::ops::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::output::{Console, is_watched, say};
use crate::vocabulary::Answer;

/// The interval between JSON lines.
const INTERVAL: Duration = Duration::from_secs(1);

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
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
}

impl ProgressMeter {
    pub(crate) fn new(console: &Console) -> Self {
        if console.is_json() {
            return Self::Lines { last: Some(Instant::now()) };
        }
        if !is_watched() {
            return Self::Silent;
        }
        let style = "{bar:40} {percent:>3}%  {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    /// A meter for an operation: the first JSON line comes at once.
    pub(crate) fn of_operation(console: &Console) -> Self {
        match Self::new(console) {
            Self::Lines { .. } => Self::Lines { last: None },
            meter => meter,
        }
    }

    /// Shows a report; never stops the work.
    pub(crate) fn report(&mut self, progress: Progress) -> ControlFlow<()> {
        self.show(progress.done, progress.total);
        ControlFlow::Continue(())
    }

    /// Shows that `done` of `total` bytes are processed.
    pub(crate) fn show(&mut self, done: u64, total: u64) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            Self::Lines { last } if last.is_none_or(|last| last.elapsed() >= INTERVAL) => {
                *last = Some(Instant::now());
                say(&ProgressAnswer { done, total });
            }
            Self::Lines { .. } => {}
        }
    }
}

impl Drop for ProgressMeter {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
