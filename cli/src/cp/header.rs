//! Headers of an archive: what a file is, in the words of tar and PAX.

use avhdx_files::{Entry, Kind, Time};
use tar::{EntryType, Header};

use super::facts::bounded;

/// What the fields of a header take.
const MOST_NAME: usize = 100;
const MOST_ID: u32 = 0o777_7777;
pub(super) const MOST_NUMBER: u32 = MOST_ID;
const MOST_SIZE: u64 = 0o777_7777_7777;

/// What an entry of the archive is.
pub(super) enum What<'a> {
    Folder,
    File {
        size: u64,
    },
    /// Of a file, pieces that hold all its bytes but zeros, with a list of them: so many bytes in all.
    Sparse {
        size: u64,
        stored: u64,
    },
    /// Another name of a file that is in the archive under this one.
    Again(&'a [u8]),
    Link(&'a [u8]),
    /// By its major and minor number.
    Device(Kind, (u32, u32)),
}

/// The blocks that come before the bytes of an entry.
pub(super) fn header(entry: &Entry, name: &[u8], what: &What<'_>) -> Vec<u8> {
    let mut header = Header::new_ustar();
    let mut records = Records::default();
    let (kind, size, usual_mode) = match what {
        What::Folder => (EntryType::Directory, 0, 0o755),
        What::File { size } => (EntryType::Regular, *size, 0o644),
        What::Sparse { stored, .. } => (EntryType::Regular, *stored, 0o644),
        What::Again(_) => (EntryType::Link, 0, 0o644),
        What::Link(_) => (EntryType::Symlink, 0, 0o777),
        What::Device(Kind::Other("block device"), _) => (EntryType::Block, 0, 0o644),
        What::Device(Kind::Other("character device"), _) => (EntryType::Char, 0, 0o644),
        What::Device(..) => (EntryType::Fifo, 0, 0o644),
    };
    header.set_entry_type(kind);
    header.set_mode(entry.mode().unwrap_or(usual_mode).into());
    if let What::Sparse { size, .. } = what {
        records.add("GNU.sparse.major", b"1");
        records.add("GNU.sparse.minor", b"0");
        records.add("GNU.sparse.realsize", size.to_string().as_bytes());
        // The name that who does not know of holes gives to the pieces.
        let at = name.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let pieces = [&name[..at], b"GNUSparseFile.0/", &name[at..]].concat();
        // Of it and of the name, Python takes the last one.
        records.add_name("path", &pieces, &mut header.as_old_mut().name);
        records.add("GNU.sparse.name", name);
    } else {
        records.add_name("path", name, &mut header.as_old_mut().name);
    }
    if let What::Again(target) | What::Link(target) = what {
        records.add_name("linkpath", target, &mut header.as_old_mut().linkname);
    }
    if let What::Device(kind, (major, minor)) = what
        && *kind != Kind::Other("fifo")
        && let Some(header) = header.as_ustar_mut()
    {
        header.set_device_major(*major);
        header.set_device_minor(*minor);
    }
    header.set_size(if size <= MOST_SIZE { size } else { 0 });
    if size > MOST_SIZE {
        records.add("size", size.to_string().as_bytes());
    }
    let (user, group) = entry.owner().unwrap_or_default();
    header.set_uid(if user <= MOST_ID { user.into() } else { 0 });
    header.set_gid(if group <= MOST_ID { group.into() } else { 0 });
    for (key, id) in [("uid", user), ("gid", group)] {
        if id > MOST_ID {
            records.add(key, id.to_string().as_bytes());
        }
    }
    let times = entry.times();
    let whole = times.modified.map_or(0, |time| time.seconds);
    header.set_mtime(u64::try_from(whole).ok().filter(|whole| *whole <= MOST_SIZE).unwrap_or(0));
    let all = [("mtime", times.modified), ("atime", times.accessed), ("ctime", times.changed)];
    for (key, time) in all.into_iter().filter_map(|(key, time)| Some((key, time?))) {
        records.add(key, decimal(bounded(time)).as_bytes());
    }
    header.set_cksum();
    let mut blocks = records.blocks();
    blocks.extend(header.as_bytes());
    blocks
}

/// Fills up the last block.
pub(super) fn padding(len: u64) -> usize {
    (len.next_multiple_of(512) - len) as usize
}

/// Seconds since 1970, with a fraction.
fn decimal(time: Time) -> String {
    let (mut seconds, mut nanoseconds) = (i128::from(time.seconds), time.nanoseconds);
    let is_before = seconds < 0;
    if is_before && nanoseconds > 0 {
        (seconds, nanoseconds) = (seconds + 1, 1_000_000_000 - nanoseconds);
    }
    let sign = if is_before { "-" } else { "" };
    let whole = format!("{sign}{}", seconds.unsigned_abs());
    match nanoseconds {
        0 => whole,
        _ => format!("{whole}.{nanoseconds:09}").trim_end_matches('0').to_owned(),
    }
}

/// Records that say what a header has no room for.
#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
    is_binary: bool,
}

impl Records {
    fn add(&mut self, key: &str, value: &[u8]) {
        // The length counts itself.
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len += 1;
        }
        self.bytes.extend(format!("{len} {key}=").bytes());
        self.bytes.extend([value, b"\n"].concat());
    }

    /// Puts a name into its field, and into a record if the field does not take it.
    fn add_name(&mut self, key: &str, name: &[u8], field: &mut [u8; MOST_NAME]) {
        let kept = name.len().min(MOST_NAME);
        field[..kept].copy_from_slice(&name[..kept]);
        if name.len() > MOST_NAME || !name.is_ascii() {
            self.is_binary |= std::str::from_utf8(name).is_err();
            self.add(key, name);
        }
    }

    fn blocks(mut self) -> Vec<u8> {
        if self.bytes.is_empty() {
            return Vec::new();
        }
        // Names are UTF-8 otherwise. It holds for what follows it.
        if self.is_binary {
            let names = std::mem::take(&mut self.bytes);
            self.add("hdrcharset", b"BINARY");
            self.bytes.extend(names);
        }
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..9].copy_from_slice(b"PaxHeader");
        header.set_entry_type(EntryType::XHeader);
        header.set_size(self.bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        let mut blocks = header.as_bytes().to_vec();
        blocks.extend(&self.bytes);
        blocks.resize(blocks.len() + padding(self.bytes.len() as u64), 0);
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_decimal_also_before_1970() {
        let of = |seconds, nanoseconds| decimal(Time { seconds, nanoseconds });
        assert_eq!(of(7, 0), "7");
        assert_eq!(of(7, 1), "7.000000001");
        assert_eq!(of(7, 500_000_000), "7.5");
        assert_eq!(of(-1, 500_000_000), "-0.5");
        assert_eq!(of(-2, 0), "-2");
        assert_eq!(of(-2, 250_000_000), "-1.75");
        assert_eq!(of(i64::MIN, 0), "-9223372036854775808");
    }

    #[test]
    fn the_length_of_a_record_counts_itself() {
        for len in 0..1100 {
            let mut records = Records::default();
            records.add("k", &vec![b'x'; len]);
            let text = String::from_utf8(records.bytes).unwrap();
            let (told, rest) = text.split_once(' ').unwrap();
            assert_eq!(told.parse::<usize>().unwrap(), told.len() + 1 + rest.len());
        }
    }
}
