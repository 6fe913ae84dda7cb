//! A finished copy.

use std::path::Path;

use serde::Serialize;

use crate::args::{CopyFormat, ImageArg};
use crate::failure::Failure;
use crate::output::Console;
use crate::text::{size, units};
use crate::vocabulary::Answer;

/// A finished copy.
pub(super) struct Copied {
    pub(super) virtual_size: u64,
    /// The number of bytes of the disk that were written; the rest are zeros.
    pub(super) written: u64,
    /// The block size, if the copy is an image.
    pub(super) block_size: Option<u32>,
}

/// A copy of a disk.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ConvertAnswer {
    image: String,
    /// The file made.
    output: String,
    format: &'static str,
    virtual_size: u64,
    /// The number of bytes of the disk that were written; the rest are zeros.
    written: u64,
    /// Null for a raw disk.
    block_size: Option<u32>,
}

impl Answer for ConvertAnswer {
    const SCHEMA: &'static str = "avhdx.convert/1";
}

impl Copied {
    pub(super) fn print(
        &self,
        image: &ImageArg,
        out: &Path,
        format: CopyFormat,
        console: &mut Console,
    ) -> Result<(), Failure> {
        let out = out.to_string_lossy();
        let Self { virtual_size, written, block_size } = *self;
        if console.is_json() {
            return console.document(&ConvertAnswer {
                image: image.name(),
                output: out.into_owned(),
                format: format.name(),
                virtual_size,
                written,
                block_size,
            });
        }
        let mut line = format!("{out}: {}, {} written", size(virtual_size), size(written));
        if let Some(block_size) = block_size {
            line += &format!(", block size {}", units(block_size.into()));
        }
        console.line(line)
    }
}
