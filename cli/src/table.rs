//! Text in columns.

use crate::paint::{Look, Painted};
use crate::text::{cells, padded, printable, shortened};

/// The width that a column keeps when it is made narrower.
const LEAST: usize = 12;

/// A title and rows below it.
#[derive(Debug)]
pub(crate) struct TextTable {
    title: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    remarks: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Column {
    /// Aligned to the right.
    is_right: bool,
    /// Its texts may be shortened to fit a terminal.
    is_flexible: bool,
}

/// A cell and its look.
#[derive(Debug)]
pub(crate) struct Cell(Look, String);

impl Cell {
    pub(crate) fn new(look: Look, text: impl Into<String>) -> Self {
        Self(look, text.into())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self(Look::Plain, text)
    }
}

impl TextTable {
    /// A table with a header row. The names of columns tell of them: one that starts with `>` is aligned to the right,
    /// one that starts with `~` is shortened where the table is too wide.
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        let names = columns.iter().map(|name| name.trim_start_matches(['>', '~']).to_owned());
        let column = |name: &&str| Column {
            is_right: name.starts_with('>'),
            is_flexible: name.starts_with('~'),
        };
        Self {
            title: title.into(),
            columns: columns.iter().map(column).collect(),
            rows: vec![names.map(Cell::from).collect()],
            remarks: Vec::new(),
        }
    }

    /// A table of names and values, without a header row.
    pub(crate) fn fields(title: &str) -> Self {
        let columns = vec![Column::default(); 2];
        Self { title: title.into(), columns, rows: Vec::new(), remarks: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<Cell>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub(crate) fn field(&mut self, name: &str, value: impl ToString) {
        self.row([name.to_owned(), value.to_string()]);
    }

    /// Adds a field that tells of a fault.
    pub(crate) fn fault(&mut self, name: &str, value: impl ToString) {
        self.row([Cell::new(Look::Broken, name), Cell::new(Look::Broken, value.to_string())]);
    }

    /// Adds a line below the rows.
    pub(crate) fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    pub(crate) fn with_remark(mut self, remark: impl Into<String>) -> Self {
        self.remark(remark);
        self
    }

    /// The lines, within the width of a terminal where one is given, as far as flexible columns allow.
    pub(crate) fn lines(&self, width: Option<usize>) -> Vec<Painted> {
        let mut widths = vec![0; self.columns.len()];
        for row in &self.rows {
            for (width, Cell(_, text)) in widths.iter_mut().zip(row) {
                *width = (*width).max(cells(&printable(text)));
            }
        }
        let is_flexible = self.columns.iter().any(|column| column.is_flexible);
        let limit = width.filter(|_| is_flexible);
        if let Some(limit) = limit {
            self.narrow(&mut widths, limit);
        }
        let title = limit.map(|limit| shortened(&printable(&self.title), limit, "…"));
        let mut lines = vec![Painted::from(title.unwrap_or_else(|| self.title.clone()))];
        for row in &self.rows {
            let mut line = Painted::default();
            for ((Cell(look, text), width), column) in row.iter().zip(&widths).zip(&self.columns) {
                let text = match column.is_flexible {
                    true => shortened(&printable(text), *width, "…"),
                    false => printable(text),
                };
                let blanks = padded("", width - cells(&text), false);
                if column.is_right {
                    line = line.with(Look::Plain, format!("  {blanks}")).with(*look, text);
                } else {
                    line = line.with(Look::Plain, "  ").with(*look, text).with(Look::Plain, blanks);
                }
            }
            lines.push(line);
        }
        lines.extend(self.remarks.iter().map(|remark| Painted::from(format!("  {remark}"))));
        lines
    }

    /// Takes the cells that do not fit from the flexible columns, the widest first.
    fn narrow(&self, widths: &mut [usize], limit: usize) {
        let whole: usize = widths.iter().map(|width| width + 2).sum();
        for _ in limit..whole {
            let flexible = widths.iter_mut().zip(&self.columns);
            let flexible = flexible.filter(|(width, column)| column.is_flexible && **width > LEAST);
            if let Some((widest, _)) = flexible.max_by_key(|(width, _)| **width) {
                *widest -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(table: &TextTable, width: Option<usize>) -> Vec<String> {
        table.lines(width).iter().map(|line| line.render(false)).collect()
    }

    #[test]
    fn columns_are_aligned_by_cells() {
        let mut table = TextTable::new("Title", &["name", ">size", "file"]);
        table.row(["虛擬機".to_owned(), "1".into(), "a".into()]);
        table.row(["💾".to_owned(), "22".into(), "b".into()]);
        table.row(["e\u{301}".to_owned(), "333".into(), "c".into()]);
        let expected = [
            "Title",
            "  name    size  file",
            "  虛擬機     1  a",
            "  💾        22  b",
            "  e\u{301}        333  c",
        ];
        assert_eq!(printed(&table, None), expected);
        // No column may be shortened.
        assert_eq!(printed(&table, Some(10)), expected);
    }

    #[test]
    fn flexible_columns_give_way() {
        let mut table = TextTable::new("A title that is too long", &["~name", ">size", "~file"]);
        table.row(["虛擬機器磁碟".to_owned(), "1".into(), "web_1A2B3C4D5E6F.avhdx".into()]);
        let lines = printed(&table, Some(36));
        let row = "  虛擬機器磁碟     1  web_1A…F.avhdx";
        assert_eq!(lines, ["A title that is too long", "  name          size  file", row]);
        assert!(printed(&table, Some(34)).iter().all(|line| cells(line) <= 34));
        assert_eq!(printed(&table, Some(20))[0], "A title t…s too long");
        let piped = printed(&table, None);
        assert_eq!(piped[2], "  虛擬機器磁碟     1  web_1A2B3C4D5E6F.avhdx");
    }
}
