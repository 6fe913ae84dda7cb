//! The facts of an image and its chain, as `avhdx info` shows them.

pub(crate) mod json;
pub(crate) mod print;
pub(crate) mod report;
