//! What to do after a failure: a table from its code or kind to hints and commands.

mod formats;
mod rows;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use avhdx::storage::{FileKind, Host, LocalHost};

use crate::failure::Exit;
use crate::point::{Point, folder_of};
use crate::shell::{argument, foreign_argument, words};
use crate::typed::{Typed, typed};

pub(crate) use rows::Row;

/// Hints and commands for the user, the likeliest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Suggestions {
    pub(crate) hints: Vec<String>,
    pub(crate) next: Vec<String>,
}

/// The files that a failure concerns.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Concerned<'a> {
    pub(crate) file: Option<&'a str>,
    /// The image whose parent the file is or should be.
    pub(crate) child: Option<&'a str>,
}

/// The suggestions that the table has for a failure.
pub(crate) fn advice(
    code: &str,
    kind: Option<&str>,
    exit: Exit,
    concerned: Concerned<'_>,
) -> Suggestions {
    let typed = typed();
    let verb = typed.as_ref().map_or("", |typed| &typed.verb);
    let found = row_of(verb, code, kind, exit as u8, concerned.child.is_some());
    let Some((_, hints, next)) = found else { return Suggestions::default() };
    let has_flag = |hint: &&&str| match (hint.strip_prefix("--"), typed.as_ref()) {
        (Some(hint), Some(typed)) => typed.has_flag(hint.split(' ').next().unwrap_or_default()),
        _ => true,
    };
    // --accept-loss repairs the image typed, never a layer below it.
    let helps = |template: &&&str| {
        !template.starts_with("AGAIN --accept-loss")
            || typed.as_ref().is_none_or(|typed| typed.is_of(concerned.file))
    };
    let next = next.iter().filter(helps);
    let next = next.filter_map(|template| fill(template, typed.as_ref(), concerned));
    // What was typed just failed.
    let next = next.filter(|command| typed.as_ref().is_none_or(|typed| !typed.is(command)));
    let hints = hints.iter().filter(has_flag).map(|hint| (*hint).into());
    Suggestions { hints: hints.collect(), next: next.collect() }
}

/// The commands for a file that the library refuses, independent of the command typed.
pub(crate) fn for_file(error: &avhdx::Error, path: &Path) -> Vec<String> {
    let file = path.display().to_string();
    let concerned = Concerned { file: Some(&file), child: None };
    let known = all_rows().find(|(name, ..)| *name == error.code());
    let templates = known.map_or(&[][..], |(_, _, next)| next).iter();
    // A tree is what shows the refusal.
    let leads_on = |template: &&&str| {
        !template.starts_with("AGAIN") && !template.starts_with("avhdx tree FOLDER")
    };
    let of_file = templates.filter(leads_on);
    of_file.filter_map(|template| fill(template, None, concerned)).collect()
}

/// The command typed. What makes it succeed must come before it: alone, it would fail again.
pub(crate) fn again() -> Option<String> {
    fill("AGAIN", typed().as_ref(), Concerned::default())
}

/// The command typed with a further flag, and a remark; `None` if the verb does not take it or has it already.
pub(crate) fn with_flag(more: &str) -> Option<String> {
    fill(&format!("AGAIN {more}"), Some(typed().as_ref()?), Concerned::default())
}

/// The command that lists a folder inside the disk.
pub(crate) fn listing(path: &OsStr) -> Option<String> {
    let listing = fill("avhdx ls PARENTS FORMAT ON IMAGE", typed().as_ref(), Concerned::default())?;
    let is_flag = path.as_encoded_bytes().first() == Some(&b'-');
    let from_top = if is_flag { OsString::from("/") } else { OsString::new() };
    let path = [from_top.as_os_str(), path].into_iter().collect::<OsString>();
    Some(format!("{listing} {}  # lists what it holds", words(&[path])))
}

/// The command typed, with another name for its output.
pub(crate) fn elsewhere(out: &Path) -> Option<String> {
    typed().as_ref()?.elsewhere(out.as_os_str()).map(|typed| format!("avhdx {}", words(&typed)))
}

/// The command typed, with `point` in place of `image` or a point of it; `None` for a verb that changes an image.
pub(crate) fn at_point(image: &Path, point: &OsStr) -> Option<String> {
    let words_at_point = typed().as_ref()?.at_point(image, point)?;
    Some(format!("avhdx {}", words(&words_at_point)))
}

/// The rows of the table.
pub(crate) fn all_rows() -> impl Iterator<Item = &'static Row> {
    rows::ROWS.iter().chain(formats::FORMATS)
}

/// The row that applies to a failure of a verb.
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
            names.find_map(|full| all_rows().find(|(name, ..)| *name == full))
        };
        spaces.iter().flatten().find_map(of_spaces)
    };
    // A row for parents in general helps more than one for the exact code, which is about an image that was typed.
    let prefix = code.split_once('.').map_or_else(String::new, |(first, _)| format!("{first}.*"));
    find(&[code, &prefix])
        .or_else(|| find(&[&format!("kind {}", kind?)]))
        .or_else(|| find(&[&format!("exit {exit}")]))
}

/// The command that a template stands for; `None` if the verb typed does not take its flag, or a name is unknown.
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
        // A redirection takes the place of one that was typed, which the program cannot see.
        (Some(typed), Some(more)) if !more.starts_with(['<', '>']) => Some(typed.before(more)?),
        _ => typed.cloned(),
    };
    let typed = typed.as_ref();
    let template = template.as_str();
    let file = match concerned.file.map(|shown| file_of(shown, typed)) {
        // No command is better than one for a wrong name.
        Some(None) if ["FILE", "FOLDER", "PLAIN"].iter().any(|name| template.contains(name)) => {
            return None;
        }
        file => file.flatten(),
    };
    let file = file.as_deref();
    // A verb without an output's name has no other name to take.
    if template == "ELSEWHERE"
        && typed.is_some_and(|typed| typed.elsewhere("OUT".as_ref()).is_none())
    {
        return None;
    }
    let is_own = |word: &str| word == "avhdx" || word.starts_with(char::is_uppercase);
    let quoted =
        if template.split(' ').next().is_some_and(is_own) { argument } else { foreign_argument };
    let words =
        template.split(' ').filter_map(|word| match stands_for(word, typed, file, quoted) {
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

/// The file that a failure shows as `shown`. A name that is not Unicode is looked up among the words typed.
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

/// What a word of a template stands for; see [`Row`]. `quoted` makes an argument of the file.
fn stands_for(
    name: &str,
    typed: Option<&Typed>,
    file: Option<&Path>,
    quoted: fn(&Path) -> String,
) -> Option<String> {
    // An operand such as if=FILE.
    if let Some((key, value)) = name.split_once('=') {
        return Some(format!("{key}={}", stands_for(value, typed, file, quoted)?));
    }
    if let Some((image, selector)) = name.split_once('@') {
        let image = stands_for(image, typed, file, quoted)?;
        return Some(format!("{image}@{selector}"));
    }
    let image = || typed?.image.as_deref();
    let tip = || Some(Point::parse(image()?).image);
    match name {
        "IMAGE" => Some(argument(Path::new(image()?))),
        "TIP" => Some(argument(&tip()?)),
        "FILE" => file.map(quoted).or_else(|| Some(quoted(&tip()?))),
        "FOLDER" => {
            let made = || typed?.out.as_ref().map(PathBuf::from);
            let file = file.map(Path::to_path_buf).or_else(tip).or_else(made)?;
            Some(argument(folder_there(&file)))
        }
        "PLAIN" => Some(argument(&plain(file?))),
        "RENAMED" => typed.map(|typed| format!("avhdx {}", words(&renamed(&typed.words, file)))),
        "VERB" => Some(typed.map_or_else(String::new, |typed| typed.verb.clone())),
        "FORMAT" => Some(words(typed.map_or(&[][..], |typed| &typed.format))),
        "ON" => Some(words(typed.map_or(&[][..], |typed| &typed.volume))),
        "PARENTS" => Some(words(typed.map_or(&[][..], |typed| &typed.parents))),
        "AGAIN" => typed.map(|typed| format!("avhdx {}", words(&typed.words))),
        "ELSEWHERE" => {
            let words = words(&typed?.elsewhere("OUT".as_ref())?);
            Some(format!("avhdx {words}  # OUT: another name"))
        }
        _ => None,
    }
}

/// The folder that a file lies in, or the next one above it that is there.
fn folder_there(file: &Path) -> &Path {
    let is_there =
        |folder: &&Path| LocalHost.stat(folder).is_ok_and(|stat| stat.kind == FileKind::Folder);
    let folder = folder_of(file);
    let mut above = folder.ancestors().filter(|folder| !folder.as_os_str().is_empty());
    above.find(is_there).unwrap_or_else(|| Path::new(if file.is_absolute() { "/" } else { "." }))
}

/// A path whose last name can be recorded in images.
fn plain(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(name.replace(['\\', ':', char::REPLACEMENT_CHARACTER], "_"))
}

/// The words, with the plain name wherever they name the file or something below it.
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
