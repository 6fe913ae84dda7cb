//! Tests of the program, each in its own room.
#![allow(clippy::disallowed_methods)]

mod bench;
mod check;
mod checkpoint;
mod codes;
mod common;
mod compact;
mod complete;
mod convert;
mod convert_vhdx;
mod create;
mod delete;
mod diff;
mod effects;
mod examples;
mod files;
mod flatten;
mod foreseen;
mod free;
mod images;
mod json;
mod labels;
mod links;
mod loops;
mod loss;
mod meanwhile;
mod merge;
mod metadata;
mod next;
mod pages;
mod parents;
mod partitions;
mod points;
mod readme;
mod rebase;
mod recorded;
mod reparent;
mod resize;
#[cfg(unix)]
mod screens;
mod stdin;
mod swaps;
mod tree;
mod versions;
mod write;
