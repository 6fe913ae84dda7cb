//! The rows, printed as text while they are measured and as JSON at the end.

use std::fmt::Write;

use crate::stats::{Times, low95, median};

/// Work done by the crate, compared with the same work done bare.
pub struct Row {
    pub work: String,
    /// How many operations each side does in a round.
    pub ops: usize,
    /// The median time of one operation in µs.
    pub bare: f64,
    pub own: f64,
    /// For each round: bare time / own time, the same for bare against bare, and the time for one
    /// flat raw file / own time.
    pub ratios: Vec<f64>,
    pub noise: Option<Vec<f64>>,
    pub raw: Option<Vec<f64>>,
    /// The ratio to reach.
    pub bar: Option<f64>,
    pub note: String,
}

/// A measured value without a comparison.
pub struct Fact {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    /// Its upper limit.
    pub most: Option<f64>,
    pub note: String,
}

enum Line {
    Row(Row),
    Fact(Fact),
    /// What was not measured, and why.
    LeftOut(String, String),
}

#[derive(Default)]
pub struct Report {
    only: Option<String>,
    lines: Vec<(&'static str, Line)>,
    section: &'static str,
}

impl Row {
    /// Creates a row from rounds of bare, own and, if they took part, bare again and the flat raw file.
    pub fn new(work: &str, ops: usize, times: &Times, bar: Option<f64>) -> Self {
        let known = |ratios: Vec<f64>| ratios.iter().all(|ratio| !ratio.is_nan()).then_some(ratios);
        let again = times.each(|times| times.get(2).map_or(f64::NAN, |again| times[0] / again));
        let raw = times.each(|times| times.get(3).map_or(f64::NAN, |raw| raw / times[1]));
        Self {
            work: work.into(),
            ops,
            bare: times.median(0) * 1e6 / ops as f64,
            own: times.median(1) * 1e6 / ops as f64,
            ratios: times.ratios(0, 1),
            noise: known(again),
            raw: known(raw),
            bar,
            note: String::new(),
        }
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        let note = note.into();
        let apart = if self.note.is_empty() { "" } else { "; " };
        self.note += &format!("{apart}{note}");
        self
    }

    /// Allows each operation the time of this many bare ones: the ratio is allowed time / own time,
    /// and must reach 1.
    pub fn allow(self, bare_ones: f64) -> Self {
        let all = vec![bare_ones; self.ratios.len()];
        self.allow_each(&all)
    }

    /// The same, round by round.
    pub fn allow_each(mut self, bare_ones: &[f64]) -> Self {
        self.ratios.iter_mut().zip(bare_ones).for_each(|(ratio, allowed)| *ratio *= allowed);
        self.bar = Some(1.0);
        self.note(format!("allowed: {:.1} bare reads", median(bare_ones)))
    }

    /// Whether the median reaches the bar, and whether the lower bound of its interval does.
    fn reached(&self) -> Option<[bool; 2]> {
        let bar = self.bar?;
        Some([median(&self.ratios) >= bar, low95(&self.ratios).is_some_and(|low| low >= bar)])
    }

    fn text(&self) -> String {
        let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.3}"));
        let raw = self.raw.as_deref().map(median);
        let verdict = match (self.bar, self.reached()) {
            (Some(bar), Some([true, true])) => format!("{bar:>5}  yes"),
            (Some(bar), Some([true, false])) => format!("{bar:>5}  by its median"),
            (Some(bar), Some(_)) => format!("{bar:>5}  NO"),
            _ => String::new(),
        };
        format!(
            "{:<56} {:>9} {:>9}  {:>6} {:>6} {:>6} {:>6}  {verdict}{}",
            self.work,
            micros(self.bare),
            micros(self.own),
            ratio(Some(median(&self.ratios))),
            ratio(low95(&self.ratios)),
            ratio(self.noise.as_deref().map(median)),
            ratio(raw),
            in_brackets(&self.note),
        )
    }

    fn json(&self) -> String {
        let of = |ratios: &[f64]| {
            let low = low95(ratios).map_or("null".into(), number);
            format!("{{\"median\": {}, \"low95\": {low}}}", number(median(ratios)))
        };
        let reached = self.reached().map_or("null".into(), |[median, low]| {
            format!("{{\"by_median\": {median}, \"by_low95\": {low}}}")
        });
        format!(
            "\"kind\": \"ratio\", \"work\": {}, \"rounds\": {}, \"ops_per_round\": {}, \
             \"us_per_op\": {{\"bare\": {}, \"own\": {}}}, \"bare_by_own\": {}, \"bare_by_bare\": {}, \
             \"raw_by_own\": {}, \"bar\": {}, \"reached\": {reached}, \"note\": {}",
            string(&self.work),
            self.ratios.len(),
            self.ops,
            number(self.bare),
            number(self.own),
            of(&self.ratios),
            self.noise.as_deref().map_or("null".into(), of),
            self.raw.as_deref().map_or("null".into(), of),
            self.bar.map_or("null".into(), number),
            string(&self.note),
        )
    }
}

impl Fact {
    pub fn new(what: &str, value: f64, unit: &'static str, most: Option<f64>) -> Self {
        Self { what: what.into(), value, unit, most, note: String::new() }
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    fn text(&self) -> String {
        let verdict = self.most.map_or(String::new(), |most| {
            let reached = if self.value <= most { "yes" } else { "NO" };
            format!("at most {most} {}  {reached}", self.unit)
        });
        let value = format!("{} {}", micros(self.value), self.unit);
        format!("{:<56} {value:>19}  {verdict}{}", self.what, in_brackets(&self.note))
    }

    fn json(&self) -> String {
        format!(
            "\"kind\": \"value\", \"work\": {}, \"value\": {}, \"unit\": {}, \"at_most\": {}, \
             \"reached\": {}, \"note\": {}",
            string(&self.what),
            number(self.value),
            string(self.unit),
            self.most.map_or("null".into(), number),
            self.most.map_or("null".into(), |most| (self.value <= most).to_string()),
            string(&self.note),
        )
    }
}

impl Report {
    /// Keeps only rows whose names contain this.
    pub fn only(only: Option<String>) -> Self {
        Self { only, ..Self::default() }
    }

    pub fn wants(&self, work: &str) -> bool {
        self.only.as_ref().is_none_or(|only| work.contains(only.as_str()))
    }

    /// Starts a section; its heading is printed with the first row.
    pub fn section(&mut self, name: &'static str) {
        self.section = name;
    }

    pub fn row(&mut self, row: Row) {
        self.add(Line::Row(row));
    }

    pub fn fact(&mut self, fact: Fact) {
        self.add(Line::Fact(fact));
    }

    pub fn left_out(&mut self, work: &str, why: &str) {
        self.add(Line::LeftOut(work.into(), why.into()));
    }

    fn add(&mut self, line: Line) {
        if self.lines.last().is_none_or(|(section, _)| *section != self.section) {
            println!("\n{}", self.section);
            if matches!(line, Line::Row(_)) {
                println!(
                    "{:<56} {:>9} {:>9}  {:>6} {:>6} {:>6} {:>6}  must reach",
                    "", "bare µs", "own µs", "ratio", "low95", "A/A", "to raw"
                );
            }
        }
        match &line {
            Line::Row(row) => println!("{}", row.text()),
            Line::Fact(fact) => println!("{}", fact.text()),
            Line::LeftOut(work, why) => println!("{work:<56} left out: {why}"),
        }
        self.lines.push((self.section, line));
    }

    pub fn to_json(&self) -> String {
        let rows: Vec<String> = self
            .lines
            .iter()
            .map(|(section, line)| {
                let rest = match line {
                    Line::Row(row) => row.json(),
                    Line::Fact(fact) => fact.json(),
                    Line::LeftOut(work, why) => format!(
                        "\"kind\": \"left_out\", \"work\": {}, \"note\": {}",
                        string(work),
                        string(why)
                    ),
                };
                format!("{{\"section\": {}, {rest}}}", string(section))
            })
            .collect();
        format!("{{\"schema\": \"avhdx.bench-table/1\", \"rows\": [\n{}\n]}}\n", rows.join(",\n"))
    }

    /// The number of bars, and the rows that miss theirs.
    pub fn verdict(&self) -> (usize, Vec<&str>) {
        let judged = self.lines.iter().filter_map(|(_, line)| match line {
            Line::Row(row) => row.reached().map(|[median, _]| (row.work.as_str(), median)),
            Line::Fact(fact) => fact.most.map(|most| (fact.what.as_str(), fact.value <= most)),
            Line::LeftOut(..) => None,
        });
        let judged: Vec<_> = judged.collect();
        let missed = judged.iter().filter(|(_, reached)| !reached).map(|(work, _)| *work);
        (judged.len(), missed.collect())
    }
}

/// Formats a value with three significant digits.
pub fn micros(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.3}"),
        value if value < 99.95 => format!("{value:.2}"),
        value => format!("{value:.1}"),
    }
}

fn in_brackets(note: &str) -> String {
    if note.is_empty() { String::new() } else { format!("  ({note})") }
}

fn number(value: f64) -> String {
    if value.is_finite() { format!("{value:.4}") } else { "null".into() }
}

fn string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => _ = write!(out, "\\u{:04x}", c as u32),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
