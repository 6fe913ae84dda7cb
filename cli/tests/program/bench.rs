//! `avhdx bench`: its output, its effects on the image, and interruptions. No test depends on a measured time.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Folder, Run, flats, write_endless};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::naive;
use serde_json::Value;

/// The tip's disk, by an independent reader.
fn flat(folder: &Folder) -> Vec<u8> {
    let layers = ["l0.vhdx", "l1.vhdx", "l2.vhdx"].map(|name| folder.file(name));
    naive::Chain::open(layers).unwrap().flat(2).unwrap()
}

fn bytes_of(folder: &Folder) -> Vec<Vec<u8>> {
    folder.names().iter().map(|name| folder.read(name)).collect()
}

/// The JSON with all measured values replaced.
fn timeless(run: &Run) -> String {
    fn without(value: &mut Value) {
        match value {
            Value::Object(fields) => fields.values_mut().for_each(without),
            Value::Number(number) if number.is_f64() => *value = "TIME".into(),
            _ => {}
        }
    }
    let mut value = run.json();
    without(&mut value);
    format!("{value:#}\n").replace("\"TIME\"", "TIME")
}

#[test]
fn reads_change_nothing_and_are_reported_as_json() {
    let folder = Folder::with_chain();
    let before = bytes_of(&folder);
    let run = folder.run("bench l2.vhdx --reads 7 --seed 3 --budget 1M --json").expect(0);
    assert_eq!(run.stderr, "");
    // 2 MiB of data are in blocks 0 and 3. After the warm-up, every read is answered by the index: once per page, and
    // once per span of a sequential read.
    let expected = r#"{
  "schema": "avhdx.bench/1",
  "image": "l2.vhdx",
  "layer_count": 3,
  "virtual_size": 6291456,
  "searched_bytes": 6291456,
  "data_bytes": 2097152,
  "budget": 1048576,
  "seed": 3,
  "reads": {
    "random_4k": {
      "operations": 7,
      "bytes": 4096,
      "median_us": TIME,
      "mb_per_s": TIME,
      "bare_median_us": TIME,
      "bare_mb_per_s": TIME,
      "ratio": TIME,
      "ratio_low95": null,
      "aa_ratio": TIME,
      "aa_ratio_low95": null
    },
    "sequential_1m": {
      "operations": 7,
      "bytes": 1048576,
      "median_us": TIME,
      "mb_per_s": TIME,
      "bare_median_us": TIME,
      "bare_mb_per_s": TIME,
      "ratio": TIME,
      "ratio_low95": null,
      "aa_ratio": TIME,
      "aa_ratio_low95": null
    },
    "counters": {
      "index_hits": 14,
      "index_misses": 0,
      "table_loads": 0,
      "evictions": 0,
      "flushes": 0,
      "log_bytes": 0
    }
  },
  "writes": null
}
"#;
    assert_eq!(timeless(&run), expected);
    let text = folder.run("bench l2.vhdx --reads 500").expect(0);
    let text =
        text.prints("Benchmark, reads, random 4k\n").prints("Benchmark, reads, sequential 1m\n");
    text.prints("  aa ratio low95  ")
        .prints("Benchmark, reads, counters\n  index hits ")
        .prints("  data bytes      2097152\n");
    folder.run("bench l2.vhdx@-1 --reads 3").expect(0).prints("  layer count     2\n");
    assert!(bytes_of(&folder) == before);
}

#[test]
fn writes_keep_the_content_of_the_disk() {
    let folder = Folder::with_chain();
    let before = bytes_of(&folder);
    let identity = |folder: &Folder| {
        let info = folder.run("info l2.vhdx --json").expect(0).json();
        assert_eq!(info["log"]["state"], "empty");
        info["data_write_guid"].clone()
    };
    let old = identity(&folder);
    let run = folder.run("bench l2.vhdx --write --reads 20 --json").expect(0).says("bench.write");
    let writes = run.json()["writes"].clone();
    assert_eq!(
        (&writes["write_4k"]["operations"], &writes["write_4k_flushed"]["operations"]),
        (&20.into(), &20.into())
    );
    assert_eq!(writes["write_4k"]["bytes"], 4096);
    // Two flushes for the first write of the session, and one for each flushed write. Only payload is written.
    assert_eq!(
        (&writes["counters"]["flushes"], &writes["counters"]["log_bytes"]),
        (&22.into(), &4096.into())
    );
    assert_eq!(run.json()["reads"]["random_4k"]["operations"], 20);
    assert!(flat(&folder) == flats()[2]);
    assert_ne!(identity(&folder), old);
    let after = bytes_of(&folder);
    assert!(after[..2] == before[..2] && after[2] != before[2]);
    assert!(after[2].len() == before[2].len(), "the file does not grow");
    // The image can be selected by the identity that it then loses.
    let old = old.as_str().unwrap().to_owned();
    let now = identity(&folder).as_str().unwrap()[..8].to_owned();
    folder
        .run(&format!("bench l2.vhdx@{now} --write --reads 2"))
        .expect(0)
        .prints("Benchmark, writes, write 4k flushed\n");
    folder.run(&format!("bench l2.vhdx@{} --reads 2", &old[..8])).expect(2);
}

#[test]
fn writes_are_refused_as_for_other_verbs() {
    let folder = Folder::with_chain();
    let before = bytes_of(&folder);
    // A layer below the tip, and an image with a child.
    let run = folder.run("bench l2.vhdx@-1 --write --reads 2 --json").expect(7);
    assert_eq!(run.error()["code"], "point.below-tip");
    let run = folder.run("bench l1.vhdx --write --reads 2 --json").expect(7);
    assert!(run.stdout.is_empty());
    assert_eq!(run.error()["kind"], "has-children");
    for wrong in ["--write --log ignore", "--write --ignore-id-mismatch"] {
        folder.run(&format!("bench l2.vhdx --reads 2 {wrong}")).expect(2);
    }
    assert!(bytes_of(&folder) == before);
}

#[test]
fn wrong_arguments_and_unreadable_chains_are_refused() {
    let folder = Folder::with_chain();
    for wrong in ["--reads 0", "--seconds 0", "--reads 5 --seconds 5", "--budget many"] {
        folder.run(&format!("bench l2.vhdx {wrong}")).expect(2);
    }
    folder.run("bench missing.vhdx").expect(3);
    std::fs::write(folder.file("other"), b"no image").unwrap();
    assert_ne!(folder.run("bench other").code, Some(0));
    std::fs::remove_file(folder.file("l0.vhdx")).unwrap();
    folder.run("bench l2.vhdx").expect(5);
}

#[test]
#[cfg(unix)]
fn an_image_in_use_is_not_measured() {
    let folder = Folder::with_chain();
    let file = std::fs::File::open(folder.file("l2.vhdx")).unwrap();
    file.lock().unwrap();
    folder.run("bench l2.vhdx --reads 2").expect(6);
    file.unlock().unwrap();
    // Another reader does not block reads, only writes.
    file.lock_shared().unwrap();
    folder.run("bench l2.vhdx --reads 2").expect(0);
    folder.run("bench l2.vhdx --write --reads 2").expect(6);
}

#[test]
fn disks_without_data_and_disks_smaller_than_a_page() {
    let folder = Folder::new();
    Image::dynamic(4 << 20).write_to(folder.file("empty.vhdx"));
    let run = folder
        .run("bench empty.vhdx --reads 5 --write --json")
        .expect(0)
        .says("bench.nothing-to-write");
    let reads = &run.json()["reads"];
    assert!(reads["random_4k"].is_null() && reads["sequential_1m"].is_null());
    assert!(run.json()["writes"]["write_4k"].is_null());
    folder.run("bench empty.vhdx --reads 5").expect(0).prints("  random 4k      -\n");

    let mut small = Image::dynamic(1536);
    small.put(0, Block::full(Data::Pattern(1)));
    small.write_to(folder.file("small.vhdx"));
    let run = folder.run("bench small.vhdx --reads 5 --write --json").expect(0);
    assert_eq!(run.json()["reads"]["random_4k"]["bytes"], 1536);
    let disk = folder.run("read small.vhdx --length 1536").expect(0).stdout;
    assert!(disk == small.flat(None));
}

#[test]
#[cfg(unix)]
fn an_interruption_exits_with_130_and_closes_the_image() {
    let folder = Folder::with_chain();
    write_endless(&folder.file("endless.vhdx"));
    for line in ["bench endless.vhdx --seconds 600", "bench l2.vhdx --write --seconds 600 --json"] {
        let mut command = folder.command(line.split(' '));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Waits until the program is measuring: its first write has changed the file, or some time has passed.
        let start = Instant::now();
        let closed = folder.read("l2.vhdx");
        while start.elapsed() < Duration::from_secs(2)
            && !(line.contains("--write") && folder.read("l2.vhdx") != closed)
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        Run::of(child.wait_with_output().unwrap()).expect(130);
    }
    let info = folder.run("info l2.vhdx --json").expect(0).json();
    assert_eq!(info["log"]["state"], "empty");
    assert!(flat(&folder) == flats()[2]);
}
