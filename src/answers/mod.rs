//! Caches which layer holds which sectors of a disk, within a budget. Independent of images.

mod build;
mod invalidate;
mod packed;
mod run;
mod table;

pub(crate) use build::{MOST_SPAN, Owner, SpanBits, SpanBuilder, SpanOwner};
pub(crate) use invalidate::Invalidation;
pub(crate) use packed::{PackedSpan, Sectors};
pub(crate) use run::{Answer, PackedRun};
pub(crate) use table::{AnswerKey, AnswerTable};
