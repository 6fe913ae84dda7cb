//! Text in columns.

use crate::text::printable;

/// A title and rows below it.
#[derive(Debug)]
pub(crate) struct TextTable {
    title: String,
    /// Which columns are aligned to the right.
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
    remarks: Vec<String>,
}

impl TextTable {
    /// A table with a header row; a column whose name starts with `>` is aligned to the right.
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        let names = columns.iter().map(|name| name.trim_start_matches('>').to_owned());
        Self {
            title: title.into(),
            right: columns.iter().map(|name| name.starts_with('>')).collect(),
            rows: vec![names.collect()],
            remarks: Vec::new(),
        }
    }

    /// A table of names and values, without a header row.
    pub(crate) fn fields(title: &str) -> Self {
        Self { title: title.into(), right: vec![false; 2], rows: Vec::new(), remarks: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn field(&mut self, name: &str, value: impl ToString) {
        self.row([name.to_owned(), value.to_string()]);
    }

    /// Adds a line below the rows.
    pub(crate) fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    pub(crate) fn with_remark(mut self, remark: impl Into<String>) -> Self {
        self.remark(remark);
        self
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let mut widths = vec![0; self.right.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(printable(cell).chars().count());
            }
        }
        let mut lines = vec![self.title.clone()];
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), right) in
                row.iter().map(|cell| printable(cell)).zip(&widths).zip(&self.right)
            {
                line +=
                    &if *right { format!("  {cell:>width$}") } else { format!("  {cell:width$}") };
            }
            lines.push(line);
        }
        lines.extend(self.remarks.iter().map(|remark| format!("  {remark}")));
        lines
    }
}
