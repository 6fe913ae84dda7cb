//! Invalidates answers about a disk when its tip changes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use super::table::{AnswerKey, AnswerTable};

/// Number of consecutive lookups without a change before answers are worth caching.
const QUIET: u64 = 8;

/// Counts changes of the layer that holds some bytes, and drops the answers that they make wrong.
#[derive(Debug, Default)]
pub(crate) struct Invalidation {
    /// The stacks with cached answers, and the bytes per answer of each.
    kept: RwLock<Vec<(u64, u64)>>,
    changes: AtomicU64,
    /// The number of changes at the last lookup without an answer, and the number of such lookups since.
    seen: AtomicU64,
    questions: AtomicU64,
}

impl Invalidation {
    /// Registers a stack, with spans of this length, for invalidation from the next change on.
    pub(crate) fn add(&self, stack: u64, span: u64) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if !kept.contains(&(stack, span)) {
            kept.push((stack, span));
        }
    }

    /// Unregisters a stack whose answers are no longer looked up.
    pub(crate) fn remove(&self, stack: u64) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(other, _)| *other != stack);
    }

    /// Increases with each change.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether several lookups, including this one, came since the last change.
    pub(crate) fn is_quiet(&self) -> bool {
        let now = self.changes.load(Ordering::Relaxed);
        if self.seen.swap(now, Ordering::Relaxed) != now {
            self.questions.store(0, Ordering::Relaxed);
        }
        self.questions.fetch_add(1, Ordering::Relaxed) >= QUIET
    }

    /// Drops the answers for these bytes of the disk. Must be called after the tables have changed and before any
    /// reader has seen the change. A reader that found an answer before the count of changes rose either cached it
    /// before that, so it is dropped, or does not cache it.
    pub(crate) fn changed(&self, answers: Option<&AnswerTable>, bytes: Range<u64>) {
        let count = || _ = self.changes.fetch_add(1, Ordering::AcqRel);
        // Held until the count has risen: answers for a stack that is registered later are determined later.
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let Some(answers) = answers.filter(|_| !kept.is_empty()) else { return count() };
        let keys = kept.iter().flat_map(|(stack, span)| {
            let numbers = bytes.start / span..bytes.end.div_ceil(*span);
            numbers.filter_map(|number| AnswerKey::new(*stack, number))
        });
        answers.drop_answers(keys, count);
    }
}
