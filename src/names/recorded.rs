//! Resolves and creates paths in the form in which images record them.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::storage::{Host, is_temporary_name};

/// How many case-insensitive matches of a recorded path are considered.
const MAX_MATCHES: usize = 64;

/// The paths in a folder by their case-folded names.
pub(crate) type Listing = HashMap<String, Vec<PathBuf>>;

/// Looks up recorded names.
pub(crate) trait NameLookup {
    /// Whether the path exists as it is, or no case-insensitive match should be searched for.
    fn is_settled(&self, path: &Path) -> bool;

    fn listing(&self, folder: &Path) -> Arc<Listing>;
}

impl NameLookup for &dyn Host {
    fn is_settled(&self, path: &Path) -> bool {
        self.stat(path).is_ok()
    }

    fn listing(&self, folder: &Path) -> Arc<Listing> {
        Arc::new(list(*self, folder))
    }
}

/// Returns the places to which a path recorded relative to `folder` may lead.
pub(crate) fn from_folder(lookup: &dyn NameLookup, folder: &Path, path: &str) -> Vec<PathBuf> {
    match rooted(path) {
        Some(rooted) => vec![rooted],
        None => matches(lookup, folder, &parts(path)),
    }
}

/// Resolves `names` below `base`, matching names without regard to case if they do not exist exactly.
/// If nothing matches, returns the exact path, so that errors can name it.
pub(crate) fn matches(lookup: &dyn NameLookup, base: &Path, names: &[String]) -> Vec<PathBuf> {
    let exact = names.iter().fold(base.to_path_buf(), |path, name| path.join(name));
    if lookup.is_settled(&exact) {
        return vec![exact];
    }
    let mut places = vec![base.to_path_buf()];
    for name in names {
        places = places.iter().flat_map(|place| matches_in(lookup, place, name)).collect();
        places.truncate(MAX_MATCHES);
    }
    if places.is_empty() { vec![exact] } else { places }
}

fn matches_in(lookup: &dyn NameLookup, folder: &Path, name: &str) -> Vec<PathBuf> {
    let exact = folder.join(name);
    if name == ".." || lookup.is_settled(&exact) {
        return vec![exact];
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    lookup.listing(folder).get(&without_case(name)).cloned().unwrap_or_default()
}

/// Lists a folder by name, without temporary files.
pub(crate) fn list(host: &dyn Host, folder: &Path) -> Listing {
    let mut listing = Listing::new();
    for path in files_of(host, folder) {
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            listing.entry(without_case(name)).or_default().push(path);
        }
    }
    listing
}

/// Lists the paths in a folder in order, without temporary files.
pub(crate) fn files_of(host: &dyn Host, folder: &Path) -> Vec<PathBuf> {
    let mut places = host.list(folder).unwrap_or_default();
    places.retain(|place| !is_temporary_name(place));
    places.sort();
    places
}

/// Splits a Windows path: `\\?\D:\vm\a.vhdx` and `d:/vm/./a.vhdx` become `D:`, `vm`, `a.vhdx`.
pub(crate) fn parts(path: &str) -> Vec<String> {
    let path = match path.strip_prefix(r"\\?\") {
        Some(path) => path.strip_prefix(r"UNC\").unwrap_or(path),
        None => path,
    };
    let names = path.split(['\\', '/']).filter(|name| !name.is_empty() && *name != ".");
    names.map(str::to_owned).collect()
}

pub(crate) fn file_name(path: &str) -> Option<&str> {
    path.rsplit(['\\', '/']).next().filter(|name| !matches!(*name, "" | "." | ".."))
}

/// Returns an absolute Unix path as such; some writers other than Windows record these.
pub(crate) fn rooted(path: &str) -> Option<PathBuf> {
    (cfg!(unix) && path.starts_with('/')).then(|| PathBuf::from(path))
}

pub(crate) fn same_name(a: &str, b: &str) -> bool {
    a == b || without_case(a) == without_case(b)
}

/// Folds case approximately as Windows does, which compares upper-case forms of single characters.
fn without_case(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).collect()
}

/// Returns the path from `folder` to `target` in Windows form. Both must be free of links and dots.
pub(crate) fn relative(folder: &Path, target: &Path) -> Option<String> {
    let from: Vec<Component<'_>> = folder.components().collect();
    let to: Vec<Component<'_>> = target.components().collect();
    let shared = shared(folder, target);
    // A relative path cannot lead to another drive or share.
    if shared == 0 {
        return None;
    }
    let mut names = vec![".."; from.len() - shared];
    if names.is_empty() {
        names.push(".");
    }
    for part in &to[shared..] {
        let Component::Normal(name) = part else { return None };
        names.push(name.to_str()?);
    }
    Some(names.join("\\"))
}

/// Returns the first component on the way from `folder` to `target` that cannot be recorded on this machine, and
/// the reason.
pub(crate) fn unrecordable<'a>(
    folder: &Path,
    target: &'a Path,
) -> Option<(&'a Path, &'static str)> {
    let depth = shared(folder, target);
    let mut below: Vec<&Path> = target.ancestors().collect();
    below.reverse();
    below.into_iter().skip(depth).find_map(|place| {
        let why = match place.file_name()?.to_str() {
            None => "a name that is not valid UTF-8",
            Some(name) if name.contains('\\') => {
                r"a \ in the name, which separates folders in recorded paths"
            }
            Some(name) if name.contains(':') => {
                "a : in the name, which marks drives in recorded paths"
            }
            Some(_) => return None,
        };
        Some((place, why))
    })
}

/// Counts the leading components that two paths have in common.
fn shared(a: &Path, b: &Path) -> usize {
    a.components().zip(b.components()).take_while(|(a, b)| a == b).count()
}
