//! Tests of the checker: small crates that each break a rule in one way.

use crate::judge::{Checked, Rules};
use crate::uses::Kind;

const RULES: Rules<'_> = Rules {
    floors: &[("root", &[""]), ("top", &["top"]), ("mid", &["mid"]), ("low", &["low"])],
    knows: &[],
    apart: &[],
    most_lines: 20,
    most_test_lines: 3,
};

/// Files that each crate has unless it brings its own.
const ROOT: &str =
    "mod low; mod mid; mod top; pub use top::Top; pub use mid::Mid; pub use low::Low;";
const TOP: &str = "pub struct Top; pub fn top() {} pub const MOST: u8 = 1; pub enum Kind { One }";
const MID: &str = "use crate::low::Low; pub struct Mid(Low);";
const LOW: &str = "pub struct Low; pub trait Deep<T = ()> {}";

/// The violations of a crate of these files.
fn violations(files: &[(&str, &str)]) -> Vec<String> {
    violations_of(RULES, files)
}

fn violations_of(rules: Rules<'_>, files: &[(&str, &str)]) -> Vec<String> {
    let read = reader(files);
    Checked::read("", rules, &read).violations()
}

fn reader<'a>(files: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
    let common = [("lib.rs", ROOT), ("top.rs", TOP), ("mid.rs", MID), ("low.rs", LOW)];
    move |path| {
        let mut all = files.iter().chain(common.iter());
        all.find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
    }
}

/// The violations of a crate with this text on its lowest floor.
fn of_low(text: &str) -> Vec<String> {
    violations(&[("mid.rs", "pub struct Mid;"), ("low.rs", &format!("{text}\npub struct Low;"))])
}

const NOTHING: [&str; 0] = [];

#[test]
fn imports_may_point_down() {
    assert_eq!(violations(&[]), NOTHING);
    let top = "use crate::mid::Mid;\nuse super::Low;\npub struct Top(Mid, Low, crate::low::Low);";
    assert_eq!(violations(&[("top.rs", top)]), NOTHING);
}

#[test]
fn every_form_of_import_from_a_higher_floor_is_found() {
    for import in [
        "use crate::top::Top;",
        "use super::top::Top;",
        "use self::super::top::Top;",
        "use crate::top::Top as Other;",
        "use crate::{low, top::Top};",
        "use crate::{low::{self}, top::{self as other, {Top}}};",
        "use {crate::{{top::{Top}}}};",
        "pub use crate::top::Top;",
        "fn f() { use crate::top::Top; }",
        "fn f() -> Option<crate::top::Top> { None }",
        "struct Other(Vec<crate::top::Top>);",
        "fn f(_: impl Into<super::top::Top>) {}",
        "fn f() { let _ = crate::top::Top; }",
        "fn f(x: u8) { match x { _ => { crate::top::Top; } } }",
        "mod inner { use super::super::top::Top; }",
        "use crate::top; fn f(_: top::Top) {}",
        "use crate::top as other; fn f(_: other::Top) {}",
        "use crate as all; fn f(_: all::Top) {}",
        "fn f() { use crate::top; drop(top::Top); }",
        "type Other = crate::top::Top;",
    ] {
        assert_eq!(of_low(import), ["low.rs:1: low uses top::Top of top"], "{import}");
    }
}

#[test]
fn functions_constants_and_variants_count_like_types() {
    for (code, item) in [
        ("use crate::top::top; fn f() { top() }", "top::top"),
        ("fn f() { crate::top::top() }", "top::top"),
        ("fn f(x: u8) { match x { crate::top::MOST => {} _ => {} } }", "top::MOST"),
        ("use crate::top::MOST; fn f(x: u8) -> bool { matches!(x, MOST) }", "top::MOST"),
        ("use crate::top::Kind::One; fn f() { let _ = One; }", "top::Kind"),
        ("fn f() { let _ = crate::top::Kind::One; }", "top::Kind"),
    ] {
        assert_eq!(of_low(code), [format!("low.rs:1: low uses {item} of top")], "{code}");
    }
}

#[test]
fn re_exports_are_followed_to_the_defining_file() {
    for (root, import) in [
        (ROOT, "use crate::Top;"),
        ("mod low; mod mid; mod top; pub(crate) use top::Top as Other;", "use super::Other;"),
        ("mod low; mod mid; mod top; pub use top::*;", "use crate::Top;"),
        ("mod low; mod mid; mod top; use top::Top;", "use super::Top;"),
        (
            "mod low; mod mid; mod top; pub mod all { pub use super::top::*; }",
            "use crate::all::Top;",
        ),
    ] {
        let low = format!("{import}\npub struct Low;");
        let files = [("lib.rs", root), ("mid.rs", "pub struct Mid;"), ("low.rs", &low)];
        let mut found = violations(&files);
        found.retain(|violation| violation.starts_with("low.rs"));
        assert_eq!(found, ["low.rs:1: low uses top::Top of top"], "{root} {import}");
    }
}

#[test]
fn a_re_export_on_a_lower_floor_hides_no_upward_import() {
    let files = [("mid.rs", "pub use crate::top::Top;"), ("low.rs", "\nuse crate::mid::Top;")];
    assert_eq!(
        violations(&files)[..2],
        ["low.rs:2: low uses top::Top of top", "mid.rs:1: mid uses top::Top of top"],
    );
}

#[test]
fn globs_are_followed() {
    let found = of_low("use crate::top::*;\nfn f() { top() }");
    assert_eq!(found, ["low.rs:1: low uses top of top", "low.rs:2: low uses top::top of top"]);
    // The root defines nothing: only its re-exports count.
    let files = [("lib.rs", ROOT), ("mid.rs", ""), ("low.rs", "use crate::*;\nfn f(_: Top) {}")];
    let found = violations(&files);
    assert!(found.contains(&"low.rs:2: low uses top::Top of top".to_owned()), "{found:?}");
}

#[test]
fn tokens_of_macros_and_attributes_are_searched() {
    for code in [
        "fn f() { print!(\"{:?}\", crate::top::Top); }",
        "use crate::top; fn f() { vec![(0, [top::Top])]; }",
        "macro_rules! m { () => { $crate::top::Top }; }",
        "macro_rules! m { () => { use $crate::{low::Low, top::{Top as Other}}; }; }",
        "thread_local! { static X: super::top::Top = todo!(); }",
        "#[error(\"{}\", crate::top::Top)] struct Other;",
        "struct Other { #[from(crate::top::Top)] other: u8 }",
    ] {
        assert_eq!(of_low(code), ["low.rs:1: low uses top::Top of top"], "{code}");
    }
    assert_eq!(of_low("m! { use crate::top::*; }"), ["low.rs:1: low uses top of top"]);
}

#[test]
fn macros_in_textual_scope_count() {
    let files = [
        ("lib.rs", "#[macro_use] mod top; mod mid; mod low;"),
        ("top.rs", "macro_rules! shout { () => {}; }"),
        ("low.rs", "fn f() { shout!(); }"),
        ("mid.rs", ""),
    ];
    assert_eq!(violations(&files), ["low.rs:1: low uses shout! of top"]);
}

#[test]
fn unrelated_names_do_not_count() {
    for code in [
        "use std::top::Top;",
        "use ::top::Top;",
        "fn f(top: u8) -> u8 { top }",
        "fn f() { let top = || (); top(); }",
        "struct Other { top: u8 } fn f(o: Other) -> u8 { o.top }",
        "fn f() { assert!(o.top() == 1); }",
        "/// See [`Top`](crate::top::Top).\nstruct Other;",
        "#[doc(alias = \"x\")] pub(in crate::low) struct Other;",
        "pub(in crate::low) fn f() {}",
    ] {
        assert_eq!(of_low(code), NOTHING, "{code}");
    }
}

#[test]
fn test_code_does_not_count() {
    for code in [
        "#[cfg(test)] use crate::top::Top;",
        "#[cfg(all(test, not(loom)))] mod tests { use crate::top::Top; }",
        "#[cfg(test)] mod tests;",
        "#[cfg(doc)] use crate::top::Top;",
        "#[cfg(test)] fn f(_: crate::top::Top) {}",
        "fn f() { #[cfg(test)] let _ = crate::top::Top; }",
        "fn f() { #[cfg(test)] { crate::top::top(); } }",
        "struct Other { #[cfg(test)] other: crate::top::Top }",
        "impl Low { #[cfg(test)] fn f(_: crate::top::Top) {} }",
        "mod tests { #![cfg(test)] use crate::top::Top; }",
    ] {
        assert_eq!(of_low(code), NOTHING, "{code}");
    }
    for code in [
        "#[cfg(not(test))] use crate::top::Top;",
        "#[cfg(any(test, unix))] use crate::top::Top;",
        "#[cfg(not(all(test, loom)))] mod tests { use crate::top::Top; }",
    ] {
        assert_eq!(of_low(code), ["low.rs:1: low uses top::Top of top"], "{code}");
    }
}

#[test]
fn a_message_lists_each_line_once() {
    let found = of_low("use crate::top::Top;\nfn f(_: Top, _: Top) {}\nfn g(_: Top) {}");
    assert_eq!(found, ["low.rs:1,2,3: low uses top::Top of top"]);
}

#[test]
fn an_impl_outside_the_floor_of_its_type_is_found() {
    for (code, what) in [
        ("use crate::low::Low; impl Low { fn f() {} }", "impl low::Low"),
        ("impl crate::Low { fn f() {} }", "impl low::Low"),
        ("use crate::low as l; impl<'a> l::Low {}", "impl low::Low"),
        ("use crate::low::Low as Mine; impl Clone for Mine {}", "impl Clone for low::Low"),
        ("type Mine = crate::low::Low; impl Mine {}", "impl low::Low"),
        ("use crate::low::*; impl Deep for Low {}", "impl Deep for low::Low"),
        ("use crate::low::{Deep, Low}; impl Deep for &Low {}", "impl Deep for low::Low"),
        ("use crate::low::Deep; impl dyn Deep {}", "impl low::Deep"),
        ("mod inner { impl crate::low::Low {} }", "impl low::Low"),
    ] {
        let found = violations(&[("mid.rs", &format!("pub struct Mid;\n{code}"))]);
        assert_eq!(found, [format!("mid.rs:2: mid has an `{what}`, a type of low")], "{code}");
    }
}

#[test]
fn an_impl_may_stand_on_the_floor_of_its_trait_or_of_a_generic_argument() {
    for code in [
        "impl Mid {}",
        "impl Clone for Mid {}",
        "impl crate::low::Deep for Mid {}",
        "trait Wide {} impl Wide for crate::low::Low {}",
        "impl From<Mid> for crate::low::Low {}",
        "impl crate::low::Deep<Mid> for crate::low::Low {}",
        "trait Wide {} impl<T: Clone> Wide for T {} impl Wide for Vec<u8> {}",
        "#[cfg(test)] impl crate::low::Low {}",
    ] {
        let found = violations(&[("mid.rs", &format!("pub struct Mid; {code}"))]);
        assert_eq!(found, NOTHING, "{code}");
    }
}

#[test]
fn a_circle_within_a_floor_is_drawn() {
    let files = [
        ("mid.rs", "mod a;\nmod b;\nmod c;\nmod d;\npub use a::A as Mid;"),
        ("mid/a.rs", "use super::b::B;\npub struct A(B);"),
        ("mid/b.rs", "\npub struct B(Box<super::c::C>);"),
        ("mid/c.rs", "use crate::Mid;\npub struct C(Box<Mid>);"),
        ("mid/d.rs", "use super::c::C;\npub struct D(C);"),
    ];
    let circle = "circle of 3 files: mid/a.rs mid/b.rs mid/c.rs
    mid/a.rs:1: uses mid::b::B of mid/b.rs
    mid/b.rs:2: uses mid::c::C of mid/c.rs
    mid/c.rs:1: uses mid::a::A of mid/a.rs";
    assert_eq!(violations(&files), [circle]);
}

#[test]
fn a_parent_module_closes_a_circle_only_by_using_what_it_re_exports() {
    let a = ("mid/a.rs", "use super::{Shared, b::B};\npub struct A(Shared, B); pub fn do_it() {}");
    let b = ("mid/b.rs", "pub struct B;");
    for mid in [
        "mod a; mod b; pub struct Shared; pub use a::A as Mid;",
        "mod a; mod b; pub struct Shared; pub(crate) use {a::A as Mid, b::*};",
        "mod a; mod b; pub struct Shared; pub struct Mid; fn a() {} fn f() { a() }",
        "mod a; mod b; pub struct Shared; pub use a::{A as Mid, do_it}; fn f(do_it: u8) -> u8 { do_it }",
        "mod a; mod b; pub struct Shared; pub use a::{A as Mid, do_it}; fn f(a: Mad) { assert!(a.do_it()) }",
    ] {
        assert_eq!(violations(&[("mid.rs", mid), a, b]), NOTHING, "{mid}");
    }
    for mid in [
        "mod a; mod b; pub struct Shared; use a::A; pub struct Mid(A);",
        "mod a; mod b; pub struct Shared; pub struct Mid(a::A);",
        "mod a; mod b; pub struct Shared; pub use a::A; pub struct Mid(A);",
        "mod a; mod b; pub struct Shared; pub use a::*; pub struct Mid(Vec<A>);",
        "mod a; mod b; pub struct Shared; pub struct Mid; fn f() { drop(self::a::A::new()) }",
    ] {
        let circle = "circle of 2 files: mid.rs mid/a.rs
    mid.rs:1: uses mid::a::A of mid/a.rs
    mid/a.rs:1: uses mid::Shared of mid.rs";
        assert_eq!(violations(&[("mid.rs", mid), a, b]), [circle], "{mid}");
    }
}

#[test]
fn a_re_export_from_a_sibling_may_close_a_circle() {
    let files = [
        ("mid.rs", "mod a; mod b; pub use a::A as Mid;"),
        ("mid/a.rs", "pub struct A; pub use super::b::B;"),
        ("mid/b.rs", "pub struct B(super::a::A);"),
    ];
    let circle = "circle of 2 files: mid/a.rs mid/b.rs
    mid/a.rs:1: uses mid::b::B of mid/b.rs
    mid/b.rs:1: uses mid::a::A of mid/a.rs";
    assert_eq!(violations(&files), [circle]);
}

#[test]
fn calls_between_impl_blocks_of_one_type_are_edges_of_their_own_kind() {
    let files = [
        ("mid.rs", "mod a; mod b; pub use a::A as Mid;"),
        ("mid/a.rs", "pub struct A; impl A { fn f(&self) { self.g() } }"),
        ("mid/b.rs", "use super::a::A; impl A { pub fn g(&self) {} }"),
    ];
    let read = reader(&files);
    let checked = Checked::read("", RULES, &read);
    assert!(checked.circles(&[Kind::Path]).is_empty());
    let circles = checked.circles(&[Kind::Path, Kind::Method]);
    assert_eq!(circles.len(), 1);
    assert!(checked.drawn(&circles[0]).contains("mid/a.rs:1: uses mid::a::A::g of mid/b.rs"));
}

#[test]
fn a_floor_may_be_limited_to_some_of_the_floors_below() {
    let rules = Rules { knows: &[("top", &["mid"])], ..RULES };
    let top = "use crate::mid::Mid;\nuse crate::low::Low;\npub struct Top(Mid, Low);";
    assert_eq!(violations_of(rules, &[("top.rs", top)]), ["top.rs:2,3: top uses low::Low of low"]);
}

#[test]
fn the_modules_of_a_floor_may_be_kept_apart() {
    let floors = &[("root", &[""][..]), ("top", &["top"]), ("rest", &["mid", "low"])];
    let files = [
        ("mid.rs", "mod inner;\nuse inner::Inner;\nuse crate::low::Low;\npub struct Mid(Low);"),
        ("mid/inner.rs", "pub struct Inner;"),
    ];
    assert_eq!(violations_of(Rules { floors, ..RULES }, &files), NOTHING);
    let found = violations_of(Rules { floors, apart: &["rest"], ..RULES }, &files);
    assert_eq!(found, ["mid.rs:3,4: rest uses low::Low of rest"]);
}

#[test]
fn every_file_has_a_floor_and_every_floor_a_file() {
    let files = [("lib.rs", "mod low; mod top; mod other;"), ("other.rs", "")];
    assert_eq!(violations(&files), ["other.rs: on no floor", "mid: there is no module mid"]);
}

#[test]
fn a_floor_may_stand_inside_the_folder_of_another() {
    let files = [
        ("mid.rs", "mod high;\npub use high::High;\npub struct Mid;"),
        ("mid/high.rs", "\nuse super::Mid;\npub struct High(Mid);"),
    ];
    let above = &[("root", &[""][..]), ("top", &["top", "mid::high"]), ("rest", &["mid", "low"])];
    let found = violations_of(Rules { floors: above, ..RULES }, &files);
    assert_eq!(found, ["mid.rs:2: rest uses mid::high::High of top"]);
    let below = &[("root", &[""][..]), ("mid", &["mid"]), ("rest", &["top", "low", "mid::high"])];
    let found = violations_of(Rules { floors: below, ..RULES }, &files);
    assert_eq!(found, ["mid/high.rs:2,3: rest uses mid::Mid of mid"]);
}

#[test]
fn path_attributes_are_followed() {
    let files = [
        ("mid.rs", "#[path = \"elsewhere.rs\"] mod other; pub struct Mid;"),
        ("elsewhere.rs", "use crate::top::Top;"),
    ];
    assert_eq!(violations(&files), ["elsewhere.rs:1: mid uses top::Top of top"]);
}

#[test]
fn long_files_are_found() {
    let long = "\n".repeat(20);
    let tests = "#[cfg(test)]\nmod tests {\n    fn f() {}\n}\n";
    assert_eq!(of_low(&long), ["low.rs: 22 lines without tests, more than 20"]);
    assert_eq!(of_low(tests), ["low.rs: 4 lines of tests, more than 3"]);
    assert_eq!(of_low(&format!("{}{}", "\n".repeat(15), tests.replace("{\n", "{"))), NOTHING);
}
