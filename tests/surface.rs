//! What others depend on: what the crate shows, and what nobody may depend on.

#![allow(clippy::disallowed_methods)]

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use avhdx::ops::{Check, Checkpoint};
use avhdx::{CreateOptions, Error, ErrorKind, Geometry, LayerId, OpenOptions};
use serde_json::{Value, json};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The production files of a folder; those of tests are left out.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut folders = vec![Path::new(ROOT).join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs")
                && !path.ends_with("tests.rs")
            {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// A file without the tests at its end.
fn production(text: &str) -> &str {
    let tests = ["\n#[cfg(test)]\nmod tests {", "\n#[cfg(all(test, not(loom)))]\nmod tests {"];
    let end = tests.iter().filter_map(|tests| text.find(tests)).min();
    &text[..end.unwrap_or(text.len())]
}

#[test]
fn nothing_in_the_library_or_the_program_matches_on_the_text_of_a_message() {
    let files: Vec<_> = ["src", "cli/src"].into_iter().flat_map(sources).collect();
    assert!(files.len() > 100, "{} files", files.len());
    let questions = ["contains(", "starts_with(", "ends_with(", "find(", "split", "strip_", "eq("];
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        for (n, line) in production(&text).lines().enumerate() {
            for (at, _) in line.match_indices("message") {
                let rest = &line[at + "message".len()..];
                let rest = rest.strip_prefix("()").unwrap_or(rest);
                let is_asked = rest.starts_with(" ==")
                    || rest
                        .strip_prefix('.')
                        .is_some_and(|rest| questions.iter().any(|q| rest.starts_with(q)));
                assert!(!is_asked, "{}:{}: {}", path.display(), n + 1, line.trim());
            }
        }
    }
}

#[test]
fn bytes_of_the_format_are_read_and_written_in_its_floor_alone_and_by_one_library() {
    // These pack pages in memory and give the same bytes back, whatever they mean.
    let packers = ["src/tables/page.rs", "src/answers/packed.rs"];
    // A file of this crate alone, and partition tables: each layout is in one source.
    let others = ["src/ops/repair/undo.rs", "src/ops/rescue/partitions.rs"];
    let root = Path::new(ROOT);
    let (mut seen, mut wrong) = (0, Vec::new());
    for path in sources("src") {
        let name = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        let text = std::fs::read_to_string(&path).unwrap();
        let own = ["_le_bytes", "_be_bytes", "_ne_bytes"];
        let of_the_format = ["LittleEndian", "BigEndian", "NativeEndian", "_bytes_le"];
        let (is_format, is_packer) = (name.starts_with("src/format/"), packers.contains(&&*name));
        let is_other = others.contains(&&*name);
        for (n, line) in production(&text).lines().enumerate() {
            let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
            seen += usize::from(is_format && has(&of_the_format));
            if has(&own) && !is_packer || has(&of_the_format) && !is_format && !is_other {
                wrong.push(format!("{name}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 10, "only {seen} uses were seen");
}

#[test]
fn an_error_of_the_host_is_the_source_of_the_error_made_of_it() {
    let error = Error::from(io::Error::from(io::ErrorKind::StorageFull));
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "io"));
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::StorageFull));
    assert_eq!(error.to_string(), "the volume is full: the host failed");
    let locked = Error::from(io::Error::from(io::ErrorKind::ResourceBusy));
    assert_eq!(locked.kind(), ErrorKind::InUse);
}

#[test]
fn an_error_that_passes_through_std_io_is_itself_again() {
    let error = Error::new(ErrorKind::Damaged, "cow.table", "the table is torn");
    let back = Error::from(io::Error::from(error.in_file("disk.cow").at(64)));
    assert_eq!((back.kind(), back.code()), (ErrorKind::Damaged, "cow.table"));
    assert_eq!((back.file(), back.offset()), (Some("disk.cow"), Some(64)));
}

#[test]
fn a_failure_of_another_kind_is_kept_with_its_cause() {
    let error = Error::other("the store is closed").in_file("a").in_file("b");
    assert_eq!((error.kind(), error.code()), (ErrorKind::Other, "other"));
    assert_eq!(error.file(), Some("a"), "the innermost name stays");
    assert_eq!(error.source().unwrap().to_string(), "the store is closed");
}

#[test]
fn a_geometry_refuses_ranges_that_its_disk_does_not_have() {
    let geometry = Geometry::new(1000, 512, 4096);
    for (offset, len) in [(0, 0), (0, 1000), (1000, 0), (999, 1)] {
        geometry.check_range(offset, len).unwrap();
    }
    for (offset, len) in [(1001, 0), (1000, 1), (0, 1001), (1, u64::MAX), (u64::MAX, 2)] {
        let error = geometry.check_range(offset, len).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "disk.out-of-range"));
    }
}

#[test]
fn no_two_layer_ids_are_equal() {
    let (a, b) = (LayerId::unique(), LayerId::unique());
    assert!(a != b && a != LayerId::unique());
}

/// The public types that others can match on or build in full, each with the reason in its docs.
const EXHAUSTIVE: [&str; 9] = [
    "ChangedSource",
    "Extent",
    "Placement",
    "Planned",
    "PlannedFlush",
    "PlannedSource",
    "PlannedWrite",
    "Since",
    "Source",
];

#[test]
fn public_types_may_grow_unless_their_docs_say_why_not() {
    let mut exhaustive = Vec::new();
    for path in sources("src") {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let name =
                |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric()).collect::<String>();
            let fields = || lines[n + 1..].iter().take_while(|line| !line.starts_with('}'));
            let has_public_fields = || fields().any(|line| line.starts_with("    pub "));
            let found = match (line.strip_prefix("pub enum "), line.strip_prefix("pub struct ")) {
                (Some(rest), _) => name(rest),
                (_, Some(rest)) if line.ends_with('{') && has_public_fields() => name(rest),
                _ => continue,
            };
            let above = || lines[..n].iter().rev().take_while(|line| line.starts_with(['#', '/']));
            if !above().any(|line| *line == "#[non_exhaustive]") {
                let docs: Vec<&str> = above().copied().collect();
                let has_reason = docs.iter().any(|line| line.contains("Exhaustive on purpose"));
                assert!(has_reason, "{}: {found}: {docs:?}", path.display());
                exhaustive.push(found);
            }
        }
    }
    exhaustive.sort();
    assert_eq!(exhaustive, EXHAUSTIVE);
}

#[test]
fn facts_are_serialized_by_the_names_of_their_fields() {
    let error = Error::new(ErrorKind::ParentMissing, "x.y", "the parent is gone");
    let error = serde_json::to_value(error.in_file("a").at(7)).unwrap();
    let all = json!({
        "kind": "parent-missing", "code": "x.y", "message": "a: the parent is gone at offset 0x7", "file": "a",
        "child": null, "offset": 7, "found": null, "expected": null, "section": null, "cause": null,
    });
    assert_eq!(error, all);
    let host = Error::from(io::Error::from(io::ErrorKind::StorageFull));
    let cause = io::Error::from(io::ErrorKind::StorageFull).to_string();
    assert_eq!(serde_json::to_value(host).unwrap()["cause"], json!(cause));

    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.vhdx");
    CreateOptions::dynamic(64 << 20).create(&base).unwrap().close().unwrap();
    let chain = OpenOptions::new().writable(true).open(&base).unwrap();
    let tip = folder.path().join("tip.avhdx");
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let taken = Checkpoint::new().label("clean").path(&tip);
    let forecast = serde_json::to_value(taken.forecast(&chain).unwrap()).unwrap();
    assert_eq!(forecast["files"][0]["kind"], json!("created"), "{forecast}");
    assert!(forecast.get("on").is_none() && forecast["peak"].is_u64(), "{forecast}");
    taken.run(&chain).unwrap();

    let points = serde_json::to_value(chain.points()).unwrap();
    let Value::Array(points) = points else { panic!("{points}") };
    assert_eq!(points[0]["path"], json!(tip.display().to_string()));
    assert_eq!((&points[0]["label"], &points[0]["time"]), (&Value::Null, &Value::Null));
    assert_eq!(points[1]["label"], json!("clean"));
    assert!((before..before + 600).contains(&points[1]["time"].as_u64().unwrap()), "{points:?}");
    let layers = serde_json::to_value(chain.layers()).unwrap();
    assert_eq!(layers[1]["id"], points[1]["layer"]);
    assert_eq!(layers[1]["found_by"], json!("relative-path"), "{layers}");
    assert_eq!(layers[1]["geometry"]["size"], json!(64 << 20));
    let image = chain.image(chain.layers()[0].id).unwrap();
    let info = serde_json::to_value(image.info()).unwrap();
    assert_eq!(info["checkpoint"]["label"], json!("clean"));
    assert_eq!(info["headers"][0]["Ok"]["version"], json!(1), "{info}");
    assert_eq!(info["disk_id"], json!(image.info().disk_id.to_string()));
    chain.close().unwrap();
    drop((image, chain));

    let report = Check::new().run(&tip).unwrap();
    let report = serde_json::to_value(report).unwrap();
    assert_eq!(report["layers"][0]["size"], json!(64 << 20));
    for finding in report["findings"].as_array().unwrap() {
        assert!(finding["code"].is_string() && finding["severity"] == "info", "{finding}");
    }
}
