//! Tests of seals through the public API.

#![allow(clippy::disallowed_methods)]

mod changes;
mod common;
mod hostile;
mod merges;
mod sealing;
mod sparse;
