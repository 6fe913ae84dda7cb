//! Spans and events of the `tracing` crate, if the feature of that name is on. Reads have none.

/// A span that ends when it is dropped.
#[must_use]
pub(crate) struct Span(
    #[cfg(feature = "tracing")]
    #[allow(dead_code)] // held for its drop
    tracing::span::EnteredSpan,
);

/// Begins the span of an operation on whole disks, of this file, or of the disk of this name.
pub(crate) fn operation(name: &'static str, of: &str) -> Span {
    #[cfg(feature = "tracing")]
    return Span(tracing::info_span!(target: "avhdx", "operation", name, of).entered());
    #[cfg(not(feature = "tracing"))]
    {
        let _ = (name, of);
        Span()
    }
}

/// An image was opened.
pub(crate) fn opened(file: &str, is_writable: bool, log_pending: bool) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: "avhdx", file, writable = is_writable, log_pending, "opened an image");
    #[cfg(not(feature = "tracing"))]
    let _ = (file, is_writable, log_pending);
}

/// A chain was opened.
pub(crate) fn chain_opened(tip: &str, layers: usize) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: "avhdx", tip, layers, "opened a chain");
    #[cfg(not(feature = "tracing"))]
    let _ = (tip, layers);
}

/// A session that changes an image began, or ended.
pub(crate) fn session(file: &str, has_begun: bool) {
    #[cfg(feature = "tracing")]
    match has_begun {
        true => tracing::debug!(target: "avhdx", file, "began to change an image"),
        false => tracing::debug!(target: "avhdx", file, "an image is closed: its log is empty"),
    }
    #[cfg(not(feature = "tracing"))]
    let _ = (file, has_begun);
}

/// Begins the span of a commit.
pub(crate) fn commit(file: &str) -> Span {
    #[cfg(feature = "tracing")]
    return Span(tracing::debug_span!(target: "avhdx", "commit", file).entered());
    #[cfg(not(feature = "tracing"))]
    {
        let _ = file;
        Span()
    }
}

/// A file is flushed.
pub(crate) fn flushing(file: &str) {
    #[cfg(feature = "tracing")]
    tracing::trace!(target: "avhdx", file, "flush");
    #[cfg(not(feature = "tracing"))]
    let _ = file;
}

/// A log entry was written, not durably yet: its position in the log, and its length, in bytes.
pub(crate) fn log_entry(file: &str, position: u64, length: u64, changes: usize) {
    #[cfg(feature = "tracing")]
    tracing::trace!(target: "avhdx", file, position, length, changes, "log entry");
    #[cfg(not(feature = "tracing"))]
    let _ = (file, position, length, changes);
}

/// A pending log was replayed to the file.
pub(crate) fn replayed(file: &str) {
    #[cfg(feature = "tracing")]
    tracing::info!(target: "avhdx", file, "replayed a log");
    #[cfg(not(feature = "tracing"))]
    let _ = file;
}

/// An image takes no changes any more.
pub(crate) fn poisoned(file: &str, why: &str) {
    #[cfg(feature = "tracing")]
    tracing::error!(target: "avhdx", file, why, "a failure left an image in an unknown state");
    #[cfg(not(feature = "tracing"))]
    let _ = (file, why);
}
