//! Completion by the program itself, for shells that ask for it: file names, and the labels of `IMAGE@LABEL`.
//!
//! `COMPLETE=bash avhdx` prints what a shell has to source. From then on the shell runs the program with the words
//! typed so far, and the program prints what they can become.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use avhdx::storage::{FileKind, Host, LocalHost};
use avhdx::{Lock, LogPolicy, OpenOptions, PathSource};
use clap::Command;
use clap::builder::Resettable;
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter, complete,
};
use clap_complete::env::{CompleteEnv, Elvish, EnvCompleter, Fish, Powershell, Shells, Zsh};

use crate::args;
use crate::text::printable;

/// After this time, a file that is slow to open completes to nothing.
const PATIENCE: Duration = Duration::from_millis(200);

/// The names of values that are images.
const IMAGES: [&str; 7] = ["IMAGE", "IMAGE@SEL", "CHILD", "A", "B", "BASE", "ANCESTOR"];

/// Answers a shell that asks for completions. Returns whether one did.
pub(crate) fn answer(
    program: impl Fn() -> Command,
    args: &[OsString],
) -> Result<bool, clap::Error> {
    let zsh = Unquoting { shell: &Zsh, only_last: false };
    // It unquotes all words but the one under the cursor.
    let fish = Unquoting { shell: &Fish, only_last: true };
    let shells: [&dyn EnvCompleter; 5] = [&Bash, &zsh, &fish, &Elvish, &Powershell];
    let folder = std::env::current_dir().ok();
    CompleteEnv::with_factory(|| with_images(by_names(program())))
        .bin("avhdx")
        .shells(Shells(&shells))
        .try_complete(args.iter().cloned(), folder.as_deref())
}

/// The program, whose verbs are offered by their names alone: an alias is known once it is typed.
pub(crate) fn by_names(program: Command) -> Command {
    program.mut_subcommands(|verb| {
        let aliases: Vec<String> = verb.get_all_aliases().map(str::to_owned).collect();
        let verb = verb.alias(Resettable::Reset);
        // The parser takes names for good; the program ends soon.
        aliases.into_iter().fold(verb, |verb, alias| verb.alias(&*alias.leak()))
    })
}

/// The program, whose arguments that are images complete to files and points in time.
fn with_images(program: Command) -> Command {
    program.mut_subcommands(|verb| {
        verb.mut_args(|arg| {
            let names = arg.get_value_names().unwrap_or_default();
            match names {
                [name] if IMAGES.contains(&name.as_str()) => arg.add(ArgValueCompleter::new(image)),
                _ => arg,
            }
        })
    })
}

/// What the start of an image's name, or of `IMAGE@LABEL`, can become. Nothing, if that takes too long: a file may lie
/// on a host that does not answer.
fn image(typed: &OsStr) -> Vec<CompletionCandidate> {
    let (send, found) = mpsc::channel();
    let typed = typed.to_owned();
    // Left behind if it hangs: it changes nothing, and ends with the program.
    thread::spawn(move || {
        let candidates = points(&typed).unwrap_or_else(|| PathCompleter::any().complete(&typed));
        // Nobody waits for it any more.
        drop(send.send(candidates));
    });
    found.recv_timeout(PATIENCE).unwrap_or_default()
}

/// The points in time whose label starts as typed; `None` if no image with a selector was typed.
fn points(typed: &OsStr) -> Option<Vec<CompletionCandidate>> {
    let text = typed.to_str()?;
    let mut splits = text.rmatch_indices('@').map(|(at, _)| text.split_at(at));
    // Neither a pipe nor a folder is opened.
    let is_file =
        |path: &str| LocalHost.stat(Path::new(path)).is_ok_and(|stat| stat.kind == FileKind::File);
    let (image, selector) = splits.find(|(image, _)| is_file(image))?;
    let start = selector.strip_prefix('@')?;
    Some(labels(Path::new(image), start).unwrap_or_default())
}

/// The labels in the chain of an image that start so. The chain is read as it is: no log is replayed, no lock is
/// taken.
fn labels(image: &Path, start: &str) -> Result<Vec<CompletionCandidate>, avhdx::Error> {
    let mut source = PathSource::new();
    for folder in args::listed_folders() {
        source = source.folder(folder);
    }
    let options = OpenOptions::new().parents(source).lock(Lock::None).log(LogPolicy::Ignore);
    let points = options.open(image)?.points();
    let named = points.iter().filter_map(|point| Some((point.label.as_deref()?, point)));
    let named = named.filter(|(label, _)| label.starts_with(start) && printable(label) == *label);
    let candidates = named.map(|(label, point)| {
        let help = format!("the disk as it was in {}", printable(&point.name));
        CompletionCandidate::new(format!("{}@{label}", image.display())).help(Some(help.into()))
    });
    Ok(candidates.collect())
}

/// A shell that passes words on as typed, with their quotes.
struct Unquoting<'a> {
    shell: &'a dyn EnvCompleter,
    only_last: bool,
}

impl EnvCompleter for Unquoting<'_> {
    fn name(&self) -> &'static str {
        self.shell.name()
    }

    fn is(&self, name: &str) -> bool {
        self.shell.is(name)
    }

    fn write_registration(
        &self,
        var: &str,
        name: &str,
        bin: &str,
        completer: &str,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        self.shell.write_registration(var, name, bin, completer, to)
    }

    fn write_complete(
        &self,
        command: &mut Command,
        mut args: Vec<OsString>,
        folder: Option<&Path>,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        let from = if self.only_last { args.len().saturating_sub(1) } else { 0 };
        for word in args.iter_mut().skip(from) {
            *word = unquoted(word).0;
        }
        self.shell.write_complete(command, args, folder, to)
    }
}

/// bash. It splits words at `@`, `:` and `=` too, and replaces only the part under the cursor, without quoting it.
struct Bash;

/// What bash runs, after the name of the program is filled in.
const BASH: &str = r#"_avhdx_complete() {
    local rest=$COMP_LINE words=() n=-1 word
    for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        if [[ $n -lt 0 || $rest == [[:space:]]* ]]; then
            n=$((n + 1))
            words[n]=
        fi
        rest=${rest#"${rest%%[![:space:]]*}"}
        rest=${rest#"$word"}
        words[n]+=$word
    done
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(VAR=bash _AVHDX_PART=$2 COMPLETER -- "${words[@]}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _avhdx_complete BIN"#;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == "bash"
    }

    fn write_registration(
        &self,
        var: &str,
        _name: &str,
        bin: &str,
        completer: &str,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        let completer = crate::shell::word(OsStr::new(completer));
        let script = BASH.replace("VAR", var).replace("COMPLETER", &completer);
        writeln!(to, "{}", script.replace("BIN", bin))
    }

    fn write_complete(
        &self,
        command: &mut Command,
        args: Vec<OsString>,
        folder: Option<&Path>,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        let Some(last) = args.last().cloned() else { return Ok(()) };
        let part = std::env::var_os("_AVHDX_PART").unwrap_or_default();
        let kept = before(&last, &part);
        let (kept, quote) = unquoted(&kept);
        let words: Vec<OsString> = args.iter().map(|word| unquoted(word).0).collect();
        let at = words.len() - 1;
        for candidate in complete(command, words, at, folder)? {
            let candidate = candidate.get_value().to_string_lossy().into_owned();
            if let Some(rest) = candidate.strip_prefix(&*kept.to_string_lossy()) {
                writeln!(to, "{}", quoted(rest, quote))?;
            }
        }
        Ok(())
    }
}

/// What comes before the part of a word that is replaced.
fn before(word: &OsStr, part: &OsStr) -> OsString {
    let (word, part) = (word.to_string_lossy(), part.to_string_lossy());
    word.strip_suffix(&*part).unwrap_or_default().into()
}

/// The word that a shell makes of what was typed, and the quote that is still open.
fn unquoted(typed: &OsStr) -> (OsString, Option<char>) {
    let Some(text) = typed.to_str() else { return (typed.to_owned(), None) };
    for quote in [None, Some('\''), Some('"')] {
        let closed: String = text.chars().chain(quote).collect();
        match shlex::split(&closed).as_deref() {
            Some([word]) => return (word.into(), quote),
            Some([]) => return (OsString::new(), quote),
            _ => {}
        }
    }
    (typed.to_owned(), None)
}

/// A part of a word as bash takes it, within the quote that is open.
fn quoted(text: &str, quote: Option<char>) -> String {
    let is_plain = |c: char| match quote {
        Some('\'') => true,
        Some(_) => !"\"\\$`".contains(c),
        None => c.is_alphanumeric() || "/._-+,:@%=".contains(c),
    };
    let escaped = |c: char| match quote {
        Some('\'') if c == '\'' => r"'\''".to_owned(),
        _ if is_plain(c) => c.to_string(),
        _ => format!("\\{c}"),
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unquoted_as_bash_does_it() {
        let of = |text: &str| {
            let (word, quote) = unquoted(OsStr::new(text));
            (word.into_string().unwrap(), quote)
        };
        assert_eq!(of("web.vhdx@mon"), ("web.vhdx@mon".into(), None));
        assert_eq!(of(r"a\ b@c"), ("a b@c".into(), None));
        assert_eq!(of("'a b"), ("a b".into(), Some('\'')));
        assert_eq!(of("\"it's"), ("it's".into(), Some('"')));
        assert_eq!(of(""), (String::new(), None));
        assert_eq!(of("'"), (String::new(), Some('\'')));
    }

    #[test]
    fn candidates_are_quoted_as_the_word_was_begun() {
        assert_eq!(quoted("before $update", None), r"before\ \$update");
        assert_eq!(quoted("it's $1", Some('\'')), r"it'\''s $1");
        assert_eq!(quoted("it's $1", Some('"')), r"it's \$1");
        assert_eq!(before(OsStr::new("web@mon"), OsStr::new("mon")), "web@");
    }
}
