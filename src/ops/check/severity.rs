//! How severe a finding is.

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Severity {
    /// A rule of the format is broken: data is lost or at risk, or other programs refuse the image.
    Error,
    /// The image reads correctly, but trouble is likely, or it departs from the format in a way that readers tolerate.
    Warning,
    /// A fact worth knowing.
    Info,
}
