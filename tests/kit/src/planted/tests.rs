use super::bugs::parse;
use super::*;

const CODE: &str = "fn flush(&self) -> Result<()> {\n    // First the data.\n    self.sync(\n        self.data,\n    )?;\n    self.log()\n}\n";

fn bug(name: &str, hunk: &str) -> String {
    format!("bug {name}\n  It is wrong.\n  found by lib a_test\n@@\n{hunk}\n")
}

fn plant(text: &str) -> Result<String, String> {
    let sources =
        Sources(vec![Source { path: "src/a.rs".into(), text: CODE.into(), tokens: tokens(CODE) }]);
    let bugs = parse(text, "a.bugs")?;
    let planted = sources.plant(&bugs).map_err(|wrong| wrong.join("\n"))?;
    Ok(planted.into_iter().map(|(_, text)| text).collect())
}

fn squeezed(text: &str) -> String {
    tokens(text).into_iter().map(|token| text[token].to_owned()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_bug_finds_its_code_however_it_is_wrapped() {
    let planted =
        plant(&bug("late", "- self.sync(self.data)?;\n+ if !planted() { self.sync(self.data)?; }"));
    let expected = CODE.replace(
        "self.sync(\n        self.data,\n    )?;",
        "if !crate::planted::is(\"late\") { self.sync(self.data)?; }",
    );
    assert_eq!(squeezed(&planted.unwrap()), squeezed(&expected));
}

#[test]
fn several_bugs_add_around_the_same_code() {
    let around = "+ if !planted() {\n  self.sync(self.data)?;\n+ }";
    let planted = plant(&(bug("a", around) + &bug("b", around))).unwrap();
    let expected = CODE.replace(
        "self.sync(\n        self.data,\n    )?;",
        "if !crate::planted::is(\"a\") { if !crate::planted::is(\"b\") { self.sync(self.data)?; } }",
    );
    assert_eq!(squeezed(&planted), squeezed(&expected));
}

#[test]
fn two_bugs_that_replace_the_same_code_are_refused() {
    let one = bug("a", "- self.log()\n+ if planted() { Ok(()) } else { self.log() }");
    let other = bug("b", "  self\n- .log()\n+ .log().or(planted())");
    let refused = plant(&(one + &other)).unwrap_err();
    assert!(refused.contains("b and a change the same code of src/a.rs"), "{refused}");
}

#[test]
fn code_that_is_not_there_exactly_once_is_refused_with_its_place() {
    let refused = plant(&bug("a", "  self.sync(self.tables)\n+ planted()")).unwrap_err();
    let place =
        "begins at src/a.rs:3 and differs at src/a.rs:4: `data` stands in the place of `tables`";
    assert!(refused.starts_with("a.bugs: a: ") && refused.contains(place), "{refused}");
    let refused = plant(&bug("a", "  self.\n+ planted()")).unwrap_err();
    assert!(refused.contains("more than once, at src/a.rs:3, src/a.rs:4, src/a.rs:6"), "{refused}");
}

#[test]
fn a_bug_that_is_not_complete_is_refused() {
    let whole = bug("a", "  self.log()\n+ .or(planted())");
    assert!(plant(&whole).is_ok());
    for (part, why) in [
        ("planted()", "does not ask planted()"),
        ("  self.log()\n", "shows no code as it stands"),
        ("  It is wrong.\n", "does not say what goes wrong"),
        ("  found by lib a_test\n", "names no test that finds it"),
        ("@@\n  self.log()\n+ .or(planted())\n", "changes no code"),
        ("bug a\n", "no bug begins before this line"),
    ] {
        let refused = plant(&whole.replace(part, "")).unwrap_err();
        assert!(refused.contains(why), "{part}: {refused}");
    }
}
