//! Files that killed processes leave in a folder: none is treated as an image, and only drafts of this crate that
//! are no longer being written are removed.
#![cfg(unix)]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::meddled::Meddled;
use avhdx::ops::forest::Forest;
use avhdx::ops::{
    Check, Checkpoint, Compact, Merge, Provision, Rebase, Relink, Resize, Revert, clear_drafts,
};
use avhdx::storage::{Draft, Host, LocalHost, LockMode};
use avhdx::{CreateOptions, Disk, ErrorKind, Lock, OpenOptions, PathSource, Warning};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// Tell the killed process its base, its action and the call before which it dies.
const BASE: &str = "AVHDX_LEFT_BASE";
const WHAT: &str = "AVHDX_LEFT_WHAT";
const AT: &str = "AVHDX_LEFT_AT";
/// Digits of temporary names.
const HEX: &str = "0123456789abcdef0123456789abcdef";

fn base(folder: &Path) -> PathBuf {
    let path = folder.join("base.vhdx");
    let base = CreateOptions::dynamic(2 * MIB).block_size(MIB as u32).create(&path).unwrap();
    base.write_at(&[1; 5000], 0).unwrap();
    base.close().unwrap();
    path
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn codes(warnings: &[Warning]) -> Vec<&'static str> {
    let codes = warnings.iter().map(|warning| warning.code);
    codes.filter(|code| code.starts_with("folder.")).collect()
}

/// The process to be killed. Does nothing without its base.
#[test]
fn process_that_is_killed() {
    let (Some(base), Ok(what), Ok(at)) =
        (std::env::var_os(BASE).map(PathBuf::from), std::env::var(WHAT), std::env::var(AT))
    else {
        return;
    };
    let at: usize = at.parse().unwrap();
    let calls = AtomicUsize::new(0);
    let own = Some(base.clone()).filter(|_| !what.starts_with("in place"));
    let host = Meddled::new(move |_, paths| {
        // Calls on the base are not of interest where a child is made.
        if own.as_deref() != Some(paths[0]) && calls.fetch_add(1, Ordering::SeqCst) == at {
            let own = std::process::id().to_string();
            Command::new("kill").args(["-KILL", &own]).status().unwrap();
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
    });
    let host = if what.contains("named") { host.poor() } else { host };
    let host: Arc<dyn Host> = Arc::new(host);
    let child = base.with_file_name("child.avhdx");
    if let Some(operation) = what.strip_prefix("in place: ") {
        in_place(operation, &host, &base);
    } else if what.starts_with("create") {
        let base = OpenOptions::new().open_image(&base).unwrap();
        drop(CreateOptions::child_of(&base).unwrap().create_on(host, child).unwrap());
    } else {
        let chain = OpenOptions::new().host(host).writable(true).open(&base).unwrap();
        let checkpoint = Checkpoint::new().path(child);
        checkpoint.run(&chain).unwrap();
        chain.close().unwrap();
    }
}

/// Kills the process before each of its calls in turn. If the child has its name, it is complete; otherwise the base
/// can be written to as before. Returns how often a draft was removed and how often another file stayed.
fn killed_at_each_call(what: &str) -> (usize, usize) {
    let (mut removed, mut stayed) = (0, 0);
    for at in 0.. {
        let folder = TempDir::new().unwrap();
        let base = base(folder.path());
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["left_overs::process_that_is_killed", "--exact"])
            .env(BASE, &base)
            .env(WHAT, what)
            .env(AT, at.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        if status.success() {
            assert!(at > 10, "{what}: {at} calls");
            break;
        }
        assert_eq!(status.signal(), Some(9), "{what} at {at}");
        let left = names(folder.path());
        if !what.contains("named") {
            assert!(!left.iter().any(|name| name.ends_with(".tmp")), "{what} at {at}: {left:?}");
        }
        let child = folder.path().join("child.avhdx");
        if child.exists() {
            assert!(Check::new().run(&child).unwrap().is_sound(), "{what} at {at}");
            let error = OpenOptions::new().writable(true).open(&base).unwrap_err();
            let is_told = [ErrorKind::HasChildren, ErrorKind::LogPending].contains(&error.kind());
            assert!(is_told, "{what} at {at}: {error}");
            continue;
        }
        let chain = OpenOptions::new().writable(true).open(&base);
        let chain = chain.unwrap_or_else(|error| panic!("{what} at {at}: {error}"));
        let codes = codes(&chain.warnings());
        removed += codes.iter().filter(|code| **code == "folder.draft-removed").count();
        stayed += codes.iter().filter(|code| **code == "folder.left-over").count();
        chain.write_at(&[2; 5000], 3000).unwrap();
        chain.close().unwrap();
        drop(chain);
        // Files that stay are complete images or empty.
        for name in names(folder.path()) {
            let path = folder.path().join(&name);
            assert!(
                fs::metadata(&path).unwrap().len() == 0
                    || OpenOptions::new().open_image(&path).is_ok(),
                "{what} at {at}: {name}"
            );
        }
    }
    (removed, stayed)
}

/// Runs an operation that makes no file.
fn in_place(operation: &str, host: &Arc<dyn Host>, image: &Path) {
    let options = OpenOptions::new().host(Arc::clone(host));
    let chain = || options.clone().writable(true).open(image).unwrap();
    match operation {
        "compact" => drop(Compact::new().content(true).run(&chain()).unwrap()),
        "resize" => drop(Resize::to(5 * MIB).run(&chain()).unwrap()),
        "rebase" => {
            let rebase = Rebase::new(image.with_file_name("other.vhdx")).options(options);
            drop(rebase.run(image).unwrap());
        }
        "provision" => drop(Provision::fixed().options(options).run(image).unwrap()),
        other => panic!("{other}"),
    }
}

/// Killed before any of its calls, an operation that makes no file leaves none, and the image reads as before.
#[test]
fn killed_operations_in_place_leave_no_file() {
    for operation in ["compact", "resize", "rebase", "provision"] {
        for at in 0.. {
            let folder = TempDir::new().unwrap();
            let mut image = base(folder.path());
            if operation == "rebase" {
                let other = folder.path().join("other.vhdx");
                drop(CreateOptions::dynamic(2 * MIB).create(&other).unwrap());
                let parent = OpenOptions::new().open_image(&image).unwrap();
                image = folder.path().join("child.avhdx");
                drop(CreateOptions::child_of(&parent).unwrap().create(&image).unwrap());
            }
            let before = names(folder.path());
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["left_overs::process_that_is_killed", "--exact"])
                .env(BASE, &image)
                .env(WHAT, format!("in place: {operation}"))
                .env(AT, at.to_string())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert_eq!(names(folder.path()), before, "{operation} at {at}");
            assert!(Check::new().run(&image).unwrap().is_sound(), "{operation} at {at}");
            let chain = OpenOptions::new().writable(true).open(&image).unwrap();
            assert_eq!(codes(&chain.warnings()), [""; 0], "{operation} at {at}");
            let mut read = [0; 6000];
            chain.read_at(&mut read, 0).unwrap();
            assert!(read[..5000] == [1; 5000] && read[5000..] == [0; 1000], "{operation} at {at}");
            if status.success() {
                assert!(at > 5, "{operation}: {at} calls");
                break;
            }
            assert_eq!(status.signal(), Some(9), "{operation} at {at}");
        }
    }
}

#[test]
fn a_killed_create_of_a_child_does_not_block_its_base() {
    assert_eq!(killed_at_each_call("create"), (0, 0));
    let (removed, stayed) = killed_at_each_call("create, named");
    assert!(removed > 5 && stayed > 0, "{removed} removed, {stayed} stayed");
}

#[test]
fn a_killed_checkpoint_does_not_block_its_base() {
    assert_eq!(killed_at_each_call("checkpoint"), (0, 0));
    let (removed, stayed) = killed_at_each_call("checkpoint, named");
    assert!(removed > 5 && stayed > 0, "{removed} removed, {stayed} stayed");
}

/// A draft as a killed process leaves it on a host without unnamed files, and its bytes.
fn stale_draft(folder: &Path, base: &Path) -> (PathBuf, Vec<u8>) {
    let host = Meddled::new(|_, _| {}).poor();
    let before = names(folder);
    let draft = Draft::new(&host, folder.join("child.avhdx")).unwrap();
    let base = OpenOptions::new().open_image(base).unwrap();
    let image = CreateOptions::child_of(&base).unwrap().create_draft(&host, &draft).unwrap();
    image.close().unwrap();
    let name = names(folder).into_iter().find(|name| !before.contains(name)).unwrap();
    let (path, bytes) = (folder.join(&name), fs::read(folder.join(&name)).unwrap());
    drop((image, draft));
    assert_eq!(names(folder), before, "a draft that is given up leaves nothing");
    fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

#[test]
fn only_a_marked_draft_that_is_not_being_written_is_removed() {
    let folder = TempDir::new().unwrap();
    let base = base(folder.path());
    let at = |name: &str| folder.path().join(format!(".{name}.{HEX}.tmp"));
    let (stale, bytes) = stale_draft(folder.path(), &base);
    // The draft under a name with other digits, as if copied; another program's file; an image without the mark; an
    // empty file; a link to a draft, and a folder.
    fs::write(at("copy"), &bytes).unwrap();
    fs::write(at("stranger"), "a stranger's").unwrap();
    fs::copy(&base, at("image")).unwrap();
    fs::write(at("empty"), "").unwrap();
    std::os::unix::fs::symlink(&stale, at("link")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    // Its contents are those of a child, but it is not treated as one.
    drop(OpenOptions::new().open(&base).unwrap());
    assert!(stale.exists(), "who only reads removes nothing");
    let writer = LocalHost.open(&stale, avhdx::storage::Access::ReadWrite).unwrap();
    writer.try_lock(LockMode::Exclusive).unwrap();
    let chain = OpenOptions::new().writable(true).open(&base).unwrap();
    let stay = ["folder.left-over"; 3];
    assert_eq!(codes(&chain.warnings()), stay, "{:?}", chain.warnings());
    assert!(stale.exists(), "somebody is still writing it");
    drop((writer, chain));
    let before = names(folder.path());
    let chain = OpenOptions::new().writable(true).open(&base).unwrap();
    let mut expected = stay.to_vec();
    expected.push("folder.draft-removed");
    let mut found = codes(&chain.warnings());
    found.sort_by_key(|code| *code == "folder.draft-removed");
    assert_eq!(found, expected, "{:?}", chain.warnings());
    let own = stale.file_name().unwrap().to_str().unwrap();
    let after: Vec<String> = before.into_iter().filter(|name| name != own).collect();
    assert_eq!(names(folder.path()), after);
    assert_eq!(fs::read(at("copy")).unwrap(), bytes);
}

#[test]
fn a_new_image_and_a_call_of_its_own_clear_a_folder_of_drafts() {
    let folder = TempDir::new().unwrap();
    let base = base(folder.path());
    stale_draft(folder.path(), &base);
    let image = CreateOptions::dynamic(MIB).create(folder.path().join("new.vhdx")).unwrap();
    assert_eq!(codes(image.warnings()), ["folder.draft-removed"]);
    assert_eq!(image.warnings()[0].layer, None, "a draft is no layer");
    drop(image);
    assert_eq!(names(folder.path()), ["base.vhdx", "new.vhdx"]);
    stale_draft(folder.path(), &base);
    assert_eq!(codes(&clear_drafts(&LocalHost, folder.path())), ["folder.draft-removed"]);
    assert_eq!(clear_drafts(&LocalHost, folder.path()), []);
    assert_eq!(names(folder.path()), ["base.vhdx", "new.vhdx"]);
    // If the host cannot identify files, nothing is removed.
    stale_draft(folder.path(), &base);
    let mut host = Meddled::new(|_, _| {});
    host.has_ids = false;
    assert_eq!(codes(&clear_drafts(&host, folder.path())), ["folder.left-over"]);
}

/// The mark is replaced by the creator's own name, and only once the image is complete.
#[test]
fn a_published_draft_has_no_mark() {
    let folder = TempDir::new().unwrap();
    for is_poor in [false, true] {
        let target = folder.path().join(format!("{is_poor}.vhdx"));
        let host = Meddled::new(|_, _| {});
        let host = if is_poor { host.poor() } else { host };
        let draft = Draft::new(&host, &target).unwrap();
        let options = CreateOptions::dynamic(MIB).creator("somebody");
        let image = options.create_draft(&host, &draft).unwrap();
        image.write_at(b"within", 0).unwrap();
        assert!(!target.exists());
        image.close().unwrap();
        drop(image);
        assert_eq!(draft.publish(None).unwrap(), None);
        drop(draft);
        // [MS-VHDX] 2.2.1: the creator in UTF-16 after the signature, padded with zeros.
        let creator: Vec<u8> = "somebody".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let bytes = fs::read(&target).unwrap();
        assert_eq!(&bytes[..8], b"vhdxfile");
        assert_eq!(&bytes[8..][..creator.len()], creator);
        assert!(bytes[8 + creator.len()..520].iter().all(|byte| *byte == 0));
        assert!(Check::new().run(&target).unwrap().is_sound());
    }
    assert_eq!(names(folder.path()), ["false.vhdx", "true.vhdx"]);
}

/// Children of `parent` as killed processes may leave them in a folder: a draft, a complete one that had no name
/// yet, and one that was being removed.
fn left_children(folder: &Path, parent: &Path) -> Vec<PathBuf> {
    static DIGITS: AtomicUsize = AtomicUsize::new(0xABC0);
    let temporary = |name: &str| {
        let digits = format!("{:032x}", DIGITS.fetch_add(1, Ordering::SeqCst));
        folder.join(format!(".{name}.{digits}.tmp"))
    };
    let image = OpenOptions::new().lock(Lock::None).open_image(parent).unwrap();
    let child = CreateOptions::child_of(&image).unwrap();
    let host = Meddled::new(|_, _| {}).poor();
    let before = names(folder);
    let draft = Draft::new(&host, folder.join("child.avhdx")).unwrap();
    child.create_draft(&host, &draft).unwrap().close().unwrap();
    let marked = names(folder).into_iter().find(|name| !before.contains(name)).unwrap();
    let marked = folder.join(marked);
    let bytes = fs::read(&marked).unwrap();
    drop(draft);
    let whole = folder.join("whole.avhdx");
    child.create(&whole).unwrap().close().unwrap();
    let complete = temporary("child.avhdx");
    fs::copy(&whole, &complete).unwrap();
    // Removing a file renames it first.
    let removed = temporary("whole.avhdx");
    fs::rename(&whole, &removed).unwrap();
    // Last, because creating an image removes it.
    fs::write(&marked, bytes).unwrap();
    vec![marked, complete, removed]
}

/// Neither when a base is written to, nor when an image is removed, replaced or merged, nor in a forest; in the
/// image's own folder and in a given one.
#[test]
fn left_over_files_are_not_treated_as_children() {
    for elsewhere in [false, true] {
        let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let left_in = if elsewhere { other.path() } else { folder.path() };
        let base = base(folder.path());
        let at = |name: &str| folder.path().join(name);
        let writable = || OpenOptions::new().writable(true).children_in(left_in);
        // Under a name of its own each is a child.
        for left in &left_children(left_in, &base) {
            let aside = left.with_file_name("aside.avhdx");
            fs::rename(left, &aside).unwrap();
            let error = writable().open(&base).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
            fs::rename(&aside, left).unwrap();
        }
        let chain = writable().open(&base).unwrap();
        chain.write_at(&[3; 700], 0).unwrap();
        chain.flush().unwrap();
        left_children(left_in, &base);
        for name in ["middle.avhdx", "tip.avhdx"] {
            Checkpoint::new().path(at(name)).run(&chain).unwrap();
            chain.write_at(&[4; 700], 100).unwrap();
        }
        left_children(left_in, &base);
        left_children(left_in, &at("middle.avhdx"));
        let forest = Forest::scan([folder.path(), left_in], &PathSource::new()).unwrap();
        assert_eq!(forest.nodes().len(), 3, "{:?}", forest.findings());
        assert!(forest.findings().is_empty(), "{:?}", forest.findings());
        let relink = Relink::folder(left_in).recursive(false).run().unwrap();
        assert!(relink.images.is_empty() && relink.refused.is_empty(), "{relink:?}");
        let middle = chain.layers()[1].id;
        let merged = Merge::new(middle).children_in(left_in).run(&chain).unwrap();
        assert!(merged.removed.iter().any(|path| path.ends_with("middle.avhdx")), "{merged:?}");
        left_children(left_in, &base);
        let point = chain.layers()[1].id;
        let revert = Revert::to(point).delete_newer(true).children_in(left_in);
        let reverted = revert.run(&chain).unwrap();
        assert!(reverted.removed.iter().any(|path| path.ends_with("tip.avhdx")), "{reverted:?}");
        chain.close().unwrap();
        drop(chain);
        for name in names(folder.path()).into_iter().filter(|name| !name.ends_with(".tmp")) {
            if name != "base.vhdx" {
                fs::remove_file(at(&name)).unwrap();
            }
        }
        left_children(left_in, &base);
        let create = CreateOptions::dynamic(MIB).overwrite(true).children_in(left_in);
        create.create(&base).unwrap().close().unwrap();
    }
}
