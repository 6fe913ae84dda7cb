//! The chart of reads by depth, as SVG with its own background, for light and dark pages.

use std::fmt::Write;

use crate::peers::{DEPTHS, Point};
use crate::report::micros;

const WIDTH: f64 = 780.0;
const HEIGHT: f64 = 460.0;
/// The plot area within the picture.
const LEFT: f64 = 74.0;
const RIGHT: f64 = 560.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 404.0;
/// The distance between the labels at the right.
const LINE: f64 = 17.0;
/// Distinguishable by most people, and dark enough on white.
const COLOURS: [&str; 6] = ["#0a6e4f", "#555555", "#b3420a", "#7a3e9d", "#0b5fa5", "#a0206a"];
const TEXT: &str = "#1f2328";
const GRID: &str = "#d5d9de";

/// Reads of 4 KiB by depth; each series is a line with its label at the end.
pub fn svg(points: &[Point]) -> String {
    let mut series: Vec<&str> = Vec::new();
    for point in points {
        if !series.contains(&point.series.as_str()) {
            series.push(&point.series);
        }
    }
    let all = || points.iter().map(|point| point.micros.log10());
    // Some margin below and above.
    let low = all().fold(f64::MAX, f64::min) - 0.25;
    let high = all().fold(f64::MIN, f64::max).max(low + 1.0) + 0.25;
    let decades = || low.ceil() as i32..=high.floor() as i32;
    let y = |micros: f64| BOTTOM - (micros.log10() - low) / (high - low) * (BOTTOM - TOP);
    let deepest = DEPTHS[DEPTHS.len() - 1];
    let x = |depth: usize| {
        LEFT + 14.0 + (depth as f64).ln() / (deepest as f64).ln() * (RIGHT - LEFT - 28.0)
    };

    let mut out = String::new();
    _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" \
         font-size=\"13\" fill=\"{TEXT}\" role=\"img\" aria-label=\"Time of a random 4 KiB read by depth of the chain\">"
    );
    _ = writeln!(out, "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\" fill=\"#ffffff\"/>");
    let mut text = |at: (f64, f64), anchor: &str, more: &str, text: &str| {
        let (x, y) = at;
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{text}</text>"
        );
    };
    let bold = "font-size=\"16\" font-weight=\"600\"";
    text((20.0, 28.0), "start", bold, "A random 4 KiB read, by depth of the chain");
    text(
        (20.0, 46.0),
        "start",
        "font-size=\"12\"",
        "µs a read, both axes logarithmic, page cache warm",
    );
    text(((LEFT + RIGHT) / 2.0, HEIGHT - 16.0), "middle", "", "layers in the chain");
    for depth in DEPTHS {
        text((x(depth), BOTTOM + 20.0), "middle", "", &depth.to_string());
    }
    for decade in decades() {
        let value = 10_f64.powi(decade);
        let name = if decade < 0 { format!("{value}") } else { format!("{value:.0}") };
        text((LEFT - 10.0, y(value) + 4.5), "end", "", &name);
    }
    let mut names: Vec<(f64, usize, &Point)> = series
        .iter()
        .enumerate()
        .filter_map(|(at, name)| {
            let last = points.iter().rev().find(|point| point.series == *name)?;
            (last.depth == deepest).then_some((y(last.micros), at, last))
        })
        .collect();
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Labels that overlap move down, then all of them up if they leave the picture.
    for i in 1..names.len() {
        names[i].0 = names[i].0.max(names[i - 1].0 + LINE);
    }
    for i in (0..names.len()).rev() {
        let limit = if i + 1 < names.len() { names[i + 1].0 - LINE } else { BOTTOM };
        names[i].0 = names[i].0.min(limit);
    }
    for (at, number, last) in &names {
        let colour = COLOURS[number % COLOURS.len()];
        let weight = if *number == 0 { " font-weight=\"700\"" } else { "" };
        let name = format!("{}, {} µs", last.series, micros(last.micros));
        text((RIGHT + 12.0, at + 4.5), "start", &format!("fill=\"{colour}\"{weight}"), &name);
    }

    for decade in decades() {
        let at = y(10_f64.powi(decade));
        _ = writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{RIGHT}\" stroke=\"{GRID}\" stroke-width=\"1\"/>"
        );
    }
    for depth in DEPTHS {
        let at = x(depth);
        _ = writeln!(
            out,
            "<path d=\"M{at:.1} {TOP}V{BOTTOM}\" stroke=\"{GRID}\" stroke-width=\"1\"/>"
        );
    }
    // The first series last, on top of the others.
    for (number, name) in series.iter().enumerate().rev() {
        let colour = COLOURS[number % COLOURS.len()];
        let of = || points.iter().filter(|point| point.series == *name);
        let places: Vec<String> =
            of().map(|point| format!("{:.1},{:.1}", x(point.depth), y(point.micros))).collect();
        let width = if number == 0 { 3.0 } else { 2.0 };
        _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
            places.join(" ")
        );
        for point in of() {
            let (x, y, radius) = (x(point.depth), y(point.micros), width + 1.5);
            _ = writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\"/>"
            );
        }
    }
    // A series that ends before the deepest chain has its label there, on top of other lines.
    for (number, name) in series.iter().enumerate() {
        let last = points.iter().rev().find(|point| point.series == *name);
        if let Some(last) = last.filter(|last| last.depth < deepest) {
            let (x, y) = (x(last.depth) - 6.0, y(last.micros) - 14.0);
            let colour = COLOURS[number % COLOURS.len()];
            let value = micros(last.micros);
            _ = writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{colour}\" stroke=\"#ffffff\" stroke-width=\"4\" \
                 paint-order=\"stroke\">{name}, {value} µs</text>"
            );
        }
    }
    out.push_str("</svg>\n");
    out
}
