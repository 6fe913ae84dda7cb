//! Checks the file type identifier and the two headers.

use super::findings::Findings;
use super::severity::Severity;
use crate::error::Result;
use crate::format::header::{Header, Headers};
use crate::format::identifier::FileIdentifier;
use crate::format::region::RegionTable;
use crate::image::{named, read_what_is_there, too_short};
use crate::storage::Storage;

/// The header in use.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) header: Header,
    /// Whether its checksum is right, so that its log may be replayed.
    pub(super) is_current: bool,
}

/// Checks the start of the file. `None` if neither header can be interpreted.
///
/// # Errors
/// If no part of the file is of the format, or the file cannot be read at all.
pub(super) fn check(storage: &dyn Storage, findings: &mut Findings) -> Result<Option<Root>> {
    let mut identifier = [0; FileIdentifier::LEN];
    let read = read_what_is_there(storage, &mut identifier, 0)?;
    match FileIdentifier::parse(&identifier) {
        Err(error) if !has_other_signatures(storage)? => return Err(named(storage, error)),
        Err(error) => findings.error(error),
        Ok(_) if read < identifier.len() => {
            findings.error(too_short("identifier.length", "2.2.1", 0, read, identifier.len()));
        }
        Ok(_) => {}
    }
    let mut copies = [[0; Header::LEN]; 2];
    let mut parsed = Vec::new();
    for (copy, at) in copies.iter_mut().zip(Header::OFFSETS) {
        let read = read_what_is_there(storage, copy, at)?;
        parsed.push(match read < copy.len() {
            true => Err(too_short("header.length", "2.2.2", at, read, copy.len())),
            false => Header::parse(copy, at),
        });
    }
    let parsed: [Result<Header>; 2] = parsed.try_into().expect("one result per header");
    let bytes = [&copies[0][..], &copies[1][..]];
    let current = Headers::choose(bytes, &parsed);
    let is_one_left = parsed.iter().any(Result::is_ok);
    for (i, copy) in parsed.iter().enumerate() {
        // Expected after a crash while one header was being written: the other one is used.
        let torn = if is_one_left { Severity::Warning } else { Severity::Error };
        match copy {
            Err(error) => findings.add(torn, error.same_again()),
            Ok(header) => {
                let at = Header::OFFSETS[i];
                let counts = current.as_ref().is_ok_and(|current| *current == i);
                let severity = if counts { Severity::Error } else { Severity::Warning };
                header.inspect(at, &mut |error| findings.add(severity, error));
                Header::inspect_reserved(bytes[i], at, &mut |error| findings.warning(error));
                if let Err(error) = header.check_numbers(at) {
                    findings.warning(error);
                }
            }
        }
    }
    match current {
        Ok(current) => {
            let header = parsed.into_iter().nth(current).expect("an index below 2")?;
            let at = Header::OFFSETS[current];
            header.inspect_identity(at, &mut |error| findings.info(error));
            Ok(Some(Root { header, is_current: true }))
        }
        Err(error) => {
            if is_one_left {
                findings.error(error); // two valid headers that contradict each other
            }
            // A header with a wrong checksum may still locate the log.
            let signed = bytes.into_iter().find(|bytes| bytes.starts_with(Header::SIGNATURE));
            Ok(signed.map(|bytes| Root { header: Header::read(bytes), is_current: false }))
        }
    }
}

/// Whether a file without the file type identifier has any other signature of the format.
fn has_other_signatures(storage: &dyn Storage) -> Result<bool> {
    let headers = Header::OFFSETS.map(|at| (at, Header::SIGNATURE));
    let tables = RegionTable::OFFSETS.map(|at| (at, RegionTable::SIGNATURE));
    for (at, signature) in headers.into_iter().chain(tables) {
        let mut bytes = [0; 4];
        read_what_is_there(storage, &mut bytes, at)?;
        if bytes == *signature {
            return Ok(true);
        }
    }
    Ok(false)
}
