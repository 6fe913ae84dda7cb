//! Files that appear under their name completely or not at all.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::identity::{is_file, put_back};
use super::{Host, LockMode, LockOutcome, Storage, draft_mark, folder_of, temporary_name};

/// How many names are tried for a draft: a clean-up may briefly hold a new one.
const MOST_NAMES: usize = 8;

/// A file that is being created. It gets its name only when it is complete, and is removed
/// unless it is [published](Self::publish).
///
/// If the host supports it, the file has no name until then and disappears with the process. Otherwise it has a
/// temporary name beside the target, `.NAME.HEX.tmp`, and an exclusive lock, if files can be locked. Until it is
/// published, an image created in it by [`CreateOptions::create_draft`](crate::CreateOptions::create_draft) is marked
/// as a draft in its file type identifier. Name, mark and lock together identify files that a crash left behind.
pub struct Draft<'a> {
    host: &'a dyn Host,
    storage: Arc<dyn Storage>,
    target: PathBuf,
    /// The temporary name, while it has one.
    name: Mutex<Option<PathBuf>>,
    /// The bytes that replace the draft mark.
    seal: Mutex<Option<Vec<u8>>>,
}

impl<'a> Draft<'a> {
    /// Starts a file that will be named `target`.
    ///
    /// # Errors
    /// Errors of the host.
    pub fn new(host: &'a dyn Host, target: impl Into<PathBuf>) -> io::Result<Self> {
        let target = target.into();
        let (storage, name) = match host.create_unnamed(&target) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                let (storage, name) = create_named(host, &target)?;
                (storage, Some(name))
            }
            storage => (storage?, None),
        };
        Ok(Self { host, storage, target, name: Mutex::new(name), seal: Mutex::default() })
    }

    /// The name that the file will get.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The file, locked if it has a name.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Gives the file, which must be complete and durable, its name: a free one, or that of the file `over`. In the
    /// latter case it takes over the owner and permissions of `over` as far as this user may, and `over` is removed.
    /// If the name belongs to a file other than `over` by now, or is taken although it should be free, nothing
    /// changes.
    ///
    /// If the host can exchange two names, the name always refers to one of the files. Otherwise it refers to none
    /// for a moment, and after a crash in that moment both files lie under temporary names.
    ///
    /// The new name is durable once the folder has been [flushed](Host::sync_dir). Returns the path of the file `over`
    /// if it could not be removed.
    ///
    /// # Errors
    /// Errors of the host; [`ErrorKind::AlreadyExists`] if the name belongs to another file. A folder that cannot be
    /// made durable is detected before anything in it changes.
    pub fn publish(&self, over: Option<&dyn Storage>) -> io::Result<Option<PathBuf>> {
        if let Some(bytes) = held(&self.seal).take() {
            self.storage.write_at(&bytes, 0)?;
            self.storage.flush()?;
        }
        self.host.sync_dir(folder_of(&self.target))?;
        let mut name = held(&self.name);
        match over {
            None => {
                match &*name {
                    Some(name) => self.rename_from(name)?,
                    None => self.host.link(self.storage.as_ref(), &self.target)?,
                }
                *name = None;
                Ok(None)
            }
            Some(old) => {
                // First, so that nobody can read the new file who could not read the old one.
                self.storage.copy_owner_from(old)?;
                // Only files with names can be exchanged.
                let draft = match name.take() {
                    Some(draft) => draft,
                    None => {
                        let draft = temporary_name(&self.target);
                        self.host.link(self.storage.as_ref(), &draft)?;
                        draft
                    }
                };
                let draft = name.insert(draft).clone();
                let left = self.take_over(&draft, old)?;
                *name = None;
                Ok(left)
            }
        }
    }

    /// Removes the file, unless it was published.
    pub fn discard(&self) {
        // Another program may have given the name to another file.
        if let Some(name) = held(&self.name).take()
            && is_file(self.host, &name, self.storage.as_ref()).unwrap_or(false)
        {
            drop(self.host.remove(&name));
        }
    }

    /// The mark that an image in this file needs; `None` if the file has no name by which others could open it.
    pub(crate) fn mark(&self) -> Option<String> {
        draft_mark(held(&self.name).as_deref()?)
    }

    /// Sets the bytes that replace the mark at the start of the file when it is published.
    pub(crate) fn seal_with(&self, bytes: Option<Vec<u8>>) {
        *held(&self.seal) = bytes;
    }

    /// Renames the file from its temporary name to the target.
    fn rename_from(&self, draft: &Path) -> io::Result<()> {
        let is_ours = |path: &Path| is_file(self.host, path, self.storage.as_ref());
        if is_ours(draft)? {
            self.host.rename(draft, &self.target)?;
            if is_ours(&self.target)? {
                return Ok(());
            }
        }
        Err(not_ours(&self.target))
    }

    /// Replaces the old file under its name, and removes it.
    fn take_over(&self, draft: &Path, old: &dyn Storage) -> io::Result<Option<PathBuf>> {
        let host = self.host;
        match host.exchange(draft, &self.target) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                return self.take_over_in_steps(draft, old);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(self.swapped(None)),
            exchanged => exchanged?,
        }
        let is_ours = |path: &Path| is_file(host, path, self.storage.as_ref());
        // Checked on both sides: after an error, the file left behind must not be mistaken for ours.
        let has_old = is_file(host, draft, old).unwrap_or(false);
        let has_new = is_ours(&self.target).unwrap_or(false);
        if has_old && has_new {
            return Ok(host.remove(draft).err().map(|_| draft.to_path_buf()));
        }
        // Another file had the name and gets it back, unless a third file has taken it since.
        let is_back = has_new && host.exchange(draft, &self.target).is_ok() && is_ours(draft)?;
        Err(self.swapped((!is_back).then_some(draft)))
    }

    fn take_over_in_steps(&self, draft: &Path, old: &dyn Storage) -> io::Result<Option<PathBuf>> {
        let host = self.host;
        let aside = temporary_name(&self.target);
        match host.rename(&self.target, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(self.swapped(None)),
            moved => moved?,
        }
        let named = is_file(host, &aside, old).and_then(|is_old| match is_old {
            true => self.rename_from(draft),
            false => Err(self.swapped(None)),
        });
        match named {
            Ok(()) => Ok(host.remove(&aside).err().map(|_| aside)),
            Err(error) => match put_back(host, &aside, &self.target)? {
                None => Err(error),
                Some(left) => Err(self.swapped(Some(&left))),
            },
        }
    }

    fn swapped(&self, left: Option<&Path>) -> io::Error {
        let what = "the name belongs to another file than the one to be replaced";
        let what = match left {
            Some(left) => format!("{what}; a file that had it meanwhile is now {}", left.display()),
            None => what.to_owned(),
        };
        io::Error::new(ErrorKind::AlreadyExists, what)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        self.discard();
    }
}

impl fmt::Debug for Draft<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = held(&self.name);
        f.debug_struct("Draft").field("target", &self.target).field("name", &*name).finish()
    }
}

/// Creates a file with a temporary name, and locks it to show that it is being written.
fn create_named(host: &dyn Host, target: &Path) -> io::Result<(Arc<dyn Storage>, PathBuf)> {
    for _ in 0..MOST_NAMES {
        let name = temporary_name(target);
        let storage = host.create_new(&name)?;
        let locked = storage.try_lock(LockMode::Exclusive);
        // The name may have been given to another file in between.
        let is_ours = is_file(host, &name, storage.as_ref());
        let is_locked = match &locked {
            Ok(outcome) => *outcome == LockOutcome::Locked,
            Err(error) => error.kind() == ErrorKind::Unsupported,
        };
        if is_locked && matches!(is_ours, Ok(true)) {
            return Ok((storage, name));
        }
        if matches!(is_ours, Ok(true)) {
            drop(host.remove(&name));
        }
        is_ours?;
        if let Err(error) = locked
            && error.kind() != ErrorKind::Unsupported
        {
            return Err(error);
        }
    }
    Err(io::Error::other("the new file was removed or locked by another program each time"))
}

fn not_ours(target: &Path) -> io::Error {
    let what = "another file has taken the name of the new one, and stays";
    io::Error::other(format!("{}: {what}", target.display()))
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
