//! Volumes of FAT that mtools changes and reads.

use std::collections::BTreeSet;
use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tempfile::TempDir;

use crate::changes::{Hand, Time};
use crate::program::tool;

/// Has the same files on this machine, and copies those that changed when it is dropped.
pub struct Copied {
    image: PathBuf,
    top: PathBuf,
    changed: BTreeSet<String>,
}

impl Copied {
    /// `top` holds what the volume holds.
    pub fn new(image: &Path, top: &Path) -> Self {
        Self { image: image.into(), top: top.into(), changed: BTreeSet::new() }
    }

    fn run(&mut self, name: &str, args: &[&str]) {
        let image = self.image.to_str().unwrap();
        tool(name, &[&["-i", image], args].concat());
    }

    fn change(&mut self, path: &str) -> PathBuf {
        self.changed.insert(path.to_owned());
        self.top.join(path)
    }

    fn is_new(&self, path: &str) {
        // Names change before bytes do, so that the tool is not run for each file.
        assert!(!self.changed.contains(path), "{path}");
    }
}

impl Hand for Copied {
    fn write(&mut self, path: &str, bytes: &[u8]) {
        std::fs::write(self.change(path), bytes).unwrap();
    }

    fn resize(&mut self, path: &str, len: u64) {
        OpenOptions::new().write(true).open(self.change(path)).unwrap().set_len(len).unwrap();
    }

    fn patch(&mut self, path: &str, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.change(path)).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn delete(&mut self, path: &str) {
        self.is_new(path);
        self.run("mdel", &[&format!("::/{path}")]);
        std::fs::remove_file(self.top.join(path)).unwrap();
    }

    fn rename(&mut self, from: &str, to: &str) {
        self.is_new(from);
        self.run("mren", &[&format!("::/{from}"), &format!("::/{to}")]);
        std::fs::rename(self.top.join(from), self.top.join(to)).unwrap();
    }

    fn make(&mut self, folder: &str) {
        std::fs::create_dir(self.change(folder)).unwrap();
    }

    fn remove(&mut self, folder: &str) {
        self.run("mdeltree", &[&format!("::/{folder}")]);
        std::fs::remove_dir_all(self.top.join(folder)).unwrap();
    }

    fn set_time(&mut self, path: &str, time: Time) {
        let time = UNIX_EPOCH + Duration::new(time.0 as u64, 0);
        let file = OpenOptions::new().write(true).open(self.change(path)).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let changed = tempfile::tempdir().unwrap();
        for path in &self.changed {
            let (from, to) = (self.top.join(path), changed.path().join(path));
            let meta = std::fs::metadata(&from).unwrap();
            if meta.is_dir() {
                std::fs::create_dir_all(&to).unwrap();
                continue;
            }
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(&from, &to).unwrap();
            let times = FileTimes::new().set_modified(meta.modified().unwrap());
            File::options().write(true).open(&to).unwrap().set_times(times).unwrap();
        }
        let entries = std::fs::read_dir(changed.path()).unwrap();
        let mut args: Vec<PathBuf> = ["-s", "-m", "-o", "-D", "o", "-i"].map(Into::into).into();
        args.push(self.image.clone());
        args.extend(entries.map(|entry| entry.unwrap().path()));
        args.push("::/".into());
        tool("mcopy", &args);
    }
}

/// All files of a volume, copied to this machine.
pub fn copied(image: &Path) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    let args = ["-s", "-m", "-i", image.to_str().unwrap(), "::/", out.path().to_str().unwrap()];
    tool("mcopy", &args);
    out
}
