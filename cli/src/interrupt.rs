//! Ctrl-C, and being told to end: the program leaves with its own code and nothing half done.

use std::path::PathBuf;
use std::process;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use avhdx::storage::{Host, LocalHost};

use crate::exit::{Exit, Failure};
use crate::output::complain;

/// The file that has to go should the program be interrupted now.
static UNFINISHED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Held while files are created under passing names and while they get their own, so that an
/// interruption finds them named here or not there.
pub(crate) fn unfinished() -> MutexGuard<'static, Option<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on an interruption removes what is unfinished and leaves with its code.
pub(crate) fn arm(json: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let armed = ctrlc::set_handler(move || {
            // Held to the end, so that nothing is named or created in the meantime.
            let mut unfinished = unfinished();
            if let Some(file) = unfinished.take() {
                let _ = LocalHost.remove(&file);
            }
            complain(&Failure::interrupted(), json);
            process::exit(Exit::Interrupted as i32);
        });
        // Without a handler an interruption may leave a file behind, under a name that says so.
        drop(armed);
    });
}
