//! Checks the log: the entries in the ring, and whether the active sequence can be replayed.

use std::sync::Arc;

use super::findings::Findings;
use super::root::Root;
use crate::error::{Error, ErrorKind};
use crate::format::header::Header;
use crate::image::LogPolicy;
use crate::log::{self, Sequence};
use crate::storage::Storage;
use crate::types::{MIB, counted};

/// How many invalid targets are reported one by one.
const MOST_TARGETS: usize = 1000;

/// Checks the log and returns the file with the log applied.
pub(super) fn check(
    storage: &Arc<dyn Storage>,
    file_len: u64,
    root: &Root,
    policy: LogPolicy,
    findings: &mut Findings,
) -> Arc<dyn Storage> {
    let as_it_is = Arc::clone(storage);
    let header = &root.header;
    if let Err(error) = log::check_place(header, file_len) {
        if header.log_guid.is_nil() && header.log_length == 0 {
            findings.warning(error);
        } else if header.has_aligned_log() || !root.is_current {
            findings.error(error); // otherwise the header check has reported it
        }
        return as_it_is;
    }
    match log::survey(storage.as_ref(), header) {
        Ok(survey) => report_survey(&survey, header, findings),
        Err(error) => findings.error(error),
    }
    if header.log_guid.is_nil() {
        return as_it_is;
    }
    if !root.is_current || header.log_version != 0 || policy == LogPolicy::Ignore {
        findings.warning(not_replayed(header));
        return as_it_is;
    }
    match replayed(storage, header, findings) {
        Some(overlay) => overlay,
        None => {
            findings.warning(not_replayed(header));
            as_it_is
        }
    }
}

/// Returns the file with the log replayed in memory, or `None` if that fails, which is reported.
fn replayed(
    storage: &Arc<dyn Storage>,
    header: &Header,
    findings: &mut Findings,
) -> Option<Arc<dyn Storage>> {
    let sequence = log::find(storage.as_ref(), header).map_err(|e| findings.error(e)).ok()?;
    report_pending(storage.as_ref(), header, &sequence, findings);
    let mut is_sound = true;
    let inspected =
        log::inspect_targets(storage.as_ref(), header, &sequence, MOST_TARGETS, &mut |error| {
            is_sound = false;
            findings.error(error);
        });
    if let Err(error) = inspected {
        findings.error(error);
        return None;
    }
    if !is_sound {
        return None;
    }
    match log::replay_over(storage, header, &sequence) {
        Ok(overlay) => Some(Arc::new(overlay)),
        // Exceeding the memory limit is not a fault of the image.
        Err(error) if error.kind() == ErrorKind::Limit => {
            findings.warning(error);
            None
        }
        Err(error) => {
            findings.error(error);
            None
        }
    }
}

fn report_pending(
    storage: &dyn Storage,
    header: &Header,
    sequence: &Sequence,
    findings: &mut Findings,
) {
    let (tail, head) = (sequence.tail(), sequence.head());
    let message = "the log holds changes that are not yet in the file";
    findings.info(
        Error::new(ErrorKind::LogPending, "log.pending", message)
            .with_section("2.3.3")
            .at(header.log_offset + tail.position)
            .with_found(format_args!(
                "{}, {} to {}",
                counted(sequence.entries.len() as u64, "entry", "entries"),
                tail.sequence_number,
                head.sequence_number
            ))
            .with_expected("an empty log, as after a clean close"),
    );
    if let Some(gap) = &sequence.gap {
        let message = "the log is damaged where a replay needs it, and newer entries lie behind";
        let behind = counted(gap.newer, "newer intact entry", "newer intact entries");
        findings.warning(
            Error::damaged("log.gap", "2.3.2", header.log_offset + gap.position, message)
                .with_found(format_args!("{behind} of this log behind it, up to {}", gap.newest))
                .with_expected(format_args!(
                    "none newer than entry {}, up to which the log can be replayed",
                    head.sequence_number
                )),
        );
    }
    for entry in &sequence.entries {
        let at = header.log_offset + entry.position;
        let mut reserved = [0; 4];
        if storage.read_exact_at(&mut reserved, at + 28).is_ok() && reserved != [0; 4] {
            let message = "reserved bytes of a log entry are used";
            findings.warning(
                Error::damaged("log.reserved", "2.3.1.1", at + 28, message)
                    .with_found(format_args!("{reserved:02x?}"))
                    .with_expected("zeros"),
            );
        }
        for (value, place) in [(entry.flushed_file_offset, 48), (entry.last_file_offset, 56)] {
            if !value.is_multiple_of(MIB) {
                let message = "a log entry records a misaligned file length";
                findings.warning(
                    Error::damaged("log.file-offset", "2.3.1.1", at + place, message)
                        .with_found(value)
                        .with_expected("a multiple of 1 MiB"),
                );
            }
        }
    }
}

fn report_survey(survey: &log::Survey, header: &Header, findings: &mut Findings) {
    let of = |code, message, at: Option<u64>, count| {
        Error::new(ErrorKind::Damaged, code, message)
            .with_section("2.3.2")
            .at(at.unwrap_or(header.log_offset))
            .with_found(counted(count, "entry", "entries"))
    };
    if survey.torn > 0 {
        let message = "incomplete or partly overwritten entries of this log";
        findings.info(of("log.torn-entry", message, survey.first_torn, survey.torn));
    }
    if survey.foreign > 0 {
        let message = "entries of earlier logs";
        findings.info(of("log.old-entry", message, survey.first_foreign, survey.foreign));
    }
}

fn not_replayed(header: &Header) -> Error {
    let message = "the log was not replayed: the findings below describe the file without it";
    Error::new(ErrorKind::LogPending, "log.not-replayed", message)
        .with_section("2.3.3")
        .at(header.log_offset)
        .with_found(format_args!("log {}", header.log_guid))
        .with_expected("a log that can be replayed, or none")
}
