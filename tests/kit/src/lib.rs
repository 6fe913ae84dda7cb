//! Images for the tests, made, read and broken without the crate under test.
//!
//! Everything here is typed from [MS-VHDX] and shares no code and no constants with `avhdx`: a
//! mistake would have to be made twice, in two different shapes, to go unnoticed.
//!
//! - [`build`] writes images of any shape, right or wrong in every field.
//! - [`naive`] reads them back, slowly and simply, and finds what breaks the format's rules.
//! - [`loss`] says what an image lost of which the file was cut, or whose blocks lie over each other.
//! - [`fields`] knows where every number stands, and [`mutate`] breaks bytes and seals the checksums again.
//! - [`images`] finds, unpacks and sums the images of other writers.
//! - [`qemu`] asks QEMU's tools for a second opinion.
//! - [`planted`] puts bugs into a copy of the sources, for the tests to find.
//! - [`crc`] and [`rng`] are what the others stand on.

// The kit stands outside the crate whose file access goes through `storage::Host`.
#![allow(clippy::disallowed_methods)]

pub mod build;
mod check;
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
