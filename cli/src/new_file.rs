//! Output files, which appear complete or not at all.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ErrorKind;
use avhdx::ops::clear_drafts;
use avhdx::storage::{Access, Draft, FileKind, Host, LocalHost, LockMode, LockOutcome, Storage};

use crate::args::ReplaceFlags;
use crate::failure::{Exit, Failure};
use crate::interrupt::in_progress;
use crate::next;
use crate::output::Console;
use crate::point::folder_of;

/// An unfinished file under a temporary name. It is removed unless it is published.
#[derive(Debug)]
pub(crate) struct NewFile {
    draft: Arc<Draft<'static>>,
    target: PathBuf,
    /// The file to be replaced, locked until then.
    old: Option<Arc<dyn Storage>>,
}

/// A name that a file may be given.
#[derive(Debug)]
pub(crate) struct Place {
    target: PathBuf,
    /// The file to be replaced, locked until then.
    old: Option<Arc<dyn Storage>>,
}

impl Place {
    /// Looks at the name `target`. Refuses to replace one of `inputs`, or any file without consent.
    pub(crate) fn find(
        target: &Path,
        replacing: &ReplaceFlags,
        inputs: &[PathBuf],
        console: &mut Console,
    ) -> Result<Self, Failure> {
        Ok(match taken(target, inputs)? {
            None => Self { target: target.to_path_buf(), old: None },
            Some(_) if !replacing.overwrite => return Err(exists(target)),
            // Replaces the file that a link leads to, not the link.
            Some(real) => {
                let old = unused(target)?;
                replacing.check(old.as_ref(), console)?;
                Self { target: real, old: Some(old) }
            }
        })
    }

    /// The name, or that of the file that a link leads to.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The length of the file to be replaced, if there is one.
    pub(crate) fn replaced_len(&self) -> Result<Option<u64>, Failure> {
        let len = self.old.as_ref().map(|old| old.len()).transpose();
        len.map_err(|error| {
            let message = format!("{}: cannot access the file", self.target.display());
            Failure::io("output.stat", message, &error)
        })
    }

    /// Starts a file for this name.
    pub(crate) fn start(self, console: &mut Console) -> Result<NewFile, Failure> {
        let Self { target, old } = self;
        console.warnings(&clear_drafts(&LocalHost, folder_of(&target)));
        let mut in_progress = in_progress();
        let draft = Draft::new(&LocalHost, &target).map_err(|error| {
            let message = format!("{}: cannot create the file", target.display());
            Failure::io("output.create", message, &error)
        })?;
        let draft = Arc::new(draft);
        in_progress.add(Arc::clone(&draft));
        drop(in_progress);
        Ok(NewFile { draft, target, old })
    }
}

impl NewFile {
    /// The draft that the library makes an image in.
    pub(crate) fn draft(&self) -> &Draft<'static> {
        &self.draft
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        self.draft.storage()
    }

    /// A failure that shows the final name instead of the temporary one. Where the host refuses this file, its input is
    /// not to blame: another place is the way on.
    pub(crate) fn failure(&self, error: avhdx::Error) -> Failure {
        let is_of_host = matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace);
        let is_own = error.file() == Some(self.storage().name());
        let failure = Failure::from(error);
        let failure = match is_of_host {
            true => failure.also("the unfinished file is removed"),
            false => failure,
        };
        let elsewhere = next::elsewhere(Path::new("OUT")).filter(|_| is_of_host && is_own);
        let failure = elsewhere.into_iter().fold(failure, |failure, command| {
            failure.then(format!("{command}  # OUT: a file on a volume with room"))
        });
        failure.renamed(self.storage().name(), &self.target.display().to_string())
    }

    /// Gives the finished file its name.
    pub(crate) fn publish(mut self, console: &mut Console) -> Result<(), Failure> {
        let name = self.target.display();
        let mut in_progress = in_progress();
        let old = self.old.take();
        match self.draft.publish(old.as_deref()) {
            Ok(left) => {
                in_progress.forget(&self.draft);
                if let Some(left) = left {
                    let message = format!("{}: cannot remove the replaced file", left.display());
                    console.warn("output.old-left", &message);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(match old {
                    Some(_) => {
                        let message = format!("{name}: the file was not replaced: {error}");
                        Failure::new(Exit::Refused, "output.swapped", message)
                    }
                    // Another program created the file meanwhile.
                    None => exists(&self.target),
                });
            }
            Err(error) => {
                let message = format!("{name}: cannot rename the finished file");
                return Err(Failure::io("output.rename", message, &error));
            }
        }
        drop(in_progress);
        LocalHost.sync_dir(folder_of(&self.target)).map_err(|error| {
            Failure::io("output.sync", format!("{name}: cannot make the name durable"), &error)
        })
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // The draft removes itself.
        in_progress().forget(&self.draft);
    }
}

/// The real path of `target`, if it exists. Refuses what cannot be replaced.
fn taken(target: &Path, inputs: &[PathBuf]) -> Result<Option<PathBuf>, Failure> {
    let name = target.display();
    let refuse = |code, what: &str| Failure::new(Exit::Refused, code, format!("{name}: {what}"));
    let written = target.as_os_str().as_encoded_bytes();
    let is_folders = [&b"/"[..], b"/.", b"/.."].iter().any(|end| written.ends_with(end));
    let stat = match LocalHost.stat(target) {
        Ok(stat) => stat,
        Err(_) if is_folders => {
            return Err(refuse("output.not-a-file", "the name of a folder, not of a file"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let leads_nowhere = LocalHost.is_link(target).unwrap_or(false);
            let what = "a dangling link";
            return if leads_nowhere { Err(refuse("output.link", what)) } else { Ok(None) };
        }
        Err(error) => {
            return Err(Failure::io(
                "output.stat",
                format!("{name}: cannot access the file"),
                &error,
            ));
        }
    };
    if stat.kind != FileKind::File {
        return Err(refuse("output.not-a-file", &format!("this is {}, not a file", stat.kind)));
    }
    let real = LocalHost.canonical(target).map_err(|error| {
        Failure::io("output.stat", format!("{name}: cannot access the file"), &error)
    })?;
    let is_target = |input: &PathBuf| {
        LocalHost.canonical(input).is_ok_and(|input| input == real)
            || stat.id.is_some() && LocalHost.stat(input).is_ok_and(|input| input.id == stat.id)
    };
    if inputs.iter().any(is_target) {
        return Err(refuse("output.is-input", "the input or one of its parents"));
    }
    Ok(Some(real))
}

/// The file at `path`, opened and locked. Refuses a file in use.
fn unused(path: &Path) -> Result<Arc<dyn Storage>, Failure> {
    let name = path.display();
    let storage = LocalHost.open(path, Access::Read).map_err(|error| {
        Failure::io("output.open", format!("{name}: cannot access the file"), &error)
    })?;
    match storage.try_lock(LockMode::Exclusive) {
        Ok(LockOutcome::InUse(by)) => {
            let message = format!("{name}: the file to replace is in use: {by}");
            Err(Failure::new(Exit::InUse, "output.in-use", message))
        }
        // Where files cannot be locked, the user's consent suffices.
        Ok(_) | Err(_) => Ok(storage),
    }
}

fn exists(target: &Path) -> Failure {
    let message = format!("{}: the file exists", target.display());
    Failure::new(Exit::Refused, "output.exists", message)
}
