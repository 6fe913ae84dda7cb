//! The command line as typed: suggested commands are built from it.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use avhdx::storage::{Host, LocalHost};
use clap::{ArgMatches, Command};

use crate::point::Point;
use crate::shell;
use crate::text::printable;

/// Verbs that take a point in time and change no image.
const READING: &[&str] = &[
    "bench", "cat", "check", "compare", "convert", "cp", "df", "diff", "explain", "flatten", "ls",
    "map", "measure", "read", "rescue", "seal", "verify",
];

static TYPED: Mutex<Option<Typed>> = Mutex::new(None);

/// A command line and its parts.
#[derive(Clone, Debug)]
pub(crate) struct Typed {
    /// The definition of all verbs and flags.
    program: Command,
    /// All words after the program's name.
    pub(crate) words: Vec<OsString>,
    pub(crate) verb: String,
    pub(crate) image: Option<OsString>,
    pub(crate) out: Option<OsString>,
    /// The second image of a comparison.
    other: Option<OsString>,
    /// The flags that say where parents are.
    pub(crate) parents: Vec<OsString>,
    /// The flag of a format other than VHDX.
    pub(crate) format: Vec<OsString>,
    /// The flags that choose a volume of the disk, and what of it is shown.
    pub(crate) volume: Vec<OsString>,
}

/// Stores the command line.
pub(crate) fn remember(args: &[OsString], matches: &ArgMatches, program: Command) {
    *typed() = Typed::of(args, matches, program);
}

/// The stored command line.
pub(crate) fn typed() -> MutexGuard<'static, Option<Typed>> {
    TYPED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the verb typed has a flag of this name.
pub(crate) fn has_flag(name: &str) -> bool {
    typed().as_ref().is_some_and(|typed| typed.has_flag(name))
}

/// A command for an image, with the typed flags that say where parents are.
pub(crate) fn with_parents(verb: &str, image: &Path) -> String {
    let typed = typed();
    let parents = typed.as_ref().map_or(&[][..], |typed| &typed.parents);
    let words = [shell::argument(image), shell::words(parents)];
    format!("avhdx {verb} {}", words.join(" ").trim_end())
}

/// A sentence about the typed name that leads to `file` through links, if there is one.
pub(crate) fn link_to(file: &str) -> Option<String> {
    let typed = typed();
    let leads_there = |path: &Path| {
        path != Path::new(file)
            && LocalHost.canonical(path).is_ok_and(|real| real == Path::new(file))
    };
    let words = typed.as_ref()?.words.iter().map(|word| Point::parse(word).image);
    let link = words.into_iter().find(|path| leads_there(path))?;
    // Hints may have several lines, and are not escaped as a whole.
    Some(printable(&format!("{} leads to {file}", link.display())))
}

impl Typed {
    pub(crate) fn of(args: &[OsString], matches: &ArgMatches, program: Command) -> Option<Self> {
        let (verb, matches) = matches.subcommand()?;
        let one = |ids: &[&str]| ids.iter().find_map(|id| values(matches, id).into_iter().next());
        let parents = ["with_parent", "parent_dir", "path_map", "confine"].into_iter();
        let parents = parents.flat_map(|id| {
            let flag = OsString::from(format!("--{}", id.replace('_', "-")));
            values(matches, id).into_iter().flat_map(move |value| [flag.clone(), value])
        });
        let flag = |id: &str| {
            let value = values(matches, id).into_iter().find(|value| value != "vhdx");
            value.map_or_else(Vec::new, |value| vec![format!("--{id}").into(), value])
        };
        let shows_system = matches.try_get_one::<bool>("system").ok().flatten() == Some(&true);
        let system = shows_system.then(|| OsString::from("--system"));
        Some(Self {
            format: flag("format"),
            volume: flag("volume").into_iter().chain(system).collect(),
            words: args.iter().skip(1).cloned().collect(),
            verb: verb.into(),
            image: one(&["image", "images_and_out", "a", "parent", "places"]),
            out: output(matches),
            other: one(&["b"]),
            parents: parents.collect(),
            program,
        })
    }

    /// Whether `file` is the image typed, or unknown.
    pub(crate) fn is_of(&self, file: Option<&str>) -> bool {
        let (Some(file), Some(image)) = (file, self.image.as_deref()) else { return true };
        let (file, image) = (Path::new(file), Point::parse(image).image);
        let canonical = |path: &Path| LocalHost.canonical(path).ok();
        file == image || canonical(file).is_some_and(|file| canonical(&image) == Some(file))
    }

    /// Whether a suggested command is the one typed.
    pub(crate) fn is(&self, command: &str) -> bool {
        let command = command.split_once("  # ").map_or(command, |(command, _)| command);
        command == format!("avhdx {}", shell::words(&self.words))
    }

    pub(crate) fn has_flag(&self, name: &str) -> bool {
        let verb = self.program.find_subcommand(&self.verb);
        verb.is_some_and(|verb| verb.get_arguments().any(|flag| flag.get_long() == Some(name)))
    }

    /// Whether `file` is the second image of a comparison.
    pub(crate) fn is_other(&self, file: Option<&str>) -> bool {
        let name = |word: &OsString| Point::parse(word).image;
        self.other.as_ref().is_some_and(|other| file.map(Path::new) == Some(&name(other)))
    }

    /// The words, with `name` in place of the output's name; `None` if no output was named.
    pub(crate) fn elsewhere(&self, name: &OsStr) -> Option<Vec<OsString>> {
        let out = self.out.as_ref()?;
        let replaced = |at: usize, with: OsString| {
            let mut words = self.words.clone();
            words[at] = with;
            // The same name may also be the value of another argument.
            let matches = self.parse(&words)?;
            (output(matches.subcommand()?.1).as_deref() == Some(name)).then_some(words)
        };
        (0..self.words.len()).rev().find_map(|at| {
            let word = &self.words[at];
            if word == out {
                return replaced(at, name.into());
            }
            let flag = word.to_str()?.strip_suffix(out.to_str()?)?;
            let mut with = OsString::from(flag);
            with.push(name);
            flag.ends_with('=').then(|| replaced(at, with))?
        })
    }

    /// The words of a verb that only reads, with `point` in place of `image` or a point of it.
    pub(crate) fn at_point(&self, image: &Path, point: &OsStr) -> Option<Vec<OsString>> {
        if !READING.contains(&self.verb.as_str()) {
            return None;
        }
        // Of two images, it is the one of that name.
        let is_it = |word: &&OsString| self.other.is_none() || Point::parse(word).image == image;
        let word = [&self.image, &self.other].into_iter().flatten().find(is_it)?;
        let at = self.words.iter().position(|typed| typed == word)?;
        let mut words = self.words.clone();
        words[at] = point.into();
        // A point is not compared with itself.
        if self.other.is_some() && words.iter().filter(|word| *word == point).count() > 1 {
            return None;
        }
        self.parse(&words).map(|_| words)
    }

    /// The command line that `more` can be appended to: without the flag that `more` replaces. `None` if the verb
    /// does not take it, or has it already.
    pub(crate) fn before(&self, more: &str) -> Option<Self> {
        let more: Vec<OsString> =
            more.split(' ').map(|word| word.trim_matches('\'').into()).collect();
        let is_valid = |words: &[OsString]| self.parse(&[words, &more].concat()).is_some();
        let mut words = self.words.clone();
        if more.len() == 1 && words.contains(&more[0]) {
            return None;
        }
        if !is_valid(&words) {
            let joined = [more[0].as_encoded_bytes(), b"="].concat();
            let is_joined = |word: &OsString| word.as_encoded_bytes().starts_with(&joined);
            let at = words.iter().position(|word| *word == more[0] || is_joined(word))?;
            let count = if is_joined(&words[at]) { 1 } else { more.len() };
            words.drain(at..(at + count).min(words.len()));
        }
        is_valid(&words).then(|| Self { words, ..self.clone() })
    }

    fn parse(&self, words: &[OsString]) -> Option<ArgMatches> {
        let args = [&["avhdx".into()], words].concat();
        self.program.clone().try_get_matches_from(args).ok()
    }
}

/// The output that was named: by a name of its own, or as the last of several.
fn output(matches: &ArgMatches) -> Option<OsString> {
    let named = values(matches, "out").into_iter().next();
    let several = ["sources_and_out", "images_and_out"];
    named.or_else(|| several.iter().find_map(|id| values(matches, id).into_iter().skip(1).last()))
}

fn values(matches: &ArgMatches, id: &str) -> Vec<OsString> {
    let values = matches.try_get_raw(id).ok().flatten();
    values.into_iter().flatten().map(OsStr::to_os_string).collect()
}
