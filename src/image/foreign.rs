//! Recognizes files of other formats.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bytes::read_what_is_there;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Access, FileKind, Host, Storage, folder_of};
use crate::types::{KIB, counted};

/// Number of a set's images that an error names.
const MOST_NAMED: usize = 4;
/// Bytes from the start of a file that are enough to recognize its format.
const START: usize = 68 * KIB as usize;
/// Bytes that are examined before a file is reported to hold only zeros.
const MOST_ZEROS: u64 = 16 * KIB * KIB;

/// Another format with its signature.
struct Signature {
    code: &'static str,
    /// Completes the sentence "this is …".
    what: &'static str,
    at: usize,
    bytes: &'static [u8],
}

const fn signature(
    code: &'static str,
    what: &'static str,
    at: usize,
    bytes: &'static [u8],
) -> Signature {
    Signature { code, what, at, bytes }
}

/// Formats of virtual disks and of archives. The first match applies.
const OTHERS: &[Signature] = &[
    signature("foreign.qcow2", "a qcow2 image", 0, b"QFI\xfb\0\0\0\x02"),
    signature("foreign.qcow2", "a qcow2 image", 0, b"QFI\xfb\0\0\0\x03"),
    signature("foreign.qcow", "a qcow image", 0, b"QFI\xfb"),
    signature("foreign.qed", "a QED image", 0, b"QED\0"),
    signature("foreign.vhd", "a VHD image", 0, b"conectix"),
    signature("foreign.vmdk", "a VMDK image", 0, b"KDMV"),
    signature("foreign.vmdk", "a VMDK image", 0, b"COWD"),
    signature("foreign.vmdk-text", "the description of a VMDK image", 0, b"# Disk DescriptorFile"),
    signature("foreign.vdi", "a VDI image", 0x40, b"\x7f\x10\xda\xbe"),
    signature("foreign.parallels", "a Parallels image", 0, b"WithoutFreeSpace"),
    signature("foreign.parallels", "a Parallels image", 0, b"WithouFreSpacExt"),
    signature("foreign.gzip", "a file packed by gzip", 0, b"\x1f\x8b\x08"),
    signature("foreign.zip", "a zip archive", 0, b"PK\x03\x04"),
    signature("foreign.xz", "a file packed by xz", 0, b"\xfd7zXZ\0"),
    signature("foreign.zstd", "a file packed by zstd", 0, b"\x28\xb5\x2f\xfd"),
    signature("foreign.bzip2", "a file packed by bzip2", 0, b"BZh"),
    signature("foreign.7z", "a 7z archive", 0, b"7z\xbc\xaf\x27\x1c"),
    signature("foreign.tar", "a tar archive", 257, b"ustar"),
    signature("foreign.wim", "a WIM archive", 0, b"MSWIM\0\0\0"),
    signature("foreign.iso", "an ISO 9660 image of a CD or DVD", 0x8001, b"CD001"),
];

/// How an HTML page starts, in lower case, behind blanks.
const PAGES: &[&[u8]] = &[b"<!doctype html", b"<html"];
/// Bytes from the start of a file that tell whether it is text.
const TEXT_START: usize = 4 * KIB as usize;

/// Signatures at the start of a disk without an image format.
const DISKS: &[Signature] = &[
    signature("", "a GPT", 512, b"EFI PART"),
    signature("", "a GPT", 4096, b"EFI PART"),
    signature("", "an NTFS volume", 3, b"NTFS    "),
    signature("", "an exFAT volume", 3, b"EXFAT   "),
    signature("", "a ReFS volume", 3, b"ReFS\0"),
    signature("", "a FAT volume", 54, b"FAT1"),
    signature("", "a FAT volume", 82, b"FAT32   "),
    signature("", "an ext file system", 0x438, b"\x53\xef"),
    signature("", "an XFS file system", 0, b"XFSB"),
    signature("", "a Btrfs file system", 0x1_0040, b"_BHRfS_M"),
    signature("", "an LVM volume", 512, b"LABELONE"),
    signature("", "a LUKS volume", 0, b"LUKS\xba\xbe"),
    signature("", "a swap area", 4086, b"SWAPSPACE2"),
];

/// The refusal of a file that does not start like a VHDX file. Names its format if it can be recognized. Reads
/// little, and reveals nothing but the first bytes, which `error` already includes.
pub(crate) fn named(storage: &dyn Storage, error: Error) -> Error {
    if error.kind() != ErrorKind::NotVhdx {
        return error;
    }
    let Some((code, what)) = what(storage) else { return error };
    error
        .with_kind(ErrorKind::NotVhdx, code)
        .with_message(format!("not a VHDX file: this is {what}"))
}

fn what(storage: &dyn Storage) -> Option<(&'static str, String)> {
    let len = storage.len().ok()?;
    let mut start = vec![0; START];
    let read = read_what_is_there(storage, &mut start, 0).ok()?;
    start.truncate(read);
    // Files of /proc have bytes, although their length is 0.
    if start.is_empty() {
        return Some(("foreign.empty", "an empty file".into()));
    }
    if let Some(other) = OTHERS.iter().find(|other| other.is_in(&start)) {
        return Some((other.code, other.what.into()));
    }
    // A fixed VHD starts like its disk and ends with a footer; old writers omitted the footer's last byte.
    for footer in [512, 511] {
        let mut bytes = [0; 8];
        let at = len.checked_sub(footer);
        if at.is_some_and(|at| storage.read_exact_at(&mut bytes, at).is_ok())
            && bytes == *b"conectix"
        {
            return Some(("foreign.vhd", "a VHD image".into()));
        }
    }
    let disk = DISKS.iter().find(|disk| disk.is_in(&start)).map(|disk| disk.what);
    if let Some(with) = disk.or_else(|| has_partitions(&start).then_some("a partition table")) {
        return Some((
            "foreign.disk",
            format!("a disk without a format, which starts with {with}"),
        ));
    }
    text(&start).or_else(|| zeros(storage, len))
}

/// Whether the file is text, such as what a failed download leaves in the place of an image.
fn text(start: &[u8]) -> Option<(&'static str, String)> {
    let start = &start[..start.len().min(TEXT_START)];
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    // The last character may be cut.
    let is_text = match std::str::from_utf8(start) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    let is_control = |byte: &u8| byte.is_ascii_control() && !b"\t\n\r\x0c".contains(byte);
    if !is_text || start.iter().any(is_control) {
        return None;
    }
    let page = start.trim_ascii_start().to_ascii_lowercase();
    Some(match PAGES.iter().any(|tag| page.starts_with(tag)) {
        true => ("foreign.html", "an HTML page".into()),
        false => ("foreign.text", "a text file".into()),
    })
}

impl Signature {
    fn is_in(&self, start: &[u8]) -> bool {
        start.get(self.at..).is_some_and(|rest| rest.starts_with(self.bytes))
    }
}

/// Whether the first sector has an MBR partition table: its signature, and four entries that are each either bootable
/// or not.
fn has_partitions(start: &[u8]) -> bool {
    let entry = |i: usize| &start[446 + 16 * i..462 + 16 * i];
    start.get(510..512) == Some(&[0x55, 0xAA])
        && (0..4).all(|i| matches!(entry(i)[0], 0 | 0x80))
        && (0..4).any(|i| entry(i)[4] != 0)
}

/// The refusal of an image, with the cause first where it is plain: an incomplete copy, which ends in zeros.
pub(super) fn with_cause(storage: &dyn Storage, error: Error) -> Error {
    let (ErrorKind::Damaged, Some(at)) = (error.kind(), error.offset()) else { return error };
    let Ok(len) = storage.len() else { return error };
    if at >= len || zeros_from(storage, at, len).ok().flatten() != Some(len) {
        return error;
    }
    let why = error.message().to_owned();
    error.with_message(format!(
        "nothing but zeros from here to the end of the file, as in an incomplete copy: {why}"
    ))
}

/// Whether the file holds only zeros, in the part that is examined.
fn zeros(storage: &dyn Storage, len: u64) -> Option<(&'static str, String)> {
    let seen = zeros_from(storage, 0, len).ok()??;
    let what = match seen < len {
        true => format!("a file that starts with nothing but zeros, at least {seen} bytes of them"),
        false => {
            format!("a file of {} that holds nothing but zeros", counted(len, "byte", "bytes"))
        }
    };
    Some(("foreign.zeros", what))
}

/// Where the examined zeros from `at` on end, at the latest at the end of the file. `None` if there is data among them.
fn zeros_from(storage: &dyn Storage, mut at: u64, len: u64) -> io::Result<Option<u64>> {
    let mut looked_at = 0;
    let mut piece = vec![0; KIB as usize * KIB as usize];
    while at < len {
        let Some(data) = storage.next_data(at)? else { break };
        if looked_at >= MOST_ZEROS {
            return Ok(Some(at));
        }
        at = data.start.max(at);
        let end = data.end.min(len).min(at + piece.len() as u64);
        let bytes = &mut piece[..end.saturating_sub(at) as usize];
        storage.read_exact_at(bytes, at)?;
        if bytes.is_empty() || bytes.iter().any(|byte| *byte != 0) {
            return Ok(None);
        }
        looked_at += bytes.len() as u64;
        at = end;
    }
    Ok(Some(len))
}

/// Opens the file at `path`, unless its name or kind shows that it is not an image.
///
/// # Errors
/// As for [`refuse_by_name`], and [`ErrorKind::Io`] if the host cannot open the file.
pub(crate) fn open_storage(
    host: &dyn Host,
    path: &Path,
    access: Access,
) -> Result<Arc<dyn Storage>> {
    refuse_by_name(host, path)?;
    host.open(path, access).map_err(|error| {
        Error::io("file.open", "cannot open the file", error).in_path(path).limits_named()
    })
}

/// Refuses files that cannot be images by their name or kind: VHD sets, folders, pipes and devices.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a set, with the images beside it that share its name, and [`ErrorKind::NotVhdx`]
/// for anything but a regular file.
pub(crate) fn refuse_by_name(host: &dyn Host, path: &Path) -> Result<()> {
    let Ok(stat) = host.stat(path) else { return Ok(()) };
    match stat.kind {
        FileKind::File => {}
        FileKind::Folder => return Err(folder().in_path(path)),
        FileKind::Device | FileKind::Other if is_disk(host, path) => {}
        other => return Err(not_regular(other).in_path(path)),
    }
    if !has_extension(path, "vhds") {
        return Ok(());
    }
    let message = "a VHD set does not hold a disk: it lists the images and checkpoints of one that \
                   several machines share";
    Err(Error::new(ErrorKind::Unsupported, "file.vhd-set", message)
        .in_path(path)
        .with_found("a .vhds file")
        .with_expected(instead(&images_of(host, path))))
}

/// Whether a file that is not regular supports reads at offsets, as a block device does and a pipe does not.
fn is_disk(host: &dyn Host, path: &Path) -> bool {
    let len = host.open(path, Access::Read).and_then(|storage| storage.len());
    match len {
        Ok(len) => len > 0,
        // The open itself reports this.
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// The refusal of a folder in place of an image.
pub(crate) fn folder() -> Error {
    Error::new(ErrorKind::NotVhdx, "file.folder", "not a VHDX file: this is a folder")
}

/// The refusal of anything that is neither a file nor a folder in place of an image.
pub(crate) fn not_regular(kind: FileKind) -> Error {
    let message = format!("not a VHDX file: this is {kind}");
    Error::new(ErrorKind::NotVhdx, "file.not-regular", message)
}

/// The images beside a set whose names start with the set's, sorted by name.
fn images_of(host: &dyn Host, set: &Path) -> Vec<PathBuf> {
    let stem = set.file_stem().map(OsStr::to_ascii_lowercase).unwrap_or_default();
    let is_of_set = |path: &PathBuf| {
        let name = path.file_name().map(OsStr::to_ascii_lowercase).unwrap_or_default();
        has_extension(path, "avhdx") && name.as_encoded_bytes().starts_with(stem.as_encoded_bytes())
    };
    // If the folder cannot be listed, the error has less detail.
    let paths = host.list(folder_of(set)).unwrap_or_default();
    let mut images: Vec<PathBuf> = paths.into_iter().filter(is_of_set).collect();
    images.sort();
    images
}

fn instead(images: &[PathBuf]) -> String {
    if images.is_empty() {
        return "one of the .avhdx files that it lists, of which none lies beside it".into();
    }
    let names = images.iter().filter_map(|path| path.file_name());
    let names: Vec<_> = names.take(MOST_NAMED).map(OsStr::to_string_lossy).collect();
    let more = match images.len().saturating_sub(MOST_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("the image itself, such as those beside it: {}{more}", names.join(", "))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}
