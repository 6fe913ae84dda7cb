//! `avhdx completions` and `avhdx man`, generated from the definition of the command line.

use std::path::{Path, PathBuf};

use avhdx::storage::{Access, FileKind, Host, LocalHost, Storage};
use clap::Command;
use clap::builder::Resettable;
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};
use serde::Serialize;

use crate::args::ReplaceFlags;
use crate::examples;
use crate::failure::{Exit, Failure, Reply};
use crate::new_file::Place;
use crate::next;
use crate::output::Console;
use crate::shell;
use crate::text::count;
use crate::vocabulary::{Answer, shown};

/// Print a completion script for a shell.
///
/// The script knows verbs, flags and files. To complete labels in IMAGE@LABEL too, let the program itself answer the
/// shell, by a line in its start file. In bash: source <(COMPLETE=bash avhdx). In zsh: source <(COMPLETE=zsh avhdx).
/// In fish: COMPLETE=fish avhdx | source.
#[derive(clap::Args, Debug)]
pub(crate) struct CompletionsArgs {
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page of the program or of a verb, in roff, or write all pages to a folder.
#[derive(clap::Args, Debug)]
pub(crate) struct ManArgs {
    /// The verb [default: the program].
    #[arg(conflicts_with = "out")]
    verb: Option<String>,
    /// Write the pages of the program and of all its verbs to DIR, as avhdx.1, avhdx-info.1 and so on. Pages of
    /// another version are replaced.
    #[arg(long = "dir", id = "out", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// With --dir: replace files that are not these pages too.
    #[arg(long, requires = "out")]
    overwrite: bool,
}

/// A completion script.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CompletionsAnswer {
    shell: String,
    script: String,
}

impl Answer for CompletionsAnswer {
    const SCHEMA: &'static str = "avhdx.completions/1";
}

/// A manual page, or the files of all pages.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ManAnswer {
    /// Null for the page of the program.
    verb: Option<String>,
    /// The page, in roff; null with --dir.
    page: Option<String>,
    /// The paths of the pages written with --dir.
    pages: Vec<String>,
}

impl Answer for ManAnswer {
    const SCHEMA: &'static str = "avhdx.man/1";
}

pub(crate) fn completions(
    args: CompletionsArgs,
    mut command: Command,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "avhdx", &mut script);
    if console.is_json() {
        let script = String::from_utf8_lossy(&script).into_owned();
        console.document(&CompletionsAnswer { shell: args.shell.to_string(), script })?;
    } else {
        console.bytes(&script)?;
    }
    Ok(Reply::Yes)
}

pub(crate) fn man(
    args: ManArgs,
    command: Command,
    console: &mut Console,
) -> Result<Reply, Failure> {
    // Its help is in the pages themselves.
    let mut program = command.disable_help_subcommand(true);
    program.build();
    if let Some(folder) = &args.folder {
        return write_all(folder, args.overwrite, program, console);
    }
    let command = match &args.verb {
        Some(verb) => {
            let found = program.find_subcommand(verb).cloned();
            found.ok_or_else(|| Failure::usage("man.verb", format!("there is no verb {verb}")))?
        }
        None => program,
    };
    let page = Page::of(command)?;
    if console.is_json() {
        let page = Some(String::from_utf8_lossy(&page.text).into_owned());
        console.document(&ManAnswer { verb: args.verb, page, pages: Vec::new() })?;
    } else {
        console.bytes(&page.text)?;
    }
    Ok(Reply::Yes)
}

/// Writes all pages to a folder, or none if one of them would replace another file without consent.
fn write_all(
    folder: &Path,
    overwrite: bool,
    program: Command,
    console: &mut Console,
) -> Result<Reply, Failure> {
    refuse_no_folder(folder)?;
    let verbs: Vec<Command> = program.get_subcommands().cloned().collect();
    let commands = [program].into_iter().chain(verbs);
    let pages = commands.map(Page::of).collect::<Result<Vec<_>, _>>()?;
    let paths: Vec<PathBuf> = pages.iter().map(|page| folder.join(&page.name)).collect();
    for (page, path) in pages.iter().zip(&paths) {
        let is_taken = LocalHost.stat(path).is_ok() && !page.is_at(path);
        if is_taken && !overwrite {
            let message = format!("{}: the file exists, and is no page of avhdx", path.display());
            return Err(Failure::new(Exit::Refused, "output.exists", message));
        }
    }
    let mut places = Vec::new();
    for (page, path) in pages.iter().zip(&paths) {
        let replacing = ReplaceFlags::overwrite(overwrite || page.is_at(path));
        places.push(Place::find(path, &replacing, &[], console)?);
    }
    for ((page, path), place) in pages.iter().zip(&paths).zip(places) {
        let file = place.start(console)?;
        let written = file.storage().write_at(&page.text, 0);
        written.and_then(|()| file.storage().flush()).map_err(|error| {
            let message = format!("{}: cannot write the page", path.display());
            Failure::io("output.write", message, &error)
        })?;
        file.publish(console)?;
    }
    console.done();
    if console.is_json() {
        let pages = paths.iter().map(|path| shown(path)).collect();
        console.document(&ManAnswer { verb: None, page: None, pages })?;
    } else {
        console.line(format!("{}: {} written", folder.display(), count(paths.len(), "page")))?;
    }
    Ok(Reply::Yes)
}

fn refuse_no_folder(folder: &Path) -> Result<(), Failure> {
    let name = folder.display();
    let failure = match LocalHost.stat(folder) {
        Ok(stat) if stat.kind == FileKind::Folder => return Ok(()),
        Ok(_) => {
            let message = format!("{name}: not a folder");
            return Err(Failure::new(Exit::Refused, "output.not-a-folder", message));
        }
        Err(error) => {
            Failure::io("output.no-folder", format!("{name}: cannot find the folder"), &error)
        }
    };
    let again = next::again().filter(|_| can_be_made(folder));
    Err(again.into_iter().fold(failure, |failure, again| {
        failure.then(format!("mkdir -p {} && {again}", shell::argument(folder)))
    }))
}

/// Whether nothing but folders lies above a folder that is missing, and nothing has its name.
fn can_be_made(folder: &Path) -> bool {
    let there = folder.ancestors().filter(|above| !above.as_os_str().is_empty());
    let mut there = there.filter(|above| LocalHost.is_link(above).is_ok());
    there
        .next()
        .is_none_or(|above| LocalHost.stat(above).is_ok_and(|stat| stat.kind == FileKind::Folder))
}

/// A manual page.
struct Page {
    /// The name of its file.
    name: String,
    /// The page, in roff.
    text: Vec<u8>,
}

impl Page {
    /// The page of a verb or of the program, of a command that is built.
    fn of(command: Command) -> Result<Self, Failure> {
        let examples = examples::of(command.get_name());
        let command = match examples {
            [] => command,
            // They have a section of their own.
            _ => command.after_help(Resettable::Reset),
        };
        let page = clap_mangen::Man::new(command);
        let page = page.source(concat!("avhdx ", env!("CARGO_PKG_VERSION")));
        let mut text = Vec::new();
        let rendered = page.render(&mut text).and_then(|()| match examples {
            [] => Ok(()),
            _ => section(examples).to_writer(&mut text),
        });
        rendered.map_err(|error| Failure::io("man.render", "cannot write the page", &error))?;
        Ok(Self { name: page.get_filename(), text })
    }

    /// Whether the file at `path` is this page, of this version or another.
    fn is_at(&self, path: &Path) -> bool {
        let old = LocalHost.open(path, Access::Read).ok();
        let old = old.and_then(|old| start_of(old.as_ref()));
        old.is_some_and(|old| title(&old).is_some_and(|old| title(&self.text) == Some(old)))
    }
}

/// The examples as a section of a page.
fn section(examples: &[examples::Example]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    for (line, what) in examples {
        roff.control("TP", []).text([bold(*line)]).text([roman(*what)]);
    }
    roff
}

/// Enough of a file to have the title of a page in it.
fn start_of(file: &dyn Storage) -> Option<Vec<u8>> {
    let mut start = vec![0; 4096];
    let read = file.read_at(&mut start, 0).ok()?;
    start.truncate(read);
    Some(start)
}

/// The title of a page of avhdx: its line, without the version.
fn title(page: &[u8]) -> Option<&[u8]> {
    let line = page.split(|byte| *byte == b'\n').find(|line| line.starts_with(b".TH avhdx"))?;
    let source = b"\"avhdx ";
    let end = line.windows(source.len()).position(|part| part == source)?;
    line.get(..end)
}
