//! Situations in which the program fails, at least one for each row of the table.

use std::fs;
use std::path::Path;

use avhdx_testkit::build::{Block, Data, Descriptor, Image, LogEntry, write_chain};

use super::{missing_tool, shell};
use crate::common::{Folder, chain, guid, mark, name, volume};

/// Rows that these tests cannot provoke, and why.
pub const NOT_PROVOKED: &[(&str, &str)] = &[
    ("compact.punch", "needs a file system without holes: see tests/live/compact.rs"),
    ("convert.differs", "needs a drive that fails: see cli/src/copying.rs"),
    (
        "output.swapped",
        "needs a file replaced while the program runs: see cli/tests/program/swaps.rs",
    ),
    ("file.replaced", "needs a file replaced while it is opened: see tests/locks"),
    ("parent.no-access", "needs a user without read access: see tests/reading/locate.rs"),
    (
        "merge: image.children-unknown",
        "needs a folder that cannot be listed: see tests/writing/children.rs",
    ),
    (
        "label: image.children-unknown",
        "needs a folder that cannot be listed: see tests/writing/children.rs",
    ),
    (
        "checkpoint: image.children-unknown",
        "needs a folder that cannot be listed: see tests/writing/children.rs",
    ),
    ("checkpoint: create.file", "needs a folder that cannot be written to"),
    ("op.remove", "needs a folder that cannot be written to: see tests/writing/children.rs"),
    ("merge.not-removed", "needs a file that cannot be removed: see tests/writing/children.rs"),
    ("revert.kept", "needs a file that cannot be removed: see tests/writing/children.rs"),
    ("delete.kept", "needs a file that cannot be removed: see tests/writing/children.rs"),
    ("point.gone", "needs a chain that changes while the program runs"),
    (
        "delete: kind has-children",
        "needs a child that appears while the program runs: forks are found before",
    ),
    ("create.parent-path", "on Unix, every file has a path from every folder"),
    ("export.room", "needs a full file system"),
    ("kind no-space", "needs a full file system"),
    ("kind poisoned", "needs a host that fails during a flush"),
    ("raw.*", "needs a host that fails while it is read"),
    ("tree: exit 3", "needs a host that fails"),
    ("relink: exit 3", "needs a host that fails"),
    ("man: exit 3", "needs a host that fails"),
    ("completions: exit 3", "needs a host that fails; standard output has a row"),
    ("kind parent-required", "the program opens whole chains only"),
    ("exit 4", "every kind of damage has a row"),
    ("exit 5", "every error about parents has a row"),
];

/// A situation that a row applies to.
pub struct Case {
    pub row: &'static str,
    /// Makes the files.
    pub set_up: fn(&Folder),
    /// The arguments.
    pub typed: &'static str,
    pub exit: i32,
    /// The user's values for placeholders in suggested commands.
    pub filled: &'static [(&'static str, &'static str)],
    /// A prefix of the shell command that provokes the failure.
    pub under: &'static str,
    /// A file that another program has open.
    pub held: Option<&'static str>,
    /// What the user does before the suggested command.
    pub first: fn(&Folder),
}

fn case(row: &'static str, exit: i32, set_up: fn(&Folder), typed: &'static str) -> Case {
    let nothing = |_: &Folder| {};
    let (filled, under, held) = (&[][..], "", None);
    Case { row, set_up, typed, exit, filled, under, held, first: nothing }
}

impl Case {
    fn filled(self, filled: &'static [(&'static str, &'static str)]) -> Self {
        Self { filled, ..self }
    }

    fn under(self, under: &'static str) -> Self {
        Self { under, ..self }
    }

    fn held(self, file: &'static str) -> Self {
        Self { held: Some(file), ..self }
    }

    fn first(self, first: fn(&Folder)) -> Self {
        Self { first, ..self }
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = asked();
    cases.extend(parents());
    cases.extend(operations());
    cases.extend(files());
    cases.extend(inside());
    cases
}

/// Files inside disks.
fn inside() -> Vec<Case> {
    let with_files: fn(&Folder) = |folder| folder.with_files("pc.vhdx");
    vec![
        case("files.volume-unknown", 2, with_files, "cat pc.vhdx -p 7 notes.txt"),
        case("files.volume-ambiguous", 2, two_volumes, "ls pc.vhdx").filled(&[("VOLUME", "1")]),
        case("files.not-found", 2, with_files, "cat pc.vhdx nothing.txt"),
        case("files.*", 2, with_files, "cat pc.vhdx logs"),
        case("files.*", 7, |folder| of_bytes(folder, vec![0; 1 << 20]), "ls pc.vhdx"),
        case("fat.*", 4, without_clusters, "cat pc.vhdx logs/today.txt"),
        case("ext.*", 4, |folder| of_bytes(folder, with(1080, b"\x53\xEF")), "ls pc.vhdx"),
        case("ntfs.*", 4, |folder| of_bytes(folder, with(3, b"NTFS    ")), "ls pc.vhdx"),
        case("cp.folder", 2, with_files, "cp pc.vhdx logs out"),
        case("cp.not-folder", 2, with_files, "cp pc.vhdx notes.txt notes.txt out")
            .filled(&[("DIR", "folder")]),
        case("cp.write", 3, with_files, "cp pc.vhdx notes.txt no/such/folder/x"),
    ]
}

/// A disk of these bytes as `pc.vhdx`.
fn of_bytes(folder: &Folder, bytes: Vec<u8>) {
    fs::write(folder.file("pc.raw"), bytes).unwrap();
    folder.run("convert -f raw pc.raw -O vhdx pc.vhdx").expect(0);
}

/// A disk of zeros with a few bytes in one place.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[at..at + bytes.len()].copy_from_slice(bytes);
    disk
}

/// A disk with two partitions of an MBR.
fn two_volumes(folder: &Folder) {
    let volume = volume();
    let mut disk = vec![0; (1 << 20) + 2 * volume.len()];
    for n in 0..2 {
        let start = (1 << 20) + n * volume.len();
        disk[start..start + volume.len()].copy_from_slice(&volume);
        let record = 446 + 16 * n;
        disk[record + 4] = 0x0C;
        disk[record + 8..record + 12].copy_from_slice(&((start / 512) as u32).to_le_bytes());
        disk[record + 12..record + 16]
            .copy_from_slice(&((volume.len() / 512) as u32).to_le_bytes());
    }
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    of_bytes(folder, disk);
}

/// A FAT volume whose tables say that no cluster is in use.
fn without_clusters(folder: &Folder) {
    let mut volume = volume();
    let u16_at =
        |bytes: &[u8], at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (start, len) = (512 * u16_at(&volume, 14), 512 * u16_at(&volume, 22));
    volume[start + 4..start + len].fill(0);
    of_bytes(folder, volume);
}

fn asked() -> Vec<Case> {
    vec![
        case(
            "create.metadata",
            7,
            of_chain,
            "create c.avhdx --parent l2.vhdx --absolute-win32-path LONG",
        ),
        case("file.folder", 4, of_chain, "info ."),
        case("file.folder", 2, of_chain, "read . -f raw --length 1"),
        case("file.open", 3, of_chain, "info nothing.vhdx"),
        case("file.open", 3, of_chain, "info no/folder/x.vhdx"),
        case(
            "file.vhd-set",
            7,
            |f| {
                of_chain(f);
                fs::write(f.file("set.vhds"), "").unwrap();
            },
            "info set.vhds",
        ),
        case(
            "file.not-regular",
            4,
            |f| {
                of_chain(f);
                make_fifo(&f.file("pipe.vhdx"));
            },
            "info pipe.vhdx",
        ),
        case(
            "file.not-regular",
            4,
            |f| {
                of_chain(f);
                make_fifo(&f.file("pipe.vhdx"));
            },
            "reparent pipe.vhdx --onto l1.vhdx",
        ),
        case("file.folder", 4, of_chain, "reparent . --onto l1.vhdx"),
        case("forest.place", 3, of_chain, "tree nothing"),
        case("stdout.done", 3, of_chain, "create b.vhdx --size 4M >/dev/full"),
        case("create.exists", 7, of_chain, "checkpoint l2.vhdx --path l0.vhdx").filled(OUT),
        case("diff.one-image", 2, of_chain, "diff l2.vhdx")
            .filled(&[("OTHER", "l0.vhdx")]),
        case(
            "metadata.no-item",
            2,
            of_chain,
            "metadata l2.vhdx 5ac1c0de-0000-4000-8000-000000000001 --delete",
        ),
        case("metadata.edit-sector", 2, of_chain, "metadata l2.vhdx --physical-sector 1K"),
        case(
            "metadata.item-size",
            2,
            of_chain,
            "metadata l2.vhdx 5ac1c0de-0000-4000-8000-000000000001 --write",
        )
        .under("head -c 2M /dev/zero |"),
        case(
            "metadata.mark",
            2,
            of_chain,
            "metadata l2.vhdx 21898540-3963-47d4-a9ed-35ef1adeb3c0 --write",
        ),
        case(
            "metadata.format-item",
            2,
            of_chain,
            "metadata l2.vhdx 2FA54224-CD1B-4876-B211-5DBED83BF4B8 --write",
        ),
        case("man.verb", 2, of_chain, "man frobnicate"),
        case(
            "point.ambiguous",
            2,
            |f| {
                of_chain(f);
                f.run("checkpoint l2.vhdx --label x --path a.avhdx").expect(0);
                f.run("checkpoint a.avhdx --label x --path b.avhdx").expect(0);
            },
            "read b.avhdx@x --length 1",
        ),
        case("point.unknown", 2, of_chain, "read l2.vhdx@nobody --length 1"),
        case("point.below-tip", 7, of_chain, "write l2.vhdx@-1 --offset 0")
            .filled(&[("CHILD", "c.avhdx")]),
        case("output.exists", 7, of_chain, "convert l0.vhdx -O vhdx l2.vhdx"),
        case("output.is-input", 7, of_chain, "convert l0.vhdx -O vhdx l0.vhdx --overwrite")
            .filled(OUT),
        case(
            "output.link",
            7,
            |f| {
                of_chain(f);
                std::os::unix::fs::symlink("nowhere", f.file("link")).unwrap();
            },
            "convert l0.vhdx -O raw link",
        )
        .filled(OUT),
        case(
            "convert: kind has-children",
            7,
            of_chain,
            "convert l0.vhdx -O vhdx l1.vhdx --overwrite",
        )
        .filled(OUT),
        case("flatten: kind has-children", 7, of_chain, "flatten l0.vhdx l1.vhdx --overwrite")
            .filled(OUT),
        case("create: kind has-children", 7, of_chain, "create l1.vhdx --size 4M --overwrite")
            .filled(OUT),
        case("output.is-source", 7, of_chain, "convert l2.vhdx -O raw - >>l0.vhdx").filled(OUT),
        case(
            "parent.astray",
            7,
            |f| _ = chain()[0].write_to(f.file(r"a\b.vhdx")),
            r"create c.avhdx --parent 'a\b.vhdx'",
        ),
        case("convert: output.not-a-file", 7, of_chain, "convert l0.vhdx -O raw .").filled(OUT),
        case("output.ending", 2, of_chain, "convert l0.vhdx -O raw new.vhdx").filled(OUT),
        case("output.no-writer", 2, of_chain, "convert l2.vhdx new.qcow2").filled(OUT),
        case("output.ending", 2, of_chain, "flatten l2.vhdx new.raw").filled(OUT),
        case("exit 2", 2, of_chain, "flatten l2.vhdx -").filled(OUT),
        case("output.no-writer", 2, of_chain, "convert -O raw l2.vhdx its.VMDK").filled(OUT),
        case("output.no-writer", 2, of_chain, "create new.vhd 4M").filled(OUT),
        case("output.no-writer", 2, of_chain, "create new.vhds 4M").filled(OUT),
        case("output.no-writer", 2, of_chain, "create new.qcow2 --parent l2.vhdx").filled(OUT),
        case("output.*", 3, of_chain, "convert l0.vhdx -O raw nowhere/out").filled(OUT),
        case("output.*", 6, of_chain, "convert l0.vhdx -O vhdx l1.vhdx --overwrite")
            .held("l1.vhdx")
            .filled(OUT),
        case("export.write", 3, of_chain, "convert l2.vhdx -O raw out")
            .under("trap '' XFSZ; ulimit -f 64; ")
            .filled(OUT),
        case("import.write", 3, of_chain, "convert -f raw - out.raw")
            .under("trap '' XFSZ; ulimit -f 64; cat l2.vhdx | ")
            .filled(&[("OUT", "made.raw < l0.vhdx")]),
        case("exit 3", 3, of_chain, "flatten l2.vhdx out.vhdx")
            .under("trap '' XFSZ; ulimit -f 64; ")
            .filled(OUT),
        // The input is not to blame.
        case("exit 3", 3, |f| write_disk(&f.file("disk")), "convert -f raw disk out.vhdx")
            .under("trap '' XFSZ; ulimit -f 64; ")
            .filled(OUT),
        case("exit 3", 3, |f| write_disk(&f.file("disk")), "convert -f raw - out.vhdx")
            .under("trap '' XFSZ; ulimit -f 64; cat disk | ")
            .filled(&[("OUT", "made < disk")]),
        case(
            "exit 2",
            2,
            of_chain,
            "convert -f raw - o.raw --size 18446744073709551615 < l0.vhdx",
        ),
        case("exit 2", 2, of_chain, "convert - -"),
        case("exit 2", 2, |f| fs::write(f.file("empty"), "").unwrap(), "convert -f raw empty o.vhdx"),
        case("exit 2", 2, of_chain, "read l2.vhdx --length 7M"),
        case("exit 2", 2, of_chain, "create c.avhdx 1M --parent l2.vhdx"),
        case("exit 2", 2, of_chain, "convert l2.vhdx -O raw out.raw --block 1M"),
        case("exit 2", 2, of_chain, "create c.vhdx 4M --block 3M"),
        case("exit 2", 2, of_chain, "create c.vhdx 65T"),
        case("exit 2", 2, of_chain, "measure l2.vhdx --block-size 3M"),
        case("exit 2", 2, of_chain, "write l2.vhdx --offset 6M < l0.vhdx"),
        case("children.folder", 3, of_chain, "write l2.vhdx --offset 0 --children-in nowhere"),
        case("import.empty", 2, of_chain, "convert -f raw - new.vhdx < /dev/null")
            .filled(&[("IN", "l0.vhdx")]),
        case("exit 2", 2, of_chain, "convert -f raw - new.vhdx --size 512 < l0.vhdx"),
        case("stdin.read", 3, of_chain, "write l2.vhdx --offset 0 < .")
            .filled(&[("IN", "l0.vhdx")]),
        case("stdout.write", 3, of_chain, "read l2.vhdx --length 64K > /dev/full").filled(OUT),
        case("stdout.write", 3, of_chain, "man merge > /dev/full").filled(OUT),
        case("output.*", 3, of_chain, "man --dir nowhere"),
        case("output.*", 7, of_chain, "man --dir l0.vhdx").filled(&[("OUT", ".")]),
        case("output.*", 7, of_chain, "man --dir=l0.vhdx").filled(&[("--dir=OUT", "--dir=.")]),
        case("output.*", 7, of_chain, "create . 4M").filled(OUT),
        case("output.exists", 7, |f| fs::write(f.file("avhdx.1"), "a note").unwrap(), "man --dir ."),
        case("create.exists", 7, of_chain, "checkpoint l2.vhdx --path=l0.vhdx").filled(OUT),
        case("log.write", 3, of_chain, "write l2.vhdx --offset 5M < data")
            .under("head -c 512 l0.vhdx > data; trap '' XFSZ; ulimit -f 1; "),
        case("exit 3", 3, of_chain, "write l2.vhdx --offset 5M < data").under(
            "head -c 512 l0.vhdx > data; trap '' XFSZ; ulimit -f $(($(stat -c %s l2.vhdx) / 1024)); ",
        ),
        case("create: exit 3", 3, of_chain, "create big.vhdx 64M --fixed")
            .under("trap '' XFSZ; ulimit -f 64; ")
            .filled(OUT),
        case("exit 6", 6, |f| write_disk(&f.file("disk")), "read disk -f raw --length 512")
            .held("disk"),
    ]
}

fn parents() -> Vec<Case> {
    let read = "read l2.vhdx --length 6M";
    let parent = &[("PARENT", "kept.vhdx"), ("DIR", "elsewhere")][..];
    vec![
        case(
            "kind parent-missing",
            5,
            |f| keep_base(f, |path| fs::remove_file(path).unwrap()),
            read,
        )
        .filled(parent),
        case(
            "rebase: kind parent-missing",
            5,
            |f| keep_base(f, |path| fs::remove_file(path).unwrap()),
            "rebase l1.vhdx --onto kept.vhdx",
        )
        .filled(parent),
        case("kind parent-mismatch", 5, other_base, read).filled(parent),
        // A verb without --ignore-id-mismatch, and a parent that cannot be used.
        case("kind parent-mismatch", 5, other_base, "write l2.vhdx --offset 0").filled(parent),
        case(
            "kind parent-mismatch",
            5,
            |f| {
                keep_base(f, |path| {
                    let mut base = chain().remove(0);
                    base.set_data_write_guid(guid(9));
                    base.logical_sector = 4096;
                    base.write_to(path);
                })
            },
            read,
        )
        .filled(parent),
        case(
            "kind parent-denied",
            5,
            |f| {
                fs::create_dir(f.file("in")).unwrap();
                let mut images = chain();
                images[0].write_to(f.file("outside.vhdx"));
                images[1].parent_path(r"..\outside.vhdx");
                images[1].write_to(f.file("in/l1.vhdx"));
            },
            "read in/l1.vhdx --length 1 --confine in",
        )
        .filled(&[("DIR", ".")]),
        case(
            "parent.leads-away",
            5,
            |f| {
                let mut images = chain();
                fs::create_dir(f.file("elsewhere")).unwrap();
                images[0].write_to(f.file("elsewhere/l0.vhdx"));
                images[1].parent_path(r"\\server\share\l0.vhdx");
                images[1].write_to(f.file("l1.vhdx"));
            },
            "read l1.vhdx --length 1",
        )
        .filled(parent),
        case(
            "parent: file.folder",
            4,
            |f| {
                keep_base(f, |path| {
                    fs::remove_file(path).unwrap();
                    fs::create_dir(path).unwrap();
                })
            },
            read,
        )
        .filled(parent),
        case("parent: foreign.*", 4, |f| keep_base(f, |path| fs::write(path, "").unwrap()), read)
            .filled(parent),
        case(
            "parent: foreign.*",
            4,
            |f| keep_base(f, |path| fs::write(path, b"QFI\xfb\0\0\0\x03").unwrap()),
            read,
        )
        .filled(parent),
        case(
            "parent: kind not-vhdx",
            4,
            |f| keep_base(f, |path| fs::write(path, b"\x01\x02\x03").unwrap()),
            read,
        )
        .filled(parent),
        case(
            "parent: kind damaged",
            4,
            |f| {
                keep_base(f, |path| {
                    let bytes = fs::read(path).unwrap();
                    fs::write(path, &bytes[..100 << 10]).unwrap();
                })
            },
            read,
        )
        .filled(parent),
        case(
            "parent: kind damaged",
            4,
            |f| {
                keep_base(f, |path| {
                    let bytes = fs::read(path).unwrap();
                    fs::write(path, &bytes[..2 << 20]).unwrap();
                })
            },
            read,
        )
        .filled(parent),
        case(
            "parent: kind unsupported",
            7,
            |f| {
                keep_base(f, |path| {
                    let mut base = chain().remove(0);
                    base.headers.iter_mut().flatten().for_each(|header| header.version = 2);
                    base.write_to(path);
                })
            },
            read,
        )
        .filled(parent),
        case(
            "chain.loop",
            4,
            |f| {
                let mut images = chain();
                images[1].locator.set("parent_linkage", format!("{{{}}}", guid(2)));
                write_chain(f.path(), &images);
                images[1].parent_path(r".\l2.vhdx");
                images[1].write_to(f.file("l1.vhdx"));
            },
            read,
        ),
        case(
            "chain.sector-size",
            4,
            |f| {
                let mut images = chain();
                images[0].logical_sector = 4096;
                write_chain(f.path(), &images);
            },
            read,
        ),
        case("limit.depth", 7, of_chain, "read l2.vhdx --length 1 --max-depth 2"),
        case("limit.open-files", 3, of_deep_chain, "read l29.vhdx --length 1")
            .under("ulimit -n 16; "),
        case(
            "locator.*",
            4,
            |f| {
                let mut images = chain();
                images[1].locator.set("parent_linkage", guid(0).to_string());
                write_chain(f.path(), &images);
            },
            read,
        )
        .filled(&[("PARENT", "l0.vhdx")]),
        case(
            "locator.*",
            7,
            |f| {
                let mut images = chain();
                images[1].locator.kind = uuid::Uuid::from_u128(7);
                write_chain(f.path(), &images);
            },
            "write l2.vhdx --offset 0",
        )
        .filled(&[("PARENT", "l0.vhdx")]),
        case(
            "reparent: locator.*",
            4,
            |f| {
                let mut images = chain();
                images[1].locator.remove("parent_linkage");
                write_chain(f.path(), &images);
            },
            "reparent l1.vhdx --onto l0.vhdx",
        ),
        case("relink.*", 7, |f| keep_base(f, |path| fs::remove_file(path).unwrap()), "relink .")
            .filled(&[("DIR", "elsewhere")])
            .first(|f| {
                // With several candidates, none is chosen.
                fs::remove_file(f.file("kept.vhdx")).unwrap();
            }),
    ]
}

fn operations() -> Vec<Case> {
    vec![
        case(
            "reparent.differs",
            7,
            |f| {
                of_chain(f);
                let mut other = chain().remove(0);
                other.set_data_write_guid(guid(9));
                other.put(0, Block::full(Data::Pattern(77)));
                other.write_to(f.file("other.vhdx"));
            },
            "reparent l1.vhdx --onto other.vhdx",
        ),
        case(
            "reparent: kind has-children",
            7,
            |f| {
                of_chain(f);
                let mut other = chain().remove(0);
                other.set_data_write_guid(guid(9));
                other.put(0, Block::full(Data::Pattern(77)));
                other.write_to(f.file("other.vhdx"));
            },
            "reparent l1.vhdx --onto other.vhdx --unproven",
        ),
        case(
            "merge.child-missing",
            5,
            |f| {
                of_merge(f);
                fs::create_dir(f.file("elsewhere")).unwrap();
                for name in ["l1.vhdx", "l2.vhdx"] {
                    fs::rename(f.file(name), f.file("elsewhere").join(name)).unwrap();
                }
            },
            "merge --resume l0.vhdx --parent-dir .",
        )
        .filled(&[("DIR", "elsewhere")]),
        case(
            "reparent.parent-lost",
            7,
            |f| keep_base(f, |path| fs::remove_file(path).unwrap()),
            "reparent l1.vhdx --onto kept.vhdx",
        ),
        case(
            "link.unfinished",
            7,
            |f| {
                of_merge(f);
                let mut other = chain().remove(0);
                other.set_data_write_guid(guid(9));
                other.write_to(f.file("other.vhdx"));
            },
            "reparent l1.vhdx --onto other.vhdx",
        ),
        case("link.*", 2, of_chain, "reparent l1.vhdx --onto l2.vhdx"),
        case("link.*", 2, of_chain, "rebase l1.vhdx --onto l2.vhdx"),
        case("link.*", 2, of_chain, "reparent l1.vhdx --onto l1.vhdx"),
        case("link.*", 2, of_chain, "rebase l0.vhdx --onto l1.vhdx"),
        case("provision.differencing", 2, of_chain, "metadata l2.vhdx --fixed").filled(OUT),
        case("exit 2", 2, of_chain, "rebase -u l1.vhdx --onto l0.vhdx"),
        case("exit 2", 2, of_chain, "delete l2.vhdx@-0"),
        case("exit 2", 2, of_chain, "delete l2.vhdx@base --subtree"),
        case(
            "exit 7",
            7,
            |f| {
                of_chain(f);
                f.run("create other.avhdx --parent l1.vhdx").expect(0);
            },
            "delete l2.vhdx@-1",
        ),
        case("kind in-use", 6, of_chain, "read l2.vhdx --length 1").held("l2.vhdx"),
        case("kind in-use", 6, of_chain, "merge l2.vhdx").held("l1.vhdx").filled(OUT),
        case("kind in-use", 6, of_chain, "map l2.vhdx").held("l0.vhdx"),
        case("kind has-children", 7, of_chain, "write l1.vhdx --offset 0")
            .filled(&[("CHILD", "c.avhdx")]),
        case("point.none", 2, of_chain, "revert l2.vhdx"),
        case("revert.newest", 2, of_chain, "revert l2.vhdx@-0"),
        case("resize.cuts", 7, of_chain, "resize l2.vhdx 3M"),
        case("resize.cuts", 7, of_chain, "resize l2.vhdx -3M"),
        case("exit 2", 2, of_chain, "resize l2.vhdx 1000"),
        case("exit 2", 2, of_chain, "resize l2.vhdx -6M"),
        case("kind has-children", 7, of_chain, "resize l1.vhdx +1M")
            .filled(&[("CHILD", "c.avhdx")]),
        case("resize.gpt", 7, of_gpt, "resize a.vhdx 3M"),
        case("exit 7", 7, of_gpt, "resize a.vhdx 1M --fix-gpt"),
        case(
            "exit 7",
            7,
            |f| {
                of_gpt(f);
                f.run_with("write a.vhdx --offset 600", b"x").expect(0);
            },
            "resize a.vhdx 3M --fix-gpt",
        ),
        case(
            "exit 7",
            7,
            |f| {
                of_gpt(f);
                f.run_with("write a.vhdx --offset 466", b"x").expect(0);
            },
            "resize a.vhdx 3M --fix-gpt",
        ),
        case(
            "exit 2",
            2,
            |f| {
                of_chain(f);
                f.run("create empty.vhdx 1M").expect(0);
            },
            "resize empty.vhdx --to-fit",
        ),
        case(
            "merge: kind has-children",
            7,
            |f| {
                of_chain(f);
                f.run("create other.avhdx --parent l1.vhdx").expect(0);
            },
            "merge l2.vhdx@-1",
        ),
        case(
            "merge.children-unknown",
            7,
            |f| {
                of_chain(f);
                std::os::unix::fs::symlink("odd.vhdx", f.file("odd.vhdx")).unwrap();
            },
            "merge l2.vhdx@-1",
        ),
        case(
            "merge.shrinks",
            7,
            |f| {
                let mut base = Image::dynamic(8 << 20);
                base.put(6, Block::full(Data::Pattern(3)));
                let mut small = Image::child(5 << 20, base.data_write_guid());
                small.parent_path(r".\base.vhdx");
                base.write_to(f.file("base.vhdx"));
                small.write_to(f.file("small.avhdx"));
            },
            "merge small.avhdx",
        ),
        case("delete.branch", 7, of_chain, "delete l2.vhdx@-0 --subtree"),
        case(
            "delete.children-unknown",
            7,
            |f| {
                of_chain(f);
                let mut image = vec![0; 4 << 20];
                image[..8].copy_from_slice(b"vhdxfile");
                fs::write(f.file("broken.avhdx"), image).unwrap();
            },
            "delete l2.vhdx@-0 --subtree --lose-branch",
        ),
        case(
            "delete.copies",
            7,
            |f| {
                of_chain(f);
                fs::copy(f.file("l1.vhdx"), f.file("copy.vhdx")).unwrap();
            },
            "delete l2.vhdx@-1 --subtree --lose-branch",
        ),
        case("label.frozen", 7, of_chain, "label l2.vhdx@-2 older"),
        case("label.tip", 2, of_chain, "label l2.vhdx@-0 now"),
        case("compact: kind has-children", 7, of_chain, "compact l1.vhdx"),
        case("compact.below-tip", 7, of_chain, "compact l2.vhdx@-1"),
        case(
            "compact.fixed",
            2,
            |f| fs::write(f.file("fixed.vhdx"), Image::fixed(2 << 20).to_bytes()).unwrap(),
            "compact fixed.vhdx",
        )
        .filled(&[("OUT", "dynamic.vhdx")]),
        case("merge.no-parent", 2, of_chain, "merge l2.vhdx@base"),
        case("merge.not-begun", 2, of_chain, "merge --resume l2.vhdx"),
        case(
            "kind merged",
            7,
            |f| {
                let mut images = chain();
                mark(&mut images[2], 2, guid(1), "l1.vhdx");
                write_chain(f.path(), &images);
            },
            "read l2.vhdx --length 1",
        ),
        case("kind unfinished", 7, of_merge, "read l0.vhdx --length 1"),
        case("kind unfinished", 7, of_tip_merge, "resize l1.vhdx +1M"),
    ]
}

fn files() -> Vec<Case> {
    let mut cases = vec![
        case(
            "log.no-entries",
            4,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.set_log_guid(guid(8));
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1",
        ),
        case(
            "log.pending",
            7,
            |f| {
                dirty().write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1 --log refuse",
        ),
        case(
            "kind log-overlay",
            7,
            |f| {
                let mut image = dirty();
                let payload = image.layout().payload[&0];
                image.log[0].descriptors.push(Descriptor::data(payload, vec![1; 4096]));
                image.write_to(f.file("a.vhdx"));
            },
            "map a.vhdx",
        )
        .filled(OUT),
        case(
            "log.*",
            4,
            |f| {
                let mut image = dirty();
                image.log[0].flushed_file_offset = Some(1 << 40);
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1",
        ),
        case(
            "limit.header-sequence",
            7,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                let headers = image.headers.iter_mut().flatten();
                headers.zip([u64::MAX - 1, u64::MAX]).for_each(|(h, n)| h.sequence_number = n);
                image.write_to(f.file("a.vhdx"));
            },
            "write a.vhdx --offset 0",
        )
        .filled(OUT),
        case(
            "limit.log-changes",
            7,
            |f| {
                let mut image = Image::dynamic(1 << 20);
                image.log_length = 64 << 20;
                image.metadata_offset = 65 << 20;
                image.bat_offset = 66 << 20;
                image.set_log_guid(guid(8));
                let spare = image.layout().needed_length;
                let count = u64::from(image.log_length) / 32 - 2;
                let zeros = (0..count).map(|n| Descriptor::zero(spare + n * 8192, 4096)).collect();
                image.log = vec![LogEntry::new(7, zeros)];
                image.file_length = Some(spare);
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1",
        ),
        case(
            "claim.*",
            4,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.put(3, Block::full(Data::Pattern(1)));
                image.file_length = Some(image.layout().needed_length - (1 << 20));
                image.write_to(f.file("a.vhdx"));
            },
            "zero a.vhdx --offset 3M --length 512",
        ),
        case(
            "loss.report",
            3,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.put(3, Block::full(Data::Pattern(1)));
                image.file_length = Some(image.layout().needed_length - (1 << 20));
                image.write_to(f.file("a.vhdx"));
                fs::write(f.file("list"), "").unwrap();
            },
            "zero a.vhdx --offset 0 --length 512 --accept-loss --loss-report list",
        )
        .filled(&[("LIST", "other")]),
        case(
            "kind damaged",
            4,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.bat_override.insert(3, 4);
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 4M",
        ),
        case(
            "kind unsupported",
            7,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.headers.iter_mut().flatten().for_each(|header| header.version = 2);
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1",
        ),
        case(
            "kind unsupported",
            7,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.add_region(uuid::Uuid::from_u128(77), true, vec![1]);
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1",
        ),
        case(
            "kind not-vhdx",
            4,
            |f| fs::write(f.file("a.vhdx"), b"\x01\x02\x03").unwrap(),
            "info a.vhdx",
        ),
        case(
            "kind not-vhdx",
            4,
            |f| fs::write(f.file("a.vhdx"), "a letter").unwrap(),
            "info a.vhdx",
        ),
        case(
            "foreign.html",
            4,
            |f| fs::write(f.file("a.vhdx"), "\n<!DOCTYPE html>\n<html>").unwrap(),
            "info a.vhdx",
        ),
        case(
            "foreign.zeros",
            4,
            |f| fs::write(f.file("a.vhdx"), [0; 4096]).unwrap(),
            "info a.vhdx",
        ),
        case(
            "foreign.zeros",
            4,
            |f| fs::write(f.file("a.vhdx"), [0; 4096]).unwrap(),
            "read a.vhdx --length 1",
        ),
        case("file.not-regular", 2, |f| make_fifo(&f.file("pipe")), "read pipe -f raw --length 1")
            .filled(OUT_FED),
        case("kind not-vhdx", 4, |f| fs::write(f.file("a.vhdx"), "").unwrap(), "check a.vhdx"),
        case(
            "kind not-vhdx",
            4,
            |f| fs::write(f.file("a.vhdx"), b"MSWIM\0\0\0").unwrap(),
            "info a.vhdx",
        ),
        case(
            "kind not-vhdx",
            4,
            |f| {
                let mut bytes = vec![0; 40_000];
                bytes[32_769..32_774].copy_from_slice(b"CD001");
                fs::write(f.file("a.vhdx"), bytes).unwrap();
            },
            "info a.vhdx",
        ),
        case("foreign.disk", 4, |f| write_disk(&f.file("a.vhdx")), "read a.vhdx --length 512")
            .filled(OUT),
        case("foreign.disk", 4, |f| write_disk(&f.file("a.vhdx")), "check a.vhdx").filled(OUT),
        case(
            "foreign.disk",
            4,
            |f| {
                of_chain(f);
                write_disk(&f.file("a.vhdx"));
            },
            "compare l2.vhdx a.vhdx",
        )
        .filled(OUT),
    ];
    cases.extend(foreign());
    cases
}

/// A row, and the function that sets up its files.
type Made = (&'static str, fn(&Folder));

/// Images of other programs, made by them if they are installed.
fn foreign() -> Vec<Case> {
    let qemu: [Made; 7] = [
        ("foreign.qcow2", |f| by_qemu(f, "qcow2")),
        ("foreign.qcow", |f| by_qemu(f, "qcow")),
        ("foreign.qed", |f| by_qemu(f, "qed")),
        ("foreign.vhd", |f| by_qemu(f, "vpc")),
        ("foreign.vmdk", |f| by_qemu(f, "vmdk")),
        ("foreign.vdi", |f| by_qemu(f, "vdi")),
        ("foreign.parallels", |f| by_qemu(f, "parallels")),
    ];
    let packers: [Made; 7] = [
        ("foreign.gzip", |f| pack(f, "gzip -c l0.vhdx > a.vhdx")),
        ("foreign.xz", |f| pack(f, "xz -c l0.vhdx > a.vhdx")),
        ("foreign.zstd", |f| pack(f, "zstd -qc l0.vhdx > a.vhdx")),
        ("foreign.bzip2", |f| pack(f, "bzip2 -c l0.vhdx > a.vhdx")),
        ("foreign.zip", |f| pack(f, "zip -q a.zip l0.vhdx && mv a.zip a.vhdx")),
        ("foreign.7z", |f| pack(f, "7z a a.7z l0.vhdx > /dev/null && mv a.7z a.vhdx")),
        ("foreign.tar", |f| pack(f, "tar -cf a.vhdx l0.vhdx")),
    ];
    let mut cases: Vec<Case> = qemu
        .into_iter()
        .chain(packers)
        .map(|(row, set_up)| case(row, 4, set_up, "info a.vhdx").filled(OUT))
        .collect();
    cases.push(
        case(
            "foreign.vmdk-text",
            4,
            |f| {
                let options = "-f vmdk -o subformat=monolithicFlat a.vmdk 1M";
                shell(f, &format!("qemu-img create -q {options} && mv a.vmdk a.vhdx"));
            },
            "info a.vhdx",
        )
        .filled(OUT),
    );
    cases
}

const OUT: &[(&str, &str)] =
    &[("OUT", "made"), ("OUT.raw", "made.raw"), ("OUT.vhdx", "made.vhdx"), ("-oOUT", "-omade")];

/// As [`OUT`], with something to read at the other end of the FIFO.
const OUT_FED: &[(&str, &str)] =
    &[("OUT", "made.raw"), ("pipe", "pipe & printf x > pipe; wait $!")];

fn make_fifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

fn of_chain(folder: &Folder) {
    write_chain(folder.path(), &chain());
}

fn of_deep_chain(folder: &Folder) {
    let mut images = vec![chain().remove(0)];
    for n in 1..30 {
        let mut child = images[n - 1].new_child();
        child.reseed(n as u64);
        images.push(child);
    }
    write_chain(folder.path(), &images);
}

/// The chain with a copy of its base under another name, and the base damaged.
fn keep_base(folder: &Folder, harm: impl FnOnce(&Path)) {
    of_chain(folder);
    fs::create_dir(folder.file("elsewhere")).unwrap();
    fs::copy(folder.file("l0.vhdx"), folder.file("kept.vhdx")).unwrap();
    fs::copy(folder.file("l0.vhdx"), folder.file("elsewhere/base.vhdx")).unwrap();
    harm(&folder.file("l0.vhdx"));
}

fn other_base(folder: &Folder) {
    keep_base(folder, |path| {
        let mut base = chain().remove(0);
        base.set_data_write_guid(guid(9));
        base.write_to(path);
    });
}

/// The chain with an unfinished merge of its second layer into the first.
fn of_merge(folder: &Folder) {
    let mut images = chain();
    mark(&mut images[0], 3, guid(1), "l1.vhdx");
    mark(&mut images[1], 1, guid(0), "l0.vhdx");
    write_chain(folder.path(), &images);
}

/// The same, without a layer above it.
fn of_tip_merge(folder: &Folder) {
    of_merge(folder);
    fs::remove_file(folder.file("l2.vhdx")).unwrap();
}

/// An image with a GPT, as `sgdisk` makes it; none where that is not installed.
fn of_gpt(folder: &Folder) {
    fs::write(folder.file("disk.raw"), vec![0; 4 << 20]).unwrap();
    let made = shell(
        folder,
        "PATH=$PATH:/usr/sbin:/sbin sgdisk -a 1 -n 1:2048:3000 disk.raw && avhdx convert -f raw disk.raw a.vhdx",
    );
    assert!(made.code == Some(0) || !folder.file("a.vhdx").exists(), "{}", made.stderr);
}

/// An image with a pending log that adds its second block.
fn dirty() -> Image {
    let mut before = Image::dynamic(4 << 20);
    name(&mut before, 5);
    before.put(0, Block::full(Data::Pattern(5)));
    let mut after = before.clone();
    after.put(1, Block::full(Data::Pattern(6)));
    Image::dirty(&before, &after, guid(8), 10)
}

/// A raw disk with a partition table.
fn write_disk(path: &Path) {
    let mut bytes = vec![0; 1 << 20];
    bytes[446] = 0x80;
    bytes[450] = 7;
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    fs::write(path, bytes).unwrap();
}

fn by_qemu(folder: &Folder, format: &str) {
    shell(folder, &format!("qemu-img create -q -f {format} a.vhdx 1M"));
}

fn pack(folder: &Folder, line: &str) {
    of_chain(folder);
    if missing_tool(line).is_none() {
        shell(folder, line);
    }
    // The suggested command must restore the image.
    if folder.file("a.vhdx").metadata().is_ok_and(|made| made.len() == 0) {
        fs::remove_file(folder.file("a.vhdx")).unwrap();
    }
}
