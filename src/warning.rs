//! Warnings: facts that do not keep an image from being served, but that its user should know.

use std::fmt;

use crate::disk::LayerId;

/// A fact that does not keep an image from being served, but that its user should know.
///
/// Match on [`code`](Self::code), and on [`layer`](Self::layer) or [`file`](Self::file) for what it concerns; the
/// text is for people. A warning is displayed as the file's name and the message.
///
/// ```no_run
/// use avhdx::DiffChain;
///
/// let chain = DiffChain::open("web_1A2B.avhdx")?;
/// for warning in chain.warnings() {
///     match warning.code {
///         "lock.in-use" => eprintln!("{} may change while it is read", warning.file),
///         _ => eprintln!("{warning}"),
///     }
/// }
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Warning {
    /// A short, stable name of the exact finding, such as `lock.in-use`.
    pub code: &'static str,
    /// The layer that the warning concerns; `None` if it concerns a file that is not open as an image.
    pub layer: Option<LayerId>,
    /// The file concerned, as it was named when it was opened. It may differ from the layer's own: a child that
    /// cannot be read can prevent changes to its parent.
    pub file: String,
    /// What is wrong, without the file's name.
    pub message: String,
}

impl Warning {
    /// Creates a warning about a file that concerns no layer.
    pub(crate) fn new(
        code: &'static str,
        file: impl fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        Self { code, layer: None, file: file.to_string(), message: message.into() }
    }

    /// Names the layer concerned.
    pub(crate) fn of_layer(mut self, layer: LayerId) -> Self {
        self.layer = Some(layer);
        self
    }

    /// Appends a consequence to the message.
    pub(crate) fn and(mut self, what: &str) -> Self {
        self.message += what;
        self
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.message)
    }
}
