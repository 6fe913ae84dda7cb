//! `avhdx compact`: what it says of each level, and what it refuses.

use avhdx_testkit::build::{Block, Data, Image, write_chain};

use crate::common::Folder;

const MIB: u64 = 1 << 20;

/// A child with a hole in its file, a block of zeros, and one that has 64 sectors from the eighth on.
fn wasteful() -> Folder {
    let folder = Folder::new();
    let base = Image::dynamic(4 * MIB);
    let mut child = base.new_child();
    child.put(0, Block::partial_runs(Data::Pattern(1), &[(8, 64)]));
    child.put(1, Block::full(Data::Pattern(2)));
    child.put(2, Block::full(Data::Zeros));
    child.gap = MIB;
    write_chain(folder.path(), &[base, child]);
    folder
}

/// The tables go at once; what the others take and give is said, and which comes next.
#[cfg(target_os = "linux")]
#[test]
fn plain_compact_says_what_each_level_gives() {
    let folder = wasteful();
    let flat = folder.run("read l1.vhdx").expect(0).stdout;
    // What the partial block does not have; holes between blocks go when the blocks move.
    let gaps = MIB - 64 * 512;
    let reads = "--content reads 3145728 bytes (3 MiB) to find out";
    let run = folder.run("compact l1.vhdx --dry-run").expect(0).prints("would get").prints(reads);
    assert!(!run.text().contains("next is"), "{}", run.text());
    let json = folder.run("compact l1.vhdx --dry-run --json").expect(0).json();
    // The hole between the blocks is one of the host too.
    assert_eq!(json["punchable"], gaps);
    let run = folder.run("compact l1.vhdx").expect(0).prints(" shorter, ").prints(reads);
    run.prints(&format!("  punch     {gaps} bytes (")).prints("--punch gives this back");
    // Nothing is left for the tables.
    let long = folder.read("l1.vhdx").len();
    let run = folder.run("compact l1.vhdx").expect(0);
    run.prints(&format!("stays {long} bytes (")).prints("next is --content");
    let json = folder.run("compact l1.vhdx --json").expect(0).json();
    assert_eq!((&json["punchable"], &json["content"]), (&gaps.into(), &().into()));
    let run = folder.run("compact l1.vhdx --content --json").expect(0);
    assert_eq!((&run.json()["punchable"], &run.json()["content"]), (&().into(), &MIB.into()));
    let run = folder.run("compact l1.vhdx --content").expect(0);
    assert!(!run.text().contains("next is") && !run.text().contains("--punch"), "{}", run.text());
    let json = folder.run("compact l1.vhdx --punch --json").expect(0).json();
    assert_eq!((&json["punched"], &json["punchable"]), (&gaps.into(), &().into()));
    let json = folder.run("compact l1.vhdx --json").expect(0).json();
    assert_eq!(json["punchable"], 0);
    assert!(folder.run("read l1.vhdx").expect(0).stdout == flat);
}

/// Its identity stays: the child is not orphaned, but its parent's file would change under it.
#[test]
fn a_parent_is_refused_in_words_about_its_file() {
    let folder = wasteful();
    let before = folder.read("l0.vhdx");
    for flags in ["", " --dry-run", " --content", " --content --dry-run", " --punch"] {
        let run = folder.run(&format!("compact l0.vhdx{flags}")).expect(7);
        let run = run.says("has a child, under which its file would change").says("l1.vhdx");
        assert!(!run.stderr.contains("orphan"), "{}", run.stderr);
        assert!(run.next()[0].contains("--with-children"), "{:?}", run.next());
    }
    assert!(folder.read("l0.vhdx") == before);
    folder.run("compact l0.vhdx --with-children").expect(0);
    folder.run("check l1.vhdx").expect(0);
}
