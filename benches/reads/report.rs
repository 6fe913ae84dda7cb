//! The table, and the same as JSON.

use std::fmt::{self, Display, Formatter};

use crate::images::{MIB, Order};
use crate::opens::Opened;
use crate::sample::{Measured, median, quantile};

#[derive(Default)]
pub struct Report {
    pub reads: Vec<Measured>,
    pub opens: Vec<Opened>,
}

const AVHDX: usize = 0;
const RAW: usize = 1;
const AGAIN: usize = 2;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(first) = self.reads.first() else { return Ok(()) };
        writeln!(
            f,
            "\nPage cache warm; {} rounds; times of one read, ratios bare / own: medians (lower quartile)\n",
            first.ratios[AVHDX].len()
        )?;
        writeln!(
            f,
            "{:<8}  {:<16} {:>5}  {:>10} {:>10} {:>10}  {:>12}  {:>12}",
            "disk", "reads", "depth", "bare", "avhdx", "raw file", "ratio avhdx", "ratio raw"
        )?;
        let mut groups: Vec<(u64, Order)> = Vec::new();
        for of in self.reads.iter().map(|row| (row.size, row.order)) {
            if !groups.contains(&of) {
                groups.push(of);
            }
        }
        for group in groups {
            self.group(f, group)?;
        }
        self.opens(f)
    }
}

impl Report {
    fn group(&self, f: &mut Formatter<'_>, group: (u64, Order)) -> fmt::Result {
        let rows = || self.reads.iter().filter(|row| (row.size, row.order) == group);
        for row in rows() {
            let [bare, avhdx, raw, _] = row.times.map(micros);
            writeln!(
                f,
                "{:<8}  {:<16} {:>5}  {bare:>10} {avhdx:>10} {raw:>10}  {:>12}  {:>12}",
                size(row.size),
                reads(row.order),
                row.depth,
                spread(&row.ratios[AVHDX]),
                spread(&row.ratios[RAW]),
            )?;
        }
        let all: Vec<f64> = rows().flat_map(|row| row.ratios[AGAIN].iter().copied()).collect();
        let [bare, again] =
            [0, 1 + AGAIN].map(|who| micros(median(rows().map(|row| row.times[who]))));
        writeln!(
            f,
            "{:<8}  {:<16} {:>5}  {bare:>10} {again:>10} {:>10}  {:>12}    bare against bare\n",
            size(group.0),
            reads(group.1),
            "A/A",
            "",
            spread(&all),
        )
    }

    fn opens(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<8}  {:>12} {:>12}  {:>18}",
            "empty", "open, median", "longest", "resident, at most"
        )?;
        for row in &self.opens {
            let resident = match row.resident {
                Some([before, after]) => format!(
                    "{:>14.1} MiB, {:.1} before the open",
                    before.max(after) as f64 / 1024.0,
                    before as f64 / 1024.0
                ),
                None => "measured on Linux only".into(),
            };
            writeln!(
                f,
                "{:<8}  {:>9.3} ms {:>9.3} ms  {resident}",
                size(row.size),
                row.median,
                row.max
            )?;
        }
        Ok(())
    }

    pub fn to_json(&self) -> String {
        let reads = self.reads.iter().map(|row| {
            let [bare, avhdx, raw, again] = row.times;
            let [of_avhdx, of_raw, of_again] = row.ratios.each_ref().map(|ratios| json_spread(ratios));
            format!(
                "{{\"disk\": {}, \"read\": {}, \"random\": {}, \"depth\": {}, \"rounds\": {}, \
                 \"reads_per_sample\": {}, \"ns_per_read\": {{\"bare\": {bare:.1}, \"avhdx\": {avhdx:.1}, \
                 \"raw\": {raw:.1}, \"bare_again\": {again:.1}}}, \"ratio\": {{\"avhdx\": {of_avhdx}, \
                 \"raw\": {of_raw}, \"bare_again\": {of_again}}}}}",
                row.size,
                row.order.read_len(),
                row.order == Order::Random,
                row.depth,
                row.ratios[AVHDX].len(),
                row.reads_per_sample,
            )
        });
        let opens = self.opens.iter().map(|row| {
            let resident = row.resident.map_or("null".into(), |[_, after]| (after * 1024).to_string());
            format!(
                "{{\"disk\": {}, \"median_ms\": {:.4}, \"max_ms\": {:.4}, \"resident\": {resident}}}",
                row.size, row.median, row.max
            )
        });
        format!(
            "{{\"schema\": \"avhdx.bench/1\",\n\"reads\": [\n{}\n],\n\"opens\": [\n{}\n]}}\n",
            reads.collect::<Vec<_>>().join(",\n"),
            opens.collect::<Vec<_>>().join(",\n")
        )
    }
}

fn size(bytes: u64) -> String {
    match bytes / MIB {
        mib if mib >= 1 << 20 => format!("{} TiB", mib >> 20),
        mib if mib >= 1 << 10 => format!("{} GiB", mib >> 10),
        mib => format!("{mib} MiB"),
    }
}

fn reads(order: Order) -> &'static str {
    match order {
        Order::Random => "4 KiB random",
        Order::Sequential => "1 MiB sequential",
    }
}

fn micros(nanos: f64) -> String {
    format!("{:.2} µs", nanos / 1e3)
}

fn spread(ratios: &[f64]) -> String {
    format!("{:.2} ({:.2})", median(ratios.iter().copied()), lower(ratios))
}

fn json_spread(ratios: &[f64]) -> String {
    let median = median(ratios.iter().copied());
    format!("{{\"median\": {median:.4}, \"lower_quartile\": {:.4}}}", lower(ratios))
}

fn lower(ratios: &[f64]) -> f64 {
    quantile(ratios.iter().copied(), 0.25)
}
