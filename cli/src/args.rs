//! Arguments and flags that several verbs share.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};

use avhdx::storage::{Host, LocalHost, Storage};
use avhdx::{CreateOptions, Linkage, LogPolicy, OpenOptions, PathSource};
use avhdx_formats::qcow2::BackingFiles;
use avhdx_formats::{qcow2, vhd, vmdk};
use clap::{Args, ValueEnum};

use crate::failure::Failure;
use crate::output::Console;
use crate::point::Point;
use crate::values;

/// An environment variable: folders to search for parents, separated as in PATH.
const PARENT_DIRS: &str = "AVHDX_PARENT_DIRS";

/// The default of `--max-depth`.
pub(crate) const MAX_DEPTH: usize = 256;

/// An image on the command line, `IMAGE@SEL` included.
#[derive(Args, Clone, Debug)]
pub(crate) struct ImageArg {
    /// The image, or a point in time of its chain: IMAGE@-1, IMAGE@base, IMAGE@NAME, IMAGE@GUIDPREFIX.
    #[arg(value_name = "IMAGE")]
    pub(crate) image: OsString,
}

impl ImageArg {
    /// The argument as text.
    pub(crate) fn name(&self) -> String {
        self.image.to_string_lossy().into_owned()
    }
}

/// The format of an input. Never probed: a guest can write any header to its own disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Vhdx,
    Vhd,
    Qcow2,
    Vmdk,
    Raw,
}

/// The format of an image that has facts to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    Vhdx,
    Vhd,
    Qcow2,
    Vmdk,
}

impl Format {
    /// The format that was asked for, or else the one that the name of the image has.
    pub(crate) fn of(argument: &OsStr, asked: Option<Self>) -> Self {
        asked.unwrap_or_else(|| {
            let image = Point::parse(argument).image;
            let ending = image.extension().unwrap_or_default().to_ascii_lowercase();
            match ending.to_str() {
                Some("vhd") => Self::Vhd,
                Some("qcow2") => Self::Qcow2,
                Some("vmdk") => Self::Vmdk,
                Some("raw" | "img") => Self::Raw,
                _ => Self::Vhdx,
            }
        })
    }
}

/// The format of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CopyFormat {
    Raw,
    Vhdx,
    VhdxFixed,
    Vhd,
    VhdFixed,
    Qcow2,
}

impl CopyFormat {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::VhdxFixed => "vhdx-fixed",
            Self::Vhd => "vhd",
            Self::VhdFixed => "vhd-fixed",
            Self::Qcow2 => "qcow2",
        }
    }

    /// Whether it is one of the two kinds of VHD.
    pub(crate) fn is_vhd(self) -> bool {
        matches!(self, Self::Vhd | Self::VhdFixed)
    }

    /// Completes the sentence "this is …".
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Raw => "a raw disk",
            Self::Vhdx | Self::VhdxFixed => "a VHDX image",
            Self::Vhd | Self::VhdFixed => "a VHD image",
            Self::Qcow2 => "a qcow2 image",
        }
    }
}

/// A range of the disk.
#[derive(Args, Clone, Debug)]
pub(crate) struct RangeFlags {
    /// The offset on the disk.
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    pub(crate) offset: u64,
    /// The number of bytes.
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    pub(crate) length: u64,
}

impl RangeFlags {
    /// The range, on a disk of `size` bytes.
    pub(crate) fn within(&self, size: u64) -> Result<Range<u64>, Failure> {
        range(self.offset, self.length, size)
    }
}

/// The range of `length` bytes at `offset`. Refuses a range past the end of a disk of `size` bytes.
pub(crate) fn range(offset: u64, length: u64, size: u64) -> Result<Range<u64>, Failure> {
    let end = offset.checked_add(length).filter(|end| *end <= size);
    end.map(|end| offset..end).ok_or_else(|| {
        let message =
            format!("{length} bytes at {offset} do not lie within the disk of {size} bytes");
        Failure::usage("disk.out-of-range", message)
    })
}

/// Where parents come from.
#[derive(Args, Clone, Debug)]
pub(crate) struct ParentFlags {
    /// Try FILE first for every parent. Can be repeated.
    #[arg(long, value_name = "FILE")]
    with_parent: Vec<PathBuf>,
    /// Search DIR for parents that are not at a recorded path. AVHDX_PARENT_DIRS lists more folders, separated as
    /// in PATH. Can be repeated.
    #[arg(long, value_name = "DIR")]
    parent_dir: Vec<PathBuf>,
    /// Map a Windows folder to one on this machine, such as 'D:\vm=/mnt/vm'. Can be repeated.
    #[arg(long, value_name = "FROM=TO", value_parser = values::path_map)]
    path_map: Vec<(String, PathBuf)>,
    /// Accept parents in DIR and below only; for untrusted images. Can be repeated.
    #[arg(long, value_name = "DIR")]
    confine: Vec<PathBuf>,
}

/// The folders that the environment lists.
pub(crate) fn listed_folders() -> Vec<PathBuf> {
    let listed = std::env::var_os(PARENT_DIRS).unwrap_or_default();
    std::env::split_paths(&listed).filter(|dir| !dir.as_os_str().is_empty()).collect()
}

impl ParentFlags {
    pub(crate) fn source(&self) -> PathSource {
        let mut source = PathSource::new();
        for file in &self.with_parent {
            source = source.file(file);
        }
        for folder in self.parent_dir.iter().cloned().chain(listed_folders()) {
            source = source.folder(folder);
        }
        for (from, to) in &self.path_map {
            source = source.map(from, to);
        }
        for folder in &self.confine {
            source = source.confined_to(folder);
        }
        source
    }

    /// Where backing files may come from: what the flags name alone.
    fn backing_files(&self) -> BackingFiles {
        let confined = self.confine.iter().fold(BackingFiles::new(), BackingFiles::confined_to);
        let with_folders = self.parent_dir.iter().fold(confined, BackingFiles::folder);
        self.with_parent.iter().fold(with_folders, BackingFiles::file)
    }

    /// Whether a flag says where parents are.
    fn is_asked(&self) -> bool {
        let Self { with_parent, parent_dir, path_map, confine } = self;
        !(with_parent.is_empty()
            && parent_dir.is_empty()
            && path_map.is_empty()
            && confine.is_empty())
    }

    /// The Windows path of the file at `path` by the mappings, if one applies.
    pub(crate) fn windows_path(&self, path: &Path) -> Option<String> {
        let path = LocalHost.canonical(path).ok()?;
        let below = |(from, to): &(String, PathBuf)| {
            let to = LocalHost.canonical(to).ok()?;
            Some((values::windows_folder(from)?, path.strip_prefix(&to).ok()?.to_path_buf()))
        };
        // The innermost folder is the most specific.
        let (mut windows, names) =
            self.path_map.iter().filter_map(below).min_by_key(|(_, rest)| rest.iter().count())?;
        for name in names.iter() {
            // A name that Windows does not allow has no Windows path.
            let name = name.to_str().filter(|name| !name.contains(['\\', '/', ':']))?;
            windows += &format!("\\{name}");
        }
        Some(windows)
    }
}

/// How a chain is found.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChainFlags {
    #[command(flatten)]
    pub(crate) parents: ParentFlags,
    /// The maximum number of layers in a chain.
    #[arg(long, value_name = "N", default_value_t = MAX_DEPTH)]
    max_depth: usize,
}

impl ChainFlags {
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions::new().parents(self.parents.source()).max_depth(self.max_depth)
    }
}

/// How images are opened to be read.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Parents and logs")]
pub(crate) struct ReadFlags {
    #[command(flatten)]
    chain: ChainFlags,
    /// What to do if the log is not empty: replay it in memory, refuse the image, or ignore the log (the data read
    /// is then not the content of the disk).
    #[arg(long, value_enum, default_value_t = Log::Replay)]
    log: Log,
    /// Accept a parent with another identity than the recorded one.
    #[arg(long)]
    ignore_id_mismatch: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Log {
    Replay,
    Refuse,
    Ignore,
}

impl Log {
    fn policy(self) -> LogPolicy {
        match self {
            Self::Replay => LogPolicy::Replay,
            Self::Refuse => LogPolicy::Refuse,
            Self::Ignore => LogPolicy::Ignore,
        }
    }
}

impl ReadFlags {
    pub(crate) fn options(&self) -> OpenOptions {
        let linkage = if self.ignore_id_mismatch { Linkage::Ignore } else { Linkage::Verify };
        self.chain.options().log(self.log.policy()).linkage(linkage)
    }

    /// The options for VHD images, whose parents are opened where a flag says where they are.
    pub(crate) fn vhd_options(&self) -> vhd::OpenOptions {
        let ChainFlags { parents, max_depth } = &self.chain;
        let options = vhd::OpenOptions::new().max_depth(*max_depth);
        if parents.is_asked() { options.parents(parents.source()) } else { options }
    }

    /// The options for qcow2 images, whose backing files are opened where a flag says where they are.
    pub(crate) fn qcow2_options(&self) -> qcow2::OpenOptions {
        let ChainFlags { parents, max_depth } = &self.chain;
        qcow2::OpenOptions::new().max_depth(*max_depth).backing(parents.backing_files())
    }

    /// The options for VMDK images, whose parents are opened where a flag says where they are, and whose extents come from
    /// confined folders too.
    pub(crate) fn vmdk_options(&self) -> vmdk::OpenOptions {
        let ChainFlags { parents, max_depth } = &self.chain;
        let options = vmdk::OpenOptions::new().max_depth(*max_depth);
        let folders = parents.confine.iter();
        let options = folders.fold(options, |options, folder| options.extents_in(folder));
        if parents.is_asked() { options.parents(parents.source()) } else { options }
    }

    /// The options for layers that are inspected to find a point in time.
    pub(crate) fn inspecting(&self) -> OpenOptions {
        match self.log {
            Log::Replay | Log::Refuse => self.options().log(LogPolicy::Replay),
            Log::Ignore => self.options(),
        }
    }

    /// The flags for writing to the same image, without any consent.
    pub(crate) fn writing(&self) -> WriteFlags {
        WriteFlags {
            chain: self.chain.clone(),
            orphan_children: false,
            children_in: Vec::new(),
            loss: LossFlags::default(),
        }
    }

    pub(crate) fn log(&self) -> Log {
        self.log
    }
}

/// How an image is opened to be written.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Parents and children")]
pub(crate) struct WriteFlags {
    #[command(flatten)]
    chain: ChainFlags,
    /// Write even if the image has a child. The child loses its parent: it knows it by an identity that changes
    /// with the first write.
    #[arg(long)]
    orphan_children: bool,
    /// Look for children in DIR too, in addition to the image's own folder. Can be repeated.
    #[arg(long, value_name = "DIR")]
    children_in: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) loss: LossFlags,
}

impl WriteFlags {
    pub(crate) fn options(&self) -> Result<OpenOptions, Failure> {
        let options = self.inspecting().orphan_children(self.orphan_children).writable(true);
        with_children(options, &self.children_in)
    }

    /// The options for inspecting the image first.
    pub(crate) fn inspecting(&self) -> OpenOptions {
        self.chain.options()
    }
}

/// How a chain is opened whose layers are to change.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Parents and children")]
pub(crate) struct OperationFlags {
    #[command(flatten)]
    chain: ChainFlags,
    /// Look for children in DIR too, in addition to the images' own folders. Can be repeated.
    #[arg(long, value_name = "DIR")]
    pub(crate) children_in: Vec<PathBuf>,
}

impl OperationFlags {
    pub(crate) fn source(&self) -> PathSource {
        self.chain.parents.source()
    }

    pub(crate) fn options(&self) -> Result<OpenOptions, Failure> {
        with_children(self.chain.options().writable(true), &self.children_in)
    }
}

/// Consent to continue without lost data.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Damaged images")]
pub(crate) struct LossFlags {
    /// Repair the image first if its file lost data, or maps several blocks to the same bytes. Lost ranges read as
    /// zeros from then on. They are printed and listed in a file before anything changes.
    #[arg(long)]
    pub(crate) accept_loss: bool,
    /// The file to list the lost ranges in; it must not exist [default: IMAGE.lost].
    #[arg(long, value_name = "FILE", requires = "accept_loss")]
    pub(crate) loss_report: Option<PathBuf>,
}

/// What may happen to an existing output file.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReplaceFlags {
    /// Replace OUT if it exists.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Replace OUT even if it has a child, which loses its parent.
    #[arg(long, requires = "overwrite")]
    orphan_children: bool,
    /// Look for children of OUT in DIR too, in addition to its own folder. Can be repeated.
    #[arg(long, value_name = "DIR", requires = "overwrite")]
    children_in: Vec<PathBuf>,
}

impl ReplaceFlags {
    /// For outputs that are no disks.
    pub(crate) fn overwrite(yes: bool) -> Self {
        Self { overwrite: yes, orphan_children: false, children_in: Vec::new() }
    }

    /// Refuses to replace a file that has children.
    pub(crate) fn check(&self, old: &dyn Storage, console: &mut Console) -> Result<(), Failure> {
        let options = OpenOptions::new().orphan_children(self.orphan_children);
        let options = with_children(options, &self.children_in)?;
        console.warnings(&options.check_childless(old)?);
        Ok(())
    }
}

/// The options with more folders to look for children in. Refuses a folder that cannot be listed: a child in it
/// would be missed.
pub(crate) fn with_children(
    mut options: OpenOptions,
    folders: &[PathBuf],
) -> Result<OpenOptions, Failure> {
    for folder in folders {
        LocalHost.list(folder).map_err(|error| {
            let message = format!("{}: cannot list the folder to find children", folder.display());
            Failure::io("children.folder", message, &error)
        })?;
        options = options.children_in(folder);
    }
    Ok(options)
}

/// What the name of a new file may be.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct NamingFlags {
    /// Accept a name for the new file whose ending stands for another format.
    #[arg(long)]
    pub(crate) any_name: bool,
}

/// The properties of a new image.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The new image")]
pub(crate) struct NewImageFlags {
    /// The block size, 1M to 256M [default: 32M, 2M with a parent].
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true, alias = "block-size")]
    pub(crate) block: Option<u64>,
    /// The logical sector size, 512 or 4096 [default: that of the parent or the input, else 512].
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    pub(crate) sector: Option<u64>,
    /// The physical sector size, 512 or 4096 [default: that of the parent or the input, else 4096].
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    pub(crate) physical_sector: Option<u64>,
    /// The size of the log, a multiple of 1M [default: 1M].
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    pub(crate) log_size: Option<u64>,
}

impl NewImageFlags {
    /// No flag.
    pub(crate) fn none() -> Self {
        Self { block: None, sector: None, physical_sector: None, log_size: None }
    }

    /// Applies the flags to the options of an image.
    pub(crate) fn apply(&self, mut options: CreateOptions) -> Result<CreateOptions, Failure> {
        if let Some(bytes) = self.block {
            options = options.block_size(u32_size("--block", bytes)?);
        }
        if let Some(bytes) = self.sector {
            options = options.logical_sector(u32_size("--sector", bytes)?);
        }
        if let Some(bytes) = self.physical_sector {
            options = options.physical_sector(u32_size("--physical-sector", bytes)?);
        }
        if let Some(bytes) = self.log_size {
            options = options.log_size(u32_size("--log-size", bytes)?);
        }
        Ok(options)
    }

    /// Whether any of the flags is given.
    pub(crate) fn is_given(&self) -> bool {
        let sizes = [self.block, self.sector, self.physical_sector, self.log_size];
        sizes.iter().any(Option::is_some)
    }
}

/// A size that the format stores in 32 bits.
pub(crate) fn u32_size(flag: &str, bytes: u64) -> Result<u32, Failure> {
    u32::try_from(bytes)
        .map_err(|_| Failure::usage("usage", format!("{flag} {bytes}: the maximum is below 4 GiB")))
}
