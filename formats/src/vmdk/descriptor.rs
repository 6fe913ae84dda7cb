//! The descriptor: the text that says which extents an image has, and what is below it.

use avhdx::{Error, ErrorKind, Result};

use super::header::{SECTOR, damaged, unsupported};

/// The most bytes of a descriptor that are read.
pub(super) const MOST: u64 = 1 << 20;
/// The most extents of an image: each is an open file.
const MOST_EXTENTS: usize = 4096;
/// The content that no parent has.
const NO_PARENT: u32 = u32::MAX;

/// What a descriptor records.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    pub(super) create_type: String,
    pub(super) content_id: u32,
    pub(super) parent: Option<Parent>,
    pub(super) extents: Vec<ExtentLine>,
}

/// The image below, as it is recorded.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub(super) content_id: u32,
    pub(super) name: String,
}

/// A line that describes an extent.
#[derive(Clone, Debug)]
pub(super) struct ExtentLine {
    /// Bytes of the disk.
    pub(super) size: u64,
    pub(super) kind: LineKind,
    /// Where the line is in the file.
    pub(super) at: u64,
}

/// What a line says of the bytes.
#[derive(Clone, Debug)]
pub(super) enum LineKind {
    Zero,
    Flat {
        name: String,
        /// Where the bytes begin in the file.
        start: u64,
    },
    /// A file with tables, whose kind it says itself.
    Sparse {
        name: String,
    },
}

impl Descriptor {
    /// Reads a descriptor that begins at `start` in the file.
    pub(super) fn parse(bytes: &[u8], start: u64) -> Result<Self> {
        let text = &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())];
        let mut found = Found::default();
        let mut at = start;
        let mut is_first = true;
        for line in text.split(|byte| *byte == b'\n') {
            let place = at;
            at += line.len() as u64 + 1;
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if is_first && !line.is_empty() {
                is_first = false;
                if !line.to_ascii_lowercase().starts_with("# disk descriptorfile") {
                    let message = "there is no descriptor of a VMDK image";
                    return Err(damaged("vmdk.signature", message, place)
                        .with_found(format_args!("{:?}", short(line)))
                        .with_expected("\"# Disk DescriptorFile\""));
                }
            }
            if !line.is_empty() && !line.starts_with('#') {
                found.line(line, place)?;
            }
        }
        if is_first {
            let message = "there is no descriptor of a VMDK image";
            return Err(damaged("vmdk.signature", message, start)
                .with_found("nothing")
                .with_expected("\"# Disk DescriptorFile\""));
        }
        found.complete(start)
    }
}

/// A value and where it is.
type Value = Option<(String, u64)>;

/// What lines said so far. The first one of a name counts.
#[derive(Default)]
struct Found {
    version: Value,
    create_type: Value,
    content_id: Value,
    parent_id: Value,
    parent_name: Value,
    extents: Vec<ExtentLine>,
}

impl Found {
    fn line(&mut self, line: &str, at: u64) -> Result<()> {
        let first = line.split_whitespace().next().unwrap_or_default();
        if matches!(first, "RW" | "RDONLY" | "NOACCESS") {
            if self.extents.len() == MOST_EXTENTS {
                let message = "the image has more extents than are opened";
                return Err(Error::new(ErrorKind::Limit, "vmdk.extents", message)
                    .at(at)
                    .with_expected(format_args!("at most {MOST_EXTENTS}")));
            }
            self.extents.push(extent(line, at)?);
            return Ok(());
        }
        let Some((key, value)) = line.split_once('=') else {
            let message = "a line of the descriptor is neither a value nor an extent";
            return Err(damaged("vmdk.descriptor", message, at)
                .with_found(format_args!("{:?}", short(line))));
        };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        let value = value.strip_prefix('"').unwrap_or(value);
        let value = value.strip_suffix('"').unwrap_or(value);
        if key.starts_with("encryption") || value.contains("vmwarevmcrypt") {
            return Err(unsupported("vmdk.encrypted", "the image is encrypted", at)
                .with_found(format_args!("{:?}", short(line))));
        }
        let slot = match key.as_str() {
            "version" => &mut self.version,
            "createtype" => &mut self.create_type,
            "cid" => &mut self.content_id,
            "parentcid" => &mut self.parent_id,
            "parentfilenamehint" => &mut self.parent_name,
            _ => return Ok(()),
        };
        slot.get_or_insert_with(|| (value.to_owned(), at));
        Ok(())
    }

    fn complete(self, start: u64) -> Result<Descriptor> {
        let missing = |what: &str| {
            let message = format!("the descriptor has no {what}");
            damaged("vmdk.descriptor", message, start)
        };
        let (version, at) = self.version.ok_or_else(|| missing("version"))?;
        if !matches!(version.as_str(), "1" | "2" | "3") {
            let message = "the descriptor has another version of the format";
            return Err(unsupported("vmdk.version", message, at)
                .with_found(format_args!("{:?}", short(&version)))
                .with_expected("1, 2 or 3"));
        }
        let (create_type, at) = self.create_type.ok_or_else(|| missing("createType"))?;
        check_type(&create_type, at)?;
        let content_id = content_id(&self.content_id.ok_or_else(|| missing("CID"))?)?;
        let parent_id = self.parent_id.ok_or_else(|| missing("parentCID"))?;
        let parent = match (content_id_or_none(&parent_id)?, self.parent_name) {
            (None, None) => None,
            (Some(content_id), Some((name, _))) if !name.is_empty() => {
                Some(Parent { content_id, name })
            }
            (id, name) => {
                let message =
                    "the descriptor has one of parentCID and parentFileNameHint, not both";
                let name =
                    name.map_or("no name".to_owned(), |(name, _)| format!("{:?}", short(&name)));
                let id = id.map_or("no parent".to_owned(), |id| format!("{id:08x}"));
                return Err(damaged("vmdk.parent", message, parent_id.1)
                    .with_found(format_args!("{id}, {name}")));
            }
        };
        let total = self.extents.iter().try_fold(0_u64, |sum, extent| sum.checked_add(extent.size));
        if total.is_none_or(|total| total > i64::MAX as u64) {
            let message = "the extents are more than a disk can have";
            return Err(damaged("vmdk.size", message, start).with_expected("fewer than 2^63 bytes"));
        }
        Ok(Descriptor { create_type, content_id, parent, extents: self.extents })
    }
}

fn content_id((text, at): &(String, u64)) -> Result<u32> {
    u32::from_str_radix(text, 16).map_err(|_| {
        damaged("vmdk.descriptor", "a content identity is no number", *at)
            .with_found(format_args!("{:?}", short(text)))
            .with_expected("eight hexadecimal digits")
    })
}

fn content_id_or_none(value: &(String, u64)) -> Result<Option<u32>> {
    Ok(Some(content_id(value)?).filter(|id| *id != NO_PARENT))
}

/// Refuses images whose bytes lie on a device, and those that are not known.
fn check_type(create_type: &str, at: u64) -> Result<()> {
    let name = create_type.to_ascii_lowercase();
    let refuse = |code, message| {
        Err(unsupported(code, message, at).with_found(format_args!("{:?}", short(create_type))))
    };
    match name.as_str() {
        "monolithicsparse"
        | "monolithicflat"
        | "streamoptimized"
        | "twogbmaxextentsparse"
        | "twogbmaxextentflat"
        | "2gbmaxextentsparse"
        | "2gbmaxextentflat"
        | "custom"
        | "vmfs"
        | "vmfssparse"
        | "vmfsthin"
        | "vmfseagerzeroedthick"
        | "vmfspreallocated"
        | "sesparse" => Ok(()),
        "fulldevice"
        | "partitioneddevice"
        | "vmfsraw"
        | "vmfsrdm"
        | "vmfsrdmp"
        | "vmfsrawdevicemap"
        | "vmfspassthroughrawdevicemap" => {
            refuse("vmdk.device", "the bytes of the image lie on a device, not in files")
        }
        _ => refuse("vmdk.create-type", "the image is of a kind that is not read"),
    }
}

/// Reads a line such as `RW 4192256 SPARSE "web-s001.vmdk"`.
fn extent(line: &str, at: u64) -> Result<ExtentLine> {
    let invalid = || {
        damaged("vmdk.extent-line", "a line of the descriptor describes no extent", at)
            .with_found(format_args!("{:?}", short(line)))
            .with_expected("an access, a number of sectors, a kind, and what the kind has")
    };
    let (before, name, after) = match line.split_once('"') {
        None => (line, None, ""),
        Some((before, rest)) => {
            let (name, after) = rest.split_once('"').ok_or_else(invalid)?;
            (before, Some(name), after)
        }
    };
    let words: Vec<&str> = before.split_whitespace().collect();
    let [access, sectors, kind] = words[..] else { return Err(invalid()) };
    let sectors: u64 = sectors.parse().map_err(|_| invalid())?;
    let size = sectors.checked_mul(SECTOR).filter(|size| *size > 0).ok_or_else(invalid)?;
    if access == "NOACCESS" {
        let message = "an extent of the image is marked as not to be read";
        return Err(unsupported("vmdk.no-access", message, at)
            .with_found(format_args!("{:?}", short(line))));
    }
    let name = name.filter(|name| !name.is_empty());
    if name.is_some_and(|name| name.contains('\u{FFFD}')) {
        let message = "the name of an extent is not UTF-8";
        return Err(
            unsupported("vmdk.encoding", message, at).with_found(format_args!("{:?}", short(line)))
        );
    }
    let name = || name.map(str::to_owned).ok_or_else(invalid);
    let after = after.trim();
    let kind = match kind {
        "ZERO" => LineKind::Zero,
        "FLAT" | "VMFS" => {
            let first = after.split_whitespace().next();
            let start: u64 = match first {
                Some(number) => number.parse().map_err(|_| invalid())?,
                None if kind == "VMFS" => 0,
                None => return Err(invalid()),
            };
            let start = start.checked_mul(SECTOR).ok_or_else(invalid)?;
            LineKind::Flat { name: name()?, start }
        }
        "SPARSE" | "VMFSSPARSE" | "SESPARSE" if after.is_empty() => {
            LineKind::Sparse { name: name()? }
        }
        "VMFSRAW" | "VMFSRDM" => {
            let message = "the bytes of an extent lie on a device, not in a file";
            return Err(unsupported("vmdk.device", message, at)
                .with_found(format_args!("{:?}", short(line))));
        }
        _ => return Err(invalid()),
    };
    Ok(ExtentLine { size, kind, at })
}

/// The start of a text, to be shown.
fn short(text: &str) -> &str {
    let end = text.char_indices().nth(120).map_or(text.len(), |(at, _)| at);
    &text[..end]
}
