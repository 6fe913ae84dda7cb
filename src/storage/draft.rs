//! Files that appear whole or not at all.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::identity::{is_file, put_back};
use super::{Host, LockMode, LockOutcome, Storage, draft_mark, folder_of, temporary_name};
use crate::mutants::planted;

/// Names that are tried for one draft: who looks for left-overs may hold a new one for a moment.
const MOST_NAMES: usize = 8;

/// A file on its way to its name. Nobody meets it there before it is complete, and unless it is
/// [published](Self::publish) nothing of it stays.
///
/// Where the host can, it has no name at all until then, and is gone with the process. Elsewhere it has a temporary
/// one beside its own, `.NAME.HEX.tmp`, and an exclusive lock, if files can be locked; an image made in it by
/// [`CreateOptions::create_draft`](crate::CreateOptions::create_draft) says in its file type identifier that it is a
/// draft, until it is published. By name, mark and lock together those are known that a crash left behind.
pub struct Draft<'a> {
    host: &'a dyn Host,
    storage: Arc<dyn Storage>,
    target: PathBuf,
    /// The temporary name, as long as it has one.
    name: Mutex<Option<PathBuf>>,
    /// What takes the place of the mark.
    seal: Mutex<Option<Vec<u8>>>,
}

impl<'a> Draft<'a> {
    /// Begins a file that is to be called `target`.
    ///
    /// # Errors
    /// What the host says.
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

    /// What the file is going to be called.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The file, locked where it has a name.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Gives the file, which is complete and durable, its name: a free one, or that of the file `over`, whose owner and
    /// permissions it takes over as far as this user may, and which is then removed. Should that name stand for another file than `over` by now, or be taken where it was to be free, all
    /// stays as it is.
    ///
    /// Where the host can exchange two names, one file or the other has the name at any moment. Elsewhere none has it
    /// for a moment, and after a crash just then both lie under temporary names.
    ///
    /// The new name is durable when the folder was [flushed](Host::sync_dir). Returns where the file `over` lies by
    /// now, if it could not be removed.
    ///
    /// # Errors
    /// What the host says; [`ErrorKind::AlreadyExists`] when the name is another file's. A folder that cannot be made
    /// durable is seen before anything in it changes.
    pub fn publish(&self, over: Option<&dyn Storage>) -> io::Result<Option<PathBuf>> {
        if let Some(bytes) = held(&self.seal).take() {
            self.storage.write_at(&bytes, 0)?;
            self.storage.flush()?;
        }
        if !planted("folder-not-tried-before") {
            self.host.sync_dir(folder_of(&self.target))?;
        }
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
                // First, so that nobody may read it under its name who could not read what had it.
                self.storage.copy_owner_from(old)?;
                // What is to be exchanged needs a name.
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

    /// Removes what there is of the file, unless it was published.
    pub fn discard(&self) {
        // The name is nobody else's, unless somebody put another file there.
        if let Some(name) = held(&self.name).take()
            && is_file(self.host, &name, self.storage.as_ref()).unwrap_or(false)
        {
            drop(self.host.remove(&name));
        }
    }

    /// How an image in the file is to say that it is a draft; `None` where nobody can meet it.
    pub(crate) fn mark(&self) -> Option<String> {
        draft_mark(held(&self.name).as_deref()?)
    }

    /// What is written at the file's start, over the mark, when it is published.
    pub(crate) fn seal_with(&self, bytes: Option<Vec<u8>>) {
        *held(&self.seal) = bytes;
    }

    /// Gives the file its own name for its temporary one.
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

    /// Takes the name of the old file, and removes that.
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
        // Whose the names are is looked at where both can be: an error leaves a file that is not ours.
        let has_old = is_file(host, draft, old).unwrap_or(false);
        let has_new = is_ours(&self.target).unwrap_or(false);
        if has_old && has_new {
            return Ok(host.remove(draft).err().map(|_| draft.to_path_buf()));
        }
        // Another file had the name, and gets it back. Where the new one has lost it since, it is a third one's.
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
        let what = "the name stands for another file than the one that was to be replaced";
        let what = match left {
            Some(left) => format!("{what}; one that had it meanwhile is now {}", left.display()),
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

/// A file with a temporary name, and the lock on it by which others know that it is being written.
fn create_named(host: &dyn Host, target: &Path) -> io::Result<(Arc<dyn Storage>, PathBuf)> {
    for _ in 0..MOST_NAMES {
        let name = temporary_name(target);
        let storage = host.create_new(&name)?;
        let locked = storage.try_lock(LockMode::Exclusive);
        // Who came in between may have given the name to another file.
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
    Err(io::Error::other("the file was taken away or locked as soon as it was there"))
}

fn not_ours(target: &Path) -> io::Error {
    let what = "another file was put in the place of the new one, and stays";
    io::Error::other(format!("{}: {what}", target.display()))
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
