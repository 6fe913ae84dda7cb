//! What the mount of a file promises, from the list that Linux keeps.

use std::fs::File;

use rustix::fs::{AtFlags, StatxFlags, statx};

/// Whether writes to `file` that a crash loses read as zeros, where they went to space that was never written to. They
/// do on file systems that make data durable before, or together with, the metadata that shows it.
///
/// Where that is not known, or the lists cannot be read, the answer is no.
pub(super) fn shows_zeros(file: &File) -> bool {
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let id = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    let has_id = |mask: u32| StatxFlags::from_bits_retain(mask).contains(StatxFlags::MNT_ID);
    match (id, read("/proc/self/mountinfo")) {
        (Ok(stat), Some(list)) if is_file && has_id(stat.stx_mask) => {
            let mount = list.lines().filter_map(Mount::parse).find(|it| it.id == stat.stx_mnt_id);
            mount.is_some_and(|mount| mount.shows_zeros(ext4_options))
        }
        _ => false,
    }
}

fn read(path: &str) -> Option<String> {
    #[allow(clippy::disallowed_methods)] // part of the module that wraps std::fs
    std::fs::read_to_string(path).ok()
}

/// The options of the ext4 file system on this device, all of them, a line each. The list of mounts leaves out those that
/// the file system has by default.
fn ext4_options(device: &str) -> Option<String> {
    let uevent = read(&format!("/sys/dev/block/{device}/uevent"))?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    read(&format!("/proc/fs/ext4/{}/options", name.replace('/', "!")))
}

/// Whether ext4 makes data durable before, or together with, the metadata that shows it: it has a journal, and keeps order.
fn is_ordered(options: &str) -> bool {
    let has = |option: &str| options.lines().any(|line| line.trim() == option);
    has("barrier") && (has("data=ordered") || has("data=journal"))
}

/// A mounted file system.
struct Mount<'a> {
    id: u64,
    /// The numbers of its device: `254:0`.
    device: &'a str,
    kind: &'a str,
    /// Options of the mount and of the file system.
    options: [&'a str; 2],
}

impl<'a> Mount<'a> {
    /// A line reads `27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard`, with any number of fields before
    /// the dash.
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        let id = mount.next()?.parse().ok()?;
        let (device, own) = (mount.nth(1)?, mount.nth(2)?);
        let mut system = system.split(' ');
        let (kind, options) = (system.next()?, system.nth(1)?);
        Some(Self { id, device, kind, options: [own, options] })
    }

    fn shows_zeros(&self, ext4_options: impl FnOnce(&str) -> Option<String>) -> bool {
        let mut options = self.options.iter().flat_map(|options| options.split(','));
        // Without barriers, the disk may reorder data and the metadata that shows it.
        let is_unordered = |option: &str| {
            matches!(option, "data=writeback" | "nobarrier" | "barrier=0" | "norecovery" | "noload")
                || option.starts_with("dax")
                || option.starts_with("rtdev")
        };
        if options.any(is_unordered) {
            return false;
        }
        match self.kind {
            "ext4" => ext4_options(self.device).is_some_and(|options| is_ordered(&options)),
            // XFS does since Linux 5.8, the first that numbers mounts. A crash leaves nothing of tmpfs.
            "xfs" | "btrfs" | "tmpfs" => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mount;

    /// What ext4 lists of itself with a journal.
    const ORDERED: &str = "rw\nbarrier\ndelalloc\ndata=ordered\n";

    fn shows_zeros(kind: &str, own: &str, options: &str, all: Option<&str>) -> bool {
        let line = format!(
            r"36 35 98:0 /mnt1 /mnt/with\040space {own} shared:7 master:1 - {kind} /dev/root {options}"
        );
        let mount = Mount::parse(&line).unwrap();
        assert_eq!((mount.id, mount.device, mount.kind), (36, "98:0", kind));
        mount.shows_zeros(|device| {
            assert_eq!(device, "98:0");
            all.map(str::to_owned)
        })
    }

    #[test]
    fn only_file_systems_known_to_show_zeros_count() {
        let all = Some(ORDERED);
        for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
            assert!(shows_zeros(kind, "rw,relatime", "rw", all), "{kind}");
            assert!(!shows_zeros(kind, "rw", "rw,nobarrier", all), "{kind}");
        }
        assert!(!shows_zeros("xfs", "rw,dax", "rw", all));
        for kind in ["ext2", "ext3", "nfs4", "cifs", "fuse.sshfs", "fuseblk", "overlay", "ntfs3"] {
            assert!(!shows_zeros(kind, "rw", "rw", all), "{kind}");
        }
    }

    /// Options that the file system has by default are not in the list of mounts.
    #[test]
    fn ext4_counts_only_with_a_journal_and_in_order() {
        let ext4 = |all| shows_zeros("ext4", "rw", "rw", all);
        assert!(ext4(Some("rw\nbarrier\ndata=journal\n")));
        for all in [
            None,
            Some(""),
            Some("rw\nbarrier\n"),
            Some("rw\nnobarrier\ndata=ordered\n"),
            Some("rw\nbarrier\ndata=writeback\n"),
        ] {
            assert!(!ext4(all), "{all:?}");
        }
        for options in ["rw,data=writeback", "data=writeback,rw", "rw,barrier=0", "rw,dax=always"] {
            assert!(!shows_zeros("ext4", "rw", options, Some(ORDERED)), "{options}");
        }
    }

    #[test]
    fn lines_of_other_shapes_are_passed_over() {
        let bare = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw";
        assert_eq!(Mount::parse(bare).map(|mount| mount.options), Some(["rw,relatime", "rw"]));
        for line in
            ["", "27", "x 1 254:0 / / rw - ext4 /dev/vda rw", "27 1 254:0 / / rw ext4 /dev/vda rw"]
        {
            assert!(Mount::parse(line).is_none(), "{line}");
        }
        assert!(Mount::parse("27 1 254:0 / / rw - ext4 /dev/vda").is_none());
    }
}
