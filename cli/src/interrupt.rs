//! Ctrl-C and SIGTERM: the program cleans up and exits with code 130.

use std::fmt;
use std::mem;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use avhdx::DiffChain;
use avhdx::storage::Draft;

use crate::failure::Failure;
use crate::output::complain;
use crate::screen;

static IN_PROGRESS: Mutex<InProgress> = Mutex::new(InProgress::Nothing);

/// What an interruption has to clean up.
#[derive(Debug, Default)]
pub(crate) enum InProgress {
    #[default]
    Nothing,
    /// Unfinished files, to be removed.
    Drafts(Vec<Arc<Draft<'static>>>),
    /// Copies that know themselves what to clean up.
    Copies(Arc<dyn Unfinished>),
    /// An image open for writing, to be closed.
    Image(DiffChain),
    /// An operation, which polls this flag and stops where it can be resumed.
    Operation(Arc<AtomicBool>),
}

/// Work of which an interruption leaves what is complete.
pub(crate) trait Unfinished: fmt::Debug + Send + Sync {
    fn abandon(&self);
}

/// The work in progress. An interruption waits for this lock and keeps it until the program exits.
pub(crate) fn in_progress() -> MutexGuard<'static, InProgress> {
    IN_PROGRESS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl InProgress {
    /// Adds an unfinished file.
    pub(crate) fn add(&mut self, draft: Arc<Draft<'static>>) {
        match self {
            Self::Drafts(drafts) => drafts.push(draft),
            _ => *self = Self::Drafts(vec![draft]),
        }
    }

    /// Forgets a file that is finished or removed.
    pub(crate) fn forget(&mut self, draft: &Arc<Draft<'static>>) {
        if let Self::Drafts(drafts) = self {
            drafts.retain(|other| !Arc::ptr_eq(other, draft));
            if drafts.is_empty() {
                *self = Self::Nothing;
            }
        }
    }
}

/// Installs the handler.
pub(crate) fn arm(json: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let armed = ctrlc::set_handler(move || {
            screen::interrupted();
            // Held until the exit: no file is created, renamed or changed meanwhile.
            let mut in_progress = in_progress();
            if let InProgress::Operation(stop) = &*in_progress
                && !stop.swap(true, Ordering::Relaxed)
            {
                return;
            }
            let failure = clean_up(mem::take(&mut in_progress));
            complain(&failure, json);
            process::exit(failure.exit as i32);
        });
        // Without a handler an interruption can leave a temporary file, or an image with a pending log.
        // Flushed data is safe either way.
        drop(armed);
    });
}

fn clean_up(in_progress: InProgress) -> Failure {
    match in_progress {
        InProgress::Nothing => Failure::interrupted("interrupted"),
        InProgress::Drafts(drafts) => {
            drafts.iter().for_each(|draft| draft.discard());
            Failure::interrupted(match drafts.len() {
                1 => "interrupted; the unfinished file was removed",
                _ => "interrupted; the unfinished files were removed",
            })
        }
        InProgress::Copies(copies) => {
            copies.abandon();
            Failure::interrupted("interrupted; files copied up to here stay")
        }
        InProgress::Image(image) => match image.close() {
            Ok(()) => Failure::interrupted(
                "interrupted; changes up to here are kept, and the image is closed",
            ),
            Err(error) => error.into(),
        },
        // The second interruption: an operation survives being killed.
        InProgress::Operation(_) => {
            Failure::interrupted("interrupted in the middle of an operation")
        }
    }
}
