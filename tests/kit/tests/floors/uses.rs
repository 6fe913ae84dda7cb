//! The uses between the files of a crate: paths in `use` declarations, code, types, macros and attributes.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ImplItem, Item, Pat, Stmt, TraitItem, Type};

use crate::tree::{Target, Tree, attributes, counts, is_public, leaves, plain, segments};

/// All uses of an item by another file.
pub struct Edge {
    pub from: usize,
    pub to: usize,
    /// The lines of the uses, in ascending order.
    pub lines: Vec<usize>,
    /// The path of the item's definition.
    pub item: String,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An import or a path in code.
    Path,
    /// A `pub use` of an item that a child module defines.
    Reexport,
    /// A call of a method whose `impl` stands in another file.
    Method,
}

/// An `impl` block.
pub struct Impl {
    pub file: usize,
    pub line: usize,
    /// The type, if this crate defines it.
    pub of: Option<usize>,
    pub of_trait: Option<OfTrait>,
    /// Names of its functions and constants.
    pub members: Vec<String>,
}

/// The trait that an `impl` block implements.
pub struct OfTrait {
    pub name: String,
    /// Of this crate: the trait, and the types among its generic arguments.
    pub local: Vec<usize>,
}

pub struct Uses {
    pub edges: Vec<Edge>,
    pub impls: Vec<Impl>,
    /// The lines of each file that only test builds contain.
    pub tests: Vec<Vec<RangeInclusive<usize>>>,
}

impl Uses {
    pub fn of(tree: &mut Tree) -> Self {
        let macros = macros(tree);
        import_inside_functions(tree);
        let mut uses = Self { edges: Vec::new(), impls: Vec::new(), tests: Vec::new() };
        for (file, source) in tree.files.iter().enumerate() {
            let mut reader = Reader {
                tree,
                macros: &macros,
                file,
                module: source.module,
                bound: Vec::new(),
                of: None,
                calls: Vec::new(),
                tests: Vec::new(),
                edges: Vec::new(),
                impls: Vec::new(),
            };
            for item in &source.ast.items {
                reader.visit_item(item);
            }
            let Reader { edges, impls, tests, calls, .. } = reader;
            uses.edges.extend(edges);
            uses.impls.extend(impls);
            uses.tests.push(tests);
            uses.edges.extend(calls.into_iter().map(|(of, method, line)| Edge {
                from: file,
                to: of,
                lines: vec![line],
                item: method,
                kind: Kind::Method,
            }));
        }
        uses.find_methods(tree);
        uses.gather();
        uses
    }

    /// Merges the uses of an item by one file into one edge.
    fn gather(&mut self) {
        let mut at: HashMap<(usize, usize, String, Kind), usize> = HashMap::new();
        let mut gathered: Vec<Edge> = Vec::new();
        for edge in std::mem::take(&mut self.edges).into_iter().filter(|e| e.from != e.to) {
            let key = (edge.from, edge.to, edge.item.clone(), edge.kind);
            match at.get(&key) {
                Some(at) => gathered[*at].lines.extend(edge.lines),
                None => {
                    at.insert(key, gathered.len());
                    gathered.push(edge);
                }
            }
        }
        for edge in &mut gathered {
            edge.lines.sort_unstable();
            edge.lines.dedup();
        }
        self.edges = gathered;
    }

    /// Points calls, noted with the item of their type, at the file that defines the method. Drops those whose method
    /// is not found in exactly one file.
    fn find_methods(&mut self, tree: &Tree) {
        let mut places: HashMap<(usize, &str), HashSet<usize>> = HashMap::new();
        for found in self.impls.iter().filter(|found| found.of_trait.is_none()) {
            for method in &found.members {
                let Some(of) = found.of else { continue };
                places.entry((of, method)).or_default().insert(found.file);
            }
        }
        let edges = std::mem::take(&mut self.edges);
        let mut kept = Vec::new();
        for mut edge in edges {
            if edge.kind == Kind::Method {
                let of = edge.to;
                match places.get(&(of, edge.item.as_str())) {
                    Some(files) if files.len() == 1 => {
                        edge.to = *files.iter().next().expect("one");
                        edge.item =
                            format!("{}::{}", tree.target_name(Target::Item(of)), edge.item);
                    }
                    _ => continue,
                }
            }
            kept.push(edge);
        }
        drop(places);
        self.edges = kept;
    }
}

/// The file of each `macro_rules!` macro, for calls without a path.
fn macros(tree: &Tree) -> HashMap<String, usize> {
    let mut macros = HashMap::new();
    for (file, source) in tree.files.iter().enumerate() {
        for item in &source.ast.items {
            if let Item::Macro(found) = item
                && let Some(name) = &found.ident
            {
                macros.insert(plain(name), file);
            }
        }
    }
    macros
}

fn import_inside_functions(tree: &mut Tree) {
    struct Finder {
        found: Vec<(usize, syn::ItemUse)>,
        depth: usize,
        file: usize,
    }
    impl<'ast> Visit<'ast> for Finder {
        fn visit_block(&mut self, block: &'ast syn::Block) {
            self.depth += 1;
            visit::visit_block(self, block);
            self.depth -= 1;
        }
        fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
            if self.depth > 0 && counts(&item.attrs) {
                self.found.push((self.file, item.clone()));
            }
        }
    }
    let mut finder = Finder { found: Vec::new(), depth: 0, file: 0 };
    for (file, source) in tree.files.iter().enumerate() {
        finder.file = file;
        for item in source.ast.items.iter().filter(|item| counts(attributes(item))) {
            finder.visit_item(item);
        }
    }
    for (file, item) in finder.found {
        let module = tree.files[file].module;
        for leaf in leaves(&item) {
            tree.import(module, leaf, true);
        }
    }
}

struct Reader<'a> {
    tree: &'a Tree,
    macros: &'a HashMap<String, usize>,
    file: usize,
    module: usize,
    /// Names bound by the enclosing functions.
    bound: Vec<HashSet<String>>,
    /// The type of the enclosing `impl` block.
    of: Option<usize>,
    /// Calls of methods: the type, the method, the line.
    calls: Vec<(usize, String, usize)>,
    tests: Vec<RangeInclusive<usize>>,
    edges: Vec<Edge>,
    impls: Vec<Impl>,
}

impl Reader<'_> {
    /// The items that a path names, or else the modules.
    fn targets(&self, path: &[String]) -> Vec<Target> {
        let mut targets = self.tree.resolve(self.module, path);
        if targets.iter().any(|target| matches!(target, Target::Item(_))) {
            targets.retain(|target| matches!(target, Target::Item(_)));
        }
        targets
    }

    fn note(&mut self, target: Target, line: usize, kind: Kind) {
        let to = self.tree.target_file(target);
        let item = self.tree.target_name(target);
        self.edges.push(Edge { from: self.file, to, lines: vec![line], item, kind });
    }

    fn path(&mut self, path: &[String], line: usize) {
        if path[0] == "Self" {
            if let (Some(of), Some(method)) = (self.of, path.get(1)) {
                self.calls.push((of, method.clone(), line));
            }
            return;
        }
        for item in self.targets(path).into_iter().filter_map(Target::item) {
            self.note(Target::Item(item), line, Kind::Path);
        }
        if let [of @ .., method] = path
            && let Some(of) = self.tree.item(self.module, of)
        {
            self.calls.push((of, method.clone(), line));
        }
    }

    fn is_bound(&self, name: &str) -> bool {
        self.bound.iter().any(|names| names.contains(name))
    }

    /// Finds paths among tokens. A single name counts if it looks like a type, a call or a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is = |at: Option<usize>, mark: char| match at.and_then(|at| tokens.get(at)) {
            Some(TokenTree::Punct(punct)) => punct.as_char() == mark,
            _ => false,
        };
        let mut at = 0;
        while at < tokens.len() {
            let TokenTree::Ident(first) = &tokens[at] else {
                if let TokenTree::Group(group) = &tokens[at] {
                    self.tokens(group.stream());
                }
                at += 1;
                continue;
            };
            let line = first.span().start().line;
            let before = at.checked_sub(1);
            let is_member = is(before, '.') && !is(at.checked_sub(2), '.');
            let is_leading = is(before, ':') && is(at.checked_sub(2), ':');
            let is_parameter = is(before, '$') && first != "crate";
            let mut path = vec![plain(first)];
            at += 1;
            while is(Some(at), ':') && is(Some(at + 1), ':') {
                match tokens.get(at + 2) {
                    Some(TokenTree::Ident(next)) => {
                        path.push(plain(next));
                        at += 3;
                    }
                    Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                        self.group(&path, group.stream());
                        at += 3;
                    }
                    _ => break,
                }
            }
            if is_leading || is_parameter {
                continue;
            }
            if path == ["self"] && is(Some(at), '.') {
                if let (Some(of), Some(TokenTree::Ident(method)), Some(TokenTree::Group(_))) =
                    (self.of, tokens.get(at + 1), tokens.get(at + 2))
                {
                    self.calls.push((of, plain(method), line));
                }
                continue;
            }
            if path.len() > 1 {
                self.path(&path, line);
                if is(Some(at), ':') && is(Some(at + 1), ':') && is(Some(at + 2), '*') {
                    self.all_of(&path, line);
                }
            } else if !is_member {
                let name = &path[0];
                let is_type = name.starts_with(char::is_uppercase);
                let is_call = matches!(tokens.get(at), Some(TokenTree::Group(group))
                    if group.delimiter() == Delimiter::Parenthesis);
                if is_type || is_call && !self.is_bound(name) {
                    self.path(&path, line);
                } else if is(Some(at), '!') {
                    self.called(&path, line);
                }
            }
        }
    }

    /// Notes a glob as a use of the module itself.
    fn all_of(&mut self, path: &[String], line: usize) {
        for target in self.tree.resolve(self.module, path) {
            self.note(target, line, Kind::Path);
        }
    }

    /// Follows the braces of a `use` declaration among tokens.
    fn group(&mut self, path: &[String], tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for branch in
            tokens.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ','))
        {
            let mut path = path.to_vec();
            for token in branch {
                match token {
                    TokenTree::Ident(name) if name == "as" => break,
                    TokenTree::Ident(name) => path.push(plain(name)),
                    _ => {}
                }
            }
            match branch.last() {
                Some(TokenTree::Group(group)) => self.group(&path, group.stream()),
                Some(TokenTree::Ident(last)) => self.path(&path, last.span().start().line),
                Some(last) => self.all_of(&path, last.span().start().line),
                None => {}
            }
        }
    }

    /// Notes the call of a macro, by a path or by textual scope.
    fn called(&mut self, path: &[String], line: usize) {
        let targets = self.targets(path);
        if let ([name], true) = (path, targets.is_empty())
            && let Some(to) = self.macros.get(name)
        {
            let item = format!("{name}!");
            self.edges.push(Edge {
                from: self.file,
                to: *to,
                lines: vec![line],
                item,
                kind: Kind::Path,
            });
        }
        for item in targets.into_iter().filter_map(Target::item) {
            self.note(Target::Item(item), line, Kind::Path);
        }
    }

    fn skips(&mut self, attributes: &[Attribute], span: proc_macro2::Span) -> bool {
        let skips = !counts(attributes);
        if skips {
            let first = attributes.iter().map(|a| a.span().start().line).min();
            let end = span.end().line;
            self.tests.push(first.unwrap_or(end).min(span.start().line)..=end);
        }
        skips
    }

    /// The item of this crate behind a type: references, slices and parentheses are stripped.
    fn item_of(&self, of: &Type) -> Option<usize> {
        match of {
            Type::Path(path) if path.qself.is_none() => {
                self.tree.item(self.module, &segments(&path.path))
            }
            Type::Reference(inner) => self.item_of(&inner.elem),
            Type::Paren(inner) => self.item_of(&inner.elem),
            Type::Group(inner) => self.item_of(&inner.elem),
            Type::Slice(inner) => self.item_of(&inner.elem),
            Type::Array(inner) => self.item_of(&inner.elem),
            Type::TraitObject(inner) => inner.bounds.iter().find_map(|bound| match bound {
                syn::TypeParamBound::Trait(found) => {
                    self.tree.item(self.module, &segments(&found.path))
                }
                _ => None,
            }),
            _ => None,
        }
    }

    fn inside(&mut self, bound: HashSet<String>, visit: impl FnOnce(&mut Self)) {
        self.bound.push(bound);
        visit(self);
        self.bound.pop();
    }
}

/// Every name that a function binds anywhere.
fn bindings(visit: impl FnOnce(&mut Bindings)) -> HashSet<String> {
    let mut bindings = Bindings(HashSet::new());
    visit(&mut bindings);
    bindings.0
}

struct Bindings(HashSet<String>);

impl<'ast> Visit<'ast> for Bindings {
    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        let name = plain(&pattern.ident);
        if !name.starts_with(char::is_uppercase) {
            self.0.insert(name);
        }
        visit::visit_pat_ident(self, pattern);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !self.skips(attributes(item), item.span()) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let Some((_, items)) = &item.content else { return };
        let Some(child) = self.tree.modules[self.module].children.get(&plain(&item.ident)) else {
            return;
        };
        let outer = std::mem::replace(&mut self.module, *child);
        for item in items {
            self.visit_item(item);
        }
        self.module = outer;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        for leaf in leaves(item) {
            let targets = match &leaf.name {
                Some(_) => self.targets(&leaf.path),
                None => self.tree.resolve(self.module, &leaf.path),
            };
            for target in targets {
                // Paths through an imported module are followed where they stand.
                if matches!(target, Target::Module(_)) && leaf.name.is_some() {
                    continue;
                }
                let to = self.tree.target_file(target);
                let is_reexport = is_public(&item.vis) && self.tree.is_around(self.file, to);
                self.note(target, leaf.line, if is_reexport { Kind::Reexport } else { Kind::Path });
            }
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let of = self.item_of(&item.self_ty);
        let of_trait = item.trait_.as_ref().map(|(_, path, _)| {
            struct Told<'a, 'b>(&'a Reader<'b>, Vec<usize>);
            impl<'ast> Visit<'ast> for Told<'_, '_> {
                fn visit_path(&mut self, path: &'ast syn::Path) {
                    let Self(reader, told) = self;
                    told.extend(reader.tree.item(reader.module, &segments(path)));
                    visit::visit_path(self, path);
                }
            }
            let mut told = Told(self, Vec::new());
            told.visit_path(path);
            OfTrait { name: segments(path).join("::"), local: told.1 }
        });
        let members = item.items.iter().filter_map(|item| match item {
            ImplItem::Fn(found) if counts(&found.attrs) => Some(plain(&found.sig.ident)),
            ImplItem::Const(found) if counts(&found.attrs) => Some(plain(&found.ident)),
            _ => None,
        });
        let line = item.impl_token.span.start().line;
        self.impls.push(Impl { file: self.file, line, of, of_trait, members: members.collect() });
        let outer = std::mem::replace(&mut self.of, of);
        visit::visit_item_impl(self, item);
        self.of = outer;
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes: &[Attribute] = match item {
            ImplItem::Const(found) => &found.attrs,
            ImplItem::Fn(found) => &found.attrs,
            ImplItem::Type(found) => &found.attrs,
            ImplItem::Macro(found) => &found.attrs,
            _ => &[],
        };
        if !self.skips(attributes, item.span()) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        let attributes: &[Attribute] = match item {
            TraitItem::Const(found) => &found.attrs,
            TraitItem::Fn(found) => &found.attrs,
            TraitItem::Type(found) => &found.attrs,
            TraitItem::Macro(found) => &found.attrs,
            _ => &[],
        };
        if !self.skips(attributes, item.span()) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        let bound = bindings(|bindings| bindings.visit_item_fn(item));
        self.inside(bound, |reader| visit::visit_item_fn(reader, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        let bound = bindings(|bindings| bindings.visit_impl_item_fn(item));
        self.inside(bound, |reader| visit::visit_impl_item_fn(reader, item));
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        let bound = bindings(|bindings| bindings.visit_trait_item_fn(item));
        self.inside(bound, |reader| visit::visit_trait_item_fn(reader, item));
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        let attributes: &[Attribute] = match statement {
            Stmt::Local(found) => &found.attrs,
            Stmt::Macro(found) => &found.attrs,
            _ => &[],
        };
        if !self.skips(attributes, statement.span()) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !self.skips(&field.attrs, field.span()) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !self.skips(&field.attrs, field.span()) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !self.skips(&variant.attrs, variant.span()) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !self.skips(&arm.attrs, arm.span()) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        let attributes: &[Attribute] = match expression {
            Expr::Block(found) => &found.attrs,
            Expr::Call(found) => &found.attrs,
            Expr::ForLoop(found) => &found.attrs,
            Expr::If(found) => &found.attrs,
            Expr::Macro(found) => &found.attrs,
            Expr::Match(found) => &found.attrs,
            Expr::MethodCall(found) => &found.attrs,
            Expr::Return(found) => &found.attrs,
            Expr::Struct(found) => &found.attrs,
            Expr::Assign(found) => &found.attrs,
            _ => &[],
        };
        if self.skips(attributes, expression.span()) {
            return;
        }
        if let Expr::MethodCall(call) = expression
            && let Expr::Path(receiver) = call.receiver.as_ref()
            && receiver.path.is_ident("self")
            && let Some(of) = self.of
        {
            self.calls.push((of, plain(&call.method), call.method.span().start().line));
        }
        visit::visit_expr(self, expression);
    }

    fn visit_expr_path(&mut self, expression: &'ast syn::ExprPath) {
        let is_bound = expression.path.get_ident().is_some_and(|name| self.is_bound(&plain(name)));
        if !is_bound {
            visit::visit_expr_path(self, expression);
        }
    }

    fn visit_pat(&mut self, pattern: &'ast Pat) {
        // A constant in a pattern looks like a binding.
        if let Pat::Ident(found) = pattern
            && plain(&found.ident).starts_with(char::is_uppercase)
        {
            self.path(&[plain(&found.ident)], found.ident.span().start().line);
        }
        visit::visit_pat(self, pattern);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            self.path(&segments(path), path.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, found: &'ast syn::Macro) {
        self.called(&segments(&found.path), found.path.span().start().line);
        self.tokens(found.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let syn::Meta::List(list) = &attribute.meta
            && !list.path.is_ident("doc")
        {
            self.tokens(list.tokens.clone());
        }
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}
