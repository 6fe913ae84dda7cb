//! Images for the tests, created, read and corrupted without the crate under test.
//!
//! Everything here is written from [MS-VHDX] and shares no code and no constants with `avhdx`: a
//! mistake would have to be made twice, in two different forms, to go unnoticed.
//!
//! - [`build`] writes images of any shape, with any field right or wrong.
//! - [`naive`] reads them, slowly and simply, and finds violations of the format.
//! - [`loss`] determines what an image lost if its file was cut or its blocks overlap.
//! - [`fields`] knows the place of every number, and [`mutate`] changes bytes and corrects the checksums. [`hostile`]
//!   has sound chains to be corrupted, and corruptions.
//! - [`images`] finds, unpacks and sums the images of other writers.
//! - [`qemu`] runs QEMU's tools for a second opinion.
//! - [`planted`] plants bugs in a copy of the sources, for the tests to find.
//! - With the feature `library`, and only there, the public interface of the library is used: `conformance` holds
//!   implementations of its traits to their promises, `sim` is a host in memory that records what happens to its files,
//!   `outcomes` and `stale` make of the record what a crash can leave, `model` and `verdict` judge that.
//! - [`bytes`], [`crc`] and [`rng`] are used by the others.

// The testkit is not part of the crate whose file access goes through `storage::Host`.
#![allow(clippy::disallowed_methods)]

// Some of it is also a part of the library's own tests, where it has this name.
#[cfg(feature = "library")]
extern crate self as avhdx_testkit;

pub mod build;
pub mod bytes;
mod check;
#[cfg(feature = "library")]
pub mod conformance;
pub mod crc;
pub mod fields;
pub mod hostile;
pub mod images;
mod io;
pub mod loss;
#[cfg(feature = "library")]
pub mod model;
pub mod mutate;
pub mod naive;
#[cfg(feature = "library")]
pub mod outcomes;
pub mod planted;
pub mod qemu;
pub mod rng;
#[cfg(feature = "library")]
pub mod sim;
#[cfg(feature = "library")]
pub mod stale;
#[cfg(feature = "library")]
pub mod verdict;
pub mod vhd;
pub mod vmdk;
