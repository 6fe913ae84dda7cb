//! Situations in which the program fails, at least one for each row of the table.

mod asked;
mod files;
mod inside;
mod operations;
mod parents;
mod reshaping;

use std::fs;
use std::path::Path;

use avhdx_testkit::build::{Block, Data, Image, write_chain};

use crate::common::{Folder, chain, guid, mark, name};

use asked::asked;
use files::files;
use inside::inside;
use operations::operations;
use parents::parents;
use reshaping::reshaping;

/// Rows that these tests cannot provoke, and why.
pub const NOT_PROVOKED: &[(&str, &str)] = &[
    ("cp.terminal", "needs a terminal: see cli/tests/program/screens.rs"),
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
    ("resize.gpt-write", "needs a table that cannot be written as it was read"),
    ("raw.*", "needs a host that fails while it is read"),
    ("tree: exit 3", "needs a host that fails"),
    ("relink: exit 3", "needs a host that fails"),
    ("man: exit 3", "needs a host that fails"),
    ("completions: exit 3", "needs a host that fails; standard output has a row"),
    ("kind parent-required", "the program opens whole chains of VHDX only; VHD has its own row"),
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
    cases.extend(reshaping());
    cases.extend(files());
    cases.extend(inside());
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
