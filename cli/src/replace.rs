//! Files that appear whole or not at all: written under another name in the same folder, then renamed.

use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use avhdx::storage::{Access, FileKind, Host, LocalHost, LockMode, LockOutcome, Storage};

use crate::args::Replacing;
use crate::exit::{Exit, Failure};
use crate::interrupt::{UnderWay, under_way};
use crate::output::Console;

/// A file on its way. Dropped before it is published, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Draft {
    storage: Arc<dyn Storage>,
    draft: PathBuf,
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
        let folder = target.parent().map(Path::to_path_buf).unwrap_or_default();
        for number in 0_u32.. {
            let draft = folder.join(format!(".avhdx-{}-{number}.part", process::id()));
            let mut under_way = under_way();
            match LocalHost.create_new(&draft) {
                Ok(storage) => {
                    *under_way = UnderWay::Draft(draft.clone());
                    return Ok(Self { storage, draft, target, old });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    let message = format!("{}: cannot create the file", target.display());
                    return Err(Failure::io("output.create", message, &error));
                }
            }
        }
        unreachable!("one of four billion names is free")
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// A failure that calls the file by its name to be.
    pub(crate) fn failure(&self, error: avhdx::Error) -> Failure {
        Failure::from(error).renamed(self.storage.name(), &self.target.display().to_string())
    }

    /// Gives the finished file its name.
    pub(crate) fn publish(mut self) -> Result<(), Failure> {
        let mut under_way = under_way();
        let renamed = match self.old.take() {
            Some(_) => LocalHost.replace(&self.draft, &self.target),
            None => LocalHost.rename(&self.draft, &self.target),
        };
        match renamed {
            Ok(()) => *under_way = UnderWay::Nothing,
            // Somebody was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(exists(&self.target));
            }
            Err(error) => {
                let message = format!("{}: cannot name the file so", self.target.display());
                return Err(Failure::io("output.rename", message, &error));
            }
        }
        drop(under_way);
        let folder = self.target.parent().unwrap_or(Path::new(""));
        LocalHost.sync_dir(folder).map_err(|error| {
            let message = format!("{}: cannot make the name durable", self.target.display());
            Failure::io("output.sync", message, &error)
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Published or not there any more: then there is nothing to remove.
        if let UnderWay::Draft(draft) = std::mem::take(&mut *under_way()) {
            let _ = LocalHost.remove(&draft);
        }
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
