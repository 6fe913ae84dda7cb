//! Files that appear whole or not at all.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::clear_drafts;
use avhdx::storage::{Access, FileKind, Host, LocalHost, LockMode, LockOutcome, Storage};

use crate::args::Replacing;
use crate::exit::{Exit, Failure};
use crate::interrupt::{UnderWay, under_way};
use crate::output::Console;

/// A file on its way. Dropped before it is published, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Draft {
    draft: Arc<avhdx::storage::Draft<'static>>,
    target: PathBuf,
    /// The file whose name is taken over, kept locked until then.
    old: Option<Arc<dyn Storage>>,
}

impl Draft {
    /// Starts a file that will be called `target`. Never one of `inputs`, and an existing one only with
    /// consent.
    pub(crate) fn new(
        target: &Path,
        replacing: &Replacing,
        inputs: &[PathBuf],
        console: &mut Console,
    ) -> Result<Self, Failure> {
        let (target, old) = match taken(target, inputs)? {
            None => (target.to_path_buf(), None),
            Some(_) if !replacing.overwrite => return Err(exists(target)),
            // The file that a link leads to is replaced, not the link.
            Some(real) => {
                let old = unused(target)?;
                replacing.check(old.as_ref(), console)?;
                (real, Some(old))
            }
        };
        console.warnings(&clear_drafts(&LocalHost, folder_of(&target)));
        let mut under_way = under_way();
        let draft = avhdx::storage::Draft::new(&LocalHost, &target).map_err(|error| {
            let message = format!("{}: cannot create the file", target.display());
            Failure::io("output.create", message, &error)
        })?;
        let draft = Arc::new(draft);
        *under_way = UnderWay::Draft(Arc::clone(&draft));
        drop(under_way);
        Ok(Self { draft, target, old })
    }

    /// The draft itself, for an image to be made in it.
    pub(crate) fn inner(&self) -> &avhdx::storage::Draft<'static> {
        &self.draft
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        self.draft.storage()
    }

    /// A failure that calls the file by its name to be.
    pub(crate) fn failure(&self, error: avhdx::Error) -> Failure {
        Failure::from(error).renamed(self.storage().name(), &self.target.display().to_string())
    }

    /// Gives the finished file its name.
    pub(crate) fn publish(mut self, console: &mut Console) -> Result<(), Failure> {
        let name = self.target.display();
        let mut under_way = under_way();
        let old = self.old.take();
        match self.draft.publish(old.as_deref()) {
            Ok(left) => {
                *under_way = UnderWay::Nothing;
                if let Some(left) = left {
                    let message = format!(
                        "{}: the file that was replaced could not be removed",
                        left.display()
                    );
                    console.warn("output.old-left", &message);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(match old {
                    Some(_) => {
                        let message = format!("{name}: nothing was replaced: {error}");
                        Failure::new(Exit::Refused, "output.swapped", message)
                    }
                    // Somebody was faster.
                    None => exists(&self.target),
                });
            }
            Err(error) => {
                let message = format!("{name}: cannot name the file so");
                return Err(Failure::io("output.rename", message, &error));
            }
        }
        drop(under_way);
        LocalHost.sync_dir(folder_of(&self.target)).map_err(|error| {
            Failure::io("output.sync", format!("{name}: cannot make the name durable"), &error)
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Published or not: an interruption has nothing to do with it any more.
        drop(std::mem::take(&mut *under_way()));
    }
}

/// The folder that a file lies in; a bare name lies in the current one.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The real path of what `target` names, if it names anything.
fn taken(target: &Path, inputs: &[PathBuf]) -> Result<Option<PathBuf>, Failure> {
    let name = target.display();
    let refuse = |code, what: &str| Failure::new(Exit::Refused, code, format!("{name}: {what}"));
    let stat = match LocalHost.stat(target) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let leads_nowhere = LocalHost.is_link(target).unwrap_or(false);
            let what = "a link that leads nowhere";
            return if leads_nowhere { Err(refuse("output.link", what)) } else { Ok(None) };
        }
        Err(error) => {
            return Err(Failure::io("output.stat", format!("{name}: cannot look at it"), &error));
        }
    };
    if stat.kind != FileKind::File {
        return Err(refuse("output.not-a-file", "not a regular file"));
    }
    let real = LocalHost.canonical(target).map_err(|error| {
        Failure::io("output.stat", format!("{name}: cannot look at it"), &error)
    })?;
    let is_target = |input: &PathBuf| {
        LocalHost.canonical(input).is_ok_and(|input| input == real)
            || stat.id.is_some() && LocalHost.stat(input).is_ok_and(|input| input.id == stat.id)
    };
    if inputs.iter().any(is_target) {
        return Err(refuse("output.is-input", "the input itself, or one of its parents"));
    }
    Ok(Some(real))
}

/// The file at `path`, once it is clear that nobody has it open.
fn unused(path: &Path) -> Result<Arc<dyn Storage>, Failure> {
    let name = path.display();
    let storage = LocalHost.open(path, Access::Read).map_err(|error| {
        Failure::io("output.open", format!("{name}: cannot look at it"), &error)
    })?;
    match storage.try_lock(LockMode::Exclusive) {
        Ok(LockOutcome::InUse(by)) => {
            let message = format!("{name}: the file to be replaced is in use elsewhere: {by}");
            Err(Failure::new(Exit::InUse, "output.in-use", message))
        }
        // Where files cannot be locked, consent is all there is.
        Ok(_) | Err(_) => Ok(storage),
    }
}

fn exists(target: &Path) -> Failure {
    let message = format!("{}: the file exists", target.display());
    Failure::new(Exit::Refused, "output.exists", message)
}
