//! Rust text as tokens, so that how it is wrapped, indented and commented makes no difference.

use std::ops::Range;

/// Where the tokens of a text are, without comments and without commas before a closing bracket.
pub(super) fn tokens(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let len = match first {
            _ if first.is_whitespace() => first.len_utf8(),
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            _ => {
                let len = literal(rest).unwrap_or_else(|| word(rest).max(first.len_utf8()));
                if let ")" | "]" | "}" = &rest[..len] {
                    found.pop_if(|last| text[last.clone()] == *",");
                }
                found.push(at..at + len);
                len
            }
        };
        at += len;
    }
    found
}

fn word(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        match rest {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string, character or lifetime that the text starts with.
fn literal(text: &str) -> Option<usize> {
    let body = text.trim_start_matches(['b', 'c', 'r']);
    let prefix = &text[..text.len() - body.len()];
    if prefix.len() > 2 {
        return None;
    }
    if prefix.ends_with('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        let inner = body[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", &body[..hashes]);
        return Some(prefix.len() + hashes + 1 + inner.find(&end)? + end.len());
    }
    let quote = body.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inner = &body[1..];
    let mut after_first = inner.chars().skip(1);
    let is_lifetime = quote == '\'' && !inner.starts_with('\\') && after_first.next() != Some('\'');
    if is_lifetime {
        return prefix.is_empty().then(|| 1 + word(inner));
    }
    let mut is_escaped = false;
    let end = inner.find(|c| {
        let ends = c == quote && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    });
    Some(prefix.len() + 1 + end? + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        tokens(text).into_iter().map(|token| &text[token]).collect()
    }

    #[test]
    fn wrapping_and_comments_make_no_difference() {
        let wrapped = "call( // why\n    a,\n    b, /* and /* how */ */\n)?;";
        assert_eq!(texts(wrapped), texts("call(a, b)?;"));
    }

    #[test]
    fn literals_are_one_token_each() {
        let text = r##"f("a \" // b", b"c", '"', '\'', r#"d" e"#, 'life, b'x', r#type, "é")"##;
        let expected: &[&str] = &[
            "f",
            "(",
            r#""a \" // b""#,
            ",",
            r#"b"c""#,
            ",",
            r#"'"'"#,
            ",",
            r"'\''",
            ",",
            r##"r#"d" e"#"##,
            ",",
            "'life",
            ",",
            "b'x'",
            ",",
            "r",
            "#",
            "type",
            ",",
            "\"é\"",
            ")",
        ];
        assert_eq!(texts(text), expected);
    }
}
