//! The public surface of the library, item by item, as `docs/public-api.txt` has it.
//!
//! After a change that is meant, `UPDATE_API=1 cargo test -p avhdx-testkit --test floors public` writes the page anew.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use syn::{
    Attribute, Block, Fields, FnArg, ImplItem, Item, ItemImpl, Pat, Signature, TraitItem, Type,
    Visibility, parse_quote,
};

use crate::tree::{Target, Tree, attributes, counts, defined, leaves, segments};

#[test]
fn the_public_surface_is_as_the_page_has_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| fs::read_to_string(root.join("src").join(path)).ok();
    let tree = Tree::read("lib.rs", &read);
    let surface = Surface::of(&tree).text();
    let page = root.join("docs/public-api.txt");
    if std::env::var_os("UPDATE_API").is_some() {
        fs::write(&page, &surface).unwrap();
    }
    let told = fs::read_to_string(&page).unwrap_or_default();
    let differs = told.lines().zip(surface.lines()).position(|(told, is)| told != is);
    let line = differs.unwrap_or(told.lines().count().min(surface.lines().count()));
    let shown = |text: &str| text.lines().nth(line).unwrap_or("(its end)").to_owned();
    assert!(
        told == surface,
        "The public surface changed. If that is meant, run\n\
         UPDATE_API=1 cargo test -p avhdx-testkit --test floors public\n\
         and say in CHANGELOG.md what changed. docs/public-api.txt:{}:\n  has {}\n  now {}",
        line + 1,
        shown(&told),
        shown(&surface)
    );
}

#[test]
fn what_is_private_is_not_shown_and_what_is_public_is() {
    let files = BTreeMap::from([
        (
            "lib.rs",
            "mod inner; pub mod open; pub use inner::{Shown as Renamed, Trait}; pub use uuid;
             #[cfg(test)] pub mod only_in_tests {}",
        ),
        (
            "inner.rs",
            "/// Docs.
             #[derive(Clone)] #[non_exhaustive] pub struct Shown { pub a: u8, b: u8 }
             pub struct Hidden;
             pub trait Trait { fn needed(&self); fn given(&self) -> u8 { 1 } }
             trait Own {}
             impl Own for Shown {}
             impl Trait for Hidden { fn needed(&self) {} }
             impl Trait for Shown { fn needed(&self) {} }
             impl<T: Trait> Trait for Box<T> { fn needed(&self) {} }
             impl From<Shown> for u8 { fn from(_: Shown) -> u8 { 2 } }
             impl From<Hidden> for u8 { fn from(_: Hidden) -> u8 { 2 } }
             impl Shown { pub fn public(&self, #[cfg(unix)] mut n: u8) -> u8 { n } fn private() {} }",
        ),
        (
            "open.rs",
            "pub const N: u8 = 3; const M: u8 = 4; pub fn f() { drop(1) } pub(crate) fn g() {}",
        ),
    ]);
    let tree = Tree::read("lib.rs", &|path| files.get(path).map(|text| (*text).to_owned()));
    let text = Surface::of(&tree).text();
    let is = [
        "pub use uuid;",
        "#[derive(Clone)]",
        "#[non_exhaustive]",
        "/// Has private fields.",
        "pub struct Renamed {\n    pub a: u8,\n}",
        "impl Renamed {\n    pub fn public(&self, n: u8) -> u8 {}\n}",
        "impl Trait for Renamed {}",
        "fn needed(&self);",
        "fn given(&self) -> u8 {}",
        "impl<T: Trait> Trait for Box<T> {}",
        "impl From<Shown> for u8 {}",
        "# avhdx::open",
        "pub const N: u8 = 3;",
        "pub fn f() {}",
    ];
    for line in is {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    for word in
        ["Hidden", "Own", "private(", "Docs", "only_in_tests", "M:", "fn g(", "b: u8", "cfg"]
    {
        assert!(!text.contains(word), "{word} is shown in\n{text}");
    }
}

/// What users of a crate can name.
struct Surface<'a> {
    tree: &'a Tree,
    /// By the path of the module and the name there.
    items: BTreeMap<(String, String), Shown<'a>>,
    exported: HashSet<usize>,
    seen: HashSet<usize>,
}

enum Shown<'a> {
    Own(usize, &'a Item),
    /// A crate or an item of others.
    Foreign(String),
}

impl<'a> Surface<'a> {
    fn of(tree: &'a Tree) -> Self {
        let mut surface =
            Self { tree, items: BTreeMap::new(), exported: HashSet::new(), seen: HashSet::new() };
        surface.module(0, "avhdx");
        surface
    }

    /// Collects what a public module shows.
    fn module(&mut self, module: usize, path: &str) {
        if !self.seen.insert(module) {
            return;
        }
        let tree = self.tree;
        for item in contents(tree, module).iter().filter(|item| counts(attributes(item))) {
            match item {
                Item::Use(found) if is_for_all(&found.vis) => {
                    for leaf in leaves(found) {
                        let name = leaf.name.expect("nothing public is shown by a glob");
                        match tree.resolve(module, &leaf.path).first() {
                            Some(Target::Module(inner)) => {
                                self.module(*inner, &format!("{path}::{name}"));
                            }
                            Some(Target::Item(item)) => self.item(path, name, *item),
                            None => {
                                let text = format!("pub use {};\n", leaf.path.join("::"));
                                self.items.insert((path.into(), name), Shown::Foreign(text));
                            }
                        }
                    }
                }
                Item::Mod(found) if is_for_all(&found.vis) => {
                    let name = found.ident.to_string();
                    self.module(tree.modules[module].children[&name], &format!("{path}::{name}"));
                }
                item if visibility(item).is_some_and(is_for_all) => {
                    let name = defined(item).unwrap();
                    let found = tree.item(module, std::slice::from_ref(&name)).unwrap();
                    self.item(path, name, found);
                }
                _ => {}
            }
        }
    }

    fn item(&mut self, path: &str, name: String, item: usize) {
        let definition = &self.tree.items[item];
        let mut there = contents(self.tree, definition.module).iter();
        let found = there.find(|item| {
            defined(item).as_ref() == Some(&definition.name) && counts(attributes(item))
        });
        let found = found.unwrap_or_else(|| panic!("{path}::{name} is made by a macro"));
        self.exported.insert(item);
        self.items.insert((path.into(), name), Shown::Own(item, found));
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut before = "";
        for ((module, name), shown) in &self.items {
            if module != before {
                writeln!(text, "{}# {module}\n", if before.is_empty() { "" } else { "\n" })
                    .unwrap();
                before = module;
            }
            match shown {
                Shown::Foreign(line) => text += line,
                Shown::Own(item, found) => {
                    let mut items = vec![bare(found, name)];
                    items.extend(self.implementations(*item, name));
                    text += &printed(items);
                }
            }
            text += "\n";
        }
        let others = self.impls().filter(|(module, found)| {
            let is_own = |path: &syn::Path| self.exported_item(*module, path).is_some();
            let trait_path = found.trait_.as_ref().map(|(_, path, _)| path);
            !self.is_of_the_crate(*module, &found.self_ty)
                && trait_path
                    .is_some_and(|path| !is_own(path) && arguments(path).into_iter().any(is_own))
        });
        let mut others: Vec<String> =
            others.map(|(_, found)| printed(vec![header(found, None)])).collect();
        others.sort();
        if !others.is_empty() {
            write!(text, "\n# for types of others\n\n{}", others.concat()).unwrap();
        }
        text
    }

    /// The public methods of a type and the traits that it has, or the types that have a trait.
    fn implementations(&self, item: usize, name: &str) -> Vec<Item> {
        let (mut methods, mut traits) = (Vec::new(), Vec::new());
        for (module, found) in self.impls() {
            let of = type_path(&found.self_ty);
            let is_its = of.is_some_and(|path| self.exported_item(module, path) == Some(item));
            match &found.trait_ {
                None if is_its => methods.extend(inherent(found, name)),
                None => {}
                Some((_, path, _)) if is_its => {
                    let own = self.tree.item(module, &segments(path));
                    if own.is_none_or(|own| self.exported.contains(&own)) {
                        traits.push(header(found, Some(name)));
                    }
                }
                Some((_, path, _)) => {
                    let is_this = self.tree.item(module, &segments(path)) == Some(item);
                    if is_this && !self.is_of_the_crate(module, &found.self_ty) {
                        traits.push(header(found, None));
                    }
                }
            }
        }
        let key = |item: &Item| printed(vec![item.clone()]);
        methods.sort_by_cached_key(key);
        traits.sort_by_cached_key(key);
        methods.extend(traits);
        methods
    }

    /// All implementations in the crate, with the modules they stand in.
    fn impls(&self) -> impl Iterator<Item = (usize, &'a ItemImpl)> {
        let tree = self.tree;
        (0..tree.modules.len()).flat_map(move |module| {
            let items = contents(tree, module).iter().filter(|item| counts(attributes(item)));
            items.filter_map(move |item| match item {
                Item::Impl(found) => Some((module, found)),
                _ => None,
            })
        })
    }

    /// Whether the crate defines the type, whether or not it shows it.
    fn is_of_the_crate(&self, module: usize, ty: &Type) -> bool {
        type_path(ty).is_some_and(|path| self.tree.item(module, &segments(path)).is_some())
    }

    fn exported_item(&self, module: usize, path: &syn::Path) -> Option<usize> {
        self.tree.item(module, &segments(path)).filter(|item| self.exported.contains(item))
    }
}

/// The items of a module, in a file of its own or inline.
fn contents(tree: &Tree, module: usize) -> &[Item] {
    let file = &tree.files[tree.modules[module].file];
    let outer = tree.modules[file.module].path.len();
    let mut items = &file.ast.items[..];
    for name in &tree.modules[module].path[outer..] {
        let mut inner = items.iter().filter_map(|item| match item {
            Item::Mod(found) if found.ident == name && counts(&found.attrs) => {
                found.content.as_ref().map(|(_, items)| items)
            }
            _ => None,
        });
        items = inner.next().map_or(&[], |items| &items[..]);
    }
    items
}

fn is_for_all(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn visibility(item: &Item) -> Option<&Visibility> {
    match item {
        Item::Const(found) => Some(&found.vis),
        Item::Enum(found) => Some(&found.vis),
        Item::Fn(found) => Some(&found.vis),
        Item::Static(found) => Some(&found.vis),
        Item::Struct(found) => Some(&found.vis),
        Item::Trait(found) => Some(&found.vis),
        Item::Type(found) => Some(&found.vis),
        Item::Union(found) => Some(&found.vis),
        _ => None,
    }
}

fn type_path(ty: &Type) -> Option<&syn::Path> {
    match ty {
        Type::Path(found) => Some(&found.path),
        _ => None,
    }
}

/// The types among the arguments of a trait: `Mine` of `From<Mine>`.
fn arguments(path: &syn::Path) -> Vec<&syn::Path> {
    let Some(syn::PathArguments::AngleBracketed(list)) =
        path.segments.last().map(|segment| &segment.arguments)
    else {
        return Vec::new();
    };
    let types = list.args.iter().filter_map(|argument| match argument {
        syn::GenericArgument::Type(Type::Reference(ty)) => type_path(&ty.elem),
        syn::GenericArgument::Type(ty) => type_path(ty),
        _ => None,
    });
    types.collect()
}

/// The item without docs, bodies and private fields, under the name that users know.
fn bare(item: &Item, name: &str) -> Item {
    let mut item = item.clone();
    let ident = |old: &syn::Ident| syn::Ident::new(name, old.span());
    match &mut item {
        Item::Enum(found) => {
            found.ident = ident(&found.ident);
            keep(&mut found.attrs);
            for variant in &mut found.variants {
                keep(&mut variant.attrs);
                variant.fields.iter_mut().for_each(|field| keep(&mut field.attrs));
            }
        }
        Item::Struct(found) => {
            found.ident = ident(&found.ident);
            keep(&mut found.attrs);
            found.fields.iter_mut().for_each(|field| keep(&mut field.attrs));
            let has_private = found.fields.iter().any(|field| !is_for_all(&field.vis));
            if has_private {
                found.attrs.push(parse_quote!(#[doc = " Has private fields."]));
            }
            match &mut found.fields {
                Fields::Named(fields) => {
                    let shown = fields.named.iter().filter(|field| is_for_all(&field.vis));
                    fields.named = shown.cloned().collect();
                }
                Fields::Unnamed(fields) => {
                    let hidden = fields.unnamed.iter_mut().filter(|field| !is_for_all(&field.vis));
                    hidden.for_each(|field| field.ty = parse_quote!(_));
                }
                Fields::Unit => {}
            }
        }
        Item::Trait(found) => {
            found.ident = ident(&found.ident);
            keep(&mut found.attrs);
            for item in &mut found.items {
                match item {
                    TraitItem::Fn(method) => {
                        keep(&mut method.attrs);
                        signature(&mut method.sig);
                        method.default.as_mut().map(emptied);
                    }
                    TraitItem::Const(found) => keep(&mut found.attrs),
                    TraitItem::Type(found) => keep(&mut found.attrs),
                    _ => {}
                }
            }
        }
        Item::Fn(found) => {
            found.sig.ident = ident(&found.sig.ident);
            keep(&mut found.attrs);
            signature(&mut found.sig);
            emptied(&mut found.block);
        }
        Item::Const(found) => {
            found.ident = ident(&found.ident);
            keep(&mut found.attrs);
        }
        Item::Type(found) => {
            found.ident = ident(&found.ident);
            keep(&mut found.attrs);
        }
        _ => {}
    }
    item
}

/// The public part of a block of methods.
fn inherent(found: &ItemImpl, name: &str) -> Option<Item> {
    let mut found = found.clone();
    keep(&mut found.attrs);
    rename(&mut found.self_ty, name);
    found.items.retain_mut(|item| match item {
        ImplItem::Fn(method) => {
            keep(&mut method.attrs);
            signature(&mut method.sig);
            emptied(&mut method.block);
            is_for_all(&method.vis)
        }
        ImplItem::Const(found) => {
            keep(&mut found.attrs);
            is_for_all(&found.vis)
        }
        _ => false,
    });
    (!found.items.is_empty()).then_some(Item::Impl(found))
}

/// An implementation of a trait without its contents.
fn header(found: &ItemImpl, name: Option<&str>) -> Item {
    let mut found = found.clone();
    keep(&mut found.attrs);
    found.items.clear();
    if let Some(name) = name {
        rename(&mut found.self_ty, name);
    }
    Item::Impl(found)
}

fn rename(ty: &mut Type, name: &str) {
    if let Type::Path(found) = ty {
        let mut last = found.path.segments.last().unwrap().clone();
        last.ident = syn::Ident::new(name, last.ident.span());
        found.path = last.into();
    }
}

fn emptied(block: &mut Block) {
    block.stmts.clear();
}

fn signature(signature: &mut Signature) {
    for input in &mut signature.inputs {
        match input {
            FnArg::Receiver(found) => {
                found.attrs.clear();
                found.mutability = found.mutability.filter(|_| found.reference.is_some());
            }
            FnArg::Typed(found) => {
                found.attrs.clear();
                if let Pat::Ident(name) = &mut *found.pat {
                    name.mutability = None;
                }
            }
        }
    }
}

/// Leaves the attributes that users notice.
fn keep(attributes: &mut Vec<Attribute>) {
    let kept = ["derive", "non_exhaustive", "must_use", "cfg", "cfg_attr"];
    attributes.retain(|attribute| kept.iter().any(|name| attribute.path().is_ident(name)));
}

fn printed(items: Vec<Item>) -> String {
    prettyplease::unparse(&syn::File { shebang: None, attrs: Vec::new(), items })
}
