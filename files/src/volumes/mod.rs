//! The volumes of a disk: the partitions of its table, or the disk as a whole.

mod gpt;
mod mbr;
mod table;

use std::cell::OnceCell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use avhdx::Disk;

use crate::boundary::{Bytes, union};
use crate::content::{self, Content};
use crate::error::{Error, ErrorKind, Result};
use crate::tree::{FileSystem, Options};
use table::{Found, Table};

/// The volumes of a disk.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use avhdx::DiffChain;
/// use avhdx_files::Volumes;
///
/// let chain = DiffChain::open("web_77F0.avhdx")?.view_at("monday")?;
/// let volumes = Volumes::of(Arc::new(chain))?;
/// for volume in volumes.iter() {
///     println!("{}: {}, {} bytes", volume.name(), volume.content(), volume.size());
/// }
/// let tree = volumes.select(Some("2"))?.open()?;
/// let file = tree.lookup(b"etc/motd")?;
/// print!("{}", String::from_utf8_lossy(&tree.open(&file, None)?.read_to_end(1 << 20)?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Volumes {
    scheme: Option<&'static str>,
    id: Option<String>,
    volumes: Vec<Volume>,
    warnings: Vec<String>,
    /// What of the disk was read to find them, in order.
    touched: Vec<Range<u64>>,
}

/// A volume: a partition, or a disk without a table.
pub struct Volume {
    disk: Arc<dyn Disk>,
    number: Option<u32>,
    kind: Option<String>,
    partition_name: Option<String>,
    id: Option<String>,
    range: Range<u64>,
    content: Content,
    /// Why it cannot be read whatever it holds.
    problem: Option<(&'static str, String)>,
    /// Why none of its space may be called free, whatever its file system says.
    doubt: Option<String>,
    /// The label of its file system, and what of the disk was read for it.
    label: OnceCell<(Option<String>, Vec<Range<u64>>)>,
}

impl Volumes {
    /// Finds the volumes of a disk.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`] if the disk cannot be read; [`ErrorKind::Damaged`] if no copy of its partition table is of
    /// use.
    pub fn of(disk: Arc<dyn Disk>) -> Result<Self> {
        let geometry = disk.geometry();
        let own = u64::from(geometry.logical_sector).clamp(512, 4096);
        let bytes = Bytes::new(Arc::clone(&disk), 0..geometry.size);
        bytes.record();
        let first = bytes.read(0, geometry.size.min(512) as usize)?;
        let records = mbr::records(&first);
        // A raw disk does not tell its sectors: its GPT does.
        let mut sector = None;
        for size in [own, 512, 4096] {
            if sector.is_none() && gpt::is_there(&bytes, size)? {
                sector = Some(size);
            }
        }
        let (has_gpt, sector) = (sector.is_some(), sector.unwrap_or(own));
        let whole = content::recognize(&bytes)?;
        let table = match records {
            Some(records) if mbr::is_protective(&records) && has_gpt => {
                Some(gpt::read(&bytes, sector)?)
            }
            _ if whole.is_readable() || matches!(whole, Content::Refused(_)) => None,
            Some(records) if mbr::is_used(&records) => {
                Some(mbr::read(&bytes, sector, &first, &records)?)
            }
            _ if has_gpt => Some(gpt::read(&bytes, sector)?),
            _ => None,
        };
        let Some(Table { scheme, id, mut found, mut warnings, own }) = table else {
            let mut volume = Volume::whole(disk, whole);
            if has_gpt || records.is_some_and(|records| mbr::is_used(&records)) {
                let doubt = "the disk begins with a file system, and has a partition table too";
                volume.doubt = Some(doubt.into());
            } else {
                volume.doubt = rivals(&bytes)?;
            }
            return Ok(Self {
                scheme: None,
                id: None,
                volumes: vec![volume],
                warnings: Vec::new(),
                touched: bytes.touched(),
            });
        };
        found.sort_by_key(|found| found.number);
        warnings.extend(overlaps(&found));
        let mut touched = bytes.touched();
        let stale =
            (has_gpt && scheme != "GPT").then(|| "the disk has a GPT and an MBR".to_owned());
        let doubts: Vec<Option<String>> =
            (0..found.len()).map(|at| shared(&found, at, &own).or_else(|| stale.clone())).collect();
        let volumes = found.into_iter().zip(doubts).map(|(found, doubt)| {
            let mut volume = Volume::of(&disk, found, &mut touched)?;
            volume.doubt = doubt.or(volume.doubt);
            Ok(volume)
        });
        let volumes = volumes.collect::<Result<_>>()?;
        Ok(Self { scheme: Some(scheme), id, volumes, warnings, touched })
    }

    /// The kind of partition table, `GPT` or `MBR`; `None` if the disk has none.
    pub fn scheme(&self) -> Option<&str> {
        self.scheme
    }

    /// The identity of the disk in its table: a GUID, or the signature of an MBR.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The volumes by their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.iter()
    }

    /// What is wrong with the table although it is of use.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The ranges of the disk that were read so far to find and to name the volumes, in order: as long as their bytes are
    /// the same, the volumes are.
    pub fn touched(&self) -> Vec<Range<u64>> {
        let labels = self.volumes.iter().filter_map(|volume| volume.label.get());
        let all = labels.flat_map(|(_, touched)| touched).chain(&self.touched);
        union(all.cloned())
    }

    /// The volume that the selector means: its number in the table, the label of its file system or its name in the
    /// table, or its partition id. Without a selector, the only volume that can be read.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none; [`ErrorKind::InvalidInput`] if there are several. The message lists
    /// them.
    pub fn select(&self, selector: Option<&str>) -> Result<&Volume> {
        let found: Vec<&Volume> = match selector {
            None => self.volumes.iter().filter(|volume| volume.is_readable()).collect(),
            Some(selector) => {
                let by = |test: &dyn Fn(&Volume) -> bool| -> Vec<&Volume> {
                    self.volumes.iter().filter(|volume| test(volume)).collect()
                };
                let is = |name: Option<&str>| name == Some(selector);
                let id = selector.trim_start_matches('{').trim_end_matches('}');
                let has_id = |volume: &Volume| {
                    volume.id.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(id))
                };
                let mut found = match selector.parse() {
                    Ok(number) => by(&|volume| volume.number == Some(number)),
                    Err(_) => Vec::new(),
                };
                if found.is_empty() {
                    found = by(&has_id);
                }
                if found.is_empty() {
                    found = by(&|volume| is(volume.label()) || is(volume.partition_name()));
                }
                found
            }
        };
        let what = selector.map_or("that can be read".to_owned(), |text| format!("{text:?}"));
        match (&found[..], selector, &self.volumes[..]) {
            ([volume], ..) => Ok(volume),
            // The only one there is says best why it is not read.
            ([], None, [only]) => Ok(only),
            ([], ..) => {
                let message = format!("there is no volume {what}: {}", self.list());
                Err(Error::new(ErrorKind::NotFound, "files.volume-unknown", message))
            }
            _ => {
                let message = format!("there are several volumes {what}: {}", self.list());
                Err(Error::new(ErrorKind::InvalidInput, "files.volume-ambiguous", message))
            }
        }
    }

    fn list(&self) -> String {
        let each = self.volumes.iter().map(|volume| {
            let label = volume.label().or(volume.partition_name());
            let label = label.map_or(String::new(), |label| format!(" {label:?}"));
            format!("{}{label} ({})", volume.name(), volume.content)
        });
        match &each.collect::<Vec<_>>()[..] {
            [] => "the table is empty".into(),
            list => format!("the disk has {}", list.join(", ")),
        }
    }
}

impl Volume {
    fn whole(disk: Arc<dyn Disk>, content: Content) -> Self {
        let range = 0..disk.geometry().size;
        Self {
            disk,
            number: None,
            kind: None,
            partition_name: None,
            id: None,
            range,
            content,
            problem: None,
            doubt: None,
            label: OnceCell::new(),
        }
    }

    /// `touched` takes in what is read to recognize what it holds.
    fn of(disk: &Arc<dyn Disk>, found: Found, touched: &mut Vec<Range<u64>>) -> Result<Self> {
        let Found { number, kind, name, id, range } = found;
        let size = disk.geometry().size;
        let problem = (range.start >= range.end || range.end > size).then(|| {
            let Range { start, end } = range;
            let message = format!(
                "the partition at {start} to {end} does not lie within the disk of {size} bytes"
            );
            ("files.partition-place", message)
        });
        let (content, doubt) = match &problem {
            Some(_) => (Content::Unknown, None),
            None => {
                let bytes = Bytes::new(Arc::clone(disk), range.clone());
                bytes.record();
                let recognized = (content::recognize(&bytes)?, rivals(&bytes)?);
                touched.extend(bytes.touched());
                recognized
            }
        };
        // Parts of something larger, whatever their first bytes look like.
        let content = match kind.as_str() {
            gpt::LDM => Content::Refused(gpt::LDM),
            gpt::STORAGE_SPACES => Content::Refused(gpt::STORAGE_SPACES),
            _ => content,
        };
        let disk = Arc::clone(disk);
        let (number, kind) = (Some(number), Some(kind));
        let label = OnceCell::new();
        let partition_name = name;
        Ok(Self { disk, number, kind, partition_name, id, range, content, problem, doubt, label })
    }

    /// The number in the partition table; `None` for a disk without one.
    pub fn number(&self) -> Option<u32> {
        self.number
    }

    /// The volume in words: `partition 2`, or `the disk`.
    pub fn name(&self) -> String {
        self.number.map_or("the disk".into(), |number| format!("partition {number}"))
    }

    /// The type by the table: a name, or else what the table has.
    pub fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }

    /// What the volume holds, by its own bytes.
    pub fn content(&self) -> Content {
        self.content
    }

    /// The name in the partition table.
    pub fn partition_name(&self) -> Option<&str> {
        self.partition_name.as_deref()
    }

    /// The label of the file system; `None` also where it cannot be read.
    pub fn label(&self) -> Option<&str> {
        let label = || match self.open_with(Options::default().record(true)) {
            Ok(tree) => (tree.label().map(str::to_owned), tree.touched()),
            // What cannot be read, or has no name, may have one once anything in it changes.
            Err(_) => (None, vec![self.range()]),
        };
        self.label.get_or_init(label).0.as_deref()
    }

    /// The identity of the partition.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Where the volume lies on the disk, in bytes. It may not lie within the disk if the table is damaged.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// Whether its file system is one that this crate reads.
    pub fn is_readable(&self) -> bool {
        self.content.is_readable() && self.problem.is_none()
    }

    /// Opens the file system.
    ///
    /// # Errors
    /// As for [`open_with`](Self::open_with).
    pub fn open(&self) -> Result<FileSystem> {
        self.open_with(Options::default())
    }

    /// Opens the file system with options.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if it is not one that this crate reads, with the name of what it is;
    /// [`ErrorKind::Damaged`] if it breaks a rule of its format; [`ErrorKind::Disk`] if the disk cannot be read.
    pub fn open_with(&self, options: Options) -> Result<FileSystem> {
        let name = self.name();
        self.open_named(options, &name).map_err(|error| error.in_volume(&name))
    }

    fn open_named(&self, options: Options, name: &str) -> Result<FileSystem> {
        if let Some((code, problem)) = &self.problem {
            return Err(Error::damaged(code, problem.clone()));
        }
        let message = match self.content {
            Content::Refused(kind) => format!("this is {kind}, which is not read"),
            Content::Empty => "this has no file system: it reads as zeros".into(),
            Content::Unknown => "this has no file system of a known kind".into(),
            Content::Ext | Content::Fat | Content::Ntfs => {
                let bytes = Bytes::new(Arc::clone(&self.disk), self.range.clone());
                let doubt = self.doubt.clone();
                return FileSystem::of(bytes, self.content, options, name, doubt);
            }
        };
        Err(Error::unsupported("files.volume-kind", message))
    }
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, content, range) = (self.name(), self.content, &self.range);
        f.debug_struct("Volume")
            .field("name", &name)
            .field("content", &content)
            .field("range", range)
            .finish_non_exhaustive()
    }
}

/// What else a partition shares bytes with, if anything: another one, or the table.
fn shared(found: &[Found], at: usize, own: &[Range<u64>]) -> Option<String> {
    let this = &found[at];
    let meets =
        |range: &Range<u64>| range.start.max(this.range.start) < range.end.min(this.range.end);
    let other = found.iter().find(|found| found.number != this.number && meets(&found.range));
    match other {
        Some(other) => Some(format!("it shares bytes of the disk with partition {}", other.number)),
        None if own.iter().any(meets) => {
            Some("it shares bytes of the disk with the partition table".into())
        }
        None => None,
    }
}

/// Says that a volume begins like file systems of several kinds, one of which may be what was there before.
fn rivals(bytes: &Bytes) -> Result<Option<String>> {
    let kinds = content::kinds(bytes)?;
    Ok((kinds.len() > 1).then(|| {
        let kinds: Vec<String> = kinds.iter().map(Content::to_string).collect();
        format!("it begins like several file systems: {}", kinds.join(", "))
    }))
}

/// Warnings about partitions that share bytes.
fn overlaps(found: &[Found]) -> Vec<String> {
    let mut by_start: Vec<&Found> = found.iter().collect();
    by_start.sort_by_key(|found| found.range.start);
    let overlapping = by_start.windows(2).filter(|pair| pair[0].range.end > pair[1].range.start);
    let said = overlapping.map(|pair| {
        format!("partitions {} and {} share bytes of the disk", pair[0].number, pair[1].number)
    });
    said.collect()
}
