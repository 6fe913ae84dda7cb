//! Tests of `avhdx-formats` through its public API.

#![allow(clippy::disallowed_methods)] // tests make files of their own

mod created;
mod hostile;
mod opened;
mod tools;
