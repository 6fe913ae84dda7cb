//! Ctrl-C, and being told to end: the program leaves with its own code and nothing half done.

use std::mem;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use avhdx::DiffChain;
use avhdx::storage::Draft;

use crate::exit::Failure;
use crate::output::complain;

static UNDER_WAY: Mutex<UnderWay> = Mutex::new(UnderWay::Nothing);

/// What an interruption has to put in order.
#[derive(Debug, Default)]
pub(crate) enum UnderWay {
    #[default]
    Nothing,
    /// A file that has to go.
    Draft(Arc<Draft<'static>>),
    /// An image that is being changed, to be closed.
    Image(DiffChain),
    /// An operation that stops by itself, where it can go on later, once it sees this.
    Operation(Arc<AtomicBool>),
}

/// What is under way. An interruption waits for whoever holds this, and never gives it back.
pub(crate) fn under_way() -> MutexGuard<'static, UnderWay> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on an interruption puts in order what is under way and leaves with its code.
pub(crate) fn arm(json: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let armed = ctrlc::set_handler(move || {
            // Held to the end, so that nothing is named, created or changed in the meantime.
            let mut under_way = under_way();
            if let UnderWay::Operation(stop) = &*under_way
                && !stop.swap(true, Ordering::Relaxed)
            {
                return;
            }
            let failure = put_in_order(mem::take(&mut under_way));
            complain(&failure, json);
            process::exit(failure.exit as i32);
        });
        // Without a handler an interruption may leave a draft, or an image whose log is to be replayed;
        // nothing that was flushed is in danger.
        drop(armed);
    });
}

fn put_in_order(under_way: UnderWay) -> Failure {
    match under_way {
        UnderWay::Nothing => Failure::interrupted("interrupted"),
        UnderWay::Draft(draft) => {
            draft.discard();
            Failure::interrupted("interrupted; nothing was left behind")
        }
        UnderWay::Image(image) => match image.close() {
            Ok(()) => Failure::interrupted(
                "interrupted; what was changed until then stays changed, and the image is closed",
            ),
            Err(error) => error.into(),
        },
        // It was asked before: no crash harms what an operation has done.
        UnderWay::Operation(_) => Failure::interrupted("interrupted in the middle of an operation"),
    }
}
