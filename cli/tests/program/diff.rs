//! `avhdx diff`, and what `compare` says of the same disks.

use std::fs;

use avhdx_testkit::build::write_chain;
use serde_json::{Value, json};

use crate::common::{Folder, chain, flats};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_was_written_between_two_points_is_listed() {
    let folder = Folder::with_chain();
    let run = folder.run("diff l2.vhdx@base l2.vhdx@-1").expect(0);
    assert_eq!(run.text(), " OFFSET   LENGTH\n   4096     8192\n1 range: 8192 bytes (8 KiB)\n");
    // The tip has another size. What is past the end of the smaller disk differs, and joins what comes before.
    let sizes = "Their sizes differ: 4194304 bytes (4 MiB) and 6291456 bytes (6 MiB).\n";
    let run = folder.run("diff l2.vhdx@-1").expect(0);
    let expected = " OFFSET   LENGTH\n2097152  4194304\n1 range: 4194304 bytes (4 MiB)\n";
    assert_eq!(run.text(), expected.to_owned() + sizes);
    let run = folder.run("diff l2.vhdx@base").expect(0);
    let expected =
        " OFFSET   LENGTH\n   4096     8192\n2097152  4194304\n2 ranges: 4202496 bytes (4.0 MiB)\n";
    assert_eq!(run.text(), expected.to_owned() + sizes);
    assert!(!run.stderr.contains("in common"), "{}", run.stderr);

    let run = folder.run("diff l2.vhdx@-1 l1.vhdx").expect(0);
    assert_eq!(run.text(), " OFFSET   LENGTH\n0 ranges: 0 bytes\n");
    folder.run("compare l2.vhdx@-1 l1.vhdx").expect(0);
}

#[test]
fn json_has_a_line_for_each_range_and_one_for_the_totals() {
    let folder = Folder::with_chain();
    let run = folder.run("diff l2.vhdx@base l2.vhdx --json --content").expect(0);
    assert_eq!(
        lines(&run.text()),
        [
            json!({ "schema": "avhdx.diff/1", "offset": 4096, "length": 8192 }),
            json!({ "schema": "avhdx.diff/1", "offset": 2_097_152, "length": 4_194_304 }),
            json!({
                "schema": "avhdx.diff-total/1",
                "content": true,
                "ranges": 2,
                "bytes": 4_202_496,
                "a": { "image": "l2.vhdx@base", "virtual_size": 4_194_304 },
                "b": { "image": "l2.vhdx", "virtual_size": 6_291_456 },
            }),
        ]
    );
}

/// Other disks have no layer in common: the tables list all data, the contents tell what differs.
#[test]
fn contents_are_told_apart_where_tables_cannot() {
    let folder = Folder::with_chain();
    let mut bytes = flats()[1].clone();
    fs::write(folder.file("same.raw"), &bytes).unwrap();
    let hint = "--content compares it";
    let run = folder.run("diff l1.vhdx same.raw -F raw").expect(0).says(hint);
    assert!(!run.text().contains("\n0 ranges"), "{}", run.text());
    folder.run("diff l1.vhdx same.raw -F raw -q").expect(0);
    let run = folder.run("diff l1.vhdx same.raw -F raw --content").expect(0);
    assert_eq!(run.text(), " OFFSET   LENGTH\n0 ranges: 0 bytes\n");
    assert!(!run.stderr.contains(hint), "{}", run.stderr);

    bytes[1_000_000] ^= 1;
    bytes[3_000_001] ^= 1;
    fs::write(folder.file("other.raw"), &bytes).unwrap();
    let run = folder.run("diff -f raw other.raw l1.vhdx --content").expect(0);
    let [first, second] = [1_000_000, 3_000_001].map(|at| at / 512 * 512);
    let expected = format!(
        " OFFSET   LENGTH\n{first:>7}  {:>7}\n{second:>7}  {:>7}\n2 ranges: 1024 bytes (1 KiB)\n",
        512, 512
    );
    assert_eq!(run.text(), expected);
    folder.run("compare -f raw other.raw l1.vhdx").expect(1).prints("differ at byte 1000000");

    // A copy of the chain has the same identities in other files.
    fs::create_dir(folder.file("copy")).unwrap();
    write_chain(&folder.file("copy"), &chain());
    folder.run("diff l2.vhdx copy/l2.vhdx").expect(0).says(hint);
    let run = folder.run("diff l2.vhdx copy/l2.vhdx --content").expect(0);
    assert!(run.text().ends_with("\n0 ranges: 0 bytes\n"), "{}", run.text());
}

#[test]
fn one_image_needs_a_point_in_time() {
    let folder = Folder::with_chain();
    for line in ["diff l2.vhdx", "diff l2.vhdx -f raw"] {
        folder.run(line).expect(2).says("A is a point in time (IMAGE@SEL)");
    }
    let error = folder.run("diff l2.vhdx --json").expect(2).error();
    assert_eq!(error["code"], "diff.one-image");
    assert_eq!(error["next"][0], "avhdx points l2.vhdx  # lists the points in time");
    assert_eq!(folder.run("diff l2.vhdx@nobody").expect(2).text(), "");
}

/// What was found before a fault is printed, and the exit code tells of the fault.
#[test]
fn a_fault_in_a_table_ends_the_list() {
    let folder = Folder::new();
    let mut images = chain();
    images[2].put(3, avhdx_testkit::build::Block::bare(4));
    write_chain(folder.path(), &images);
    let run = folder.run("diff l2.vhdx@-1").expect(4);
    assert_eq!(run.text(), " OFFSET   LENGTH\n2097152  1048576\n");
    fs::remove_file(folder.file("l1.vhdx")).unwrap();
    folder.run("diff l2.vhdx l0.vhdx").expect(5);
}
