//! Suites that hold an implementation of a trait of `avhdx` to what the trait promises: one function per promise, each
//! called with a constructor. A promise that is broken panics.
//!
//! ```
//! # use std::sync::Arc;
//! use avhdx::RawDisk;
//! use avhdx::storage::MemStorage;
//! use avhdx_testkit::conformance::disk::{self, Subject};
//!
//! let bytes = vec![7; 100_000];
//! disk::keeps_every_promise(&|| {
//!     let storage = Arc::new(MemStorage::new(bytes.clone()));
//!     Subject::writable(RawDisk::new(storage).unwrap(), bytes.clone())
//! });
//! ```

pub mod disk;
pub mod host;
pub mod storage;
