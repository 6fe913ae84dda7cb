//! Warnings: what does not keep an image from being served, and what its user should know all the same.

use std::fmt;

use crate::disk::LayerId;

/// Something that does not keep an image from being served but that its user should know.
///
/// Match on [`code`](Self::code), and on [`layer`](Self::layer) or [`file`](Self::file) for what it concerns; the
/// text is for people. Displayed, a warning is the file's name and the message.
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
#[non_exhaustive]
pub struct Warning {
    /// A short, stable name of the exact finding, such as `lock.in-use`.
    pub code: &'static str,
    /// The layer that the warning concerns; `None` where it concerns a file that is not open as an image.
    pub layer: Option<LayerId>,
    /// The file to look at, by the name it was opened under. It need not be the layer's own: a child that could not
    /// be read lies in the way of changes to its parent.
    pub file: String,
    /// What the matter is, without the file's name.
    pub message: String,
}

impl Warning {
    /// A warning about a file that concerns no layer.
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

    /// Adds what follows from it.
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
