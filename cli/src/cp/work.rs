//! What an interruption of a copy has to complete or remove.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(unix)]
use super::by_descriptor::{Draft, Folder};
#[cfg(not(unix))]
use super::by_path::{Draft, Folder};
use super::facts::Facts;
use crate::interrupt::Unfinished;

#[derive(Debug, Default)]
pub(super) struct Work(Mutex<Open>);

#[derive(Debug, Default)]
pub(super) struct Open {
    pub(super) draft: Option<Arc<Draft>>,
    /// The folders on the way to what is copied, the innermost last.
    pub(super) folders: Vec<OpenFolder>,
}

#[derive(Debug)]
pub(super) struct OpenFolder {
    pub(super) folder: Arc<Folder>,
    /// The path in the volume.
    pub(super) path: Vec<u8>,
    /// What it gets once all in it is copied; none if it was there before.
    pub(super) facts: Option<Facts>,
}

impl Work {
    pub(super) fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unfinished for Work {
    fn abandon(&self) {
        let mut open = self.open();
        if let Some(draft) = open.draft.take() {
            draft.discard();
        }
        while let Some(OpenFolder { folder, facts, .. }) = open.folders.pop() {
            drop(facts.map(|facts| folder.set(&facts)));
        }
    }
}
