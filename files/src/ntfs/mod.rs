//! NTFS.
//!
//! The crate for NTFS does not tell how much of a stream is initialized and in which units it is compressed, which decide
//! what its bytes are, and does not find the rest of a table of files in many pieces. So records, runs and indexes are
//! read here. Tests compare the result with what `ntfs-3g` was told to write.

mod clean;
mod frame;
mod held;
mod index;
mod log;
mod lznt1;
mod pieces;
mod places;
mod record;
mod reparse;
mod runs;

use std::any::Any;
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use crate::bitmap::FreeRuns;
use crate::boundary::{Bytes, number, u16_at, u32_at, u64_at};
use crate::changed::Changed;
use crate::error::{Error, ErrorKind, Result};
use crate::item::{
    About, Facts, Item, Kind, Node, Stream, StreamInfo, System, Time, Times, bytes_of_utf16,
    check_count, utf16_of_bytes,
};
pub(crate) use places::{Places, fix_up, places};

use held::Held;
use index::Name;
use pieces::{check_pieces, check_records};
use record::{Attribute, Record, Value};
use reparse::Reparse;
use runs::Outside;

const MFT: u64 = 0;
const VOLUME: u64 = 3;
const ROOT: u64 = 5;
const BITMAP: u64 = 6;
const UPCASE: u64 = 10;
/// The first record of files that are not of the file system itself.
const FIRST_FILE: u64 = 16;

/// The name of the index of a folder: `$I30`.
const NAMES: [u16; 4] = [0x24, 0x49, 0x33, 0x30];
/// An attribute with facts of the volume, and the flag that it is in use.
const VOLUME_INFORMATION: u32 = 0x70;
const IS_DIRTY: u16 = 1;

/// Bytes of the bitmap that are read at once.
const PIECE: u64 = 64 << 10;
const MOST_CLUSTER: u64 = 2 << 20;
const MOST_RECORD: u64 = 64 << 10;
/// NTFS bounds the list of the attributes of a file to this.
const MOST_LIST: u64 = 256 << 10;
const MOST_REPARSE: u64 = 16 << 10;
const UPCASE_LEN: u64 = 128 << 10;
/// The attributes of a file whose bytes come from somewhere once they are read.
const IS_ELSEWHERE: u32 = 0x1000 | 0x0040_0000;

/// Units of 100 ns from 1601 to 1970.
const TO_1970: i64 = 116_444_736_000_000_000;

pub(crate) struct Ntfs {
    about: About,
    shape: Shape,
    mft: Outside,
    upcase: OnceCell<Vec<u16>>,
    shows_system: bool,
}

struct Shape {
    bytes: Bytes,
    cluster: u64,
    clusters: u64,
    record: u64,
}

/// A file: its record, with the attributes of the records that continue it.
struct File(Record);

impl Ntfs {
    pub(crate) fn open(bytes: Bytes, shows_system: bool) -> Result<Self> {
        let boot = bytes.read(0, 512)?;
        let damaged = |what: String| Error::damaged("ntfs.boot", what);
        let sector = u64::from(u16_at(&boot, 11));
        let per_cluster = match boot[13] {
            // Large ones are the power of two with this number, negative.
            many @ 0xE1.. => 1 << (256 - u32::from(many)),
            few => u64::from(few),
        };
        let cluster = sector * per_cluster;
        let is_size = |size: u64, most: u64| size.is_power_of_two() && (512..=most).contains(&size);
        if !is_size(sector, 4096) || !is_size(cluster, MOST_CLUSTER) {
            return Err(damaged(format!("sectors of {sector} bytes, clusters of {per_cluster}")));
        }
        let record = match boot[64] as i8 {
            bits @ -31..=-1 => 1 << -bits,
            clusters => u64::try_from(clusters).unwrap_or(0) * cluster,
        };
        if !is_size(record, MOST_RECORD) {
            return Err(damaged(format!("file records of {record} bytes")));
        }
        let mut warnings = Vec::new();
        let size = u64_at(&boot, 40).saturating_mul(sector);
        if size > bytes.len() {
            warnings.push(format!(
                "the file system has {size} bytes and the volume {}: what lies behind its end is not read",
                bytes.len()
            ));
        }
        let len = bytes.len();
        let clusters = size.min(len) / cluster;
        let start = u64_at(&boot, 48);
        let inside = start
            .checked_mul(cluster)
            .filter(|at| start > 0 && at.checked_add(record).is_some_and(|end| end <= bytes.len()));
        let start = inside.ok_or_else(|| {
            damaged(format!("the table of files begins in cluster {start} of {clusters}"))
        })?;
        let id = Some(format!("{:016x}", u64_at(&boot, 72)));
        let shape = Shape { bytes, cluster, clusters, record };
        let first = shape.bytes.read(start, record as usize)?;
        let mft = shape.table(Record::parse(first, MFT, clusters)?)?;
        let about = About {
            kind: "NTFS",
            label: None,
            id,
            warnings,
            has_backslash: true,
            is_cut: size > len,
        };
        let mut ntfs = Self { about, shape, mft, upcase: OnceCell::new(), shows_system };
        // The tree is read without them too.
        if let Ok(volume) = ntfs.file(VOLUME) {
            let value = |kind| match volume.0.attributes.iter().find(|found| found.is(kind, &[])) {
                Some(Attribute { value: Value::Resident(value), .. }) => &value[..],
                _ => &[],
            };
            let label = utf16(value(record::VOLUME_NAME));
            let label = String::from_utf8_lossy(&bytes_of_utf16(&label)).into_owned();
            ntfs.about.label = Some(label).filter(|label| !label.is_empty());
            if u16_at(value(VOLUME_INFORMATION), 10) & IS_DIRTY != 0 {
                let warning =
                    "the file system was in use: what waits in its log ($LogFile) is not shown";
                ntfs.about.warnings.push(warning.into());
            }
        }
        Ok(ntfs)
    }

    fn record(&self, number: u64) -> Result<Record> {
        let len = self.shape.record;
        let held = self.mft.size.min(self.mft.initialized);
        let Some(at) = number.checked_mul(len).filter(|at| at.saturating_add(len) <= held) else {
            let message = format!("there is no file record {number}: the table has {}", held / len);
            return Err(Error::damaged("ntfs.record", message));
        };
        self.shape.record_in(&self.mft, number, at)
    }

    fn file(&self, number: u64) -> Result<File> {
        let mut base = self.record(number)?;
        if !base.is_used || base.base != 0 {
            let message = format!("file record {number} is of no file");
            return Err(Error::damaged("ntfs.record", message));
        }
        let list = base.attributes.iter().find(|found| found.kind == record::ATTRIBUTE_LIST);
        let Some(list) = list else { return Ok(File(base)) };
        let list = self.shape.held(std::slice::from_ref(list))?.read_all(MOST_LIST)?;
        let others: BTreeSet<u64> =
            record::listed(&list)?.into_iter().map(|listed| listed.record).collect();
        let count = |attributes: &[Attribute]| -> usize {
            attributes.iter().map(|attribute| attribute.runs()).sum()
        };
        check_records(others.len(), self.shape.record)?;
        let mut runs = count(&base.attributes);
        for other in others.into_iter().filter(|other| *other != number) {
            check_pieces(runs, base.attributes.len())?;
            let more = self.record(other)?;
            if !more.is_used || more.base != number {
                let message = format!("file record {other} does not continue {number}");
                return Err(Error::damaged("ntfs.record", message));
            }
            runs += count(&more.attributes);
            base.attributes.extend(more.attributes);
        }
        check_pieces(runs, base.attributes.len())?;
        Ok(File(base))
    }

    fn item(&self, name: Name) -> Item {
        let Name { record: number, sequence, name, .. } = name;
        let facts = self.facts(number, sequence);
        Item { name: bytes_of_utf16(&name), node: Node::Record { number, sequence }, facts }
    }

    /// The file of an item, if the record is still of its file.
    fn file_of(&self, item: &Item) -> Result<File> {
        match item.node {
            Node::Record { number, sequence } => self.file_with(number, sequence),
            _ => Err(Error::damaged("ntfs.node", "this is no file of NTFS")),
        }
    }

    fn file_with(&self, number: u64, sequence: u16) -> Result<File> {
        let file = self.file(number)?;
        if sequence != 0 && file.0.sequence != sequence {
            let own = file.0.sequence;
            let message =
                format!("file record {number} is in use {own}, the folder names use {sequence}");
            return Err(Error::damaged("ntfs.stale", message));
        }
        Ok(file)
    }

    fn facts(&self, number: u64, sequence: u16) -> Result<Facts> {
        let file = self.file_with(number, sequence)?;
        let reparse = self.reparse(&file)?;
        let mut facts = Facts::new(reparse::kind(reparse.as_ref(), file.0.is_folder));
        (facts.id, facts.links) = (Some(number), Some(names(&file)));
        facts.generation = Some(file.0.sequence.into());
        if let Some(Attribute { value: Value::Resident(value), .. }) =
            file.0.attributes.iter().find(|found| found.kind == record::STANDARD_INFORMATION)
        {
            facts.times = Times {
                created: time(u64_at(value, 0)),
                modified: time(u64_at(value, 8)),
                changed: time(u64_at(value, 16)),
                accessed: time(u64_at(value, 24)),
            };
            facts.attributes = Some(u32_at(value, 32));
        }
        let data: Vec<&Attribute> = file.parts(record::DATA, &[]).collect();
        if facts.kind == Kind::File {
            facts.size = size_of(&data).unwrap_or(0);
            facts.refusal = refusal(&data);
        }
        match reparse {
            Some(Reparse::Refused(code, message)) => facts.refusal = Some((code, message)),
            Some(Reparse::Cloud) if facts.attributes.unwrap_or(0) & IS_ELSEWHERE != 0 => {
                let message = "the bytes of the file are in a cloud, not here";
                facts.refusal = facts.refusal.or(Some(("files.cloud", message.into())));
            }
            _ => {}
        }
        if facts.kind == Kind::Folder && matches!(&facts.refusal, Some(("files.cloud", _))) {
            facts.refusal = None;
        }
        Ok(facts)
    }

    fn reparse(&self, file: &File) -> Result<Option<Reparse>> {
        let parts: Vec<Attribute> = file.parts(record::REPARSE_POINT, &[]).cloned().collect();
        if parts.is_empty() {
            return Ok(None);
        }
        let value = self.shape.held(&parts)?.read_all(MOST_REPARSE)?;
        Ok(Some(reparse::parse(&value)))
    }

    /// The names in a folder, in order as far as its index is in order.
    fn names(&self, folder: &File) -> Result<Vec<Name>> {
        let parts = |kind| folder.parts(kind, &NAMES).cloned().collect::<Vec<_>>();
        let root = parts(record::INDEX_ROOT);
        let Some(Attribute { value: Value::Resident(root), .. }) = root.first() else {
            return Err(Error::damaged("ntfs.index", "the folder has no index of names"));
        };
        let node_len = index::node_len(root);
        let mut contents = index::root(root)?;
        if contents.children.is_empty() {
            return Ok(contents.names);
        }
        if !node_len.is_power_of_two() || !(512..=MOST_RECORD).contains(&node_len) {
            let message = format!("the index of a folder has nodes of {node_len} bytes");
            return Err(Error::damaged("ntfs.index", message));
        }
        let mut nodes = self.shape.held(&parts(record::INDEX_ALLOCATION))?;
        // Nodes shorter than a cluster are counted in the smallest sectors.
        let unit = if node_len < self.shape.cluster { 512 } else { self.shape.cluster };
        let mut seen = HashSet::new();
        let mut ahead = std::mem::take(&mut contents.children);
        while let Some(vcn) = ahead.pop() {
            let at = vcn.checked_mul(unit).filter(|at| at.saturating_add(node_len) <= nodes.len());
            let (Some(at), true) = (at, seen.insert(vcn)) else {
                let message =
                    format!("node {vcn} of the index of a folder is outside of it, or used twice");
                return Err(Error::damaged("ntfs.index", message));
            };
            let mut bytes = vec![0; node_len as usize];
            nodes.read_at(&mut bytes, at)?;
            let mut node = index::child(bytes, vcn)?;
            contents.names.append(&mut node.names);
            check_count(contents.names.len())?;
            ahead.append(&mut node.children);
        }
        Ok(contents.names)
    }

    /// Whether a name is one that is shown.
    fn is_shown(&self, folder: &Item, name: &Name) -> bool {
        let is_top = matches!(folder.node, Node::Record { number: ROOT, .. });
        !is_top || name.record != ROOT && (self.shows_system || name.record >= FIRST_FILE)
    }

    fn upper(&self, name: &[u16]) -> Result<Vec<u16>> {
        if self.upcase.get().is_none() {
            let parts: Vec<Attribute> =
                self.file(UPCASE)?.parts(record::DATA, &[]).cloned().collect();
            let table = self.shape.held(&parts)?.read_all(UPCASE_LEN)?;
            if table.len() as u64 != UPCASE_LEN {
                let message = format!("$UpCase has {} bytes, expected {UPCASE_LEN}", table.len());
                return Err(Error::damaged("ntfs.upcase", message));
            }
            // Nobody else sets it in between.
            let _ = self.upcase.set(utf16(&table));
        }
        let table = self.upcase.get().map_or(&[][..], |table| table);
        let upper = |unit: &u16| table.get(usize::from(*unit)).copied().unwrap_or(*unit);
        Ok(name.iter().map(upper).collect())
    }
}

impl System for Ntfs {
    fn about(&self) -> &About {
        &self.about
    }

    fn root(&self) -> Result<Item> {
        let facts = Ok(self.facts(ROOT, 0)?);
        Ok(Item { name: Vec::new(), node: Node::Record { number: ROOT, sequence: 0 }, facts })
    }

    fn list(&self, folder: &Item) -> Result<Vec<Item>> {
        let names = self.names(&self.file_of(folder)?)?.into_iter();
        let names = names.filter(|name| !name.is_short && self.is_shown(folder, name));
        Ok(names.map(|name| self.item(name)).collect())
    }

    fn child(&self, folder: &Item, name: &[u8]) -> Result<Option<Item>> {
        let Some(wanted) = utf16_of_bytes(name) else { return Ok(None) };
        let mut names = self.names(&self.file_of(folder)?)?;
        names.retain(|name| self.is_shown(folder, name));
        if let Some(exact) = names.iter().find(|name| name.name == wanted) {
            return Ok(Some(self.item(exact.clone())));
        }
        let wanted = self.upper(&wanted)?;
        // Long names come first: a short one may be the long one of another file.
        names.sort_by_key(|name| name.is_short);
        for name in names {
            if name.name.len() == wanted.len() && self.upper(&name.name)? == wanted {
                return Ok(Some(self.item(name)));
            }
        }
        Ok(None)
    }

    fn streams(&self, item: &Item) -> Result<Vec<StreamInfo>> {
        let file = self.file_of(item)?;
        let mut streams: Vec<(&[u16], Option<u64>)> = Vec::new();
        let mut places = HashMap::new();
        let data = file.0.attributes.iter().filter(|found| found.kind == record::DATA);
        for part in data.filter(|part| !part.name.is_empty()) {
            let name = &part.name[..];
            let place = *places.entry(name).or_insert(streams.len());
            if place == streams.len() {
                streams.push((name, None));
            }
            // The first part has the size.
            if streams[place].1.is_none() {
                streams[place].1 = size_of(&[part]);
            }
        }
        let info = |(name, size): (&[u16], Option<u64>)| StreamInfo {
            name: bytes_of_utf16(name),
            size: size.unwrap_or(0),
        };
        Ok(streams.into_iter().map(info).collect())
    }

    fn open(&self, item: &Item, stream: Option<&[u8]>) -> Result<Box<dyn Stream>> {
        let file = self.file_of(item)?;
        let name = match stream {
            None => Vec::new(),
            Some(name) => self.stream_name(&file, name)?,
        };
        let parts: Vec<&Attribute> = file.parts(record::DATA, &name).collect();
        if let Some((code, message)) = refusal(&parts) {
            return Err(Error::unsupported(code, message));
        }
        if parts.is_empty() {
            let message = "the file has no contents, only other streams";
            return Err(Error::new(ErrorKind::NotFound, "files.stream", message));
        }
        let parts: Vec<Attribute> = parts.into_iter().cloned().collect();
        Ok(Box::new(self.shape.held(&parts)?))
    }

    fn target(&self, link: &Item) -> Result<Vec<u8>> {
        match self.reparse(&self.file_of(link)?)? {
            Some(Reparse::Link(target)) => Ok(target),
            _ => Err(Error::new(ErrorKind::InvalidInput, "files.not-link", "this is no link")),
        }
    }

    fn stored(&self, item: &Item, stream: Option<&[u8]>) -> Result<Option<Box<dyn Stream>>> {
        let file = self.file_of(item)?;
        let name = match stream.map(utf16_of_bytes) {
            None => Vec::new(),
            Some(Some(name)) => name,
            Some(None) => return Ok(None),
        };
        let parts: Vec<Attribute> = file.parts(record::DATA, &name).cloned().collect();
        if parts.is_empty() {
            return Ok(None);
        }
        Ok(Some(Box::new(self.shape.held(&parts)?)))
    }

    fn nature(&self, item: &Item) -> Result<Vec<u8>> {
        let file = self.file_of(item)?;
        let parts: Vec<Attribute> = file.parts(record::REPARSE_POINT, &[]).cloned().collect();
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        self.shape.held(&parts)?.read_all(MOST_REPARSE)
    }

    fn reframed(&self, other: &dyn System, _: &Changed) -> Result<Option<Vec<Range<u64>>>> {
        let other = (other as &dyn Any).downcast_ref::<Self>();
        let facts = |ntfs: &Self| {
            let Shape { bytes, cluster, clusters, record } = &ntfs.shape;
            (bytes.start(), bytes.len(), *cluster, *clusters, *record, ntfs.shows_system)
        };
        let other = other.filter(|other| facts(self) == facts(other));
        Ok(other.and_then(|other| frame::moved(&self.mft, &other.mft)))
    }

    fn capacity(&self) -> u64 {
        self.shape.clusters * self.shape.cluster
    }

    fn free(&self, each: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        let file = self.file(BITMAP)?;
        let parts: Vec<Attribute> = file.parts(record::DATA, &[]).cloned().collect();
        let mut bitmap = self.shape.held(&parts)?;
        let (len, clusters) = (bitmap.len(), self.shape.clusters);
        if len < clusters.div_ceil(8) {
            let message = format!("$Bitmap has {len} bytes for {clusters} clusters");
            return Err(Error::damaged("ntfs.bitmap", message));
        }
        let mut runs = FreeRuns::new(0, self.shape.cluster, each);
        let mut piece = vec![0; PIECE as usize];
        for first in (0..clusters).step_by(PIECE as usize * 8) {
            let count = (clusters - first).min(PIECE * 8);
            let piece = &mut piece[..count.div_ceil(8) as usize];
            bitmap.read_at(piece, first / 8)?;
            runs.bits(first, piece, count);
        }
        runs.end();
        Ok(())
    }

    fn check_clean(&self) -> Result<()> {
        self.check_closed()
    }

    fn check_free(&self) -> Result<()> {
        self.check_clusters()
    }
}

impl Ntfs {
    /// The name of a stream as the file has it.
    fn stream_name(&self, file: &File, name: &[u8]) -> Result<Vec<u16>> {
        let names = || {
            let data = file.0.attributes.iter().filter(|found| found.kind == record::DATA);
            data.map(|found| &found.name).filter(|name| !name.is_empty())
        };
        if let Some(wanted) = utf16_of_bytes(name) {
            if names().any(|name| *name == wanted) {
                return Ok(wanted);
            }
            let wanted = self.upper(&wanted)?;
            for name in names() {
                if self.upper(name)? == wanted {
                    return Ok(name.clone());
                }
            }
        }
        let mut known: Vec<String> = names().map(|name| String::from_utf16_lossy(name)).collect();
        known.dedup();
        let message = format!("the file has no stream {:?}", String::from_utf8_lossy(name));
        let message = match &known[..] {
            [] => message,
            _ => format!("{message}, only {}", known.join(", ")),
        };
        Err(Error::new(ErrorKind::NotFound, "files.stream", message))
    }
}

impl Shape {
    /// The table of files. Its record may be continued by records that lie in its own first part.
    fn table(&self, first: Record) -> Result<Outside> {
        let own: Vec<Attribute> = File(first.clone()).parts(record::DATA, &[]).cloned().collect();
        let Held::Outside(mut table) = self.held(&own)? else {
            return Err(Error::damaged("ntfs.mft", "the table of files has no clusters"));
        };
        let list = first.attributes.iter().find(|found| found.kind == record::ATTRIBUTE_LIST);
        let Some(list) = list else { return Ok(table) };
        let list = self.held(std::slice::from_ref(list))?.read_all(MOST_LIST)?;
        let mut parts = record::listed(&list)?;
        parts.retain(|part| part.kind == record::DATA && !part.has_name && part.lowest > 0);
        parts.sort_by_key(|part| part.lowest);
        for part in parts {
            let at = part.record.checked_mul(self.record);
            let at = at.ok_or_else(|| Error::damaged("ntfs.mft", "a part of the table is far"))?;
            let more = self.record_in(&table, part.record, at)?;
            for found in more.attributes {
                if let (true, Value::Outside { lowest, runs, .. }) =
                    (found.kind == record::DATA && found.name.is_empty(), found.value)
                    && lowest == part.lowest
                {
                    append(&mut table, lowest, runs)?;
                    check_pieces(table.runs.len(), 0)?;
                }
            }
        }
        Ok(table)
    }

    fn record_in(&self, table: &Outside, number: u64, at: u64) -> Result<Record> {
        let mut bytes = vec![0; self.record as usize];
        table.read_stored(&mut bytes, at)?;
        Record::parse(bytes, number, self.clusters)
    }

    /// The value of an attribute that is stored in these parts.
    fn held(&self, parts: &[Attribute]) -> Result<Held> {
        let mut parts: Vec<&Attribute> = parts.iter().collect();
        parts.sort_by_key(|part| part.lowest());
        let Some((first, rest)) = parts.split_first() else {
            return Err(Error::damaged("ntfs.attribute", "the attribute is missing"));
        };
        let (runs, size, initialized, unit_bits) = match &first.value {
            Value::Resident(value) => return Ok(Held::Inside(value.clone())),
            Value::Outside { lowest: 0, runs, size, initialized, unit_bits } => {
                (runs.clone(), *size, *initialized, *unit_bits)
            }
            Value::Outside { lowest, .. } => {
                let message = format!("the attribute begins with its cluster {lowest}");
                return Err(Error::damaged("ntfs.runs-missing", message));
            }
        };
        let unit = match first.flags & record::IS_COMPRESSED {
            0 => None,
            _ => Some(
                1u64.checked_shl(unit_bits.into()).filter(|_| unit_bits > 0).unwrap_or(u64::MAX),
            ),
        };
        let (bytes, cluster) = (self.bytes.clone(), self.cluster);
        let mut held = Outside { bytes, cluster, runs, size, initialized, unit, decoded: None };
        held.check()?;
        for part in rest {
            if let Value::Outside { lowest, runs, .. } = &part.value {
                append(&mut held, *lowest, runs.clone())?;
            }
        }
        Ok(Held::Outside(held))
    }
}

/// Adds the runs of a further part of an attribute.
fn append(to: &mut Outside, lowest: u64, runs: Vec<runs::Run>) -> Result<()> {
    let end = to.runs.last().map_or(0, |run| run.vcn + run.len);
    if lowest != end {
        let message =
            format!("a part of an attribute begins with cluster {lowest}, expected {end}");
        return Err(Error::damaged("ntfs.runs-missing", message));
    }
    to.runs.extend(runs);
    Ok(())
}

/// How many names a file has. Its record counts short ones for DOS too, which are shown nowhere.
fn names(file: &File) -> u32 {
    let is_short = |found: &&Attribute| {
        let Value::Resident(value) = &found.value else { return false };
        found.kind == record::FILE_NAME && value.len() > 65 && index::is_short(value)
    };
    let short = file.0.attributes.iter().filter(is_short).count();
    u32::from(file.0.links).saturating_sub(short as u32)
}

impl File {
    fn parts<'f>(&'f self, kind: u32, name: &'f [u16]) -> impl Iterator<Item = &'f Attribute> {
        self.0.attributes.iter().filter(move |found| found.is(kind, name))
    }
}

impl Attribute {
    /// In how many pieces the attribute lies.
    fn runs(&self) -> usize {
        match &self.value {
            Value::Resident(_) => 0,
            Value::Outside { runs, .. } => runs.len(),
        }
    }

    fn lowest(&self) -> u64 {
        match self.value {
            Value::Resident(_) => 0,
            Value::Outside { lowest, .. } => lowest,
        }
    }
}

fn size_of(parts: &[&Attribute]) -> Option<u64> {
    parts.iter().find(|part| part.lowest() == 0).map(|part| match &part.value {
        Value::Resident(value) => value.len() as u64,
        Value::Outside { size, .. } => *size,
    })
}

/// Why the bytes of a stream are not read.
fn refusal(parts: &[&Attribute]) -> Option<(&'static str, String)> {
    let flags = parts.first()?.flags;
    if flags & record::IS_ENCRYPTED != 0 {
        return Some(("files.encrypted", "the file is encrypted (EFS)".into()));
    }
    match flags & record::IS_COMPRESSED {
        0 | 1 => None,
        other => Some((
            "files.compression",
            format!("the file is compressed in the unknown way {other}"),
        )),
    }
}

fn utf16(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|unit| number(unit, 0, 2) as u16).collect()
}

/// A moment of NTFS; `None` for 0.
fn time(units: u64) -> Option<Time> {
    let units = i64::try_from(units).ok().filter(|units| *units != 0)? - TO_1970;
    let nanoseconds = units.rem_euclid(10_000_000) as u32 * 100;
    Some(Time { seconds: units.div_euclid(10_000_000), nanoseconds })
}
