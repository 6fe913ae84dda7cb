//! `avhdx check`: validates an image and its parents against the format.

use avhdx::Lock;
use avhdx::ops::{Check, Finding, Remedy, Report, Severity};
use serde::Serialize;
use uuid::Uuid;

use crate::args::{ImageArg, ReadFlags};
use crate::facts::report::found_by;
use crate::failure::{Failure, Reply};
use crate::input;
use crate::output::Console;
use crate::paint::{Look, Painted};
use crate::progress::ProgressMeter;
use crate::seals;
use crate::text::{count, size};
use crate::vocabulary::{Answer, FoundByName};

const SEVERITIES: [Severity; 3] = [Severity::Error, Severity::Warning, Severity::Info];

/// Remarks that ask nothing of the user: they tell of other writers' ways, or of a normal past.
const IDLE: &[&str] = &[
    "bat.slack",
    "bitmap.empty",
    "bitmap.full",
    "bitmap.stray",
    "chain.physical-sector",
    "log.old-entry",
    "region.unknown",
    // Unused space has a line of its own.
    "space.leaked",
];

/// Check an image and its parents against every rule of the format. Nothing is changed.
///
/// Reads all tables, and samples of the space that no table refers to. Works on images that cannot be opened.
/// An error is a broken rule: data is lost or at risk, or other programs refuse the image (exit code 1). Warnings
/// and remarks alone give exit code 0.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// Check the image only, without its parents.
    #[arg(long)]
    layer: bool,
    /// Also list the layers without findings, and remarks without consequences.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let path = input::resolve(&args.image.image, &args.opening.inspecting(), console)?.path;
    let options = args.opening.options().lock(Lock::Shared);
    let mut meter = ProgressMeter::of_lookups(console, "checking");
    let check = Check::new().options(options).alone(args.layer);
    let report = check.on_progress(|now| meter.report(now)).run(path);
    drop(meter);
    let report = report?;
    seals::note_stale(&report.layers, console);
    if console.is_json() {
        console.document(&CheckAnswer::of(&report))?;
    } else {
        text(&report, args.verbose, console)?;
    }
    Ok(if report.is_sound() { Reply::Yes } else { Reply::No })
}

/// What a check found.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CheckAnswer {
    /// Whether no rule of the format is broken.
    sound: bool,
    /// Whether data may be lost although no rule is broken.
    doubtful: bool,
    /// The number of errors, including those not listed.
    errors: u64,
    warnings: u64,
    infos: u64,
    /// From the tip down.
    layers: Vec<CheckedLayer>,
    findings: Vec<CheckFinding>,
    /// Findings of a kind that is listed often enough.
    unlisted: Vec<Unlisted>,
}

impl Answer for CheckAnswer {
    const SCHEMA: &'static str = "avhdx.check/1";
}

/// A layer, as far as it could be read; what could not be is null.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CheckedLayer {
    image: String,
    found_by: Option<FoundByName>,
    file_size: u64,
    data_write_guid: Option<Uuid>,
    virtual_size: Option<u64>,
    allocated_blocks: Option<u64>,
    /// The bytes of the file that no table refers to.
    unused_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CheckFinding {
    code: &'static str,
    severity: &'static str,
    image: String,
    message: String,
    file_offset: Option<u64>,
    found: Option<String>,
    expected: Option<String>,
    /// The section of [MS-VHDX] with the rule.
    section: Option<&'static str>,
    /// What the finding means for the data.
    meaning: String,
    /// The verb, with its flag, that puts the finding right as far as it can be; null if none does.
    repaired_by: Option<&'static str>,
}

/// How many more findings of a kind there are.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Unlisted {
    code: &'static str,
    severity: &'static str,
    image: String,
    count: u64,
}

impl CheckAnswer {
    fn of(report: &Report) -> Self {
        let layers = report.layers.iter().map(|layer| CheckedLayer {
            image: layer.name.clone(),
            found_by: layer.found_by.map(FoundByName::from),
            file_size: layer.file_len,
            data_write_guid: layer.data_write_guid,
            virtual_size: layer.size,
            allocated_blocks: layer.allocated_blocks,
            unused_bytes: layer.leaked,
        });
        let findings = report.findings.iter().map(|finding| CheckFinding {
            code: finding.code,
            severity: name(finding.severity),
            image: finding.layer.clone(),
            message: finding.message.clone(),
            file_offset: finding.offset,
            found: finding.found.clone(),
            expected: finding.expected.clone(),
            section: finding.section,
            meaning: finding.meaning.to_string(),
            repaired_by: finding.repaired_by.map(Remedy::name),
        });
        let unlisted = report.unlisted.iter().map(|more| Unlisted {
            code: more.code,
            severity: name(more.severity),
            image: more.layer.clone(),
            count: more.count,
        });
        Self {
            sound: report.is_sound(),
            doubtful: report.is_doubtful(),
            errors: report.count(Severity::Error),
            warnings: report.count(Severity::Warning),
            infos: report.count(Severity::Info),
            layers: layers.collect(),
            findings: findings.collect(),
            unlisted: unlisted.collect(),
        }
    }
}

fn text(report: &Report, verbose: bool, console: &mut Console) -> Result<(), Failure> {
    // Layers that are not files can share a name; their findings are grouped.
    let mut names: Vec<&str> = Vec::new();
    let of_layers = report.layers.iter().map(|layer| layer.name.as_str());
    let of_findings = report.findings.iter().map(|finding| finding.layer.as_str());
    for name in of_layers.chain(of_findings) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let is_listed =
        |is: Severity, code: &str| verbose || is != Severity::Info || !IDLE.contains(&code);
    let concerns = |layer: &str| {
        let findings = report.findings.iter().map(|f| (&f.layer, f.severity, f.code));
        let unlisted = report.unlisted.iter().map(|more| (&more.layer, more.severity, more.code));
        findings.chain(unlisted).any(|(of, is, code)| of == layer && is_listed(is, code))
    };
    for layer in names.into_iter().filter(|layer| verbose || concerns(layer)) {
        let known = report.layers.iter().find(|other| other.name == layer);
        let by = known
            .and_then(|known| known.found_by)
            .map(|by| format!(" ({})", found_by(by)))
            .unwrap_or_default();
        console.line(format!("{layer}{by}"))?;
        let mut is_clean = true;
        for severity in SEVERITIES {
            let wanted = |of: &str, is: Severity, code: &str| {
                of == layer && is == severity && is_listed(is, code)
            };
            for found in report.findings.iter().filter(|f| wanted(&f.layer, f.severity, f.code)) {
                is_clean = false;
                lines(found, console)?;
            }
            for more in report.unlisted.iter().filter(|m| wanted(&m.layer, m.severity, m.code)) {
                is_clean = false;
                let (severity, code) = (name(severity), more.code);
                console
                    .line(format!("  {severity:7}  {code}: {} more of this kind", more.count))?;
            }
        }
        if is_clean {
            console.line("  nothing to report")?;
        }
        if let Some(leaked) = known.and_then(|known| known.leaked).filter(|leaked| *leaked > 0) {
            console.line(format!("  unused space in the file: {}", size(leaked)))?;
        }
        console.line("")?;
    }
    let [errors, warnings, infos] = SEVERITIES.map(|severity| report.count(severity));
    let verdict = match (report.is_sound(), report.is_doubtful()) {
        (true, false) => "Sound",
        (true, true) => "DOUBTFUL, although no rule is broken",
        (false, _) => "NOT SOUND",
    };
    let look = if verdict == "Sound" { Look::Plain } else { Look::Broken };
    let counts = format!(
        ": {}, {} and {} in {}",
        count(errors as usize, "error"),
        count(warnings as usize, "warning"),
        count(infos as usize, "remark"),
        count(report.layers.len(), "layer")
    );
    console.painted(&Painted::new(look, verdict).with(Look::Plain, counts))?;
    let unused: u64 = report.layers.iter().filter_map(|layer| layer.leaked).sum();
    if !verbose && unused > 0 {
        console.line(format!("  unused space in the files: {}", size(unused)))?;
    }
    let hidden = report.findings.iter().filter(|found| !is_listed(found.severity, found.code));
    let more = report.unlisted.iter().filter(|more| !is_listed(more.severity, more.code));
    let hidden = hidden.count() + more.map(|more| more.count as usize).sum::<usize>();
    if hidden > 0 {
        console.line(format!("  -v lists {} without consequences", count(hidden, "remark")))?;
    }
    Ok(())
}

fn lines(finding: &Finding, console: &mut Console) -> Result<(), Failure> {
    let at = finding.offset.map(|offset| format!(" at {offset:#x}")).unwrap_or_default();
    let section = finding.section.map(|s| format!(" [MS-VHDX {s}]")).unwrap_or_default();
    let severity = name(finding.severity);
    let look = if finding.severity == Severity::Error { Look::Broken } else { Look::Plain };
    let message = format!("  {}: {}{at}{section}", finding.code, finding.message);
    let line = Painted::from("  ").with(look, format!("{severity:7}")).with(Look::Plain, message);
    console.painted(&line)?;
    let values = match (&finding.found, &finding.expected) {
        (Some(found), Some(expected)) => Some(format!("found {found}, expected {expected}")),
        (Some(found), None) => Some(format!("found {found}")),
        (None, Some(expected)) => Some(format!("expected {expected}")),
        (None, None) => None,
    };
    if let Some(values) = values {
        console.line(format!("           {values}"))?;
    }
    console.line(format!("           {}", finding.meaning))?;
    match finding.repaired_by {
        Some(remedy) => console.line(format!("           repaired by: avhdx {}", remedy.name())),
        None => Ok(()),
    }
}

fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "info",
        _ => "other",
    }
}
