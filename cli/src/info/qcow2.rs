//! The facts of a qcow2 image.

use avhdx_formats::qcow2::Qcow2Image;
use serde::Serialize;

use crate::args::{ImageArg, ReadFlags};
use crate::failure::{Failure, Reply};
use crate::foreign;
use crate::output::Console;
use crate::table::TextTable;
use crate::text::{size, units};
use crate::vocabulary::Answer;

pub(crate) fn run(
    image: &ImageArg,
    with_chain: bool,
    opening: &ReadFlags,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let images: Vec<Qcow2Image> = if with_chain {
        foreign::qcow2(&image.image, opening, console)?.images().collect()
    } else {
        let (image, warnings) = opening.qcow2_options().inspect(foreign::path(&image.image)?)?;
        foreign::warn(&warnings, console);
        vec![image]
    };
    if console.is_json() {
        let images = images.into_iter().map(Qcow2Facts::of).collect();
        console.document(&Qcow2InfoAnswer { images })?;
        return Ok(Reply::Yes);
    }
    for image in images {
        let mut table = TextTable::fields(&image.name);
        match image.version {
            Some(version) => table.field("format", format!("qcow2, version {version}")),
            None => table.field("format", "raw"),
        }
        table.field("virtual size", size(image.size));
        if let Some(cluster_size) = image.cluster_size {
            table.field("cluster size", units(cluster_size.into()));
        }
        if let Some(backing) = &image.backing {
            table.field("backing file", backing);
            let format = image.backing_format.as_deref().unwrap_or("not recorded");
            table.field("its format", format);
        }
        console.table(table)?;
    }
    Ok(Reply::Yes)
}

/// The facts of a qcow2 image, and with --chain those of its backing files.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Qcow2InfoAnswer {
    /// The image, then its backing files.
    images: Vec<Qcow2Facts>,
}

impl Answer for Qcow2InfoAnswer {
    const SCHEMA: &'static str = "avhdx.info-qcow2/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Qcow2Facts {
    image: String,
    virtual_size: u64,
    /// The version of the format; null for a raw disk.
    version: Option<u32>,
    /// Null for a raw disk.
    cluster_size: Option<u32>,
    /// The backing file as it is recorded.
    backing: Option<String>,
    backing_format: Option<String>,
}

impl Qcow2Facts {
    fn of(image: Qcow2Image) -> Self {
        Self {
            image: image.name,
            virtual_size: image.size,
            version: image.version,
            cluster_size: image.cluster_size,
            backing: image.backing,
            backing_format: image.backing_format,
        }
    }
}
