//! `avhdx check`: validates an image and its parents against the format.

use avhdx::Lock;
use avhdx::ops::{Check, Finding, Report, Severity};
use serde::Serialize;
use uuid::Uuid;

use crate::args::{ImageArg, ReadFlags};
use crate::facts::report::found_by;
use crate::failure::{Failure, Reply};
use crate::input;
use crate::output::Console;
use crate::text::{count, size};
use crate::vocabulary::{Answer, FoundByName};

const SEVERITIES: [Severity; 3] = [Severity::Error, Severity::Warning, Severity::Info];

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
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let path = input::resolve(&args.image.image, &args.opening.inspecting(), console)?.path;
    let options = args.opening.options().lock(Lock::Shared);
    let report = Check::new().options(options).alone(args.layer).run(path)?;
    if console.is_json() {
        console.document(&CheckAnswer::of(&report))?;
    } else {
        text(&report, console)?;
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

fn text(report: &Report, console: &mut Console) -> Result<(), Failure> {
    // Layers that are not files can share a name; their findings are grouped.
    let mut names: Vec<&str> = Vec::new();
    let of_layers = report.layers.iter().map(|layer| layer.name.as_str());
    let of_findings = report.findings.iter().map(|finding| finding.layer.as_str());
    for name in of_layers.chain(of_findings) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for layer in names {
        let known = report.layers.iter().find(|other| other.name == layer);
        let by = known
            .and_then(|known| known.found_by)
            .map(|by| format!(" ({})", found_by(by)))
            .unwrap_or_default();
        console.line(format!("{layer}{by}"))?;
        let mut is_clean = true;
        for severity in SEVERITIES {
            let wanted = |of: &str, is: Severity| of == layer && is == severity;
            for found in report.findings.iter().filter(|f| wanted(&f.layer, f.severity)) {
                is_clean = false;
                lines(found, console)?;
            }
            for more in report.unlisted.iter().filter(|m| wanted(&m.layer, m.severity)) {
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
    console.line(format!(
        "{verdict}: {}, {} and {} in {}",
        count(errors as usize, "error"),
        count(warnings as usize, "warning"),
        count(infos as usize, "remark"),
        count(report.layers.len(), "layer")
    ))
}

fn lines(finding: &Finding, console: &mut Console) -> Result<(), Failure> {
    let at = finding.offset.map(|offset| format!(" at {offset:#x}")).unwrap_or_default();
    let section = finding.section.map(|s| format!(" [MS-VHDX {s}]")).unwrap_or_default();
    let severity = name(finding.severity);
    console.line(format!("  {severity:7}  {}: {}{at}{section}", finding.code, finding.message))?;
    let values = match (&finding.found, &finding.expected) {
        (Some(found), Some(expected)) => Some(format!("found {found}, expected {expected}")),
        (Some(found), None) => Some(format!("found {found}")),
        (None, Some(expected)) => Some(format!("expected {expected}")),
        (None, None) => None,
    };
    if let Some(values) = values {
        console.line(format!("           {values}"))?;
    }
    console.line(format!("           {}", finding.meaning))
}

fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "info",
        _ => "other",
    }
}
