//! Folders and files of this machine, by descriptors: whoever swaps a folder for a link meanwhile leads nothing astray.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{
    Access, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, accessat,
    fchmod, fchown, fstat, futimens, linkat, mkdirat, openat, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;
use uuid::Uuid;

use super::facts::Facts;

/// What only its owner may use.
const PRIVATE_FOLDER: Mode = Mode::RWXU;
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);
/// The most bytes of a name within a temporary one.
const MOST_OF_NAME: usize = 200;

/// An open folder.
pub(super) struct Folder {
    fd: Arc<OwnedFd>,
    /// For messages alone.
    path: PathBuf,
}

/// A file that only its owner may use, until it has its facts and then its name. It is removed unless it is published.
pub(super) struct Draft {
    file: File,
    folder: Arc<OwnedFd>,
    /// The temporary name, where the host has no files without names.
    name: Mutex<Option<Vec<u8>>>,
}

/// What tells a folder from all others.
pub(super) type Place = (u64, u64);

/// Which file was made, to know it again by its name.
#[derive(Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))] // named again there alone
pub(super) struct Made {
    path: PathBuf,
    identity: Identity,
}

/// What tells a file from another that has taken its name, or its number, since then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    place: Place,
    owner: u32,
    size: u64,
    modified: i128,
}

/// What is made instead of a file with bytes.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))] // made there alone
pub(super) struct Device {
    kind: FileType,
    number: Option<(u32, u32)>,
}

/// The user and the group that files made here have.
pub(super) fn own() -> Option<(u32, u32)> {
    Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()))
}

impl Device {
    /// `None` if it cannot be made anywhere.
    pub(super) fn of(kind: &str, number: Option<(u32, u32)>) -> Option<Self> {
        let kind = match kind {
            "fifo" => FileType::Fifo,
            "character device" => FileType::CharacterDevice,
            "block device" => FileType::BlockDevice,
            _ => return None,
        };
        (kind == FileType::Fifo || number.is_some()).then_some(Self { kind, number })
    }
}

impl Folder {
    /// Opens a folder that the user named: links are followed. From then on, what this process makes is its user's alone.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        take_mask();
        let at = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = open_folder(rustix::fs::CWD, at.as_os_str(), OFlags::empty())?;
        Ok(Self { fd: Arc::new(fd), path: path.to_path_buf() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if nothing can be made here.
    pub(super) fn check_writable(&self) -> io::Result<()> {
        match accessat(&self.fd, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
            // Not every host can tell.
            Err(error @ (Errno::ACCESS | Errno::ROFS)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Makes a folder that only its owner may use, or opens one that is there. Returns whether it was made.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if something else has the name.
    pub(super) fn make(&self, name: &OsStr) -> io::Result<(Self, bool)> {
        let is_made = match mkdirat(&self.fd, name, PRIVATE_FOLDER) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let fd = open_folder(self.fd.as_fd(), name, OFlags::NOFOLLOW).map_err(|error| {
            let is_other = !is_made && !self.is_folder(name);
            if is_other { io::ErrorKind::AlreadyExists.into() } else { error }
        })?;
        // Another may have taken the place of the one that was made.
        let is_made = is_made && is_as_made(&fd)?;
        Ok((Self { fd: Arc::new(fd), path: self.path.join(name) }, is_made))
    }

    pub(super) fn place(&self) -> io::Result<Place> {
        Ok(Identity::of(&self.fd)?.place)
    }

    fn is_folder(&self, name: &OsStr) -> bool {
        let stat = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
    }

    /// Whether anything has the name.
    pub(super) fn has(&self, name: &OsStr) -> bool {
        statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Makes a link.
    pub(super) fn link(&self, target: &[u8], name: &OsStr) -> io::Result<()> {
        Ok(symlinkat(OsStr::from_bytes(target), &self.fd, name)?)
    }

    /// Sets the owner and the times of a link.
    pub(super) fn set_link(&self, name: &OsStr, facts: &Facts) -> io::Result<()> {
        let owned = match facts.owner {
            Some(owner) => self.chown_link(name, owner),
            None => Ok(()),
        };
        utimensat(&self.fd, name, &timestamps(facts), AtFlags::SYMLINK_NOFOLLOW)?;
        owned
    }

    /// Sets the owner of a link, and of nothing else that may have taken its name.
    #[cfg(target_os = "linux")]
    fn chown_link(&self, name: &OsStr, owner: (u32, u32)) -> io::Result<()> {
        let fd = self.open_made(name, FileType::Symlink)?;
        let (user, group) = ids(owner)?;
        Ok(rustix::fs::chownat(fd, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?)
    }

    #[cfg(not(target_os = "linux"))]
    fn chown_link(&self, name: &OsStr, owner: (u32, u32)) -> io::Result<()> {
        let (user, group) = ids(owner)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::chownat(&self.fd, name, Some(user), Some(group), flags)?)
    }

    /// Opens what was just made here without using it. Refuses what is of another kind, has other names, or is of another
    /// user: it has taken the name since.
    #[cfg(target_os = "linux")]
    fn open_made(&self, name: &OsStr, kind: FileType) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        let is_it = FileType::from_raw_mode(stat.st_mode) == kind
            && stat.st_nlink == 1
            && stat.st_uid == rustix::process::geteuid().as_raw();
        if is_it { Ok(fd) } else { Err(io::Error::other("something else has its name now")) }
    }

    /// Gives a file that was made a further name.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if something has the name; [`io::ErrorKind::NotFound`] if the file is not where it
    /// was made.
    #[cfg(target_os = "linux")]
    pub(super) fn name_again(&self, made: &Made, name: &OsStr) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(rustix::fs::CWD, &made.path, flags, Mode::empty())?;
        if Identity::of(&fd)? != made.identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        let flags = AtFlags::SYMLINK_FOLLOW;
        Ok(linkat(rustix::fs::CWD, proc_path(&fd), &self.fd, name, flags)?)
    }

    /// Systems that name files by their paths alone could name another one.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn name_again(&self, _: &Made, _: &OsStr) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes a device or a pipe. Returns why its facts could not be set, which leaves it private.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if something has the name.
    #[cfg(target_os = "linux")]
    pub(super) fn make_device(
        &self,
        device: Device,
        name: &OsStr,
        facts: &Facts,
    ) -> io::Result<Option<io::Error>> {
        let (major, minor) = device.number.unwrap_or_default();
        let number = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(&self.fd, name, device.kind, PRIVATE_FILE, number)?;
        let set = self.open_made(name, device.kind).and_then(|fd| {
            // It is not opened itself: that may wait, or do something.
            let by_proc = proc_path(&fd);
            let owned = chown(facts, |user, group| {
                rustix::fs::chownat(&fd, "", Some(user), Some(group), AtFlags::EMPTY_PATH)
            });
            let mode = mode_of(facts, usual_mode(0o666), owned.is_ok());
            rustix::fs::chmod(&by_proc, mode)?;
            utimensat(rustix::fs::CWD, &by_proc, &timestamps(facts), AtFlags::empty())?;
            owned
        });
        Ok(set.err())
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn make_device(
        &self,
        _: Device,
        _: &OsStr,
        _: &Facts,
    ) -> io::Result<Option<io::Error>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Starts a file that will get this name.
    pub(super) fn start(&self, name: &OsStr) -> io::Result<Draft> {
        let folder = Arc::clone(&self.fd);
        #[cfg(target_os = "linux")]
        if let Some(file) = unnamed(&folder)? {
            return Ok(Draft { file, folder, name: Mutex::new(None) });
        }
        Draft::named(folder, name)
    }

    /// Gives a folder that was made here its facts.
    pub(super) fn set(&self, facts: &Facts) -> io::Result<()> {
        // Folders in some folders belong to the same group, unless they have one of their own.
        let group = match facts.owner {
            None => Mode::from_raw_mode(fstat(&self.fd)?.st_mode) & Mode::SGID,
            Some(_) => Mode::empty(),
        };
        set(&self.fd, facts, usual_mode(0o777), group)
    }
}

impl Draft {
    fn named(folder: Arc<OwnedFd>, name: &OsStr) -> io::Result<Self> {
        let kept = Some(name.as_bytes()).filter(|name| name.len() <= MOST_OF_NAME);
        let digits = Uuid::new_v4().simple().to_string();
        let temporary = [b".", kept.unwrap_or(b"long"), b".", digits.as_bytes(), b".tmp"].concat();
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&folder, &temporary[..], flags, PRIVATE_FILE)?.into();
        Ok(Self { file, folder, name: Mutex::new(Some(temporary)) })
    }

    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Sets the facts and gives the file its name. Returns why the facts could not be set, which leaves the file private.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if something has the name.
    pub(super) fn publish(&self, name: &OsStr, facts: &Facts) -> io::Result<Option<io::Error>> {
        let unset = set(&self.file, facts, usual_mode(0o666), Mode::empty()).err();
        let mut held = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some(temporary) => rename(&self.folder, OsStr::from_bytes(temporary), name)?,
            None => linkat(
                rustix::fs::CWD,
                proc_path(&self.file),
                &self.folder,
                name,
                AtFlags::SYMLINK_FOLLOW,
            )?,
        }
        *held = None;
        Ok(unset)
    }

    /// The file, to know it again at `path`; `None` if the host does not tell.
    pub(super) fn made(&self, path: &Path) -> Option<Made> {
        let identity = Identity::of(&self.file).ok()?;
        Some(Made { path: path.to_path_buf(), identity })
    }

    pub(super) fn discard(&self) {
        let name = self.name.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(name) = name {
            let _ = unlinkat(&self.folder, &name[..], AtFlags::empty());
        }
    }
}

impl Identity {
    #[allow(clippy::useless_conversion, clippy::cast_lossless)] // the types differ between systems
    fn of(fd: impl AsFd) -> io::Result<Self> {
        let stat = fstat(fd)?;
        Ok(Self {
            place: (stat.st_dev as u64, stat.st_ino),
            owner: stat.st_uid,
            size: stat.st_size as u64,
            modified: i128::from(stat.st_mtime) * 1_000_000_000 + stat.st_mtime_nsec as i128,
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.discard();
    }
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Folder").field(&self.path).finish()
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").field("name", &self.name).finish_non_exhaustive()
    }
}

fn open_folder(at: impl AsFd, name: &OsStr, more: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | more;
    match openat(&at, name, flags | OFlags::RDONLY, Mode::empty()) {
        // One that may be written to, but not listed.
        #[cfg(target_os = "linux")]
        Err(Errno::ACCESS) => Ok(openat(at, name, flags | OFlags::PATH, Mode::empty())?),
        opened => Ok(opened?),
    }
}

/// Whether a folder is this user's and, like one just made, private; or at least empty, as not every host keeps permissions.
fn is_as_made(fd: &OwnedFd) -> io::Result<bool> {
    let stat = fstat(fd)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Ok(false);
    }
    let others = Mode::RWXG | Mode::RWXO;
    if (Mode::from_raw_mode(stat.st_mode) & others).is_empty() {
        return Ok(true);
    }
    for entry in rustix::fs::Dir::read_from(fd)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A file without a name; `None` where the host has none.
#[cfg(target_os = "linux")]
fn unnamed(folder: &OwnedFd) -> io::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    match openat(folder, ".", flags, PRIVATE_FILE) {
        // The path through `/proc` is needed later to name the file.
        Ok(fd) => Ok(has_proc(&fd).then(|| fd.into())),
        // File systems without such files, and kernels that take the flag for `O_DIRECTORY`.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether open files have paths here, as the first one tells.
#[cfg(target_os = "linux")]
fn has_proc(fd: &OwnedFd) -> bool {
    static HAS_PROC: OnceLock<bool> = OnceLock::new();
    *HAS_PROC.get_or_init(|| rustix::fs::stat(proc_path(fd)).is_ok())
}

/// A path to an open file without a name; naming it by descriptor alone requires root.
fn proc_path(fd: impl AsFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Renames a file within a folder, unless something has the name.
fn rename(folder: &OwnedFd, from: &OsStr, to: &OsStr) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{RenameFlags, renameat_with};
        match renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
            // Some file systems have no rename that refuses to replace.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            done => return Ok(done?),
        }
    }
    // A second name fails if the name is taken. On file systems without them, all that remains is to check first.
    match linkat(folder, from, folder, to, AtFlags::empty()) {
        Ok(()) => return Ok(unlinkat(folder, from, AtFlags::empty())?),
        Err(Errno::EXIST) => return Err(Errno::EXIST.into()),
        Err(_) => {}
    }
    if statat(folder, to, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Err(Errno::EXIST.into());
    }
    Ok(rustix::fs::renameat(folder, from, folder, to)?)
}

/// Sets the owner, the times and the permissions of what is open; the permissions also if the others cannot be set.
fn set(fd: impl AsFd, facts: &Facts, usual: Mode, more: Mode) -> io::Result<()> {
    let times = futimens(&fd, &timestamps(facts));
    // A change of the owner takes special permissions away.
    let owned = chown(facts, |user, group| fchown(&fd, Some(user), Some(group)));
    match fchmod(&fd, mode_of(facts, usual, owned.is_ok()) | more) {
        // Not every host keeps permissions, and none were asked for.
        Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS) if facts.mode.is_none() => {}
        set => set?,
    }
    times?;
    owned
}

/// Sets the owner, if there is one to set.
fn chown(facts: &Facts, set: impl FnOnce(Uid, Gid) -> rustix::io::Result<()>) -> io::Result<()> {
    let Some(owner) = facts.owner else { return Ok(()) };
    let (user, group) = ids(owner)?;
    Ok(set(user, group)?)
}

/// The numbers of a user and a group. The largest stands for none.
fn ids((user, group): (u32, u32)) -> io::Result<(Uid, Gid)> {
    if user == u32::MAX || group == u32::MAX {
        let message = format!("no user or group has the number {}", u32::MAX);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok((Uid::from_raw(user), Gid::from_raw(group)))
}

/// The permissions; special ones would be given in another user's name if the owner could not be set.
fn mode_of(facts: &Facts, usual: Mode, is_owned: bool) -> Mode {
    // The type differs between systems.
    #[allow(clippy::useless_conversion)]
    let mode = facts.mode.map_or(usual, |mode| Mode::from_raw_mode(mode.into()));
    let special = Mode::SUID | Mode::SGID | Mode::SVTX;
    if is_owned { mode } else { mode.difference(special) }
}

fn timestamps(facts: &Facts) -> Timestamps {
    let spec = |time: Option<avhdx_files::Time>| match time {
        Some(time) => Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() },
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    Timestamps { last_access: spec(facts.accessed), last_modification: spec(facts.modified) }
}

/// The permissions of what this user makes, where the file system does not keep any.
fn usual_mode(most: u16) -> Mode {
    #[allow(clippy::useless_conversion)]
    let most = Mode::from_raw_mode(most.into());
    most.difference(take_mask())
}

/// The mask that this process was started with. It applies no more: permissions are set, and until then nobody else is let in,
/// nor this user kept out.
fn take_mask() -> Mode {
    static MASK: OnceLock<Mode> = OnceLock::new();
    *MASK.get_or_init(|| rustix::process::umask(Mode::RWXG | Mode::RWXO))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn a_named_draft_is_private_and_replaces_nothing() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let names = || {
            let entries = std::fs::read_dir(place.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let start = |name: &str| {
            let draft = Draft::named(Arc::clone(&folder.fd), name.as_ref()).unwrap();
            draft.write_at(name.as_bytes(), 0).unwrap();
            draft
        };
        let draft = start("a.txt");
        let temporary = names().remove(0);
        assert!(temporary.to_str().unwrap().starts_with(".a.txt."), "{temporary:?}");
        let mode =
            |name: &OsStr| place.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&temporary), 0o600);
        let facts = Facts { mode: Some(0o640), ..Facts::default() };
        assert!(draft.publish("a.txt".as_ref(), &facts).unwrap().is_none());
        drop(draft);
        assert_eq!((names(), mode("a.txt".as_ref())), (vec!["a.txt".into()], 0o640));

        let error = start("other").publish("a.txt".as_ref(), &facts).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(names(), ["a.txt"]);
        assert_eq!(std::fs::read(place.path().join("a.txt")).unwrap(), b"a.txt");
        let long = "l".repeat(255);
        start(&long).publish(long.as_ref(), &facts).unwrap();
        assert_eq!(names(), ["a.txt", long.as_str()]);
    }
}
