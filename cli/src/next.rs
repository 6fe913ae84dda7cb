//! What to do after a failure: one table from its code, or its kind, to the flags and commands that help.

mod rows;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use avhdx::storage::{Host, LocalHost};
use clap::{ArgMatches, CommandFactory};

use crate::Cli;
use crate::exit::Exit;
use crate::point::Point;
use crate::shell::{argument, word};

pub(crate) use rows::ROWS;

/// A failure, what is to be said of it, and the commands to go on with, the likeliest first.
///
/// A row is of an exact code, of all codes with a beginning (`log.*`), of a kind of error or of an exit code; with a
/// verb before it, of that verb alone; with `parent` before it, of a file that is the parent of another image, or lies
/// in its place. The first of these that there is a row of is the one. Hints of flags that the
/// verb does not have are left out. In commands these stand for what was typed, or
/// found, and stay as they are where there is no such thing:
/// - `IMAGE`: the image as it was typed; `TIP`: the same without `@SEL`;
/// - `FILE`: the file concerned, else the image; `FOLDER`: where it lies;
/// - `ELSEWHERE`: all that was typed, but for the name of what is made;
/// - `PLAIN`: the file concerned with a name that can be recorded, and `RENAMED`: all that was typed, with that name;
/// - `VERB`, and `PARENTS`: the flags that say where parents are;
/// - `AGAIN`: all that was typed. What follows is left out where the verb does not know it.
pub(crate) type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

/// What was typed, for commands that are made of it.
static TYPED: Mutex<Option<Typed>> = Mutex::new(None);

/// What was typed, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Typed {
    words: Vec<OsString>,
    verb: String,
    image: Option<OsString>,
    out: Option<OsString>,
    /// The other image of a comparison.
    other: Option<OsString>,
    /// The flags that say where parents are.
    parents: Vec<OsString>,
}

/// What is said of a failure beside its message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Advice {
    pub(crate) hints: Vec<String>,
    /// Commands, the likeliest first.
    pub(crate) next: Vec<String>,
}

/// The files that a failure concerns.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Concerned<'a> {
    pub(crate) file: Option<&'a str>,
    /// The image whose parent the file is, or should be.
    pub(crate) child: Option<&'a str>,
}

/// What the table has to say of a failure: of its code, and the kind and the files of the library's error.
pub(crate) fn advice(
    code: &str,
    kind: Option<&str>,
    exit: Exit,
    concerned: Concerned<'_>,
) -> Advice {
    let typed = typed();
    let verb = typed.as_ref().map_or("", |typed| &typed.verb);
    let found = row_of(verb, code, kind, exit as u8, concerned.child.is_some());
    let Some((_, hints, next)) = found else { return Advice::default() };
    let has_flag = |hint: &&&str| match (hint.strip_prefix("--"), typed.as_ref()) {
        (Some(hint), Some(typed)) => typed.has_flag(hint.split(' ').next().unwrap_or_default()),
        _ => true,
    };
    // Only the image itself is mended that was typed, and no layer below it.
    let helps = |template: &&&str| {
        !template.starts_with("AGAIN --accept-loss")
            || typed.as_ref().is_none_or(|typed| typed.is_of(concerned.file))
    };
    let next = next.iter().filter(helps);
    let next = next.filter_map(|template| fill(template, typed.as_ref(), concerned));
    let hints = hints.iter().filter(has_flag).map(|hint| (*hint).into());
    Advice { hints: hints.collect(), next: next.collect() }
}

/// What the table has to say of a file that the library refuses, whatever was typed.
pub(crate) fn for_file(error: &avhdx::Error, path: &Path) -> Vec<String> {
    let file = path.display().to_string();
    let concerned = Concerned { file: Some(&file), child: None };
    let known = ROWS.iter().find(|(name, ..)| *name == error.code());
    let templates = known.map_or(&[][..], |(_, _, next)| next).iter();
    let of_file = templates.filter(|template| !template.starts_with("AGAIN"));
    of_file.filter_map(|template| fill(template, None, concerned)).collect()
}

/// Where what was typed leads to a file by way of links.
pub(crate) fn link_to(file: &str) -> Option<String> {
    let typed = typed();
    let leads_there = |path: &Path| {
        path != Path::new(file)
            && LocalHost.canonical(path).is_ok_and(|real| real == Path::new(file))
    };
    let words = typed.as_ref()?.words.iter().map(|word| Point::parse(word).image);
    let link = words.into_iter().find(|path| leads_there(path))?;
    Some(format!("{file} is what {} leads to", link.display()))
}

/// A command on an image, with the flags typed that say where parents are.
pub(crate) fn with_parents(verb: &str, image: &Path) -> String {
    let typed = typed();
    let parents = typed.as_ref().map_or(&[][..], |typed| &typed.parents);
    let words =
        [&[argument(image)][..], &parents.iter().map(|text| word(text)).collect::<Vec<_>>()];
    format!("avhdx {verb} {}", words.concat().join(" "))
}

/// Whether the verb that was typed has a flag of that name.
pub(crate) fn has_flag(name: &str) -> bool {
    typed().as_ref().is_some_and(|typed| typed.has_flag(name))
}

/// All that was typed, to be typed again.
pub(crate) fn again(remark: &str) -> Option<String> {
    fill(&format!("AGAIN  # {remark}"), typed().as_ref(), Concerned::default())
}

/// What was typed with this flag and a remark too; `None` where the verb does not have it, or it was typed.
pub(crate) fn with_flag(more: &str) -> Option<String> {
    fill(&format!("AGAIN {more}"), Some(typed().as_ref()?), Concerned::default())
}

/// Keeps what was typed.
pub(crate) fn remember(args: &[OsString], matches: &ArgMatches) {
    *typed() = Typed::of(args, matches);
}

fn typed() -> MutexGuard<'static, Option<Typed>> {
    TYPED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The row for a failure of a verb.
pub(crate) fn row_of(
    verb: &str,
    code: &str,
    kind: Option<&str>,
    exit: u8,
    is_of_parent: bool,
) -> Option<&'static Row> {
    let of_verb = format!("{verb}: ");
    let spaces = [Some(of_verb.as_str()), is_of_parent.then_some("parent: "), Some("")];
    let find = |names: &[&str]| {
        let of_spaces = |space: &&str| {
            let mut names = names.iter().map(|name| format!("{space}{name}"));
            names.find_map(|full| ROWS.iter().find(|(name, ..)| *name == full))
        };
        spaces.iter().flatten().find_map(of_spaces)
    };
    // What is said of a parent helps more than what is known of the exact code of an image that was typed.
    let prefix = code.split_once('.').map_or_else(String::new, |(first, _)| format!("{first}.*"));
    find(&[code, &prefix])
        .or_else(|| find(&[&format!("kind {}", kind?)]))
        .or_else(|| find(&[&format!("exit {exit}")]))
}

impl Typed {
    fn of(args: &[OsString], matches: &ArgMatches) -> Option<Self> {
        let (verb, matches) = matches.subcommand()?;
        let one = |ids: &[&str]| ids.iter().find_map(|id| values(matches, id).into_iter().next());
        let parents = ["with_parent", "parent_dir", "path_map", "confine"].into_iter();
        let parents = parents.flat_map(|id| {
            let flag = OsString::from(format!("--{}", id.replace('_', "-")));
            values(matches, id).into_iter().flat_map(move |value| [flag.clone(), value])
        });
        Some(Self {
            words: args.iter().skip(1).cloned().collect(),
            verb: verb.into(),
            image: one(&["image", "a", "parent", "places"]),
            out: one(&["out"]),
            other: one(&["b"]),
            parents: parents.collect(),
        })
    }
}

impl Typed {
    /// Whether the file concerned is the image that was typed.
    fn is_of(&self, file: Option<&str>) -> bool {
        let (Some(file), Some(image)) = (file, self.image.as_deref()) else { return true };
        let (file, image) = (Path::new(file), Point::parse(image).image);
        let canonical = |path: &Path| LocalHost.canonical(path).ok();
        file == image || canonical(file).is_some_and(|file| canonical(&image) == Some(file))
    }

    fn has_flag(&self, name: &str) -> bool {
        let program = Cli::command();
        let verb = program.find_subcommand(&self.verb);
        verb.is_some_and(|verb| verb.get_arguments().any(|flag| flag.get_long() == Some(name)))
    }

    /// Whether the file is the other image of a comparison.
    fn is_other(&self, file: Option<&str>) -> bool {
        let name = |word: &OsString| Point::parse(word).image;
        self.other.as_ref().is_some_and(|other| file.map(Path::new) == Some(&name(other)))
    }

    /// What was typed, with another name for what is made.
    fn elsewhere(&self) -> Vec<OsString> {
        let replaced = |at: usize| {
            let mut words = self.words.clone();
            words[at] = "OUT".into();
            // The same name may stand for something else too.
            let args = [&["avhdx".into()], &words[..]].concat();
            let matches = crate::matches(args).ok()?;
            let out = values(matches.subcommand()?.1, "out");
            (out == ["OUT"]).then_some(words)
        };
        let is_out = |at: &usize| self.out.as_ref() == Some(&self.words[*at]);
        let found = (0..self.words.len()).rev().filter(is_out).find_map(replaced);
        found.unwrap_or_else(|| self.words.clone())
    }

    /// What `more` can be appended to: all that was typed, but for the flag that it replaces. `None` where the
    /// verb does not know it.
    fn before(&self, more: &str) -> Option<Self> {
        let more: Vec<OsString> =
            more.split(' ').map(|word| word.trim_matches('\'').into()).collect();
        let is_understood = |words: &[OsString]| {
            let words = [&["avhdx".into()], words, &more].concat();
            crate::is_understood(words)
        };
        let mut words = self.words.clone();
        // What was said already is no advice.
        if more.len() == 1 && words.contains(&more[0]) {
            return None;
        }
        if !is_understood(&words) {
            let at = words.iter().position(|word| *word == more[0])?;
            words.drain(at..(at + more.len()).min(words.len()));
        }
        is_understood(&words).then(|| Self { words, ..self.clone() })
    }
}

fn values(matches: &ArgMatches, id: &str) -> Vec<OsString> {
    let values = matches.try_get_raw(id).ok().flatten();
    values.into_iter().flatten().map(OsStr::to_os_string).collect()
}

/// The command that a template means, unless the verb typed has no such flag.
fn fill(template: &str, typed: Option<&Typed>, concerned: Concerned<'_>) -> Option<String> {
    let (template, remark) = match template.split_once("  # ") {
        Some((template, remark)) => (template, Some(remark)),
        None => (template, None),
    };
    let is_of_other = typed.is_some_and(|typed| typed.is_other(concerned.file));
    let template = if is_of_other {
        template.replace("AGAIN -f raw", "AGAIN -F raw")
    } else {
        template.into()
    };
    let typed = match (typed, template.strip_prefix("AGAIN ")) {
        (Some(typed), Some(more)) => Some(typed.before(more)?),
        _ => typed.cloned(),
    };
    let typed = typed.as_ref();
    let template = template.as_str();
    let file = match concerned.file.map(|shown| file_of(shown, typed)) {
        // No command is better than one with another name.
        Some(None) if ["FILE", "FOLDER", "PLAIN"].iter().any(|name| template.contains(name)) => {
            return None;
        }
        file => file.flatten(),
    };
    let file = file.as_deref();
    let words = template.split(' ').filter_map(|word| match stands_for(word, typed, file) {
        Some(text) if text.is_empty() => None,
        Some(text) => Some(text),
        None => Some(word.to_owned()),
    });
    let command = words.collect::<Vec<_>>().join(" ");
    Some(match remark {
        Some(remark) => format!("{command}  # {remark}"),
        None => command,
    })
}

/// The file that a failure shows by this name: one that was typed, where the name has what is no text.
fn file_of(shown: &str, typed: Option<&Typed>) -> Option<PathBuf> {
    if !shown.contains(char::REPLACEMENT_CHARACTER) {
        return Some(shown.into());
    }
    let names = typed?.words.iter().flat_map(|word| {
        let image = Point::parse(word).image;
        let real = LocalHost.canonical(&image).ok();
        [Some(image), real].into_iter().flatten()
    });
    names.into_iter().find(|name| name.to_string_lossy() == shown)
}

fn stands_for(name: &str, typed: Option<&Typed>, file: Option<&Path>) -> Option<String> {
    if let Some((image, selector)) = name.split_once('@') {
        let image = stands_for(image, typed, file)?;
        return Some(format!("{image}@{selector}"));
    }
    let image = || typed?.image.as_deref();
    let tip = || Some(Point::parse(image()?).image);
    match name {
        "IMAGE" => Some(argument(Path::new(image()?))),
        "TIP" => Some(argument(&tip()?)),
        "FILE" => file.map(argument).or_else(|| Some(argument(&tip()?))),
        "FOLDER" => {
            let made = || typed?.out.as_ref().map(PathBuf::from);
            let file = file.map(Path::to_path_buf).or_else(tip).or_else(made)?;
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            Some(argument(folder.unwrap_or(Path::new("."))))
        }
        "PLAIN" => Some(argument(&plain(file?))),
        "RENAMED" => typed.map(|typed| format!("avhdx {}", words(&renamed(&typed.words, file)))),
        "VERB" => Some(typed.map_or_else(String::new, |typed| typed.verb.clone())),
        "PARENTS" => Some(words(typed.map_or(&[][..], |typed| &typed.parents))),
        "AGAIN" => typed.map(|typed| format!("avhdx {}", words(&typed.words))),
        "ELSEWHERE" => {
            typed.map(|typed| format!("avhdx {}  # OUT: another name", words(&typed.elsewhere())))
        }
        _ => None,
    }
}

/// A path whose last name can be recorded in images.
fn plain(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(name.replace(['\\', ':', char::REPLACEMENT_CHARACTER], "_"))
}

/// What was typed, where it names the file or what lies in it, with the plain name.
fn renamed(words: &[OsString], file: Option<&Path>) -> Vec<OsString> {
    let Some(file) = file else { return words.to_vec() };
    let renamed = |word: &OsString| {
        let image = Point::parse(word).image;
        let real = LocalHost.canonical(&image).ok()?;
        let below = real.strip_prefix(file).ok()?;
        let mut word_to = match below.as_os_str().is_empty() {
            true => plain(file),
            false => plain(file).join(below),
        }
        .into_os_string();
        let selector = word.as_encoded_bytes().get(image.as_os_str().len()..).unwrap_or_default();
        word_to.push(std::str::from_utf8(selector).ok()?);
        Some(word_to)
    };
    words.iter().map(|word| renamed(word).unwrap_or_else(|| word.clone())).collect()
}

fn words(words: &[OsString]) -> String {
    words.iter().map(|text| word(text)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::KINDS;

    const FILE: Concerned<'_> = Concerned { file: Some("vm/p.vhdx"), child: None };

    #[test]
    fn every_kind_and_every_exit_has_a_next_command() {
        let exits =
            [Exit::Usage, Exit::Io, Exit::Damaged, Exit::Parent, Exit::InUse, Exit::Refused];
        for exit in exits {
            for (_, kind) in KINDS {
                let advice = advice("never.heard-of", Some(kind), exit, FILE);
                assert!(!advice.next.is_empty(), "{kind}");
            }
            assert!(
                !advice("never.heard-of", None, exit, Concerned::default()).next.is_empty(),
                "{exit:?}"
            );
        }
    }

    #[test]
    fn every_command_of_the_table_is_understood() {
        let typed = |line: &str| {
            let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            Typed::of(&args, &crate::matches(args.clone()).unwrap()).unwrap()
        };
        let lines = [
            "avhdx write it's.vhdx --offset 0 --with-parent p.vhdx",
            "avhdx convert -O raw a.vhdx@-1 out.raw --path-map D:\\vm=/mnt",
            "avhdx create child.vhdx --parent a.vhdx",
            "avhdx read a.vhdx --length 1",
            "avhdx revert a.vhdx@-1 --delete-newer",
            "avhdx merge a.vhdx",
            "avhdx write a.vhdx --offset 0 --accept-loss",
            "avhdx reparent a.vhdx --onto b.vhdx",
        ];
        for (of, _, next) in ROWS {
            let mut filled = 0;
            for template in *next {
                for line in lines {
                    let Some(command) = fill(template, Some(&typed(line)), FILE) else {
                        continue;
                    };
                    filled += 1;
                    let (command, _) = command.split_once("  # ").unwrap_or((&command, ""));
                    let command = command.split(" && ").last().unwrap();
                    let command = command.split(" <").next().unwrap();
                    let words = unquoted(command);
                    assert_eq!(words[0], "avhdx", "{of}: {command}");
                    let is_help = command.ends_with("--help");
                    assert!(is_help || crate::is_understood(words), "{of}: {command}");
                }
            }
            assert!(filled > 0, "{of}");
        }
    }

    /// What a shell makes of a command.
    fn unquoted(command: &str) -> Vec<OsString> {
        let mut words = vec![String::new()];
        let mut is_quoted = false;
        for c in command.replace(r"'\''", "\u{1}").chars() {
            match c {
                '\'' => is_quoted = !is_quoted,
                ' ' if !is_quoted => words.push(String::new()),
                c => words.last_mut().unwrap().push(if c == '\u{1}' { '\'' } else { c }),
            }
        }
        words.into_iter().map(OsString::from).collect()
    }

    #[test]
    fn commands_are_made_of_what_was_typed() {
        let args: Vec<OsString> =
            ["avhdx", "convert", "-O", "raw", "--parent-dir", "my dir", "vm/a.vhdx@-1", "o"]
                .map(Into::into)
                .into();
        let typed = Typed::of(&args, &crate::matches(args.clone()).unwrap());
        let fill = |template| fill(template, typed.as_ref(), FILE);
        assert_eq!(
            fill("avhdx info PARENTS IMAGE  # why").unwrap(),
            "avhdx info --parent-dir 'my dir' vm/a.vhdx@-1  # why"
        );
        assert_eq!(fill("avhdx check FILE").unwrap(), "avhdx check vm/p.vhdx");
        assert_eq!(fill("avhdx tree FOLDER").unwrap(), "avhdx tree vm");
        assert_eq!(
            fill("AGAIN --overwrite").unwrap(),
            "avhdx convert -O raw --parent-dir 'my dir' vm/a.vhdx@-1 o --overwrite"
        );
        assert_eq!(fill("AGAIN --orphan-children"), None);
        assert_eq!(
            fill("AGAIN -O vhdx").unwrap(),
            "avhdx convert --parent-dir 'my dir' vm/a.vhdx@-1 o -O vhdx"
        );
        assert!(fill("ELSEWHERE").unwrap().contains(" vm/a.vhdx@-1 OUT  # "));
    }
}
