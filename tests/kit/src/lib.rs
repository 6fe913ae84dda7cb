//! Images for the tests, created, read and corrupted without the crate under test.
//!
//! Everything here is written from [MS-VHDX] and shares no code and no constants with `avhdx`: a
//! mistake would have to be made twice, in two different forms, to go unnoticed.
//!
//! - [`build`] writes images of any shape, with any field right or wrong.
//! - [`naive`] reads them, slowly and simply, and finds violations of the format.
//! - [`loss`] determines what an image lost if its file was cut or its blocks overlap.
//! - [`fields`] knows the place of every number, and [`mutate`] changes bytes and corrects the checksums.
//! - [`images`] finds, unpacks and sums the images of other writers.
//! - [`qemu`] runs QEMU's tools for a second opinion.
//! - [`planted`] plants bugs in a copy of the sources, for the tests to find.
//! - `conformance`, a feature, holds implementations of the library's traits to their promises. It is the only part
//!   that uses the library, of which it uses the public interface.
//! - [`crc`] and [`rng`] are used by the others.

// The testkit is not part of the crate whose file access goes through `storage::Host`.
#![allow(clippy::disallowed_methods)]

pub mod build;
mod check;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod crc;
pub mod fields;
pub mod images;
mod io;
pub mod loss;
pub mod mutate;
pub mod naive;
pub mod planted;
pub mod qemu;
pub mod rng;
