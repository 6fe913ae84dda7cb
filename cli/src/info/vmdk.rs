//! The facts of a VMDK image.

use avhdx_formats::vmdk::{VmdkExtent, VmdkImage};
use serde::Serialize;

use crate::args::{ImageArg, ReadFlags};
use crate::failure::{Failure, Reply};
use crate::foreign;
use crate::output::Console;
use crate::table::TextTable;
use crate::text::{count, size};
use crate::vocabulary::Answer;

pub(crate) fn run(
    image: &ImageArg,
    with_chain: bool,
    opening: &ReadFlags,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let images: Vec<VmdkImage> = if with_chain {
        foreign::vmdk(&image.image, opening, console)?.images().collect()
    } else {
        let (image, warnings) = opening.vmdk_options().inspect(foreign::path(&image.image)?)?;
        foreign::warn(&warnings, console);
        vec![image]
    };
    if console.is_json() {
        let images = images.into_iter().map(VmdkFacts::of).collect();
        console.document(&VmdkInfoAnswer { images })?;
        return Ok(Reply::Yes);
    }
    for image in images {
        let mut table = TextTable::fields(&image.name);
        table.field("format", format!("VMDK, {}", image.create_type));
        table.field("virtual size", size(image.size));
        table.field("content", format!("{:08x}", image.content_id));
        if let (Some(parent), Some(content)) = (&image.parent, image.parent_content_id) {
            table.field("parent", parent);
            table.field("its content", format!("{content:08x}"));
        }
        match &image.extents[..] {
            [extent] => table.field("extent", described(extent)),
            extents => {
                table.field("extents", count(extents.len(), "extent"));
                for extent in extents {
                    table.field("", described(extent));
                }
            }
        }
        console.table(table)?;
    }
    Ok(Reply::Yes)
}

fn described(extent: &VmdkExtent) -> String {
    let about = format!("{}, {}", extent.kind, size(extent.size));
    match &extent.recorded {
        Some(name) => format!("{name}: {about}"),
        None => about,
    }
}

/// The facts of a VMDK image, and with --chain those of its parents.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VmdkInfoAnswer {
    /// The image, then its parents.
    images: Vec<VmdkFacts>,
}

impl Answer for VmdkInfoAnswer {
    const SCHEMA: &'static str = "avhdx.info-vmdk/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VmdkFacts {
    image: String,
    virtual_size: u64,
    /// The kind as it is recorded, such as `monolithicSparse`.
    create_type: String,
    /// The identity of the content, the CID, in eight hexadecimal digits.
    content_id: String,
    /// The parent as it is recorded.
    parent: Option<String>,
    /// The identity that the content of the parent had.
    parent_content_id: Option<String>,
    extents: Vec<ExtentFacts>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ExtentFacts {
    /// `zero`, `flat` or `sparse`.
    kind: String,
    size: u64,
    /// The file as it is recorded; null for an extent without a file.
    file: Option<String>,
}

impl VmdkFacts {
    fn of(image: VmdkImage) -> Self {
        Self {
            image: image.name,
            virtual_size: image.size,
            create_type: image.create_type,
            content_id: format!("{:08x}", image.content_id),
            parent: image.parent,
            parent_content_id: image.parent_content_id.map(|id| format!("{id:08x}")),
            extents: image.extents.into_iter().map(ExtentFacts::of).collect(),
        }
    }
}

impl ExtentFacts {
    fn of(extent: VmdkExtent) -> Self {
        Self { kind: extent.kind.to_string(), size: extent.size, file: extent.recorded }
    }
}
