//! Volumes that are mounted to be changed: ext by the kernel, NTFS by ntfs-3g.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::changes::{Hand, Time};
use crate::program::tool;

/// A volume that is mounted until this is dropped.
pub struct Mounted {
    pub at: PathBuf,
    driver: Option<Child>,
    _folder: tempfile::TempDir,
}

impl Mounted {
    pub fn ext(image: &Path, is_read_only: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().to_path_buf();
        let options = if is_read_only { "loop,ro,noload" } else { "loop" };
        let args = ["-t".as_ref(), "ext4".as_ref(), "-o".as_ref(), options.as_ref()];
        tool("mount", &[&args[..], &[image.as_os_str(), at.as_os_str()]].concat());
        Self { at, driver: None, _folder: folder }
    }

    pub fn ntfs(image: &Path, is_read_only: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().to_path_buf();
        let mut options =
            "no_detach,compression,streams_interface=windows,special_files=wsl".to_owned();
        if is_read_only {
            options += ",ro";
        }
        let mut command = Command::new("ntfs-3g");
        command.args(["-o", &options]).args([image, &at]).env("LC_ALL", "C.UTF-8");
        let driver = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (start, text) = (Instant::now(), at.to_str().unwrap().to_owned());
        while !std::fs::read_to_string("/proc/mounts").unwrap().contains(&text) {
            assert!(start.elapsed() < Duration::from_secs(60), "ntfs-3g does not mount");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self { at, driver: Some(driver), _folder: folder }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A test beside this one that starts a tool holds what is open here for a moment.
        let start = Instant::now();
        while !Command::new("umount").arg(&self.at).output().unwrap().status.success() {
            assert!(start.elapsed() < Duration::from_secs(60), "cannot be unmounted");
            std::thread::sleep(Duration::from_millis(10));
        }
        // What the driver has not written yet, it writes before it ends.
        if let Some(driver) = &mut self.driver {
            assert!(driver.wait().unwrap().success());
        }
    }
}

impl Hand for Mounted {
    fn write(&mut self, path: &str, bytes: &[u8]) {
        std::fs::write(self.at.join(path), bytes).unwrap();
    }

    fn resize(&mut self, path: &str, len: u64) {
        OpenOptions::new().write(true).open(self.at.join(path)).unwrap().set_len(len).unwrap();
    }

    fn patch(&mut self, path: &str, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.at.join(path)).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn delete(&mut self, path: &str) {
        std::fs::remove_file(self.at.join(path)).unwrap();
    }

    fn rename(&mut self, from: &str, to: &str) {
        std::fs::rename(self.at.join(from), self.at.join(to)).unwrap();
    }

    fn make(&mut self, folder: &str) {
        std::fs::create_dir(self.at.join(folder)).unwrap();
    }

    fn remove(&mut self, folder: &str) {
        std::fs::remove_dir_all(self.at.join(folder)).unwrap();
    }

    fn link(&mut self, path: &str, name: &str) {
        std::fs::hard_link(self.at.join(path), self.at.join(name)).unwrap();
    }

    fn symlink(&mut self, target: &str, name: &str) {
        symlink(target, self.at.join(name)).unwrap();
    }

    fn set_mode(&mut self, path: &str, mode: u32) {
        std::fs::set_permissions(self.at.join(path), Permissions::from_mode(mode)).unwrap();
    }

    fn set_time(&mut self, path: &str, time: Time) {
        set_time(&self.at.join(path), time);
    }
}

/// What the file system of this folder keeps of a time: ext4 knows none before 1901 or after 2446.
pub fn kept_time(folder: &Path, time: Time) -> Time {
    use std::os::unix::fs::MetadataExt;
    let probe = tempfile::NamedTempFile::new_in(folder).unwrap();
    set_time(probe.path(), time);
    let kept = probe.path().symlink_metadata().unwrap();
    (kept.mtime(), kept.mtime_nsec() as u32)
}

fn set_time(path: &Path, time: Time) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let time = Timespec { tv_sec: time.0, tv_nsec: time.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// What only ext has.
pub fn oddities(at: &Path, can_allocate: bool) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    for name in [
        &b"new\nline"[..],
        b"\xFF\xFE no Unicode",
        b"back\\slash",
        b"ends with a space ",
        b"ends with a dot.",
        b"-rf",
        b"col:on",
        b"\x1B[31mred",
        "😀".as_bytes(),
        &[b'x'; 255],
    ] {
        std::fs::write(at.join(OsStr::from_bytes(name)), name).unwrap();
    }
    for (number, len) in [1usize, 58, 59, 60, 61, 255, 1000].into_iter().enumerate() {
        symlink("y".repeat(len), at.join(format!("link {number}"))).unwrap();
    }
    for (mode, name) in [(0o4755, "setuid"), (0o1777, "sticky"), (0, "none"), (0o644, "usual")] {
        std::fs::write(at.join(name), name).unwrap();
        std::fs::set_permissions(at.join(name), Permissions::from_mode(mode)).unwrap();
    }
    tool("mkfifo", &[at.join("fifo")]);
    // Space without bytes, before, within and behind what is written.
    let path = at.join("allocated");
    let file = File::create(&path).unwrap();
    file.write_all_at(&[7; 5000], 300_000).unwrap();
    if can_allocate {
        tool("fallocate", &["-l".as_ref(), "900000".as_ref(), path.as_os_str()]);
    }
    file.write_all_at(&[8; 4096], 700_000).unwrap();
    // In more pieces than fit into an inode.
    let file = File::create(at.join("pieces")).unwrap();
    for piece in 0..300u64 {
        file.write_all_at(&piece.to_le_bytes(), piece * 16_384).unwrap();
    }
}
