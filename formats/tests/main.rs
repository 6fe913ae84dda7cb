//! Tests of `avhdx-formats` through its public API.

#![allow(clippy::disallowed_methods)] // tests make files of their own

mod disks;
mod qcow2;
mod tools;
mod vhd;
