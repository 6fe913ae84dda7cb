//! The suites for storages and hosts, over those of this machine, in memory and simulated.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use avhdx::storage::{Host, LocalHost, MemStorage};
use avhdx_testkit::conformance::{host, storage};

use crate::sim::{FOLDER, SimHost};

/// Another path in a folder each time.
fn paths(folder: &Path) -> impl Fn() -> PathBuf {
    let (folder, count) = (folder.to_path_buf(), AtomicU32::new(0));
    move || folder.join(format!("{}.bin", count.fetch_add(1, Ordering::Relaxed)))
}

#[test]
fn a_file_of_this_machine_keeps_every_promise() {
    let folder = tempfile::tempdir().unwrap();
    let path = paths(folder.path());
    storage::keeps_every_promise(&|| LocalHost.create_new(&path()).unwrap());
}

#[test]
fn a_file_in_memory_keeps_every_promise() {
    storage::keeps_every_promise(&|| Arc::new(MemStorage::new(Vec::new())));
}

#[test]
fn a_file_of_a_simulated_host_keeps_every_promise() {
    let host = SimHost::default();
    let path = paths(Path::new(FOLDER));
    storage::keeps_every_promise(&|| host.create_new(&path()).unwrap());
    host.copy_by_hand();
    storage::keeps_every_promise(&|| host.create_new(&path()).unwrap());
}

#[test]
fn this_machine_keeps_every_promise_of_a_host() {
    host::keeps_every_promise(&|| {
        let folder = tempfile::tempdir().unwrap();
        let path = LocalHost.canonical(folder.path()).unwrap();
        let guard = Some(Box::new(folder) as Box<dyn std::any::Any>);
        host::Subject { host: Arc::new(LocalHost), folder: path, guard }
    });
}

#[test]
fn a_simulated_host_keeps_every_promise() {
    host::keeps_every_promise(&|| host::Subject {
        host: Arc::new(SimHost::default()),
        folder: FOLDER.into(),
        guard: None,
    });
}
