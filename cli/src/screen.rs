//! The terminal: its width and colours, and the one bar that may be shown on it.

use std::io;
use std::mem;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use console::{Term, is_dumb};
use indicatif::{ProgressBar, ProgressDrawTarget, TermLike};

/// The width of a terminal that does not tell its own.
const USUAL_WIDTH: usize = 80;
/// The cells that a bar leaves free at the end of its line. The terminal prints `^C` there on Ctrl-C; without room for
/// that it would begin another line, and the bar would be left on the one before.
const ROOM: u16 = 3;
/// How often a bar is drawn per second.
const RATE: u8 = 10;

/// A terminal drops what is just being written to it, and echoes `^C`, after it has sent the signal of a Ctrl-C.
const ECHO: Duration = Duration::from_millis(50);

static SHOWN: Mutex<Shown> = Mutex::new(Shown::Nothing);
static INTERRUPTED: OnceLock<Instant> = OnceLock::new();

/// What is shown below the last line of standard error.
#[derive(Debug)]
enum Shown {
    Nothing,
    Bar(ProgressBar),
    /// Nothing from now on: the program ends.
    Ended,
}

/// The width of standard output in cells; `None` if it is not a terminal.
pub(crate) fn width() -> Option<usize> {
    width_of(&Term::stdout())
}

/// The width of standard error, on which a bar is drawn; `None` if it is not a terminal.
pub(crate) fn watched_width() -> Option<usize> {
    width_of(&Term::stderr())
}

/// Whether standard output is a terminal with colours that the user wants.
pub(crate) fn has_colours() -> bool {
    Term::stdout().features().colors_supported()
}

/// Whether standard error is a terminal that a bar can be drawn on.
pub(crate) fn is_watched() -> bool {
    Term::stderr().features().is_attended() && !is_dumb()
}

/// A bar on standard error, which is not drawn before its position is set.
pub(crate) fn bar() -> ProgressBar {
    let terminal = Box::new(BarTerm(Term::buffered_stderr()));
    ProgressBar::with_draw_target(None, ProgressDrawTarget::term_like_with_hz(terminal, RATE))
}

/// Records that the bar may be drawn from now on.
pub(crate) fn show(bar: &ProgressBar) {
    let mut shown = shown();
    match *shown {
        Shown::Ended => hide(bar),
        Shown::Nothing | Shown::Bar(_) => *shown = Shown::Bar(bar.clone()),
    }
}

/// Removes the bar, if there is one.
pub(crate) fn clear() {
    wait_for_echo();
    let mut shown = shown();
    if let Shown::Bar(bar) = &*shown {
        hide(bar);
        *shown = Shown::Nothing;
    }
}

/// Removes the bar, if there is one, and shows none from now on.
pub(crate) fn end() {
    wait_for_echo();
    if let Shown::Bar(bar) = mem::replace(&mut *shown(), Shown::Ended) {
        hide(&bar);
    }
}

/// Records that a signal has come: what is printed next waits until a terminal has echoed a Ctrl-C.
pub(crate) fn interrupted() {
    if Term::stderr().features().is_attended() {
        INTERRUPTED.get_or_init(Instant::now);
    }
}

fn wait_for_echo() {
    if let Some(at) = INTERRUPTED.get() {
        thread::sleep(ECHO.saturating_sub(at.elapsed()));
    }
}

/// Writes to standard error, above the bar if there is one.
pub(crate) fn above(write: impl FnOnce()) {
    match &*shown() {
        Shown::Bar(bar) => bar.suspend(write),
        Shown::Nothing | Shown::Ended => write(),
    }
}

/// Removes a bar for good: whoever goes on to move it draws nothing.
fn hide(bar: &ProgressBar) {
    bar.finish_and_clear();
    bar.set_draw_target(ProgressDrawTarget::hidden());
}

fn shown() -> MutexGuard<'static, Shown> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn width_of(terminal: &Term) -> Option<usize> {
    if !terminal.features().is_attended() {
        return None;
    }
    let told = terminal.size_checked().map(|(_, columns)| usize::from(columns));
    Some(told.filter(|columns| *columns > 0).unwrap_or(USUAL_WIDTH))
}

/// A terminal that seems narrower by [`ROOM`].
#[derive(Debug)]
struct BarTerm(Term);

impl TermLike for BarTerm {
    fn width(&self) -> u16 {
        let width = width_of(&self.0).unwrap_or(USUAL_WIDTH);
        u16::try_from(width).unwrap_or(u16::MAX).saturating_sub(ROOM).max(1)
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_up(n)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_down(n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_left(n)
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.0.write_line(line)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}
