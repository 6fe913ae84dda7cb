//! Tests of `avhdx-formats` through its public API.

mod builder;
mod created;
mod hostile;
mod opened;
mod tools;
