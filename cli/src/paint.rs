//! Text with looks, for a terminal with colours.

use console::Style;

use crate::text::{cells, printable};

/// How a part of a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Look {
    #[default]
    Plain,
    /// What is broken.
    Broken,
    /// The tip of a chain: the present.
    Tip,
}

/// A line of parts with looks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Painted(Vec<(Look, String)>);

impl Painted {
    pub(crate) fn new(look: Look, text: impl Into<String>) -> Self {
        Self::default().with(look, text)
    }

    pub(crate) fn with(mut self, look: Look, text: impl Into<String>) -> Self {
        self.push(look, text);
        self
    }

    pub(crate) fn push(&mut self, look: Look, text: impl Into<String>) {
        self.0.push((look, text.into()));
    }

    /// The width in cells of a terminal.
    pub(crate) fn cells(&self) -> usize {
        self.0.iter().map(|(_, text)| cells(&printable(text))).sum()
    }

    /// The line as it is printed, without blanks at its end.
    pub(crate) fn render(&self, has_colours: bool) -> String {
        let mut line = String::new();
        for (look, text) in &self.0 {
            // Untrusted text cannot bring colours of its own.
            let text = printable(text);
            let style = match look {
                Look::Broken if has_colours => Style::new().red(),
                Look::Tip if has_colours => Style::new().green().bold(),
                Look::Plain | Look::Broken | Look::Tip => {
                    line += &text;
                    continue;
                }
            };
            line += &style.force_styling(true).apply_to(text).to_string();
        }
        line.truncate(line.trim_end().len());
        line
    }
}

impl From<String> for Painted {
    fn from(text: String) -> Self {
        Self::new(Look::Plain, text)
    }
}

impl From<&str> for Painted {
    fn from(text: &str) -> Self {
        Self::new(Look::Plain, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_around_their_part_alone() {
        let line = Painted::from("a ").with(Look::Broken, "b\x1b[0m").with(Look::Plain, "  ");
        assert_eq!(line.render(false), "a b\\u{1b}[0m");
        assert_eq!(line.render(true), "a \x1b[31mb\\u{1b}[0m\x1b[0m");
        assert_eq!(line.cells(), 14);
    }
}
