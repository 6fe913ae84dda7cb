//! Flags that several verbs share.

use std::ffi::OsString;
use std::path::PathBuf;

use avhdx::{Linkage, LogPolicy, OpenOptions, PathSource};
use clap::{Args, ValueEnum};

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

    pub(crate) fn log(&self) -> Log {
        self.log
    }
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

fn path_map(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.into(), to.into())),
        _ => Err(r"not of the form FROM=TO, such as D:\vm=/mnt/vm".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

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
