//! The files and modules of a crate, and the resolution of paths to the items they name.

use std::collections::{HashMap, HashSet};

use syn::spanned::Spanned;
use syn::{Attribute, Item, Meta, UseTree, Visibility};

/// The sources of one crate without its test code.
#[derive(Default)]
pub struct Tree {
    pub files: Vec<File>,
    pub modules: Vec<Module>,
    pub items: Vec<Definition>,
}

pub struct File {
    /// Relative to the folder of the root file.
    pub path: String,
    pub module: usize,
    pub lines: usize,
    pub ast: syn::File,
}

/// A module, in a file of its own or inline.
pub struct Module {
    pub path: Vec<String>,
    pub file: usize,
    pub parent: Option<usize>,
    pub children: HashMap<String, usize>,
    items: HashMap<String, Vec<usize>>,
    /// Imported names and their paths.
    imports: HashMap<String, Vec<Vec<String>>>,
    globs: Vec<Vec<String>>,
    /// Imports inside functions. They apply to the whole module, after its own names.
    local: HashMap<String, Vec<Vec<String>>>,
}

/// An item that a module defines.
pub struct Definition {
    pub name: String,
    pub module: usize,
    pub file: usize,
    variants: Vec<String>,
    /// The path on the right side of a `type` declaration.
    alias: Option<Vec<String>>,
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Module(usize),
    Item(usize),
}

impl Target {
    pub fn item(self) -> Option<usize> {
        match self {
            Self::Item(item) => Some(item),
            Self::Module(_) => None,
        }
    }
}

/// One name that a `use` declaration imports.
pub struct Import {
    pub path: Vec<String>,
    /// `None` for a glob.
    pub name: Option<String>,
    pub line: usize,
}

impl Tree {
    /// Reads a crate from its root file. `read` returns the text of a file, given its path relative to the root file.
    ///
    /// # Panics
    /// Panics when a file does not parse, or when a declared module has no file.
    pub fn read(root: &str, read: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut tree = Self::default();
        tree.file(root.to_owned(), Vec::new(), None, read);
        tree
    }

    /// The path of a module without `crate`.
    pub fn module_name(&self, module: usize) -> String {
        self.modules[module].path.join("::")
    }

    pub fn target_file(&self, target: Target) -> usize {
        match target {
            Target::Module(module) => self.modules[module].file,
            Target::Item(item) => self.items[item].file,
        }
    }

    pub fn target_name(&self, target: Target) -> String {
        match target {
            Target::Module(module) => self.module_name(module),
            Target::Item(item) => {
                let item = &self.items[item];
                let mut path = self.modules[item.module].path.clone();
                path.push(item.name.clone());
                path.join("::")
            }
        }
    }

    /// Whether the module of the first file contains that of the second.
    pub fn is_around(&self, outer: usize, inner: usize) -> bool {
        let (outer, inner) = (&self.files[outer], &self.files[inner]);
        let (outer, inner) = (&self.modules[outer.module].path, &self.modules[inner.module].path);
        outer.len() < inner.len() && inner.starts_with(outer)
    }

    /// The item that a path names. Follows `type` declarations.
    pub fn item(&self, from: usize, path: &[String]) -> Option<usize> {
        let mut item = self.resolve(from, path).into_iter().find_map(Target::item)?;
        for _ in 0..self.items.len() {
            let Definition { alias: Some(alias), module, .. } = &self.items[item] else { break };
            match self.resolve(*module, alias).into_iter().find_map(Target::item) {
                Some(next) => item = next,
                None => break,
            }
        }
        Some(item)
    }

    /// Everything in this crate that a path in a module may name.
    pub fn resolve(&self, from: usize, path: &[String]) -> Vec<Target> {
        self.walk(from, path, &mut HashSet::new())
    }

    fn walk(
        &self,
        from: usize,
        path: &[String],
        seen: &mut HashSet<(usize, String)>,
    ) -> Vec<Target> {
        let mut rest = path.iter();
        let mut targets = Vec::new();
        let mut module = from;
        let mut is_start = true;
        while let Some(segment) = rest.as_slice().first() {
            match segment.as_str() {
                "crate" => module = 0,
                "self" if is_start => {}
                "super" => match self.modules[module].parent {
                    Some(parent) => module = parent,
                    None => return Vec::new(),
                },
                name if is_start => {
                    targets = self.look_up(module, name, true, seen);
                    rest.next();
                    break;
                }
                _ => break,
            }
            targets = vec![Target::Module(module)];
            is_start = false;
            rest.next();
        }
        for segment in rest {
            let mut next = Vec::new();
            for target in targets {
                match target {
                    Target::Module(module) if segment == "self" => {
                        next.push(Target::Module(module));
                    }
                    Target::Module(module) => {
                        next.extend(self.look_up(module, segment, false, seen))
                    }
                    // A variant, or an associated item.
                    Target::Item(item) => next.push(Target::Item(item)),
                }
            }
            targets = next;
        }
        let mut known = HashSet::new();
        targets.retain(|target| known.insert(*target));
        targets
    }

    fn look_up(
        &self,
        module: usize,
        name: &str,
        is_inside: bool,
        seen: &mut HashSet<(usize, String)>,
    ) -> Vec<Target> {
        if !seen.insert((module, name.to_owned())) {
            return Vec::new();
        }
        let here = &self.modules[module];
        let mut found: Vec<Target> =
            here.items.get(name).into_iter().flatten().map(|item| Target::Item(*item)).collect();
        for import in here.imports.get(name).into_iter().flatten() {
            found.extend(self.walk(module, import, seen));
        }
        found.extend(here.children.get(name).map(|child| Target::Module(*child)));
        if found.is_empty() {
            for glob in &here.globs {
                for target in self.walk(module, glob, &mut seen.clone()) {
                    match target {
                        Target::Module(other) => {
                            found.extend(self.look_up(other, name, false, seen));
                        }
                        Target::Item(item) => {
                            let variants = &self.items[item].variants;
                            let is_one = variants.iter().any(|variant| variant == name);
                            found.extend(is_one.then_some(target));
                        }
                    }
                }
            }
        }
        if found.is_empty() && is_inside {
            for import in here.local.get(name).into_iter().flatten() {
                found.extend(self.walk(module, import, seen));
            }
        }
        seen.remove(&(module, name.to_owned()));
        found
    }

    fn file(
        &mut self,
        path: String,
        name: Vec<String>,
        parent: Option<usize>,
        read: &dyn Fn(&str) -> Option<String>,
    ) -> usize {
        let text = read(&path).unwrap_or_else(|| panic!("module {}: no {path}", name.join("::")));
        let mut ast = syn::parse_file(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut items = std::mem::take(&mut ast.items);
        if !counts(&ast.attrs) {
            items.clear();
        }
        let file = self.files.len();
        let module = self.module(name, file, parent);
        let lines = text.lines().count();
        self.files.push(File { path: path.clone(), module, lines, ast });
        let folder = match path.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/"),
            None => String::new(),
        };
        let stem = path[folder.len()..].trim_end_matches(".rs");
        let inner = match stem {
            "mod" => folder.clone(),
            _ if parent.is_none() => folder.clone(),
            _ => format!("{folder}{stem}/"),
        };
        self.fill(module, &items, &folder, &inner, read);
        self.files[file].ast.items = items;
        module
    }

    fn module(&mut self, path: Vec<String>, file: usize, parent: Option<usize>) -> usize {
        self.modules.push(Module {
            path,
            file,
            parent,
            children: HashMap::new(),
            items: HashMap::new(),
            imports: HashMap::new(),
            globs: Vec::new(),
            local: HashMap::new(),
        });
        self.modules.len() - 1
    }

    /// Collects the names of a module. Files of its children lie in `inner`, paths in `#[path]` start at `beside`.
    fn fill(
        &mut self,
        module: usize,
        items: &[Item],
        beside: &str,
        inner: &str,
        read: &dyn Fn(&str) -> Option<String>,
    ) {
        for item in items {
            if !counts(attributes(item)) {
                continue;
            }
            match item {
                Item::Mod(found) => {
                    let name = plain(&found.ident);
                    let mut path = self.modules[module].path.clone();
                    path.push(name.clone());
                    let child = match &found.content {
                        Some((_, items)) => {
                            let file = self.modules[module].file;
                            let child = self.module(path, file, Some(module));
                            let inner = format!("{inner}{name}/");
                            self.fill(child, items, &inner, &inner, read);
                            child
                        }
                        None => {
                            let place = place(&found.attrs, &name, beside, inner, read);
                            self.file(place, path, Some(module), read)
                        }
                    };
                    self.modules[module].children.insert(name, child);
                }
                Item::Use(found) => {
                    for leaf in leaves(found) {
                        self.import(module, leaf, false);
                    }
                }
                Item::ExternCrate(found) if found.ident == "self" => {
                    if let Some((_, name)) = &found.rename {
                        let imports = &mut self.modules[module].imports;
                        imports.entry(plain(name)).or_default().push(vec!["crate".to_owned()]);
                    }
                }
                Item::Macro(found) => {
                    if let Some(name) = &found.ident {
                        let is_exported =
                            found.attrs.iter().any(|a| a.path().is_ident("macro_export"));
                        let item = self.define(module, plain(name), Vec::new());
                        if is_exported && module != 0 {
                            self.modules[0].items.entry(plain(name)).or_default().push(item);
                        }
                    }
                }
                _ => {
                    if let Some(name) = defined(item) {
                        let variants = match item {
                            Item::Enum(found) => {
                                found.variants.iter().map(|v| plain(&v.ident)).collect()
                            }
                            _ => Vec::new(),
                        };
                        let item_at = self.define(module, name, variants);
                        if let Item::Type(found) = item
                            && let syn::Type::Path(of) = found.ty.as_ref()
                        {
                            self.items[item_at].alias = Some(segments(&of.path));
                        }
                    }
                }
            }
        }
    }

    fn define(&mut self, module: usize, name: String, variants: Vec<String>) -> usize {
        let item = self.items.len();
        let file = self.modules[module].file;
        self.items.push(Definition { name: name.clone(), module, file, variants, alias: None });
        self.modules[module].items.entry(name).or_default().push(item);
        item
    }

    /// Adds an import to a module; `is_local` marks one inside a function.
    pub fn import(&mut self, module: usize, leaf: Import, is_local: bool) {
        let module = &mut self.modules[module];
        match leaf.name {
            None => module.globs.push(leaf.path),
            Some(name) => {
                let imports = if is_local { &mut module.local } else { &mut module.imports };
                imports.entry(name).or_default().push(leaf.path);
            }
        }
    }
}

/// Every name that a `use` declaration imports. Paths that start with `::` are skipped: they name other crates.
pub fn leaves(found: &syn::ItemUse) -> Vec<Import> {
    let mut into = Vec::new();
    if found.leading_colon.is_none() {
        branch(&found.tree, &mut Vec::new(), &mut into);
    }
    into
}

fn branch(tree: &UseTree, path: &mut Vec<String>, into: &mut Vec<Import>) {
    let line = tree.span().start().line;
    let mut leaf = |path: &[String], last: &syn::Ident, name: &syn::Ident| {
        let mut path = path.to_vec();
        if last == "self" && !path.is_empty() {
            let name = if name == "self" { path.last().cloned() } else { Some(plain(name)) };
            into.push(Import { path, name, line });
        } else {
            path.push(plain(last));
            into.push(Import { path, name: Some(plain(name)), line });
        }
    };
    match tree {
        UseTree::Path(part) => {
            path.push(plain(&part.ident));
            branch(&part.tree, path, into);
            path.pop();
        }
        UseTree::Name(part) => leaf(path, &part.ident, &part.ident),
        UseTree::Rename(part) => leaf(path, &part.ident, &part.rename),
        UseTree::Glob(_) => into.push(Import { path: path.clone(), name: None, line }),
        UseTree::Group(group) => group.items.iter().for_each(|tree| branch(tree, path, into)),
    }
}

/// The file of a module declared without a body.
fn place(
    attributes: &[Attribute],
    name: &str,
    beside: &str,
    inner: &str,
    read: &dyn Fn(&str) -> Option<String>,
) -> String {
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("path")) {
        if let Meta::NameValue(value) = &attribute.meta
            && let syn::Expr::Lit(literal) = &value.value
            && let syn::Lit::Str(path) = &literal.lit
        {
            return format!("{beside}{}", path.value());
        }
    }
    let file = format!("{inner}{name}.rs");
    match read(&file) {
        Some(_) => file,
        None => format!("{inner}{name}/mod.rs"),
    }
}

/// The name that an item defines.
pub fn defined(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(found) => &found.ident,
        Item::Enum(found) => &found.ident,
        Item::Fn(found) => &found.sig.ident,
        Item::Static(found) => &found.ident,
        Item::Struct(found) => &found.ident,
        Item::Trait(found) => &found.ident,
        Item::TraitAlias(found) => &found.ident,
        Item::Type(found) => &found.ident,
        Item::Union(found) => &found.ident,
        _ => return None,
    };
    Some(plain(name))
}

/// The attributes of an item.
pub fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(found) => &found.attrs,
        Item::Enum(found) => &found.attrs,
        Item::ExternCrate(found) => &found.attrs,
        Item::Fn(found) => &found.attrs,
        Item::ForeignMod(found) => &found.attrs,
        Item::Impl(found) => &found.attrs,
        Item::Macro(found) => &found.attrs,
        Item::Mod(found) => &found.attrs,
        Item::Static(found) => &found.attrs,
        Item::Struct(found) => &found.attrs,
        Item::Trait(found) => &found.attrs,
        Item::TraitAlias(found) => &found.attrs,
        Item::Type(found) => &found.attrs,
        Item::Union(found) => &found.attrs,
        Item::Use(found) => &found.attrs,
        _ => &[],
    }
}

pub fn is_public(visibility: &Visibility) -> bool {
    !matches!(visibility, Visibility::Inherited)
}

/// The names in a path, without generic arguments.
pub fn segments(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|segment| plain(&segment.ident)).collect()
}

/// A name without the `r#` of a keyword.
pub fn plain(name: &syn::Ident) -> String {
    let name = name.to_string();
    name.strip_prefix("r#").map(str::to_owned).unwrap_or(name)
}

/// Whether a build other than a test or documentation may contain code with these attributes.
pub fn counts(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).all(|attribute| {
        match attribute.parse_args::<Meta>() {
            Ok(condition) => holds(&condition) != Some(false),
            Err(_) => true,
        }
    })
}

/// Whether a `cfg` condition holds outside tests and documentation; `None` if that depends on the build.
fn holds(condition: &Meta) -> Option<bool> {
    let Meta::List(list) = condition else {
        let is_out = condition.path().is_ident("test") || condition.path().is_ident("doc");
        return is_out.then_some(false);
    };
    let parse = syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated;
    let Ok(parts) = list.parse_args_with(parse) else { return None };
    let parts: Vec<Option<bool>> = parts.iter().map(holds).collect();
    let (decides, otherwise) = match list.path.get_ident()?.to_string().as_str() {
        "not" => return parts.first().copied().flatten().map(|holds| !holds),
        "all" => (false, true),
        "any" => (true, false),
        _ => return None,
    };
    if parts.contains(&Some(decides)) {
        Some(decides)
    } else if parts.iter().all(|part| *part == Some(otherwise)) {
        Some(otherwise)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn code_for_tests_or_documentation_alone_does_not_count() {
        for (condition, expected) in [
            ("test", false),
            ("doc", false),
            ("all(test, not(loom))", false),
            ("any(test, doc)", false),
            ("any(test, loom)", true),
            ("not(test)", true),
            ("not(all(test, not(loom)))", true),
            ("unix", true),
            ("feature = \"x\"", true),
        ] {
            let item: syn::ItemFn =
                syn::parse_str(&format!("#[cfg({condition})] fn f() {{}}")).unwrap();
            assert_eq!(counts(&item.attrs), expected, "{condition}");
        }
    }
}
