//! Invalidates answers about a disk when its tip changes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use super::table::{AnswerKey, AnswerTable};

/// Questions in a row that must come without a change between them before answers are worth keeping.
const QUIET: u64 = 8;

/// Counts the changes in which layer has some bytes, and drops the answers that each makes wrong.
#[derive(Debug, Default)]
pub(crate) struct Invalidation {
    /// The stacks that answers are kept for, and the bytes that each is about.
    kept: RwLock<Vec<(u64, u64)>>,
    changes: AtomicU64,
    /// The number of changes at the last question that had no answer, and such questions since.
    seen: AtomicU64,
    questions: AtomicU64,
}

impl Invalidation {
    /// Drops answers for this stack too, about spans of this length, from the next change on.
    pub(crate) fn add(&self, stack: u64, span: u64) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if !kept.contains(&(stack, span)) {
            kept.push((stack, span));
        }
    }

    /// Drops answers for these stacks alone: nobody asks for those of others any more.
    pub(crate) fn keep_only(&self, stacks: &[u64]) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(stack, _)| stacks.contains(stack));
    }

    /// A number that rises with each change.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether several questions came since the last change, this one counted.
    pub(crate) fn is_quiet(&self) -> bool {
        let now = self.changes.load(Ordering::Relaxed);
        if self.seen.swap(now, Ordering::Relaxed) != now {
            self.questions.store(0, Ordering::Relaxed);
        }
        self.questions.fetch_add(1, Ordering::Relaxed) >= QUIET
    }

    /// Drops the answers about these bytes of the disk. The tables say something else by now, and no reader has seen
    /// that yet. A reader who found an answer before the number rose either kept it before that, and it is dropped,
    /// or does not keep it.
    pub(crate) fn changed(&self, answers: Option<&AnswerTable>, bytes: Range<u64>) {
        let count = || _ = self.changes.fetch_add(1, Ordering::AcqRel);
        // Held until the number has risen: answers for a stack that is added later are found later.
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let Some(answers) = answers.filter(|_| !kept.is_empty()) else { return count() };
        let keys = kept.iter().flat_map(|(stack, span)| {
            let numbers = bytes.start / span..bytes.end.div_ceil(*span);
            numbers.filter_map(|number| AnswerKey::new(*stack, number))
        });
        answers.drop_answers(keys, count);
    }
}
