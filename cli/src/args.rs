//! Flags that several verbs share.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use avhdx::storage::{Host, LocalHost, Storage};
use avhdx::{CreateOptions, Linkage, LogPolicy, OpenOptions, PathSource};
use clap::{Args, ValueEnum};

use crate::exit::Failure;
use crate::output::Console;

/// Folders to search for parents, as PATH lists folders.
const PARENT_DIRS: &str = "AVHDX_PARENT_DIRS";

/// Where parents come from.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Parents and logs")]
pub(crate) struct Parents {
    /// Try FILE first wherever a parent is looked for. Can be repeated.
    #[arg(long, value_name = "FILE")]
    with_parent: Vec<PathBuf>,
    /// Search DIR for parents that are not where they should be; AVHDX_PARENT_DIRS lists more, as PATH does.
    /// Can be repeated.
    #[arg(long, value_name = "DIR")]
    parent_dir: Vec<PathBuf>,
    /// Where a Windows folder is found on this machine, such as 'D:\vm=/mnt/vm'. Can be repeated.
    #[arg(long, value_name = "FROM=TO", value_parser = path_map)]
    path_map: Vec<(String, PathBuf)>,
    /// Serve parents from DIR and below alone, for images from strangers. Can be repeated.
    #[arg(long, value_name = "DIR")]
    confine: Vec<PathBuf>,
}

/// How images and their parents are opened.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Parents and logs")]
pub(crate) struct Opening {
    #[command(flatten)]
    parents: Parents,
    /// What to do about a log that is not empty: replay it in memory, refuse, or ignore it (what is read
    /// is then not what the disk holds).
    #[arg(long, value_enum, default_value_t = Log::Replay)]
    log: Log,
    /// Take a VHDX file found where the parent should be though its identity is another.
    #[arg(long)]
    ignore_id_mismatch: bool,
    /// Layers that a chain may have.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_depth: usize,
}

/// How images are found and opened whose links are to be changed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Parents")]
pub(crate) struct Finding {
    #[command(flatten)]
    parents: Parents,
    /// Layers that a chain may have.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_depth: usize,
}

/// How an image is opened that is to be changed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Parents and children")]
pub(crate) struct Writing {
    #[command(flatten)]
    parents: Parents,
    /// Layers that a chain may have.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_depth: usize,
    /// Write although a child of the image is found, which is cut off by that: it knows its parent by an
    /// identity that changes with the first write.
    #[arg(long)]
    orphan_children: bool,
    /// Look for children in DIR too, beside the folder of the image itself. Can be repeated.
    #[arg(long, value_name = "DIR")]
    pub(crate) children_in: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) loss: Loss,
}

/// Consent to go on without what an image lost.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Damaged images")]
pub(crate) struct Loss {
    /// Where the image's file lost bytes, or has the same bytes for several blocks, settle that first: what is lost
    /// reads as zeros from then on. It is listed in a file before anything is changed, and printed.
    #[arg(long)]
    pub(crate) accept_loss: bool,
    /// The new file for that list [default: beside the image, IMAGE.lost].
    #[arg(long, value_name = "FILE", requires = "accept_loss")]
    pub(crate) loss_report: Option<PathBuf>,
}

/// How a chain is opened whose layers are to change.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Parents and children")]
pub(crate) struct Chain {
    #[command(flatten)]
    parents: Parents,
    /// Layers that a chain may have.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_depth: usize,
    /// Look for children in DIR too, beside the folders of the images themselves. Can be repeated.
    #[arg(long, value_name = "DIR")]
    pub(crate) children_in: Vec<PathBuf>,
}

/// What may become of a file whose name is asked for.
#[derive(Args, Clone, Debug)]
pub(crate) struct Replacing {
    /// Replace OUT if it exists.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Replace OUT although a child of it is found, which has no parent then.
    #[arg(long, requires = "overwrite")]
    orphan_children: bool,
    /// Look for children of OUT in DIR too, beside its own folder. Can be repeated.
    #[arg(long, value_name = "DIR", requires = "overwrite")]
    children_in: Vec<PathBuf>,
}

/// What a new image is to look like.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The new image")]
pub(crate) struct Shape {
    /// The block size, 1M to 256M [default: 32M, 2M with a parent].
    #[arg(long, value_name = "N", value_parser = bytes, alias = "block-size")]
    pub(crate) block: Option<u64>,
    /// The logical sector size, 512 or 4096 [default: 512; that of the parent or the input].
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub(crate) sector: Option<u64>,
    /// The physical sector size, 512 or 4096 [default: 4096; that of the parent or the input].
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub(crate) physical_sector: Option<u64>,
}

/// What a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    Raw,
    Vhdx,
    VhdxFixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Log {
    Replay,
    Refuse,
    Ignore,
}

/// What an input is. Never guessed: a guest can write any header into its own disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Vhdx,
    Raw,
}

impl Opening {
    pub(crate) fn options(&self) -> OpenOptions {
        let linkage = if self.ignore_id_mismatch { Linkage::Ignore } else { Linkage::Verify };
        OpenOptions::new()
            .log(self.log.policy())
            .linkage(linkage)
            .max_depth(self.max_depth)
            .parents(self.parents.source())
    }

    /// How layers are opened that are only looked at on the way to a point in time.
    pub(crate) fn looking(&self) -> OpenOptions {
        match self.log {
            Log::Replay | Log::Refuse => self.options().log(LogPolicy::Replay),
            Log::Ignore => self.options(),
        }
    }

    /// How the same image is opened to be changed.
    pub(crate) fn writing(&self, orphan_children: bool, children_in: &[PathBuf]) -> Writing {
        let (parents, children_in) = (self.parents.clone(), children_in.to_vec());
        let (max_depth, loss) = (self.max_depth, Loss::default());
        Writing { parents, max_depth, orphan_children, children_in, loss }
    }

    pub(crate) fn log(&self) -> Log {
        self.log
    }
}

impl Writing {
    /// How the image to be changed is opened.
    pub(crate) fn options(&self) -> OpenOptions {
        let options = self.parents().writable(true).orphan_children(self.orphan_children);
        self.children_in.iter().fold(options, |options, folder| options.children_in(folder))
    }

    /// How its layers are opened to be looked at.
    pub(crate) fn parents(&self) -> OpenOptions {
        OpenOptions::new().parents(self.parents.source()).max_depth(self.max_depth)
    }
}

impl Finding {
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions::new().parents(self.parents.source()).max_depth(self.max_depth)
    }
}

impl Replacing {
    /// Refuses to give up a file that others need.
    pub(crate) fn check(&self, old: &dyn Storage, console: &mut Console) -> Result<(), Failure> {
        look_into(&self.children_in)?;
        let options = OpenOptions::new().orphan_children(self.orphan_children);
        let folders = self.children_in.iter();
        let options = folders.fold(options, |options, folder| options.children_in(folder));
        console.warnings(&options.check_childless(old)?);
        Ok(())
    }
}

impl Chain {
    pub(crate) fn source(&self) -> PathSource {
        self.parents.source()
    }

    /// How the chain is opened.
    pub(crate) fn options(&self) -> Result<OpenOptions, Failure> {
        look_into(&self.children_in)?;
        let options = OpenOptions::new().parents(self.parents.source()).max_depth(self.max_depth);
        let options = options.writable(true);
        Ok(self.children_in.iter().fold(options, |options, folder| options.children_in(folder)))
    }
}

/// Nothing is found in a folder that is not there, which must not pass for consent.
pub(crate) fn look_into(children_in: &[PathBuf]) -> Result<(), Failure> {
    for folder in children_in {
        LocalHost.list(folder).map_err(|error| {
            let message = format!("{}: cannot look for children there", folder.display());
            Failure::io("children.folder", message, &error)
        })?;
    }
    Ok(())
}

impl Shape {
    /// The options for an image of this shape.
    pub(crate) fn of(&self, mut options: CreateOptions) -> Result<CreateOptions, Failure> {
        if let Some(bytes) = self.block {
            options = options.block_size(number("--block", bytes)?);
        }
        if let Some(bytes) = self.sector {
            options = options.logical_sector(number("--sector", bytes)?);
        }
        if let Some(bytes) = self.physical_sector {
            options = options.physical_sector(number("--physical-sector", bytes)?);
        }
        Ok(options)
    }

    /// Whether any of it was asked for.
    pub(crate) fn is_given(&self) -> bool {
        [self.block, self.sector, self.physical_sector].iter().any(Option::is_some)
    }
}

impl Target {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::VhdxFixed => "vhdx-fixed",
        }
    }
}

/// A size that the format has 32 bits for.
pub(crate) fn number(flag: &str, bytes: u64) -> Result<u32, Failure> {
    u32::try_from(bytes).map_err(|_| {
        Failure::usage("usage", format!("{flag} {bytes}: more than any image has: at most 4 GiB"))
    })
}

impl Parents {
    pub(crate) fn source(&self) -> PathSource {
        let mut source = PathSource::new();
        for file in &self.with_parent {
            source = source.file(file);
        }
        let listed = std::env::var_os(PARENT_DIRS).unwrap_or_default();
        let listed = std::env::split_paths(&listed).filter(|dir| !dir.as_os_str().is_empty());
        for folder in self.parent_dir.iter().cloned().chain(listed) {
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

    /// What a Windows machine calls the file at `path`, where one of the mappings tells.
    pub(crate) fn windows_path(&self, path: &Path) -> Option<String> {
        let path = LocalHost.canonical(path).ok()?;
        let below = |(from, to): &(String, PathBuf)| {
            let to = LocalHost.canonical(to).ok()?;
            Some((windows_folder(from)?, path.strip_prefix(&to).ok()?.to_path_buf()))
        };
        // The mapping of the innermost folder says most.
        let (mut windows, names) =
            self.path_map.iter().filter_map(below).min_by_key(|(_, rest)| rest.iter().count())?;
        for name in names.iter() {
            // What Windows could not have for a name did not come from there.
            let name = name.to_str().filter(|name| !name.contains(['\\', '/', ':']))?;
            windows += &format!("\\{name}");
        }
        Some(windows)
    }
}

impl Log {
    pub(crate) fn policy(self) -> LogPolicy {
        match self {
            Self::Replay => LogPolicy::Replay,
            Self::Refuse => LogPolicy::Refuse,
            Self::Ignore => LogPolicy::Ignore,
        }
    }
}

/// An image as it stands on the command line, `IMAGE@SEL` included.
#[derive(Args, Clone, Debug)]
pub(crate) struct Image {
    /// The image, or a point in time of its chain: IMAGE@-1, IMAGE@base, IMAGE@NAME, IMAGE@GUIDPREFIX.
    #[arg(value_name = "IMAGE")]
    pub(crate) image: OsString,
}

/// A number of bytes: `4096`, `0x1000`, `4K`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is no number of bytes: digits, 0x and hexadecimal digits, or digits and K, M, G or T"
        )
    };
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let clean = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        return u64::from_str_radix(digits, 16).ok().filter(|_| clean).ok_or_else(wrong);
    }
    let shift = match text.bytes().last().map(|byte| byte.to_ascii_uppercase()) {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        Some(b'T') => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 =
        digits.parse().map_err(|_| format!("{text} bytes are more than any disk has"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} bytes are more than any disk has"))
}

/// What a point in time is called: nothing that means a layer by its place.
pub(crate) fn label(text: &str) -> Result<String, String> {
    let is_place = |text: &str| {
        let below = text.strip_prefix('-');
        text == "base" || below.is_some_and(|n| n.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match text {
        "" => Err("a label has at least one letter".into()),
        text if is_place(text) => {
            Err(format!("@{text} is a place in the chain, and would mean two points from then on"))
        }
        text => Ok(text.into()),
    }
}

/// A number of bytes a second, which is more than none.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("at 0 bytes a second nothing would ever be done".into()),
        rate => Ok(rate),
    }
}

/// Whether this is an absolute path as Windows writes it: with a drive or a share.
pub(crate) fn is_windows_path(path: &str) -> bool {
    windows_folder(path).is_some()
}

/// A Windows folder in the form in which locators have paths: `D:/vm/` is `\\?\D:\vm`. None for what is no
/// folder of a drive or a share.
fn windows_folder(path: &str) -> Option<String> {
    let path = path.replace('/', "\\");
    let path = path.trim_end_matches('\\');
    let has_drive = |path: &str| {
        matches!(path.as_bytes(), [drive, b':', rest @ ..]
            if drive.is_ascii_alphabetic() && matches!(rest, [] | [b'\\', ..]))
    };
    let has_share = |path: &str| path.split('\\').take_while(|name| !name.is_empty()).count() >= 2;
    if let Some(plain) = path.strip_prefix(r"\\?\") {
        let share = plain.strip_prefix(r"UNC\").is_some_and(has_share);
        return (has_drive(plain) || share).then(|| path.to_owned());
    }
    if has_drive(path) {
        return Some(format!(r"\\?\{path}"));
    }
    let share = path.strip_prefix(r"\\").filter(|share| has_share(share))?;
    Some(format!(r"\\?\UNC\{share}"))
}

fn path_map(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.into(), to.into())),
        _ => Err(r"not of the form FROM=TO, such as D:\vm=/mnt/vm".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{bytes, windows_folder};

    #[test]
    fn windows_folders() {
        let known = [
            (r"D:\vm", r"\\?\D:\vm"),
            ("d:/vm/", r"\\?\d:\vm"),
            (r"D:\", r"\\?\D:"),
            (r"\\?\D:\vm", r"\\?\D:\vm"),
            (r"\\server\share\vm", r"\\?\UNC\server\share\vm"),
            (r"\\?\UNC\server\share", r"\\?\UNC\server\share"),
        ];
        for (from, to) in known {
            assert_eq!(windows_folder(from).as_deref(), Some(to));
        }
        for other in
            ["", "/mnt/vm", "vm", r"\vm", r"\\server", r"D:vm", r"\\?\Volume{1}\vm", "€:/vm"]
        {
            assert_eq!(windows_folder(other), None, "{other}");
        }
    }

    #[test]
    fn numbers_of_bytes() {
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("0x1000"), Ok(4096));
        assert_eq!(bytes("4k"), Ok(4096));
        assert_eq!(bytes("3M"), Ok(3 << 20));
        assert_eq!(bytes("64T"), Ok(64 << 40));
        assert_eq!(bytes("18446744073709551615"), Ok(u64::MAX));
        for wrong in [
            "",
            "K",
            "-1",
            "+1",
            "1.5G",
            "0x",
            "0x+1",
            "4KB",
            " 4",
            "18446744073709551616",
            "16777216T",
        ] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
