//! Chains whose layers change while other threads read and write them.
//!
//! Each view of a chain refers to an immutable stack of layers. An operation builds a new stack, with an added child
//! or without a merged layer, and replaces the old one in every view atomically. Readers in progress continue with
//! the old stack, whose files stay open and valid until its last user is gone. Before an operation invalidates those
//! files, it waits for these users.
//!
//! A write that finds a frozen tip is repeated on the tip of the newer stack.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::stack::{Link, Past, Stack, named};
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImagePolicy;
use crate::storage::Host;
use crate::warning::Warning;
use crate::write::{ChangeRecord, Writer};

/// Sleep between two checks.
const PAUSE: Duration = Duration::from_micros(200);

/// The state of one view of a chain and its clones.
pub(super) struct View {
    pub(super) stack: ArcSwap<Stack>,
    /// Whether this is the chain itself, which follows the newest tip, rather than a point in time.
    pub(super) follows: bool,
}

/// State that all views of a chain share.
pub(super) struct Live {
    pub(super) opened: Opened,
    views: Mutex<Views>,
    /// Held by the operation that is changing the layers.
    pub(super) operation: Mutex<()>,
    warnings: Vec<Warning>,
    /// Tells the chain that writes to the tip that this one reads it, if another does.
    _guest: Option<Arc<()>>,
}

#[derive(Default)]
pub(super) struct Views {
    pub(super) all: Vec<Weak<View>>,
    /// Replaced stacks that still have users.
    pub(super) past: Vec<Past>,
    /// The layer that another is being merged into.
    pub(super) vanishing: Option<LayerId>,
    /// Records of the changes of the tip, which follow it.
    pub(super) records: Vec<Weak<ChangeRecord>>,
}

/// How the layers of a chain were opened.
pub(crate) struct Opened {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) images: ImagePolicy,
    /// Folders to search for children, besides the images' own.
    pub(crate) child_folders: Vec<PathBuf>,
}

impl Live {
    /// Creates the chain itself, with these layers.
    pub(super) fn start(
        opened: Opened,
        layers: Vec<Link>,
        writer: Option<Arc<Writer>>,
        warnings: Vec<Warning>,
    ) -> (Arc<View>, Arc<Self>) {
        let guest = writer.is_none().then(|| layers[0].image.guest()).flatten();
        let stack = Stack::new(named(layers), 0, writer, Arc::default(), Arc::default());
        let live = Arc::new(Self {
            opened,
            views: Mutex::default(),
            operation: Mutex::new(()),
            warnings,
            _guest: guest,
        });
        let view = View { stack: ArcSwap::from_pointee(stack), follows: true };
        let view = add(view, &mut live.views());
        (view, live)
    }

    /// Adds a view of a point in time.
    pub(super) fn view(&self, stack: Stack) -> Result<Arc<View>> {
        let mut views = self.views();
        if views.vanishing == Some(stack.tip().id()) {
            let message = "a child is just being merged into this point, which is going to vanish";
            return Err(Error::new(ErrorKind::Unfinished, "chain.vanishing", message)
                .in_file(stack.tip().name())
                .with_found("a merge under way")
                .with_expected("a layer above it"));
        }
        let stack = ArcSwap::from_pointee(stack);
        Ok(add(View { stack, follows: false }, &mut views))
    }

    pub(super) fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    pub(super) fn views(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(view: View, views: &mut Views) -> Arc<View> {
    let view = Arc::new(view);
    views.all.retain(|view| view.strong_count() > 0);
    views.all.push(Arc::downgrade(&view));
    view
}

/// Waits for a condition for a limited time, and returns whether it became true.
pub(super) fn wait_until(
    patience: Duration,
    is_over: impl Fn() -> bool,
    on: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<bool> {
    let start = Instant::now();
    while !is_over() {
        if on().is_break() {
            return Err(Error::cancelled());
        }
        if start.elapsed() > patience {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(true)
}
