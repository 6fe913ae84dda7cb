//! The facts of a VHD image.

use avhdx_formats::vhd::VhdImage;
use serde::Serialize;
use uuid::Uuid;

use crate::args::{ImageArg, ReadFlags};
use crate::failure::{Failure, Reply};
use crate::foreign;
use crate::output::Console;
use crate::table::TextTable;
use crate::text::{size, units, utc};
use crate::vocabulary::Answer;

pub(crate) fn run(
    image: &ImageArg,
    with_chain: bool,
    opening: &ReadFlags,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let images: Vec<VhdImage> = if with_chain {
        foreign::vhd(&image.image, opening, console)?.images().collect()
    } else {
        let (image, warnings) = opening.vhd_options().inspect(foreign::path(&image.image)?)?;
        foreign::warn(&warnings, console);
        vec![image]
    };
    let answers: Vec<VhdFacts> = images.iter().map(VhdFacts::of).collect();
    if console.is_json() {
        console.document(&VhdInfoAnswer { images: answers })?;
        return Ok(Reply::Yes);
    }
    for (image, facts) in images.iter().zip(answers) {
        let mut table = TextTable::fields(&image.name);
        table.field("format", format!("VHD, {}", image.kind));
        table.field("virtual size", size(image.size));
        if image.original_size != image.size {
            table.field("when made", size(image.original_size));
        }
        if let Some(block_size) = image.block_size {
            table.field("block size", units(block_size.into()));
        }
        table.field("identity", image.id);
        table.field("made", format!("{}, by {:?}", facts.created, facts.creator));
        if let Some(parent) = image.parent_id {
            table.field("parent", parent);
        }
        for path in &image.parent_paths {
            table.field("parent path", path);
        }
        console.table(table)?;
    }
    Ok(Reply::Yes)
}

/// The facts of a VHD image, and with --chain those of its parents.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VhdInfoAnswer {
    /// The image, then its parents.
    images: Vec<VhdFacts>,
}

impl Answer for VhdInfoAnswer {
    const SCHEMA: &'static str = "avhdx.info-vhd/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VhdFacts {
    image: String,
    /// `fixed`, `dynamic` or `differencing`.
    #[serde(rename = "type")]
    kind: String,
    virtual_size: u64,
    /// The size of the disk when it was made.
    original_size: u64,
    /// Null for a fixed image.
    block_size: Option<u32>,
    id: Uuid,
    created: String,
    /// The letters of the program that made the image.
    creator: String,
    parent_id: Option<Uuid>,
    /// The paths of the parent as they are recorded.
    parent_paths: Vec<String>,
}

impl VhdFacts {
    fn of(image: &VhdImage) -> Self {
        Self {
            image: image.name.clone(),
            kind: image.kind.to_string(),
            virtual_size: image.size,
            original_size: image.original_size,
            block_size: image.block_size,
            id: image.id,
            created: utc(image.created),
            creator: String::from_utf8_lossy(&image.creator)
                .trim_end_matches(['\0', ' '])
                .to_owned(),
            parent_id: image.parent_id,
            parent_paths: image.parent_paths.clone(),
        }
    }
}
